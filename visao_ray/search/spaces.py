"""Spaces: the vectors of a store in which neighbours are searched, by the names that users give.

    avg, max, both     the pooled vectors of an extractor
    MODEL              embeddings of a model, from jobs/predict.py; the start of its name will do
    pca128:NAME        the first 128 principal components of NAME, each of variance 1

Neighbours are nearest by Euclidean distance in all of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from visao_ray.core.errors import InputError
from visao_ray.core.tables import Vectors
from visao_ray.store import schemas
from visao_ray.store.join import Examples, plain_vectors
from visao_ray.store.mapped import MappedVectors, TableRows, VectorFile
from visao_ray.store.store import Store
from visao_ray.store.table import TableVersion

POOLS = {"avg": ("avg",), "max": ("max",), "both": ("avg", "max")}
EMBEDDING = "embedding"

_PCA = re.compile(r"pca(\d+):(.+)")
_FIT_ROWS = 50_000  # rows that components are fitted on
_ROWS = 8192


@dataclass(frozen=True)
class Space:
    """A space of vectors.

    Attributes:
        name: what the user called it.
        table: name of the table of results, as in `Store.tables`.
        columns: columns that make the vector, one after the other.
        components: number of whitened principal components; 0 for the vectors as they are.
    """

    name: str
    table: str
    columns: tuple[str, ...]
    components: int = 0

    def width(self, table: TableVersion) -> int:
        """Return the number of values of a vector."""
        widths = schemas.outputs(table.schema)
        return self.components or sum(widths[column] for column in self.columns)


def find_space(store: Store, name: str, extractor: str | None = None) -> Space:
    """Find a space by its name.

    Args:
        store: the store.
        name: avg, max, both, a model (or the start of its name), or pcaN: before one of these.
        extractor: extractor of avg, max and both, if the store has more than one.

    Returns:
        The space.

    Raises:
        InputError: the store has no such vectors; the message lists those that it has.
    """
    pca = _PCA.fullmatch(name)
    if pca is not None:
        components, rest = int(pca.group(1)), find_space(store, pca.group(2), extractor)
        table = store.tables()[rest.table].latest()
        width = rest.width(table)
        if not 0 < components <= width:
            raise InputError(
                f"--vectors {name}: {pca.group(2)} has {width} values, not {components}"
            )
        return replace(rest, name=name, components=components)
    if name in POOLS:
        extractor = store.the_extractor(extractor)
        widths = schemas.outputs(store.vectors(extractor).latest().schema)
        missing = [column for column in POOLS[name] if column not in widths]
        if missing:
            raise InputError(f"--vectors {name}: {extractor} has {', '.join(widths)}")
        return Space(name, plain_vectors(extractor), POOLS[name])
    models = _embedding_models(store)
    found = [model for model in models if model == name] or [
        model for model in models if model.startswith(name)
    ]
    if len(found) != 1:
        has = ", ".join([*POOLS, *models])
        what = "is not the name of one of" if not found else f"is the start of {len(found)} of"
        raise InputError(
            f"--vectors {name}: {what} the vectors of {store.uri} ({has}); jobs/predict.py adds "
            "the embeddings of a model"
        )
    return Space(name, f"predictions/{found[0]}", (EMBEDDING,))


def _embedding_models(store: Store) -> list[str]:
    tables = {model: store.predictions(model) for model in store.models()}
    return [
        model
        for model, table in tables.items()
        if table.exists() and EMBEDDING in schemas.outputs(table.latest().schema)
    ]


@dataclass(frozen=True)
class SpaceRows:
    """The vectors of some images in a space; small enough to be sent to tasks.

    Attributes:
        space: the space.
        file: the vectors on each node, rows in the order of the images.
        mean: float64[D], subtracted before the components; None without components.
        matrix: float64[D, components]; None without components.
    """

    space: Space
    file: VectorFile
    mean: npt.NDArray[np.float64] | None = None
    matrix: npt.NDArray[np.float64] | None = None

    @property
    def width(self) -> int:
        """Number of values of a vector."""
        if self.matrix is not None:
            return int(self.matrix.shape[1])
        return sum(self.file.widths.values())

    @classmethod
    def of(
        cls, space: Space, table: TableVersion, images: TableVersion, examples: Examples
    ) -> SpaceRows:
        """Describe the vectors of images; every image has a row in the table.

        Args:
            space: the space.
            table: its table of results.
            images: table of files, to name an image in messages.
            examples: the images.

        Returns:
            The vectors, one row per image.
        """
        rows = np.arange(len(examples))[:, None]
        part = TableRows(table, examples.contents, 0, rows)
        return cls(space, VectorFile(images, space.columns, (part,), len(examples)))

    def fitted(self, rows: npt.NDArray[np.int64], seed: int) -> SpaceRows:
        """Fit the components on some rows, at most 50,000 of them; the same without components.

        Args:
            rows: rows to fit on, int64[n]; only images of train and the gallery belong here.
            seed: seed of the sample.

        Returns:
            The vectors with their components.

        Raises:
            InputError: there are fewer rows than components.
        """
        if not self.space.components:
            return self
        if len(rows) < self.space.components:
            raise InputError(
                f"--vectors {self.space.name}: components are fitted on train images, and there "
                f"are only {len(rows)}"
            )
        from sklearn.decomposition import PCA

        rng = np.random.default_rng(seed)
        if len(rows) > _FIT_ROWS:
            rows = rng.choice(rows, _FIT_ROWS, replace=False)
        pca = PCA(self.space.components, svd_solver="covariance_eigh")
        pca.fit(self.read(np.sort(rows), self.file.open()))
        scale = np.sqrt(np.maximum(pca.explained_variance_, np.finfo(np.float32).eps))
        return replace(self, mean=pca.mean_, matrix=pca.components_.T / scale)

    def read(self, rows: Sequence[int] | npt.NDArray[np.int64], mapped: MappedVectors) -> Vectors:
        """Return the vectors of some rows.

        Args:
            rows: int64[n].
            mapped: the opened file.

        Returns:
            float32[n, width].
        """
        wanted = np.asarray(rows)
        parts = [mapped.vectors[column] for column in self.space.columns]
        found = np.empty((len(wanted), self.width), np.float32)
        for start in range(0, len(wanted), _ROWS):
            chosen = wanted[start : start + _ROWS]
            piece = np.concatenate([part[chosen] for part in parts], axis=1)
            if self.matrix is not None:
                piece = (piece - self.mean) @ self.matrix
            found[start : start + len(chosen)] = piece
        return found
