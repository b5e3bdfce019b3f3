"""List the files below --data, and find those that the store does not know yet.

Tasks list folders in the order of their names and compare them with ranges of keys in the store, so
no process holds more keys than one folder has.
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

_CHUNK = 8192  # keys compared at a time
_TASKS = 64  # most listing tasks; each lists one or more folders
_CLOSE = 0.8  # similarity above which a folder's name counts as a misspelt class

#: What happens to a file's row in `images`: it is appended, it updates columns of the existing row,
#: or the existing row stays unchanged. LATE is an appended row of a file that has the same content
#: as another file of the run.
APPEND, UPDATE, STAY, LATE = "append", "update", "stay", "late"

#: Schema of a listing: files to read, with the first values of their rows in `images`.
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
    """A folder whose files get the same label and split.

    Attributes:
        prefix: path below --data; empty for --data itself.
        label: class named by the folder, or None.
        wanted_split: split named by the parent folder, or None.
        deep: whether to list files at any depth, or only those directly in the folder.
    """

    prefix: str
    label: str | None = None
    wanted_split: str | None = None
    deep: bool = True


@dataclass(frozen=True)
class Layout:
    """The folders below --data.

    Attributes:
        folders: folders to list, in the order of their prefixes.
        classes: distinct names of the class folders, sorted.
        others: names of folders that are not a class; their images get no label.
        splits: split folders that exist.
    """

    folders: tuple[Folder, ...]
    classes: tuple[str, ...]
    others: tuple[str, ...]
    splits: tuple[str, ...]

    def shares(self, val: float, test: float) -> tuple[float, float]:
        """Return the shares of val and test to draw by group: 0 if the split has a folder."""
        return (0.0 if "val" in self.splits else val, 0.0 if "test" in self.splits else test)


@dataclass
class ListingCounts:
    """Counts of a listing.

    Attributes:
        listed: files found.
        known: files that need not be read.
        added: files that are not in the store.
        changed: files whose bytes may have changed, or that could not be read before.
        without: unchanged files whose content has no results yet.
        vanished: files of the store that are no longer below --data.
        labels: number of files by label; "" for no label.
        fragments: metadata of the fragments of the listing table, as JSON.
        gone: URIs of JSON files that hold the keys of vanished files.
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
        """Number of files to read."""
        return self.added + self.changed + self.without

    def plus(self, other: ListingCounts) -> ListingCounts:
        """Return the sum of both counts."""
        return ListingCounts(
            **{name: value + getattr(other, name) for name, value in vars(self).items()}
        )


def find_layout(data: Location, dataset: Dataset, ignore: Sequence[str]) -> Layout:
    """Find the class and split folders below --data.

    The files in a folder named after a class get this label; other files get no label.

    Args:
        data: folder or prefix of the images.
        dataset: dataset that defines the classes.
        ignore: names of folders to skip.

    Returns:
        The layout.

    Raises:
        InputError: there is nothing below --data, the name of a folder is close to that of a class,
            or there are other folders beside the split folders.
    """
    require_folder(data, "--data")
    top = _folders(data, ignore)
    splits = tuple(name for name in top if name in SPLITS)
    if not splits:
        return _layout(dataset, [(name, name, None) for name in top], splits, data)
    other = [name for name in top if name not in SPLITS]
    if other:
        raise InputError(
            f"{data.uri}: folder '{other[0]}' is next to {', '.join(splits)}; move it or pass "
            f"--ignore '{other[0]}'"
        )
    if "train" not in splits:
        raise InputError(f"{data.uri}: has {', '.join(splits)} but no train folder")
    # Images of train are drawn for a split that has no folder.
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
class ListingSpec:
    """Arguments of every listing task.

    Attributes:
        data: the folder or prefix.
        dataset: dataset that defines the groups.
        ignore: names of folders to skip.
        images: the store's table `images`, or None if it does not exist yet.
        without: object reference to the contents without results, sorted, `S32`[N]; None to treat
            all known contents as done.
        listing: URI of the table that the tasks write to.
        quota: largest number of files per folder, or None.
        gone: folder for the keys of vanished files; None only counts them.
    """

    data: Location
    dataset: Dataset
    ignore: tuple[str, ...]
    images: TableVersion | None
    without: Any
    listing: str
    quota: int | None
    gone: Location | None


def list_new(spec: ListingSpec, layout: Layout) -> tuple[TableVersion, ListingCounts]:
    """List --data and write the files to read to a new table of schema `LISTING`, ordered by key.

    Call it in the driver; it starts tasks that do the work.

    Args:
        spec: arguments of the tasks.
        layout: folders to list.

    Returns:
        The table and the counts.
    """
    import ray

    table = Table(locate(spec.listing))
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
    counts = ListingCounts()
    for found in ray.get([task.remote(part, prefixes, spec) for part in parts]):
        counts = counts.plus(found)
    return append(table.latest(), counts.fragments), counts


