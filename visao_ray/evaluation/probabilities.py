"""Probabilities of many rows and classes, read in place, piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from visao_ray.core.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

Matrix = npt.NDArray[np.floating]

# Maximum size of a piece: 16 MB of float32.
_PIECE_ELEMENTS = 4_000_000
# Rows to copy columns of at once: few enough for the cache of a core.
_COLUMN_ROWS = 2048


@dataclass(frozen=True)
class Probabilities:
    """Probabilities [N, C], one row per image and one column per class.

    They can be in memory, in a mapped file or in the chunks of an Arrow column. Only the requested
    piece is copied.

    Attributes:
        parts: matrices float [n, C] and which of their rows are used, in order.
        width: C, the number of classes.
    """

    parts: Sequence[tuple[Matrix, slice | npt.NDArray[np.integer]]]
    width: int

    @classmethod
    def of(cls, matrix: Matrix | Probabilities) -> Probabilities:
        """Wrap a matrix [N, C]; return other probabilities as they are."""
        if isinstance(matrix, Probabilities):
            return matrix
        array = np.asarray(matrix)
        return cls([(array, slice(0, len(array)))], array.shape[1])

    @classmethod
    def of_column(
        cls, column: pa.ChunkedArray, chosen: npt.NDArray[np.bool_], width: int
    ) -> Probabilities:
        """Use the chosen rows of a column.

        Args:
            column: fixed_size_list<floating>; chosen rows are not null.
            chosen: bool, one value per row of the column.
            width: C, the required number of probabilities per row.

        Returns:
            The probabilities.

        Raises:
            InputError: wrong type or width of the column.
        """
        import pyarrow as pa

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
                contiguous = int(rows[-1]) - int(rows[0]) + 1 == len(rows)
                which = slice(int(rows[0]), int(rows[-1]) + 1) if contiguous else rows
                parts.append((_matrix(chunk, width), which))
        return cls(parts, width)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of the numbers."""
        dtypes = [matrix.dtype for matrix, _ in self.parts]
        return np.result_type(*dtypes) if dtypes else np.dtype(np.float32)

    def __len__(self) -> int:
        """Return N, the number of rows."""
        return sum(
            which.stop - which.start if isinstance(which, slice) else len(which)
            for _, which in self.parts
        )

    def pieces(self) -> Iterator[tuple[slice, Matrix]]:
        """Yield pieces in order: their position among the N rows, and their matrix [n, C]."""
        yield from self._read(slice(0, self.width), max(1, _PIECE_ELEMENTS // self.width))

    def matrix(self) -> Matrix:
        """Return a copy of all probabilities: [N, C]."""
        copy: Matrix = np.empty((len(self), self.width), dtype=self.dtype)
        for place, piece in self.pieces():
            copy[place] = piece
        return copy

    def columns(self, classes: range) -> Matrix:
        """Return a copy of adjacent classes: [len(classes), N], contiguous by class."""
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
    """Return a view of a chunk: [n, C]; a null probability is NaN."""
    values = chunk.values.slice(chunk.offset * width, len(chunk) * width)
    matrix: Matrix = values.to_numpy(zero_copy_only=False).reshape(len(chunk), width)
    return matrix
