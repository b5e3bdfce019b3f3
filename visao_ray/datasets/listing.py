"""What lies below --data, and what of it the store does not know yet.

Folders are listed in tasks, in the order of their names, and compared with ranges of keys of the
store: no process ever holds more keys than one folder has.
"""

from __future__ import annotations

import difflib
import itertools
import json
import math
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from visao_ray.core.errors import InputError
from visao_ray.core.object_store import Listed, list_files
from visao_ray.core.resources import current_cluster
from visao_ray.core.storage import Location, is_ignored, locate, require_folder
from visao_ray.datasets.spec import SPLITS, Dataset
from visao_ray.store import schemas
from visao_ray.store.proof import Contents, as_bytes
from visao_ray.store.table import Table, TableVersion, append, quoted, write_fragments

_CHUNK = 8192  # keys compared at once
_TASKS = 64  # at most; each lists several folders
_CLOSE = 0.8  # likeness from which on a folder's name is taken for a misspelt class

#: What becomes of a file's row in `images`: it is added, it replaces columns of the one there is,
#: or it stays. LATE is an added one whose content is another file's of the same run.
APPEND, UPDATE, STAY, LATE = "append", "update", "stay", "late"

#: A file to be read, and what its row in `images` will say of it from the start.
LISTING = pa.schema(
    [
        ("key", pa.string()),
        ("etag", pa.string()),
        ("bytes", pa.int64()),
        ("label", pa.string()),
        ("group", pa.string()),
        ("wanted_split", pa.string()),
        ("row", pa.string()),  # APPEND, UPDATE or STAY
    ]
)


@dataclass(frozen=True)
class Folder:
    """A folder whose files enter alike.

    Attributes:
        prefix: below --data; empty for --data itself.
        label: the class that the folder's name says, or None.
        wanted_split: the split that the folder above asks for, or None.
        deep: whether files at any depth are meant, or those directly in it.
    """

    prefix: str
    label: str | None = None
    wanted_split: str | None = None
    deep: bool = True


@dataclass(frozen=True)
class Layout:
    """How images lie below --data.

    Attributes:
        folders: class folders, in the order of their prefixes.
        classes: names of the class folders, each once, sorted.
        others: folders that are no class; their images enter without a label.
        splits: split folders there are.
    """

    folders: tuple[Folder, ...]
    classes: tuple[str, ...]
    others: tuple[str, ...]
    splits: tuple[str, ...]

    def shares(self, val: float, test: float) -> tuple[float, float]:
        """The shares to draw by group: 0 for a split that has a folder of its own."""
        return (0.0 if "val" in self.splits else val, 0.0 if "test" in self.splits else test)


@dataclass
class Counted:
    """What a listing found.

    Attributes:
        listed: files.
        known: those that need not be read.
        added: files that the store has not seen.
        changed: files whose bytes may differ from what the store has seen, or that it could not
            read before.
        without: files that are as they were, and whose content has no results yet.
        vanished: files of the store below --data that are not there any more.
        labels: files by label; "" for none.
        fragments: of the listing table.
        gone: files with the keys of vanished ones.
    """

    listed: int = 0
    known: int = 0
    added: int = 0
    changed: int = 0
    without: int = 0
    vanished: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    fragments: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)

    @property
    def new(self) -> int:
        """Files to be read."""
        return self.added + self.changed + self.without

    def plus(self, other: Counted) -> Counted:
        """Both together."""
        return Counted(**{name: value + getattr(other, name) for name, value in vars(self).items()})


def find_layout(data: Location, dataset: Dataset, ignore: Sequence[str]) -> Layout:
    """Look at the top folders below --data.

    A folder named like a class gives its label to what is in it; what lies elsewhere has none.

    Raises:
        InputError: nothing there; a folder whose name is close to a class; something beside the
            split folders.
    """
    require_folder(data, "--data")
    top = _folders(data, ignore)
    splits = tuple(name for name in top if name in SPLITS)
    if not splits:
        return _layout(dataset, [(name, name, None) for name in top], splits, data)
    other = [name for name in top if name not in SPLITS]
    if other:
        raise InputError(
            f"{data.uri}: folder '{other[0]}' beside {', '.join(splits)}; move it away or pass "
            f"--ignore '{other[0]}'"
        )
    if "train" not in splits:
        raise InputError(f"{data.uri}: has {', '.join(splits)} but no train folder")
    # Where a split has no folder, train's images are drawn into it.
    fixed = set(splits) if {"val", "test"} <= set(splits) else set(splits) - {"train"}
    rows = [
        (f"{split}/{name}", name, split if split in fixed else None)
        for split in splits
        for name in _folders(data.join(split), ignore)
    ]
    return _layout(dataset, rows, splits, data)


