"""Probabilities of many rows and classes, read piece by piece where they lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visao_ray.core.errors import InputError

Matrix = npt.NDArray[np.floating]

# Bounds what one piece holds: 16 MB of float32.
_PIECE_ELEMENTS = 4_000_000
# Rows whose columns are copied at once: few enough to stay in a core's cache.
_COLUMN_ROWS = 2048


@dataclass(frozen=True)
class Probabilities:
    """Probabilities [N, C], one row per image and one column per class.

    They may lie in memory, in a mapped file or in the chunks of an Arrow column; only the piece
    that is asked for is ever copied.

    Attributes:
        parts: matrices [n, C] and which of their rows count, in order.
        width: C, the number of classes.
    """

    parts: Sequence[tuple[Matrix, slice | npt.NDArray[np.integer]]]
    width: int

    @classmethod
    def of(cls, matrix: Matrix | Probabilities) -> Probabilities:
        """Those of a matrix [N, C]; of other probabilities, themselves."""
        if isinstance(matrix, Probabilities):
            return matrix
        array = np.asarray(matrix)
        return cls([(array, slice(0, len(array)))], array.shape[1])

    @classmethod
    def of_column(
        cls, column: pa.ChunkedArray, chosen: npt.NDArray[np.bool_], width: int
    ) -> Probabilities:
        """Those in the chosen rows of a column.

        Args:
            column: fixed_size_list<floating>; chosen rows have no null.
            chosen: [rows of the column].
            width: C, how many probabilities a row must have.

        Raises:
            InputError: another type of column, or another width.
        """
        if not pa.types.is_fixed_size_list(column.type):
            raise InputError(f"probabilities are {column.type}, expected fixed_size_list<float>")
        if column.type.list_size != width:
            raise InputError(
                f"predictions hold {column.type.list_size} probabilities an image,"
                f" but there are {width} classes"
            )
        parts: list[tuple[Matrix, slice | npt.NDArray[np.integer]]] = []
        start = 0
        for chunk in column.chunks:
            rows = np.flatnonzero(chosen[start : start + len(chunk)]).astype(np.int32)
            start += len(chunk)
            if len(rows):
                adjoining = int(rows[-1]) - int(rows[0]) + 1 == len(rows)
                which = slice(int(rows[0]), int(rows[-1]) + 1) if adjoining else rows
                parts.append((_matrix(chunk, width), which))
        return cls(parts, width)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the numbers."""
        kinds = [matrix.dtype for matrix, _ in self.parts]
        return np.result_type(*kinds) if kinds else np.dtype(np.float32)

    def __len__(self) -> int:
        """N, the number of rows."""
        return sum(
            which.stop - which.start if isinstance(which, slice) else len(which)
            for _, which in self.parts
        )

    def pieces(self) -> Iterator[tuple[slice, Matrix]]:
        """All rows in order: where a piece stands among the N rows, and its matrix [n, C]."""
        yield from self._read(slice(0, self.width), max(1, _PIECE_ELEMENTS // self.width))

    def matrix(self) -> Matrix:
        """A copy of all: [N, C]."""
        copy: Matrix = np.empty((len(self), self.width), dtype=self.dtype)
        for place, piece in self.pieces():
            copy[place] = piece
        return copy

    def columns(self, classes: range) -> Matrix:
        """A copy of adjoining classes' probabilities: [len(classes), N], each in one piece."""
        copy: Matrix = np.empty((len(classes), len(self)), dtype=self.dtype)
        for place, piece in self._read(slice(classes.start, classes.stop), _COLUMN_ROWS):
            copy[:, place] = piece.T
        return copy

    def _read(self, classes: slice, step: int) -> Iterator[tuple[slice, Matrix]]:
        done = 0
        for matrix, which in self.parts:
            narrow = matrix[:, classes]
            if isinstance(which, slice):
                narrow, count = narrow[which], which.stop - which.start
            else:
                count = len(which)
            for start in range(0, count, step):
                stop = min(start + step, count)
                rows: Any = slice(start, stop) if isinstance(which, slice) else which[start:stop]
                yield slice(done + start, done + stop), narrow[rows]
            done += count


def _matrix(chunk: pa.FixedSizeListArray, width: int) -> Matrix:
    """A chunk as it lies in memory: [n, C]; a null probability is NaN."""
    values = chunk.values.slice(chunk.offset * width, len(chunk) * width)
    matrix: Matrix = values.to_numpy(zero_copy_only=False).reshape(len(chunk), width)
    return matrix
