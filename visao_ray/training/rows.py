"""The rows of a split, and how a worker loads their pixels or vectors."""

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
from visao_ray.images.augment import augment_view
from visao_ray.images.decode import DecodeError, decode
from visao_ray.images.recipes import RECIPES
from visao_ray.models.normalization import Vectors
from visao_ray.store.join import Examples
from visao_ray.store.mapped import MappedVectors, VectorFile
from visao_ray.store.proof import Contents

Pixels = npt.NDArray[np.uint8]
_READERS = 8  # threads that read and decode images in one task
_ROWS_PER_BLOCK = 64  # minimum number of images per task
_PART_BYTES = 128 * 1024**2  # pixels that one execution of Ray Data loads for a worker


@dataclass(frozen=True)
class VectorRows:
    """Vectors of a store, in a memory-mapped copy that all processes of a node share.

    Attributes:
        file: The copy, which is created on a node when a process first reads it.
        rows: int64[N], numbers of these rows in the copy.
        labels: int32[N], class index of each row.
        groups: int32[N], group of each row.
    """

    file: VectorFile
    rows: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int32]
    groups: npt.NDArray[np.int32]

    def take(self, numbers: npt.NDArray[np.int64]) -> dict[str, Vectors]:
        """Return {"avg", "max"}, float32[n, D] each, of these rows."""
        rows = self.rows[numbers]
        return {pool: values[rows] for pool, values in self._mapped.vectors.items()}

    def stream(
        self, steps: npt.NDArray[np.int64], views: npt.NDArray[np.int64]
    ) -> Iterator[dict[str, Vectors]]:
        """Yield the vectors of each step; nothing is decoded, so no tasks are needed."""
        return map(self.take, steps)

    @cached_property
    def _mapped(self) -> MappedVectors:
        return self.file.open()


@dataclass(frozen=True)
class ImageRows:
    """Images of a store, which are read when they are needed.

    Attributes:
        keys: string[N], URI of each image.
        contents: `S32`[N], SHA-256 of the bytes of each image.
        labels: int32[N], class index of each row.
        groups: int32[N], group of each row.
        image_size: S, side in pixels.
        resize: How images are made square, stretch or letterbox.
        recipe: Augmentation recipe, or none.
        seed: Seed of the augmentation.
        loaders: Number of concurrent loading tasks per worker.
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
        """Return the pixels of these rows, uint8[n, S, S, 3], without augmentation."""
        return self._load(numbers, np.zeros_like(numbers))

    def stream(
        self, steps: npt.NDArray[np.int64], views: npt.NDArray[np.int64]
    ) -> Iterator[Pixels]:
        """Yield the pixels of each step; tasks of Ray Data load them in advance.

        The random numbers of an augmented view depend only on (seed, content, view), not on the
        loading process or on the place of the image.

        Steps are loaded in parts. Each part is one execution of Ray Data, small enough to finish
        without backpressure: an execution under backpressure polls, and so occupies a core of the
        worker. While one part is consumed, the next is loaded.

        Args:
            steps: int64[steps, rows], row numbers of each step.
            views: int64[steps], number of the augmented view in each step.

        Yields:
            uint8[rows, S, S, 3].
        """
        step_bytes = steps.shape[1] * 3 * self.image_size**2
        size = max(1, _PART_BYTES // step_bytes)
        parts = [
            (steps[start : start + size], views[start : start + size])
            for start in range(0, len(steps), size)
        ]
        with ThreadPoolExecutor(1) as executor:
            following = executor.submit(self._begin, *parts[0])
            for number in range(len(parts)):
                first, others = following.result()
                if number + 1 < len(parts):
                    following = executor.submit(self._begin, *parts[number + 1])
                yield first
                yield from others

    def _begin(
        self, steps: npt.NDArray[np.int64], views: npt.NDArray[np.int64]
    ) -> tuple[Pixels, Iterator[Pixels]]:
        """Start loading steps; return the pixels of the first, and an iterator of the others."""
        import ray

        per_block = -(-_ROWS_PER_BLOCK // steps.shape[1])
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
        options.preserve_order = True  # the position of a row decides its step
        # Not from_arrow: it requests a whole CPU, but the training workers may occupy all CPUs.
        loaded = ray.data.from_blocks(blocks).map_batches(
            _load_block,
            batch_size=None,
            batch_format="numpy",
            fn_kwargs={"rows": self._reference},
            # Ray Data divides whole CPUs equally among concurrent executions. With more executions
            # than CPUs, each gets none and is very slow. The number of tasks is limited below.
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
        """These rows in the object store; in a list, so that Ray Data does not copy them."""
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
        except (OSError, DecodeError) as error:  # the store could read it before
            if is_outage(error):
                raise
            raise InputError(
                f"{key}: could be read before, but not now: {reason(error)}"
            ) from error
        if self.recipe == "none":
            return image
        return augment_view(image, RECIPES[self.recipe], self.seed, name, view)


def vector_rows(vectors: LabelledVectors, views: int | None) -> tuple[VectorRows, VectorRows]:
    """Return the rows of train, with at most `views` augmented views, and of val."""
    train, val = (
        VectorRows(vectors.file, rows, vectors.labels[rows], vectors.groups[rows])
        for rows in (vectors.train_rows(views), vectors.val_rows())
    )
    return train, val


def image_rows(
    examples: Examples, dataset: Dataset, where: str, recipe: str, **loading: Any
) -> tuple[tuple[str, ...], ImageRows, ImageRows]:
    """Return the classes and the image rows of train and val.

    Args:
        examples: Examples of train and val.
        dataset: Dataset of the examples.
        where: Start of the error message.
        recipe: Augmentation recipe of train.
        **loading: `image_size`, `resize`, `seed` and `loaders` of ImageRows.

    Returns:
        The classes in index order, the rows of train, and the rows of val.

    Raises:
        InputError: There are no train or val rows, or the dataset has fixed classes and one of them
            has no train rows.
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
    """Return the rank of each name in the sorted names, int32[N]."""
    _, numbers = np.unique(names.to_numpy(zero_copy_only=False), return_inverse=True)
    return numbers.astype(np.int32)


def _load_block(block: dict[str, npt.NDArray[np.int64]], rows: list[Any]) -> dict[str, Pixels]:
    import ray

    return {"pixels": ray.get(rows[0])._load(block["row"], block["view"])}
