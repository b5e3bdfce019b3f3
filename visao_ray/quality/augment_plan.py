"""Which augmented copies there should be, and which of them exist.

The copies are a function of the store's train images and of the settings alone, so a folder that
grew day by day holds the same files as one that is made at once.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visao_ray.core.errors import InputError
from visao_ray.core.object_store import list_files
from visao_ray.core.storage import Location, locate
from visao_ray.datasets.spec import SPLITS
from visao_ray.store import table
from visao_ray.store.join import Snapshot, read_examples
from visao_ray.store.proof import Contents, as_bytes
from visao_ray.store.rows import places_of
from visao_ray.store.table import Table, TableVersion, write_fragments

_PREFIX = 16  # bytes of a content's digest in the name of its copies: enough to be unique
_LONGEST = _PREFIX + 4
_SCAN_ROWS = 65_536
_CHUNK = 4096  # images of a fragment of the listing
_DELETERS = 16  # threads that delete files
_NAME = re.compile(r"([^/]+)/([0-9a-f]{32})-(\d{1,5})\.jpg")

#: Images to make copies of, with the numbers of the views that are missing.
LISTING = pa.schema(
    [
        ("content_id", pa.binary(32)),
        ("source", pa.string()),
        ("label", pa.string()),
        ("views", pa.list_(pa.int16())),
    ]
)

#: Identifiers of copies, S20[N]: digest, position of the label, view.
Identifiers = npt.NDArray[np.bytes_]


@dataclass(frozen=True)
class CopySpec:
    """Everything that decides the pixels and the place of a copy.

    Attributes:
        recipe: name of the augmentation recipe.
        seed: seed of the augmentation.
        image_size: side of the square copies, in pixels.
        resize: how an image is made square.
        quality: quality of the JPEG, 1 to 100.
        folder: URI of the folder of the copies.
    """

    recipe: str
    seed: int
    image_size: int
    resize: Literal["stretch", "letterbox"]
    quality: int
    folder: str

    def place(self, label: str, content_id: bytes, view: int) -> Location:
        """Return the file of a copy."""
        return locate(self.folder).join(label, f"{content_id[:_PREFIX].hex()}-{view}.jpg")


@dataclass(frozen=True)
class Amount:
    """How many copies of each image there should be.

    Attributes:
        copies: copies per image; with `balance`, per image of the largest class.
        balance: make as many copies of each class as of the largest one.
        most: most copies of one image.
        originals: make view 0 too, which is the image itself.
    """

    copies: int
    balance: bool
    most: int
    originals: bool

    def of_images(
        self, labels: npt.NDArray[np.int64], draws: npt.NDArray[np.uint64]
    ) -> npt.NDArray[np.int64]:
        """Divide the copies among the images.

        Args:
            labels: int64[N] indices of labels.
            draws: uint64[N] in random order; of a class whose copies cannot be divided evenly, the
                images with the smallest numbers get one more.

        Returns:
            The number of augmented copies of each image, int64[N]; view 0 is not counted.
        """
        wanted = np.full(len(labels), self.copies, np.int64)
        if not self.balance or not len(labels):
            return wanted
        sizes = np.bincount(labels)
        target = self.copies * int(sizes.max())
        for label in np.flatnonzero(sizes):
            rows = np.flatnonzero(labels == label)
            each, rest = divmod(target, len(rows))
            wanted[rows] = each
            wanted[rows[np.argsort(draws[rows], kind="stable")[:rest]]] += 1
        return np.minimum(wanted, self.most)


@dataclass(frozen=True)
class CopyPlan:
    """What a run has to do.

    Attributes:
        table: the table of copies without rows that are no longer wanted.
        listing: a table of schema `LISTING`, with the copies to make.
        rows: number of rows of the listing.
        images: labelled train images, by label.
        copies: copies that there should be, by label.
        known: copies that exist.
        removed: files that were removed, because their image was dropped, has another label or
            needs fewer copies.
        conflicts: contents that were left out because their files have different labels.
    """

    table: TableVersion
    listing: TableVersion
    rows: int
    images: dict[str, int] = field(default_factory=dict)
    copies: dict[str, int] = field(default_factory=dict)
    known: int = 0
    removed: int = 0
    conflicts: int = 0

    @property
    def new(self) -> int:
        """Number of copies to make."""
        return sum(self.copies.values()) - self.known


def plan_copies(
    snapshot: Snapshot, made: TableVersion, spec: CopySpec, amount: Amount, listing: str
) -> CopyPlan:
    """Compare the copies that there should be with the table and the files; remove what is left.

    Call it in a task of the writer: 300 bytes per image and 100 per copy at the peak.

    Args:
        snapshot: versions of the store.
        made: table of the copies.
        spec: pixels and places.
        amount: how many there should be.
        listing: URI of a new table for the copies to make.

    Returns:
        The plan.

    Raises:
        InputError: there are no labelled train images, or a label cannot be a folder.
    """
    examples = read_examples(snapshot, SPLITS[:1])
    if not len(examples):
        raise InputError(f"--store {snapshot.store}: has no labelled train images")
    names = sorted(set(examples.labels.dictionary.to_pylist()))
    for name in names:
        if "/" in name or name.startswith("."):
            raise InputError(f"label '{name}': cannot be the name of a folder; choose another one")
    code = {name: place for place, name in enumerate(names)}
    codes = np.array([code[name] for name in examples.labels.dictionary.to_pylist()], np.int64)
    labels = codes[examples.labels.indices.to_numpy()]
    counts = amount.of_images(labels, _draws(examples.contents, spec.seed))
    first = 0 if amount.originals else 1
    per_image = counts + 1 - first
    image = np.repeat(np.arange(len(examples)), per_image)
    starts = np.cumsum(per_image) - per_image
    view = np.arange(len(image)) - np.repeat(starts, per_image) + first
    wanted = _identifiers(_digests(examples.contents)[image], labels[image], view)

    files, sizes, strangers = _files(locate(spec.folder), code, wanted)
    rows, row_sizes, row_ids = _rows(made, code)
    good = np.isin(rows, wanted) & (row_sizes == _values_at(files, sizes, rows))
    good &= ~_repeats(rows)
    made = table.delete(made, row_ids[~good].tolist())
    _delete(strangers)

    missing = ~np.isin(wanted, rows[good])
    lacking = np.bincount(image[missing], minlength=len(examples))
    places = np.flatnonzero(lacking)
    begins = np.concatenate([[0], np.cumsum(lacking[places])])  # of the views of each place
    missing_views = view[missing]
    digests = _digests(examples.contents)
    target = Table(locate(listing))
    target.create(LISTING)
    fragments: list[str] = []
    for start in range(0, len(places), _CHUNK):
        chosen = places[start : start + _CHUNK]
        bounds = begins[start : start + len(chosen) + 1]
        offsets = pa.array(bounds - bounds[0], pa.int32())
        part = pa.array(missing_views[bounds[0] : bounds[-1]], pa.int16())
        columns = [
            pa.array([bytes(one) for one in digests[chosen]], pa.binary(32)),
            examples.keys.take(pa.array(chosen)),
            pa.array([names[label] for label in labels[chosen]], pa.string()),
            pa.ListArray.from_arrays(offsets, part),
        ]
        fragments += write_fragments(listing, LISTING, pa.table(columns, schema=LISTING))
    sums = np.bincount(labels, per_image, len(names)).astype(int).tolist()
    return CopyPlan(
        table=made,
        listing=table.append(target.latest(), fragments),
        rows=len(places),
        images=dict(zip(names, np.bincount(labels, minlength=len(names)).tolist(), strict=True)),
        copies=dict(zip(names, sums, strict=True)),
        known=len(wanted) - int(missing.sum()),
        removed=len(strangers),
        conflicts=examples.conflicts,
    )


def _digests(contents: Contents) -> npt.NDArray[np.uint8]:
    """Return digests as uint8[N, 32]."""
    return np.ascontiguousarray(contents).view(np.uint8).reshape(len(contents), 32)


def _draws(contents: Contents, seed: int) -> npt.NDArray[np.uint64]:
    """Return a random number of each content that depends on it and the seed alone, uint64[N]."""
    salt = f"{seed}".encode()
    draws = [
        int.from_bytes(hashlib.sha256(salt + bytes(one)).digest()[:8]) for one in _digests(contents)
    ]
    return np.array(draws, np.uint64)


def _identifiers(
    digests: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], views: npt.NDArray[np.int64]
) -> Identifiers:
    found = np.empty((len(digests), _LONGEST), np.uint8)
    found[:, :_PREFIX] = digests[:, :_PREFIX]
    for place, numbers in ((_PREFIX, labels), (_PREFIX + 2, views)):
        found[:, place : place + 2] = numbers.astype(">u2").view(np.uint8).reshape(-1, 2)
    return found.view(f"S{_LONGEST}").reshape(-1)


def _files(
    folder: Location, code: dict[str, int], wanted: Identifiers
) -> tuple[Identifiers, npt.NDArray[np.int64], list[Location]]:
    """List the files of the folder that are named like copies.

    Returns the identifiers and sizes of wanted ones, and the files that are not wanted.
    """
    digests, labels, views, sizes = bytearray(), [], [], []
    strangers = []
    for found in list_files(folder):
        match = _NAME.fullmatch(found.path)
        if match is None:
            continue
        label, digest, view = match.groups()
        if label not in code or int(view) >= 2**16:
            strangers.append(folder.join(found.path))
            continue
        digests += bytes.fromhex(digest)
        labels.append(code[label])
        views.append(int(view))
        sizes.append(found.bytes)
    prefixes = np.frombuffer(bytes(digests), np.uint8).reshape(-1, _PREFIX)
    ids = _identifiers(prefixes, np.array(labels, np.int64), np.array(views, np.int64))
    keep = np.isin(ids, wanted)
    names = list(code)
    for place in np.flatnonzero(~keep):
        name = f"{prefixes[place].tobytes().hex()}-{views[place]}.jpg"
        strangers.append(folder.join(names[labels[place]], name))
    return ids[keep], np.array(sizes, np.int64)[keep], strangers


def _rows(
    made: TableVersion, code: dict[str, int]
) -> tuple[Identifiers, npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    """Return identifiers, sizes and row ids of the table's rows."""
    scanner = made.open().scanner(
        columns=["content_id", "label", "view", "bytes"], with_row_id=True, batch_size=_SCAN_ROWS
    )
    rows = pa.Table.from_batches(scanner.to_batches(), schema=scanner.projected_schema)
    labels = [code.get(name, 2**16 - 1) for name in rows["label"].to_pylist()]
    contents = as_bytes(rows["content_id"]) if rows.num_rows else np.zeros(0, "S32")
    ids = _identifiers(
        _digests(contents), np.array(labels, np.int64), rows["view"].to_numpy().astype(np.int64)
    )
    return ids, rows["bytes"].to_numpy(), rows["_rowid"].to_numpy()


