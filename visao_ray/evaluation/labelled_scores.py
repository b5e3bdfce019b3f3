"""Rows to evaluate: true class, probabilities and group of each row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from visao_ray.core.errors import InputError
from visao_ray.evaluation.bootstrap import group_sums
from visao_ray.evaluation.probabilities import Matrix, Probabilities

if TYPE_CHECKING:
    import pyarrow as pa
    from scipy import sparse

Codes = npt.NDArray[np.int32]
Values: TypeAlias = "Sequence[Any] | npt.NDArray[Any] | pa.Array | pa.ChunkedArray"


@dataclass(frozen=True)
class LabelledScores:
    """Rows with true class and group, and values from one pass over the probabilities.

    Attributes:
        probability: float [N, C].
        unusable: number of rows with a probability that is not finite.
        label: int32[N], the true class.
        group: int32[N], the unit that the bootstrap draws, numbered in the order of the names.
        groups: number of groups.
        most_probable: int32[N], the first class with the highest probability.
        highest: float [N], its probability.
        of_true: float [N], the probability of the true class.
        rank: int32[N], number of classes that are at least as probable as the true one. Equal
            probabilities count against it, so a constant prediction earns no credit.
    """

    probability: Probabilities
    unusable: int
    label: Codes
    group: Codes
    groups: int
    most_probable: Codes
    highest: npt.NDArray[np.floating]
    of_true: npt.NDArray[np.floating]
    rank: Codes

    @classmethod
    def of(
        cls,
        labels: Values,
        probability: Matrix | Probabilities,
        groups: Values,
        classes: Sequence[str],
    ) -> LabelledScores:
        """Check the columns, and encode labels and groups as numbers.

        Args:
            labels: [N], class names without nulls, or class indices.
            probability: float [N, C], columns in the order of `classes`.
            groups: [N], patient, container or other unit that the bootstrap draws, without nulls.
            classes: the C declared class names.

        Returns:
            The rows.

        Raises:
            InputError: unknown label, wrong shape, or a probability that is not finite.
        """
        label, given = class_codes(labels, classes), Probabilities.of(probability)
        rows = len(label)
        if len(groups) != rows:
            raise InputError(f"{rows} labels but {len(groups)} groups")
        if (len(given), given.width) != (rows, len(classes)):
            raise InputError(
                f"probabilities have shape {(len(given), given.width)},"
                f" expected {(rows, len(classes))} (one row per image, one column per class)"
            )
        scores = cls.read(label, given, *sorted_codes(groups))
        if scores.unusable:
            raise InputError(
                f"{scores.unusable} of {rows} predictions hold NaN or infinite probabilities;"
                " the model diverged or its input was not finite"
            )
        return scores

    @classmethod
    def read(
        cls,
        label: npt.NDArray[np.integer],
        probability: Matrix | Probabilities,
        group: Codes,
        groups: int,
    ) -> LabelledScores:
        """Make one pass over the probabilities.

        Args:
            label: int [N], class indices.
            probability: float [N, C].
            group: int32[N], from 0.
            groups: number of groups.

        Returns:
            The rows.
        """
        given, rows = Probabilities.of(probability), len(label)
        most_probable, rank = np.empty(rows, np.int32), np.empty(rows, np.int32)
        highest, of_true = np.empty(rows, given.dtype), np.empty(rows, given.dtype)
        unusable = 0
        for place, piece in given.pieces():
            unusable += int((~np.isfinite(piece).all(axis=1)).sum())
            each, best = np.arange(len(piece)), piece.argmax(axis=1)
            most_probable[place], highest[place] = best, piece[each, best]
            own = piece[each, label[place]]
            of_true[place], rank[place] = own, (piece >= own[:, None]).sum(axis=1)
        return cls(
            probability=given,
            unusable=unusable,
            label=label.astype(np.int32, copy=False),
            group=group,
            groups=groups,
            most_probable=most_probable,
            highest=highest,
            of_true=of_true,
            rank=rank,
        )

    def __len__(self) -> int:
        """Return N, the number of rows."""
        return len(self.label)

    def score(self, c: int) -> npt.NDArray[np.floating]:
        """Return the probability of one class: float [N]."""
        column: npt.NDArray[np.floating] = self.probability.columns(range(c, c + 1))[0]
        return column

    @cached_property
    def of_label(self) -> sparse.csr_array:
        """Number of rows of each class, by group: sparse [C, G]."""
        return group_sums(self.label, self.group, (self.probability.width, self.groups))

    @cached_property
    def groups_with(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Number of groups with rows of each class, and with rows of others: int64[C] each."""
        of_label = self.of_label
        full = of_label.data == np.bincount(self.group, minlength=self.groups)[of_label.indices]
        of_class = np.repeat(np.arange(self.probability.width), np.diff(of_label.indptr))
        of_one_class = np.bincount(of_class[full], minlength=self.probability.width)
        return np.diff(of_label.indptr).astype(np.int64), self.groups - of_one_class


def class_codes(labels: Values, classes: Sequence[str]) -> Codes:
    """Encode labels as indices into the declared classes.

    Args:
        labels: [N], class names without nulls, or class indices.
        classes: the C declared class names.

    Returns:
        int32[N].

    Raises:
        InputError: a label is not one of the classes.
    """
    if not len(labels):
        return np.zeros(0, dtype=np.int32)
    import pyarrow as pa

    array = _arrow(labels)
    if pa.types.is_integer(array.type):
        indices: Codes = array.to_numpy().astype(np.int32)
        if indices.min() < 0 or indices.max() >= len(classes):
            raise InputError(f"class index outside 0..{len(classes) - 1} among the labels")
        return indices
    distinct, codes = _encoded(array)
    names = distinct.to_pylist()
    position = {name: index for index, name in enumerate(classes)}
    unknown = sorted({str(name) for name in names if name not in position})
    if unknown:
        raise InputError(
            f"label {unknown[0]!r} is not one of the {len(classes)} classes"
            f" ({', '.join(classes[:5])}{', …' if len(classes) > 5 else ''})"
        )
    known: Codes = np.array([position[name] for name in names], dtype=np.int32)[codes]
    return known


def sorted_codes(values: Values) -> tuple[Codes, int]:
    """Encode values as numbers from 0 in their sorted order.

    Args:
        values: [N], names or numbers without nulls, such as groups.

    Returns:
        int32[N], and the number of distinct values.
    """
    if not len(values):
        return np.zeros(0, dtype=np.int32), 0
    import pyarrow.compute as pc

    distinct, codes = _encoded(_arrow(values))
    number = np.empty(len(distinct), dtype=np.int32)
    number[pc.sort_indices(distinct).to_numpy()] = np.arange(len(distinct), dtype=np.int32)
    return number[codes], len(distinct)


def _arrow(values: Values) -> pa.Array | pa.ChunkedArray:
    import pyarrow as pa

    array = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)
    # A dictionary may contain values that no row has.
    return array.cast(array.type.value_type) if pa.types.is_dictionary(array.type) else array


def _encoded(array: pa.Array | pa.ChunkedArray) -> tuple[pa.Array, Codes]:
    """Return the distinct values, and the index of each row's value among them: int32[N]."""
    import pyarrow as pa

    encoded = array.dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    return encoded.dictionary, encoded.indices.to_numpy()
