"""The rows of a split, and how a worker gets the pixels or vectors of any of them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from visao_ray.core.errors import InputError
from visao_ray.core.storage import is_outage, locate, reason
from visao_ray.datasets.classes import class_numbers, find_classes
from visao_ray.datasets.spec import Dataset
from visao_ray.features.labelled import LabelledVectors
from visao_ray.images.augment import RECIPES, augment_view
from visao_ray.images.decode import DecodeError, decode
from visao_ray.models.normalization import Vectors
from visao_ray.store.join import Examples
from visao_ray.store.mapped import MappedVectors, VectorFile
from visao_ray.store.proof import Contents

Pixels = npt.NDArray[np.uint8]
_READERS = 8  # images read and decoded at once in one task
_ROWS_A_BLOCK = 64  # images of one task, at least
_PART_BYTES = 128 * 1024**2  # of pixels, loaded for a worker by one execution of Ray Data


@dataclass(frozen=True)
class VectorRows:
    """Vectors of a store, in the one memory-mapped copy that all processes of a node share.

    Attributes:
        file: the copy, which is made on each node where rows are taken first.
        rows: int64[N], which of its rows these are.
        labels, groups: see `BatchSource`.
    """

    file: VectorFile
    rows: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int32]
    groups: npt.NDArray[np.int32]

    def take(self, numbers: npt.NDArray[np.int64]) -> dict[str, Vectors]:
        """{"avg", "max"}: float32[n, D] each."""
        rows = self.rows[numbers]
        return {pool: values[rows] for pool, values in self._mapped.vectors.items()}

    def stream(
        self, steps: npt.NDArray[np.int64], views: npt.NDArray[np.int64]
    ) -> Iterator[dict[str, Vectors]]:
        """As `take`, step by step: there is nothing to decode, so nothing to hand out as tasks."""
        return map(self.take, steps)

    @cached_property
    def _mapped(self) -> MappedVectors:
        return self.file.open()


@dataclass(frozen=True)
class ImageRows:
    """Images of a store: what is kept is where they lie.

    Attributes:
        keys: string[N], URI of each image.
        contents: `S32`[N], digest of its bytes.
        labels, groups: see `BatchSource`.
        image_size, resize, recipe, seed: how an image becomes pixels, and augmented views of it.
        loaders: tasks that load for one worker at once.
    """

    keys: pa.Array
    contents: Contents
    labels: npt.NDArray[np.int32]
    groups: npt.NDArray[np.int32]
    image_size: int
    resize: str
    recipe: str
    seed: int
    loaders: int

    def take(self, numbers: npt.NDArray[np.int64]) -> Pixels:
        """uint8[n, S, S, 3] as the images are."""
        return self._load(numbers, np.zeros_like(numbers))

    def stream(
        self, steps: npt.NDArray[np.int64], views: npt.NDArray[np.int64]
    ) -> Iterator[Pixels]:
        """uint8[rows, S, S, 3] of each step through Ray Data: tasks decode ahead of the worker.

        An augmented view is drawn from (seed, content, view): the same whoever loads it, and
        wherever the image lies.

        Steps go in parts, each an execution of Ray Data that is small enough to run to its end
        unhindered: one that is held back, because nobody takes what it has made yet, keeps a core
        of the worker busy with looking. While one part is used, the next is loaded.
        """
        step_bytes = steps.shape[1] * 3 * self.image_size**2
        size = max(1, _PART_BYTES // step_bytes)
        parts = [
            (steps[start : start + size], views[start : start + size])
            for start in range(0, len(steps), size)
        ]
        with ThreadPoolExecutor(1) as ahead:
            following = ahead.submit(self._begin, *parts[0])
            for number in range(len(parts)):
                first, others = following.result()
                if number + 1 < len(parts):
                    following = ahead.submit(self._begin, *parts[number + 1])
                yield first
                yield from others

    def _begin(
        self, steps: npt.NDArray[np.int64], views: npt.NDArray[np.int64]
    ) -> tuple[Pixels, Iterator[Pixels]]:
        """Start loading steps: the pixels of the first, and an iterator of the others'."""
        import ray

        per_block = -(-_ROWS_A_BLOCK // steps.shape[1])
        blocks = [
            pa.table(
                {
                    "row": steps[start : start + per_block].reshape(-1),
                    "view": np.repeat(views[start : start + per_block], steps.shape[1]),
                }
            )
            for start in range(0, len(steps), per_block)
        ]
        options = ray.data.DataContext.get_current().execution_options
        options.preserve_order = True  # a step's rows are told by their place
        # Not from_arrow: it asks for a whole CPU, which the workers may have between them.
        loaded = ray.data.from_blocks(blocks).map_batches(
            _load_block,
            batch_size=None,
            batch_format="numpy",
            fn_kwargs={"rows": self._reference},
            # Ray Data gives executions that run side by side whole CPUs in equal parts: with more
            # executions than CPUs each gets none, and crawls. Their number is limit enough.
            num_cpus=0,
            compute=ray.data.TaskPoolStrategy(size=self.loaders),
        )
        batches = loaded.iter_batches(
            batch_size=steps.shape[1], batch_format="numpy", prefetch_batches=2
        )
        pixels = (batch["pixels"] for batch in batches)
        return next(pixels), pixels

    @cached_property
    def _reference(self) -> list[Any]:
        """These rows in shared memory; in a list, or Ray Data would copy them into its plan."""
        import ray

        return [ray.put(self)]

    def _load(self, numbers: npt.NDArray[np.int64], views: npt.NDArray[np.int64]) -> Pixels:
        keys = self.keys.take(pa.array(numbers)).to_pylist()
        digests = self.contents[numbers].tobytes()
        names = [digests[start : start + 32].hex() for start in range(0, len(digests), 32)]
        with ThreadPoolExecutor(_READERS) as pool:
            return np.stack(list(pool.map(self._load_one, keys, names, views.tolist())))

    def _load_one(self, key: str, name: str, view: int) -> Pixels:
        try:
            data = locate(key).read_bytes()
            image = decode(
                data, self.image_size, "letterbox" if self.resize == "letterbox" else "stretch"
            )
        except (OSError, DecodeError) as error:  # it was readable when the store read it
            if is_outage(error):
                raise
            raise InputError(
                f"{key}: could be read before, but not now: {reason(error)}"
            ) from error
        if self.recipe == "none":
            return image
        return augment_view(image, RECIPES[self.recipe], self.seed, name, view)


def vector_rows(vectors: LabelledVectors, views: int | None) -> tuple[VectorRows, VectorRows]:
    """Train, without augmented views beyond `views`, and val."""
    train, val = (
        VectorRows(vectors.file, rows, vectors.labels[rows], vectors.groups[rows])
        for rows in (vectors.train_rows(views), vectors.val_rows())
    )
    return train, val


def image_rows(
    examples: Examples, dataset: Dataset, where: str, recipe: str, **loading: Any
) -> tuple[tuple[str, ...], ImageRows, ImageRows]:
    """The classes in index order, and train and val; only train is augmented.

    Args:
        examples: of train and val.
        dataset: that they are of.
        where: begins the message of an error.
        recipe: of augmentation.
        loading: `image_size`, `resize`, `seed` and `loaders` of ImageRows.

    Raises:
        InputError: no train or val rows, or a class without train rows (where classes are fixed).
    """
    parts = {}
    for split in ("train", "val"):
        chosen = np.flatnonzero(pc.equal(examples.splits, split).to_numpy(zero_copy_only=False))
        if not len(chosen):
            raise InputError(
                f"{where}: no {split} images with a label; training needs the splits train and val"
            )
        parts[split] = examples.take(chosen)
    names = {split: pc.unique(part.labels).to_pylist() for split, part in parts.items()}
    classes = find_classes(dataset, names["train"], names["val"], where)
    train, val = (
        ImageRows(
            keys=part.keys,
            contents=part.contents,
            labels=class_numbers(part.labels.to_pylist(), classes),
            groups=_numbers(part.groups.dictionary_decode()),
            recipe=recipe if split == "train" else "none",
            **loading,
        )
        for split, part in parts.items()
    )
    return classes, train, val


def _numbers(names: pa.Array) -> npt.NDArray[np.int32]:
    """A number for each name, in the order of the names."""
    _, numbers = np.unique(names.to_numpy(zero_copy_only=False), return_inverse=True)
    return numbers.astype(np.int32)


def _load_block(block: dict[str, npt.NDArray[np.int64]], rows: list[Any]) -> dict[str, Pixels]:
    import ray

    return {"pixels": ray.get(rows[0])._load(block["row"], block["view"])}