def _values_at(
    keys: Identifiers, values: npt.NDArray[np.int64], wanted: Identifiers
) -> npt.NDArray[np.int64]:
    """Return the value of each wanted key; -1 if it is not among the keys."""
    order = np.argsort(keys)
    places = places_of(wanted, keys[order])
    found = np.full(len(wanted), -1, np.int64)
    found[places >= 0] = values[order][places[places >= 0]]
    return found


def _repeats(keys: Identifiers) -> npt.NDArray[np.bool_]:
    """Whether a key is in an earlier place too, bool[N]."""
    _, first = np.unique(keys, return_index=True)
    repeats = np.ones(len(keys), bool)
    repeats[first] = False
    return repeats


def _delete(files: list[Location]) -> None:
    with ThreadPoolExecutor(_DELETERS) as pool:
        list(pool.map(Location.delete, files))


def read_groups(snapshot: Snapshot, made: TableVersion) -> Iterator[tuple[str, str, str]]:
    """Yield key, label and group of every copy, in the order of the keys. For a task.

    The group is that of the image, or the image's key if it has none, so that an image and its
    copies are always in one split.
    """
    examples = read_examples(snapshot, SPLITS[:1])
    groups = examples.group_names.to_pylist()
    rows = made.read(["key", "content_id", "label"]).sort_by("key")
    places = np.searchsorted(examples.contents, as_bytes(rows["content_id"]))
    for key, label, place in zip(
        rows["key"].to_pylist(), rows["label"].to_pylist(), places.tolist(), strict=True
    ):
        yield key, label, groups[place]
