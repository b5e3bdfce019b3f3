"""What the checks of an audit work from: the files, and what is known of their contents."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from visao_ray.quality.copies import Copies
from visao_ray.quality.files import Codes, Files

#: Names of relations between files.
IDENTICAL, GROUP, NEAR = "identical files", "of the same group", "near copies"


@dataclass(frozen=True)
class Relation:
    """Sets of related files.

    Attributes:
        name: what relates the files of a set.
        sets: int32[N], the number of the set of each file; -1: in none.
    """

    name: str
    sets: Codes


@dataclass(frozen=True)
class Pictures:
    """Figures of the small copies of images.

    Attributes:
        contents: int64[P], positions in `Files.contents`, ascending.
        low: float32[P], 5th percentile of the grey levels, 0 to 255.
        high: float32[P], 95th percentile of them.
        sharpness: float32[P]; see `images.summary`.
    """

    contents: npt.NDArray[np.int64]
    low: npt.NDArray[np.float32]
    high: npt.NDArray[np.float32]
    sharpness: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Vectors:
    """Vectors of images, with fewer numbers.

    Attributes:
        contents: int64[P], positions in `Files.contents`, ascending.
        values: float32[P, D], the first principal components of `avg`.
    """

    contents: npt.NDArray[np.int64]
    values: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Evidence:
    """Everything that a check may use.

    Attributes:
        files: the files of the store.
        seed: seed of all random numbers.
        near: pairs of contents that are copies with other bytes; None if nobody looked for them.
        pictures: figures of the small copies; None without them.
        vectors: vectors; None without them.
    """

    files: Files
    seed: int = 0
    near: Copies | None = None
    pictures: Pictures | None = None
    vectors: Vectors | None = None

    @cached_property
    def relations(self) -> tuple[Relation, ...]:
        """Files with the same bytes, files of one group, and near copies, if they are known."""
        files = self.files
        found = [
            Relation(IDENTICAL, files.content.astype(np.int32)),
            Relation(GROUP, np.where(files.usable, files.group.codes, -1).astype(np.int32)),
        ]
        if self.near is not None:
            sets = self.near.sets(len(files.contents))
            found.append(Relation(NEAR, np.append(sets, np.int32(-1))[files.content]))
        return tuple(found)

    def of_files(
        self, contents: npt.NDArray[np.int64], values: npt.NDArray[np.float32], missing: float
    ) -> npt.NDArray[np.float32]:
        """Give each file the value of its content.

        Args:
            contents: int64[P], positions in `Files.contents`.
            values: float32[P].
            missing: value of files without one.

        Returns:
            float32[N].
        """
        of_content = np.full(len(self.files.contents) + 1, missing, np.float32)
        of_content[contents] = values
        return np.asarray(of_content[self.files.content], np.float32)
