"""Memory-mapped files with vectors of a store: one copy per node, shared by all its processes.

    TMP/visao_ray-UID/DIGEST/lock        shared lock of readers, exclusive lock of the writer
    TMP/visao_ray-UID/DIGEST/avg.npy     float32[R, D]; complete as soon as it has this name

The first process of a node that opens the files writes them, in one scan of each table; the others
wait for it. Each process that opens files removes those that have not been used for a day.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from visao_ray.core.errors import InputError
from visao_ray.store import schemas
from visao_ray.store.join import scan_vectors
from visao_ray.store.proof import Contents
from visao_ray.store.table import TableVersion

Vectors = npt.NDArray[np.float32]

_UNUSED_S = 24 * 3600.0


@dataclass(frozen=True)
class TableRows:
    """The rows of a file that come from one table.

    Attributes:
        table: table of results.
        contents: S32[N], sorted.
        first_view: number of the view in column 0 of `rows`.
        rows: int64[N, V], the row in the file for each content and view; -1: none.
    """

    table: TableVersion
    contents: Contents
    first_view: int
    rows: npt.NDArray[np.int64]


@dataclass(frozen=True)
class VectorFile:
    """Description of files with vectors; small and picklable. `open` writes the files of a node.

    Attributes:
        images: table of files, to name an image in messages.
        columns: columns of vectors, one file each.
        parts: sources of the rows; together they fill every row exactly once.
        rows: number of rows R.
    """

    images: TableVersion
    columns: tuple[str, ...]
    parts: tuple[TableRows, ...]
    rows: int

    @property
    def widths(self) -> dict[str, int]:
        """Width D of each column."""
        found = schemas.outputs(self.parts[0].table.schema)
        return {column: found[column] for column in self.columns}

    def take(self, rows: npt.NDArray[np.int64]) -> VectorFile:
        """Return a file with only these rows, int64[n], in this order; each at most once."""
        renumbered = np.full(self.rows + 1, -1)  # the last element is the one for row -1
        renumbered[rows] = np.arange(len(rows))
        parts = []
        for part in self.parts:
            numbers = renumbered[part.rows]
            used = (numbers >= 0).any(axis=1)
            parts.append(TableRows(part.table, part.contents[used], part.first_view, numbers[used]))
        return VectorFile(self.images, self.columns, tuple(parts), len(rows))

    def open(self) -> MappedVectors:
        """Map the files of this node into memory; write them first if they do not exist.

        Returns:
            The vectors.

        Raises:
            InputError: a vector is not finite, or there is no room for the files.
        """
        root = _root()
        _remove_unused(root)
        folder = root / self._digest()
        while True:
            folder.mkdir(exist_ok=True)
            lock = (folder / "lock").open("a")
            try:
                fcntl.flock(lock, fcntl.LOCK_SH)
                if not self._is_complete(folder):
                    fcntl.flock(lock, fcntl.LOCK_UN)
                    fcntl.flock(lock, fcntl.LOCK_EX)
                    if _has_path(lock) and not self._is_complete(folder):
                        self._write(folder)
                    fcntl.flock(lock, fcntl.LOCK_SH)
                if _has_path(lock):  # else it was removed while this process waited
                    os.utime(lock.name)
                    files = {column: folder / f"{column}.npy" for column in self.columns}
                    return MappedVectors(files, lock)
            except BaseException:
                lock.close()
                raise
            lock.close()

    def _digest(self) -> str:
        """Return a digest of everything that decides the content of the files."""
        found = hashlib.sha256(json.dumps([self.columns, self.rows]).encode())
        for part in self.parts:
            where = [part.table.uri, part.table.version, part.first_view, part.rows.shape]
            found.update(json.dumps(where).encode())
            found.update(np.ascontiguousarray(part.contents).view(np.uint8).data)
            found.update(np.ascontiguousarray(part.rows).data)
        return found.hexdigest()[:32]

    def _is_complete(self, folder: Path) -> bool:
        return all((folder / f"{column}.npy").exists() for column in self.columns)

    def _write(self, folder: Path) -> None:
        widths = self.widths
        needed = 4 * self.rows * sum(widths.values())
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise InputError(
                f"{folder}: the vectors of {self.rows:,} rows need {needed / 1e9:.1f} GB there, "
                f"{free / 1e9:.1f} GB are free; set TMPDIR to a larger disk, or read fewer rows"
            )
        arrays = {
            column: np.lib.format.open_memmap(
                folder / f"{column}.part", "w+", np.dtype(np.float32), (self.rows, width)
            )
            for column, width in widths.items()
        }
        written = np.zeros(self.rows, bool)
        for part in self.parts:
            for places, vectors, views in scan_vectors(part.table, part.contents, self.columns):
                rows = part.rows[places, views.to_numpy() - part.first_view]
                wanted = rows >= 0
                rows = rows[wanted]
                for column, values in vectors.items():
                    self._check(column, values[wanted], part.contents[places[wanted]])
                    arrays[column][rows] = values[wanted]
                written[rows] = True
        if not written.all():
            raise RuntimeError(f"{(~written).sum():,} of {self.rows:,} rows have no vectors")
        for column, array in arrays.items():
            array.flush()
            (folder / f"{column}.part").rename(folder / f"{column}.npy")

    def _check(self, column: str, values: Vectors, contents: Contents) -> None:
        invalid = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if not len(invalid):
            return
        content = bytes(contents[invalid[0]]).ljust(32, b"\0")
        keys = self.images.read(["key"], f"content_id = X'{content.hex()}'")["key"].to_pylist()
        raise InputError(
            f"{self.parts[0].table.uri}: the {column} vector of '{min(keys)}' holds NaN or "
            "infinity; extract it again, or drop the image by a verdict"
        )


class MappedVectors:
    """Vectors of a `VectorFile`; the files are not removed while this object exists.

    Args:
        files: file of each column.
        lock: open lock file; it is closed with this object.

    Attributes:
        vectors: float32[R, D] by column, memory-mapped and read-only.
    """

    vectors: dict[str, Vectors]

    def __init__(self, files: dict[str, Path], lock: IO[str]) -> None:
        self.vectors = {column: np.load(file, mmap_mode="r") for column, file in files.items()}
        weakref.finalize(self, lock.close)


def _root() -> Path:
    """Return the folder of this user's files on this node."""
    root = Path(tempfile.gettempdir(), f"visao_ray-{os.getuid()}")
    root.mkdir(mode=0o700, exist_ok=True)
    if root.stat().st_uid != os.getuid():
        raise InputError(f"{root}: belongs to another user; set TMPDIR to a folder of your own")
    return root


def _remove_unused(root: Path) -> None:
    for folder in root.iterdir():
        lock = folder / "lock"
        try:
            if time.time() - lock.stat().st_mtime < _UNUSED_S:
                continue
            with lock.open("a") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _has_path(file):
                    shutil.rmtree(folder)
        except OSError:  # in use, or already removed
            continue


def _has_path(lock: IO[str]) -> bool:
    """Whether the path still leads to the file that this process has locked."""
    try:
        return os.path.samestat(os.fstat(lock.fileno()), os.stat(lock.name))
    except FileNotFoundError:
        return False
