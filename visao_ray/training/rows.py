"""The rows of a split, and how a worker gets the pixels or vectors of any of them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from visao_ray import tables
from visao_ray.datasets.spec import Dataset
from visao_ray.errors import InputError
from visao_ray.features.vectors import Features, Vectors, class_numbers, find_classes
from visao_ray.images.augment import RECIPES, augment_view
from visao_ray.images.decode import DecodeError, decode
from visao_ray.storage import Location, is_outage, locate, reason

Pixels = npt.NDArray[np.uint8]
_READERS = 8  # images read and decoded at once in one task
_ROWS_A_BLOCK = 64  # images of one task, at least
_PART_BYTES = 128 * 1024**2  # of pixels, loaded for a worker by one execution of Ray Data


class Rows(Protocol):
    """A split: `labels` int32[N], `keys` and `groups` of the rows, and their inputs."""

    @property
    def labels(self) -> npt.NDArray[np.int32]:
        """Class index of each row."""

    @property
    def groups(self) -> pa.Array:
        """Patient or container of each row."""

    def take(self, numbers: npt.NDArray[np.int64]) -> Any:
        """What the model takes of these rows, as it predicts (no augmentation)."""

    def stream(self, steps: npt.NDArray[np.int64], views: npt.NDArray[np.int64]) -> Iterator[Any]:
        """What the model takes of each step, int64[steps, rows], in order.

        `views`, int64[steps], tells which augmented view of its rows each step shows.
        """


@dataclass(frozen=True)
class FeatureRows:
    """Rows of a features table; `vectors` stand in shared memory, float32[N, D] a pool."""

    vectors: dict[str, Vectors]
    labels: npt.NDArray[np.int32]
    groups: pa.Array

    def take(self, numbers: npt.NDArray[np.int64]) -> dict[str, Vectors]:
        """{"avg", "max"}: float32[n, D] each."""
        return {pool: values[numbers] for pool, values in self.vectors.items()}

    def stream(
        self, steps: npt.NDArray[np.int64], views: npt.NDArray[np.int64]
    ) -> Iterator[dict[str, Vectors]]:
        """As `take`, step by step: there is nothing to decode, so nothing to hand out as tasks."""
        return map(self.take, steps)


@dataclass(frozen=True)
class ImageRows:
    """Rows of a manifest: what is kept is where the images lie.

    Attributes:
        table: key and uri of each row.
        labels, groups: see Rows.
        image_size, resize, recipe, seed: how an image becomes pixels, and augmented views of it.
        loaders: tasks that load for one worker at once.
    """

    table: pa.Table
    labels: npt.NDArray[np.int32]
    groups: pa.Array
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

        An augmented view is drawn from (seed, key, view): the same whoever loads it.

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
        chosen = self.table.take(pa.array(numbers)).to_pylist()
        with ThreadPoolExecutor(_READERS) as pool:
            return np.stack(list(pool.map(self._load_one, chosen, views.tolist())))

    def _load_one(self, row: dict[str, str], view: int) -> Pixels:
        try:
            data = locate(row["uri"]).read_bytes()
            image = decode(
                data, self.image_size, "letterbox" if self.resize == "letterbox" else "stretch"
            )
        except (OSError, DecodeError) as error:  # it was readable when the job began
            if is_outage(error):
                raise
            raise InputError(
                f"{row['uri']}: could be read before, but not now: {reason(error)}"
            ) from error
        if self.recipe == "none":
            return image
        return augment_view(image, RECIPES[self.recipe], self.seed, row["key"], view)


def read_features(features: Features) -> tuple[FeatureRows, FeatureRows]:
    """Train and val of a features table."""
    train, val = (
        FeatureRows(rows.vectors, rows.labels, rows.groups)
        for rows in (features.train, features.val)
    )
    return train, val


def read_images(
    manifest: Location, dataset: Dataset, recipe: str, **loading: Any
) -> tuple[tuple[str, ...], ImageRows, ImageRows]:
    """The classes, and train and val of a manifest; only train is augmented. Runs in a Ray task.

    Args:
        manifest: of images that can be read.
        dataset: that it lists.
        recipe: of augmentation.
        loading: `image_size`, `resize`, `seed` and `loaders` of ImageRows.

    Raises:
        InputError: no train or val rows, or a class without train rows (where classes are fixed).
    """
    table = tables.open_table(manifest, "manifest").to_table(
        columns=["key", "uri", "label", "split", "group"]
    )
    parts = {
        split: table.filter(pc.equal(table["split"], split)).sort_by("key")
        for split in ("train", "val")
    }
    for split, part in parts.items():
        if not part.num_rows:
            raise InputError(f"{manifest.uri}: no {split} images; training needs train and val")
    names = {split: part["label"].to_numpy() for split, part in parts.items()}
    classes = find_classes(dataset, names["train"], names["val"], manifest.uri)
    train, val = (
        ImageRows(
            table=part.select(["key", "uri"]).combine_chunks(),
            labels=class_numbers(names[split], classes),
            groups=part["group"].combine_chunks(),
            recipe=recipe if split == "train" else "none",
            **loading,
        )
        for split, part in parts.items()
    )
    return classes, train, val


def _load_block(block: dict[str, npt.NDArray[np.int64]], rows: list[Any]) -> dict[str, Pixels]:
    import ray

    return {"pixels": ray.get(rows[0])._load(block["row"], block["view"])}