def _list_part(
    folders: Sequence[Folder], prefixes: Sequence[str], spec: ListingSpec
) -> ListingCounts:
    import ray

    without = ray.get(spec.without) if spec.without is not None else None
    counts = ListingCounts()
    for folder in folders:
        counts = counts.plus(_list_folder(folder, prefixes, spec, without))
    return counts


def _list_folder(
    folder: Folder, prefixes: Sequence[str], spec: ListingSpec, without: Contents | None
) -> ListingCounts:
    root = spec.data.uri.rstrip("/")
    begin = f"{root}/{folder.prefix}/" if folder.prefix else f"{root}/"
    inside = [f"{root}/{prefix}/" for prefix in prefixes if not folder.deep]
    inside = [prefix for prefix in inside if prefix != begin and prefix.startswith(begin)]

    place = spec.data.join(folder.prefix) if folder.prefix else spec.data
    files: Iterable[Listed] = (
        Listed(f"{begin}{listed.path}", listed.bytes, listed.etag)
        for listed in list_files(place, spec.ignore, recursive=folder.deep)
    )
    files = sorted(files)  # disks list in arbitrary order, and some servers folder by folder
    if spec.quota is not None:
        files = itertools.islice(files, spec.quota)
    counts = ListingCounts()
    after = begin
    for chunk, last in _chunks(files):
        # The last range extends to the end of the folder, to find files that have vanished.
        end = f"{last}\0" if last is not None else _end_of_prefix(begin)
        known = _known(spec.images, after, end, inside)
        rows = []
        for listed in chunk:
            action = _row_action(listed, known.pop(listed.path, None), without)
            _count(counts, action, folder.label)
            if action is not None:
                rows.append(_row(listed, action, folder, spec.dataset))
        if spec.quota is None:
            _vanished(counts, known, spec)
        if rows:
            table = pa.Table.from_pylist(rows, schema=LISTING)
            counts.fragments += write_fragments(spec.listing, LISTING, table)
        after = end
    return counts


def _chunks(files: Iterable[Listed]) -> Iterator[tuple[list[Listed], str | None]]:
    """Yield chunks of files with their last key; None for the last chunk, which may be empty."""
    iterator = iter(files)
    while chunk := list(itertools.islice(iterator, _CHUNK)):
        if len(chunk) < _CHUNK:
            break
        yield chunk, chunk[-1].path
    yield chunk, None


def _end_of_prefix(prefix: str) -> str:
    """Return the smallest key after all keys with a prefix; the prefix ends in a slash."""
    return prefix[:-1] + chr(ord("/") + 1)


def _known(
    images: TableVersion | None, begin: str, end: str, without: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return the store's rows by key with `begin` <= key < `end`, except below some prefixes."""
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
            begin = max(begin, _end_of_prefix(prefix))
    return found


def _row_action(
    listed: Listed, known: dict[str, Any] | None, without: Contents | None
) -> str | None:
    """Return what happens to a file's row in `images`; None if the file need not be read."""
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


def _count(counts: ListingCounts, action: str | None, label: str | None) -> None:
    counts.listed += 1
    counts.labels[label or ""] += 1
    name = {None: "known", APPEND: "added", UPDATE: "changed", STAY: "without"}[action]
    setattr(counts, name, getattr(counts, name) + 1)


def _vanished(counts: ListingCounts, known: dict[str, dict[str, Any]], spec: ListingSpec) -> None:
    keys = [key for key, row in known.items() if row["status"] != schemas.MISSING]
    counts.vanished += len(keys)
    if keys and spec.gone is not None:
        place = spec.gone.join(f"{uuid.uuid4().hex}.json")
        place.write_bytes(json.dumps(keys).encode())
        counts.gone.append(place.uri)


def _row(listed: Listed, action: str, folder: Folder, dataset: Dataset) -> dict[str, Any]:
    return {
        "key": listed.path,
        "etag": listed.etag,
        "bytes": listed.bytes,
        "label": folder.label,
        "group": dataset.group_of(listed.path),
        "wanted_split": folder.wanted_split,
        "row": action,
    }


def list_contents(
    images: TableVersion, contents: Contents, listing: str, where: str | None = None
) -> tuple[TableVersion, int]:
    """Write a table of schema `LISTING` with one file for each content. Call it in a task.

    Args:
        images: the store's table `images`.
        contents: `S32`[N], sorted.
        listing: URI of the new table.
        where: SQL expression on `images` that restricts the files.

    Returns:
        The table and its number of rows.
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


def to_counts(counts: ListingCounts) -> dict[str, Any]:
    """Return the counts as they are written to result.json."""
    found = asdict(counts)
    del found["fragments"], found["gone"]
    return {**found, "new": counts.new, "labels": dict(sorted(counts.labels.items()))}
