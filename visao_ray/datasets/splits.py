"""Assignment of images to train, val or test: permanent, and whole groups at a time."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

#: Order of precedence when equally many images want different splits.
_ORDER = ("test", "val", "train")
_UNDECIDED = len(_ORDER)
_HASH_BATCH = 65_536  # group names converted to Python strings at a time

Codes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Contradiction:
    """A group or a content whose images are in more than one split.

    Attributes:
        kind: `group` or `content`.
        name: name of the group, or SHA-256 of the content in hexadecimal.
        examples: first key in alphabetical order, by split; "" if the group was assigned to the
            split with earlier images.
    """

    kind: str
    name: str
    examples: dict[str, str]

    def __str__(self) -> str:
        places = (f"{split} ({key or 'earlier images'})" for split, key in self.examples.items())
        return f"{self.kind} {self.name} is in {' and in '.join(places)}"


@dataclass(frozen=True)
class Decision:
    """Result of `decide_splits`.

    Attributes:
        splits: columns key and split of every row that had no split, in the order of the rows.
        groups: columns group and split of every new group, in alphabetical order.
        contradictions: groups first, then contents, each in alphabetical order.
    """

    splits: pa.Table
    groups: pa.Table
    contradictions: list[Contradiction]


def assign_split(group: str, seed: int, val_share: float, test_share: float) -> str:
    """Assign a group to a split by a hash of its name.

    The split depends only on the name, the seed and the shares, so an image added to the dataset
    moves no other image. Every class gets its share in expectation; with exact quotas, the split of
    one image would depend on the others.

    Args:
        group: name of the group.
        seed: seed of the hash.
        val_share: share of groups in val; 0 for none.
        test_share: share of groups in test; 0 for none.

    Returns:
        `train`, `val` or `test`.
    """
    digest = hashlib.sha256(f"{seed}/{group}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < test_share:
        return "test"
    return "val" if position < test_share + val_share else "train"


def decide_splits(
    rows: pa.Table, known: pa.Table, *, seed: int, val_share: float, test_share: float
) -> Decision:
    """Decide the split of images that have none, without changing earlier decisions.

    This is a pure function. An image gets the split that its folder or labels file asks for, else
    the split of its group. New groups that share a content, directly or through other new groups,
    form a component. All groups of a component get the same split:

    1. the split of images of known groups that share one of its contents; if these disagree, those
       of the group that was seen first count;
    2. else the split that most of its images ask for (test before val before train on a tie);
    3. else the split given by the hash of its first group in alphabetical order.

    The order of rows does not matter. If the new groups were written but the splits of the images
    were not, a repetition decides the same.

    Args:
        rows: all images without a split, and the images with a split that share a content or a
            group with them. Columns key (string), content_id (fixed_size_binary(32); null: not
            known), group (string; null: the key), wanted_split (string; null: none), split
            (string; null: not decided yet).
        known: known groups, at least those that occur in `rows`. Columns group (string), split
            (string), first_seen (timestamp).
        seed: seed of the hash.
        val_share: share of groups that are hashed to val.
        test_share: share of groups that are hashed to test.

    Returns:
        The new splits of images and groups, and the contradictions.
    """
    keys = _text(rows["key"])
    names, group = _encode(pc.coalesce(_text(rows["group"]), keys))
    contents, content = _encode(_column(rows["content_id"]))
    split, wanted = _split_codes(rows["split"]), _split_codes(rows["wanted_split"])
    undecided = split == _UNDECIDED
    rank = _ranks(names)

    place = _codes(pc.index_in(names, value_set=_text(known["group"])), -1)
    new = place < 0
    group_split = _split_codes(known["split"])[place] if len(known) else np.zeros(len(names), int)
    group_split[new] = _UNDECIDED

    # Splits of rows that do not depend on the new groups.
    final = _first_decided(split, wanted, np.where(new[group], _UNDECIDED, group_split[group]))
    component = _components(group, content, new, len(names), len(contents))
    of_group, of_content = component[: len(names)], component[len(names) :]
    count = int(component.max(initial=-1)) + 1

    chosen = np.full(count, _UNDECIDED)
    fixed = np.flatnonzero(~new[group] & (content >= 0) & (final != _UNDECIDED))
    seen = _first_seen(known)[place[group[fixed]]]
    apart = final[fixed] != group_split[group[fixed]]
    order = np.lexsort((final[fixed], apart, rank[group[fixed]], seen))[::-1]
    chosen[of_content[content[fixed[order]]]] = final[fixed[order]]  # the last assignment wins

    asking = np.flatnonzero(new[group] & (final != _UNDECIDED))
    votes = np.zeros((count, len(_ORDER)), np.int64)
    np.add.at(votes, (of_group[group[asking]], final[asking]), 1)
    chosen = np.where((chosen == _UNDECIDED) & votes.any(axis=1), votes.argmax(axis=1), chosen)

    fresh = np.flatnonzero(new)
    fresh = fresh[np.argsort(rank[fresh])]
    hashed = fresh[chosen[of_group[fresh]] == _UNDECIDED]
    _, first = np.unique(of_group[hashed], return_index=True)  # the first in alphabetical order
    leaders = hashed[first]
    chosen[of_group[leaders]] = _hashed(names, leaders, seed, val_share, test_share)

    group_split[fresh] = chosen[of_group[fresh]]
    final = _first_decided(final, group_split[group])
    return Decision(
        splits=pa.table(
            {"key": keys.filter(pa.array(undecided)), "split": _text_of(final[undecided])}
        ),
        groups=pa.table(
            {"group": names.take(pa.array(fresh)), "split": _text_of(group_split[fresh])}
        ),
        contradictions=[
            *_group_contradictions(keys, names, group, final, undecided & ~new[group], group_split),
            *_contradictions("content", keys, contents, content, final),
        ],
    )


def _components(
    group: Codes, content: Codes, new: npt.NDArray[np.bool_], groups: int, contents: int
) -> npt.NDArray[np.int32]:
    """Return component numbers of groups, then contents; known groups connect nothing."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    edges = new[group] & (content >= 0)
    ends = group[edges], groups + content[edges]
    nodes = groups + contents
    graph = coo_array((np.ones(len(ends[0]), np.int8), ends), shape=(nodes, nodes))
    found: npt.NDArray[np.int32] = connected_components(graph, directed=False)[1]
    return found