def _layout(
    dataset: Dataset,
    rows: Sequence[tuple[str, str, str | None]],
    splits: tuple[str, ...],
    data: Location,
) -> Layout:
    others = sorted({name for _, name, _ in rows if not dataset.has_class(name)})
    for name in others:
        by_case = {known.casefold(): known for known in dataset.classes}
        close = difflib.get_close_matches(name.casefold(), list(by_case), n=1, cutoff=_CLOSE)
        if close:
            raise InputError(
                f"{data.uri}: folder '{name}' is no class of dataset {dataset.name}, but close to "
                f"'{by_case[close[0]]}'; rename it, or pass --ignore '{name}'"
            )
    folders = tuple(
        Folder(prefix, name if dataset.has_class(name) else None, split)
        for prefix, name, split in sorted(rows)
    )
    classes = tuple(sorted({folder.label for folder in folders if folder.label is not None}))
    return Layout(folders, classes, tuple(others), splits)


def _folders(location: Location, ignore: Sequence[str]) -> list[str]:
    return [
        entry.name
        for entry in location.children()
        if entry.is_folder and not is_ignored(entry.name, ignore)
    ]


@dataclass(frozen=True)
class Search:
    """What every listing task is given.

    Attributes:
        data: the folder or prefix.
        dataset: tells groups.
        ignore: names of folders that are left out.
        images: the store's table of files; None where there is none yet.
        without: reference to the contents without results, sorted, `S32`; None: ask for none.
        listing: URI of the table that the tasks write to.
        quota: at most so many files a folder.
        gone: folder for keys of vanished files; None: they are counted only.
    """

    data: Location
    dataset: Dataset
    ignore: tuple[str, ...]
    images: TableVersion | None
    without: Any
    listing: str
    quota: int | None
    gone: Location | None


def list_new(search: Search, layout: Layout) -> tuple[TableVersion, Counted]:
    """List --data and write what is to be read to a new table of `LISTING`, in the order of keys.

    Returns the table and the counts. Runs in the driver; the work is done in tasks.
    """
    import ray

    table = Table(locate(search.listing))
    table.create(LISTING)
    tops = ("", *layout.splits)
    folders = [*layout.folders, *(Folder(top, deep=False) for top in tops)]
    cluster = current_cluster()
    size = -(-len(folders) // min(_TASKS, math.ceil(2 * cluster.total("CPU"))))
    parts = [folders[start : start + size] for start in range(0, len(folders), size)]
    prefixes = [folder.prefix for folder in folders if folder.prefix]
    task = ray.remote(_list_part).options(
        **cluster.zero_cpu_options, max_retries=3, retry_exceptions=[OSError]
    )
    counted = Counted()
    for found in ray.get([task.remote(part, prefixes, search) for part in parts]):
        counted = counted.plus(found)
    return append(table.latest(), counted.fragments), counted


def _list_part(folders: Sequence[Folder], prefixes: Sequence[str], search: Search) -> Counted:
    import ray

    without = ray.get(search.without) if search.without is not None else None
    counted = Counted()
    for folder in folders:
        counted = counted.plus(_list_folder(folder, prefixes, search, without))
    return counted


def _list_folder(
    folder: Folder, prefixes: Sequence[str], search: Search, without: Contents | None
) -> Counted:
    root = search.data.uri.rstrip("/")
    begin = f"{root}/{folder.prefix}/" if folder.prefix else f"{root}/"
    inside = [f"{root}/{prefix}/" for prefix in prefixes if not folder.deep]
    inside = [prefix for prefix in inside if prefix != begin and prefix.startswith(begin)]

    place = search.data.join(folder.prefix) if folder.prefix else search.data
    files: Iterable[Listed] = (
        Listed(f"{begin}{listed.path}", listed.bytes, listed.etag)
        for listed in list_files(place, search.ignore, recursive=folder.deep)
    )
    files = sorted(files)  # disks list in no order, and some servers folder by folder
    if search.quota is not None:
        files = itertools.islice(files, search.quota)
    counted = Counted()
    after = begin
    for chunk, last in _chunks(files):
        # The last range goes to the end of the folder: what stands there has vanished.
        end = f"{last}\0" if last is not None else _behind(begin)
        known = _known(search.images, after, end, inside)
        rows = []
        for listed in chunk:
            fate = _fate(listed, known.pop(listed.path, None), without)
            _count(counted, fate, folder.label)
            if fate is not None:
                rows.append(_row(listed, fate, folder, search.dataset))
        if search.quota is None:
            _vanished(counted, known, search)
        if rows:
            table = pa.Table.from_pylist(rows, schema=LISTING)
            counted.fragments += write_fragments(search.listing, LISTING, table)
        after = end
    return counted


def _chunks(files: Iterable[Listed]) -> Iterator[tuple[list[Listed], str | None]]:
    """Files in chunks, each with its last key; None for the last chunk, which may be empty."""
    iterator = iter(files)
    while chunk := list(itertools.islice(iterator, _CHUNK)):
        if len(chunk) < _CHUNK:
            break
        yield chunk, chunk[-1].path
    yield chunk, None


def _behind(prefix: str) -> str:
    """The first key that no longer begins with a prefix that ends in a slash."""
    return prefix[:-1] + chr(ord("/") + 1)


def _known(
    images: TableVersion | None, begin: str, end: str, without: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """The store's files by key, from `begin` on and before `end`, but none below some prefixes."""
    if images is None:
        return {}
    columns = ["key", "etag", "bytes", "content_id", "status"]
    found: dict[str, dict[str, Any]] = {}
    for prefix in [*sorted(without), None]:
        stop = end if prefix is None else min(prefix, end)
        if begin < stop:
            where = f"key >= {quoted(begin)} AND key < {quoted(stop)}"
            found |= {row["key"]: row for row in images.read(columns, where).to_pylist()}
        if prefix is not None:
            begin = max(begin, _behind(prefix))
    return found


def _fate(listed: Listed, known: dict[str, Any] | None, without: Contents | None) -> str | None:
    """What becomes of a file's row in `images`; None where the file need not be read."""
    if known is None:
        return APPEND
    same = (known["etag"], known["bytes"]) == (listed.etag, listed.bytes)
    if not same or known["status"] not in schemas.LASTING:
        return UPDATE
    if without is None or known["content_id"] is None or not len(without):
        return None
    content = np.frombuffer(known["content_id"], "S32")
    place = int(np.searchsorted(without, content)[0])
    return STAY if place < len(without) and without[place] == content[0] else None


def _count(counted: Counted, fate: str | None, label: str | None) -> None:
    counted.listed += 1
    counted.labels[label or ""] += 1
    name = {None: "known", APPEND: "added", UPDATE: "changed", STAY: "without"}[fate]
    setattr(counted, name, getattr(counted, name) + 1)


def _vanished(counted: Counted, known: dict[str, dict[str, Any]], search: Search) -> None:
    keys = [key for key, row in known.items() if row["status"] != schemas.MISSING]
    counted.vanished += len(keys)
    if keys and search.gone is not None:
        place = search.gone.join(f"{uuid.uuid4().hex}.json")
        place.write_bytes(json.dumps(keys).encode())
        counted.gone.append(place.uri)


def _row(listed: Listed, fate: str, folder: Folder, dataset: Dataset) -> dict[str, Any]:
    return {
        "key": listed.path,
        "etag": listed.etag,
        "bytes": listed.bytes,
        "label": folder.label,
        "group": dataset.group_of(listed.path),
        "wanted_split": folder.wanted_split,
        "row": fate,
    }


def list_contents(
    images: TableVersion, contents: Contents, listing: str, where: str | None = None
) -> tuple[TableVersion, int]:
    """Write a table of `LISTING` with one file of each of the contents. For a task.

    Args:
        images: the store's table of files.
        contents: sorted, as `S32`.
        listing: URI of the new table.
        where: SQL expression on `images` that restricts the files.

    Returns:
        The table, and how many files it has.
    """
    table = Table(locate(listing))
    table.create(LISTING)
    wanted = f"status = '{schemas.OK}'" + (f" AND ({where})" if where else "")
    columns = ["content_id", "key", "etag", "bytes", "label", "group"]
    seen = np.zeros(len(contents), bool)
    fragments: list[str] = []
    for batch in images.scan(columns, wanted, _CHUNK):
        ids = as_bytes(batch["content_id"])
        places = np.minimum(np.searchsorted(contents, ids), max(len(contents) - 1, 0))
        hit = contents[places] == ids if len(contents) else np.zeros(len(ids), bool)
        hit[hit] &= ~seen[places[hit]]
        chosen = np.flatnonzero(hit)
        _, first = np.unique(places[chosen], return_index=True)
        chosen = np.sort(chosen[first])
        seen[places[chosen]] = True
        if len(chosen):
            part = pa.table(batch).drop_columns(["content_id"]).take(pa.array(chosen))
            part = part.append_column("wanted_split", pa.nulls(len(chosen), pa.string()))
            part = part.append_column("row", pa.array([STAY] * len(chosen), pa.string()))
            fragments += write_fragments(listing, LISTING, part)
    return append(table.latest(), fragments), int(seen.sum())


def to_counts(counted: Counted) -> dict[str, Any]:
    """The counts as result.json has them."""
    found = asdict(counted)
    del found["fragments"], found["gone"]
    return {**found, "new": counted.new, "labels": dict(sorted(counted.labels.items()))}