def _hashed(
    names: pa.Array, chosen: Codes, seed: int, val_share: float, test_share: float
) -> Codes:
    """Return the codes of the splits that the hash gives to the `chosen` groups."""
    found = np.empty(len(chosen), np.int64)
    for start in range(0, len(chosen), _HASH_BATCH):
        part = chosen[start : start + _HASH_BATCH]
        found[start : start + len(part)] = [
            _ORDER.index(assign_split(name, seed, val_share, test_share))
            for name in names.take(pa.array(part)).to_pylist()
        ]
    return found


def _group_contradictions(
    keys: pa.Array,
    names: pa.Array,
    group: Codes,
    final: Codes,
    added: npt.NDArray[np.bool_],
    group_split: Codes,
) -> list[Contradiction]:
    """Find groups whose rows are in more than one split; `added` are new rows of known groups."""
    apart = np.unique(group[added & (final != group_split[group])])
    # Add a row for each of them with the split of the group itself.
    keys = pa.concat_arrays([keys, pa.nulls(len(apart), keys.type)])
    group, final = np.append(group, apart), np.append(final, group_split[apart])
    return _contradictions("group", keys, names, group, final)


def _contradictions(
    kind: str, keys: pa.Array, names: pa.Array, code: Codes, final: Codes
) -> list[Contradiction]:
    """Find names whose rows are in more than one split, and the first key in each split.

    Null keys come last.
    """
    rows = np.flatnonzero(code >= 0)
    pairs = np.unique(code[rows] * len(_ORDER) + final[rows])
    codes, times = np.unique(pairs // len(_ORDER), return_counts=True)
    rows = rows[np.isin(code[rows], codes[times > 1])]
    table = pa.table({"code": code[rows], "split": final[rows], "key": keys.take(pa.array(rows))})
    table = table.group_by(["code", "split"]).aggregate([("key", "min")])
    found: dict[int, dict[str, str]] = {}
    for row in table.sort_by([("code", "ascending"), ("split", "descending")]).to_pylist():
        found.setdefault(row["code"], {})[_ORDER[row["split"]]] = row["key_min"] or ""
    titles = names.take(pa.array(list(found), pa.int64())).to_pylist()
    return sorted(
        (
            Contradiction(kind, title.hex() if isinstance(title, bytes) else title, examples)
            for title, examples in zip(titles, found.values(), strict=True)
        ),
        key=lambda one: one.name,
    )


def _first_decided(*choices: Codes) -> Codes:
    """Return, for each row, the first code that is a split."""
    found = choices[0]
    for choice in choices[1:]:
        found = np.where(found == _UNDECIDED, choice, found)
    return found


def _first_seen(known: pa.Table) -> npt.NDArray[np.int64]:
    """Return the times at which known groups were first seen; unknown times come last."""
    times = pc.fill_null(_column(known["first_seen"]).cast(pa.int64()), np.iinfo(np.int64).max)
    return np.asarray(times, np.int64)


def _encode(column: pa.Array) -> tuple[pa.Array, Codes]:
    """Return the distinct values, and the index of each row's value; -1 for null."""
    encoded = column.dictionary_encode()
    return encoded.dictionary, _codes(encoded.indices, -1)


def _ranks(names: pa.Array) -> Codes:
    """Return the position of each name in alphabetical order."""
    rank = np.empty(len(names), np.int64)
    rank[np.asarray(pc.sort_indices(names))] = np.arange(len(names))
    return rank


def _split_codes(column: pa.ChunkedArray) -> Codes:
    return _codes(pc.index_in(_text(column), value_set=pa.array(_ORDER)), _UNDECIDED)


def _codes(indices: pa.Array, null: int) -> Codes:
    return np.array(pc.fill_null(indices.cast(pa.int64()), null), np.int64)


def _text_of(codes: Codes) -> pa.Array:
    return pa.array(_ORDER).take(pa.array(codes))


def _text(column: pa.ChunkedArray) -> pa.Array:
    return _column(column).cast(pa.string())


def _column(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks()
