"""Time and memory from files, or from stored vectors, to predictions, one model after the other.

Each measurement runs alone in a new process on one node, so that its peak of memory is its own. The
time does not include the start of the process and of the network, which is reported beside it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visao_ray.core import tables
from visao_ray.core.errors import InputError
from visao_ray.core.resources import current_cluster
from visao_ray.core.run import Run
from visao_ray.core.storage import Location, locate
from visao_ray.core.waiting import Waiting
from visao_ray.images.decode import decode
from visao_ray.inference.engines.base import EngineFactory
from visao_ray.inference.engines.keras import KerasModel
from visao_ray.inference.network import find_network
from visao_ray.models import artifact
from visao_ray.store import schemas
from visao_ray.store.join import Snapshot, read_examples
from visao_ray.store.proof import Contents
from visao_ray.store.rows import find_rows, read_rows
from visao_ray.store.table import TableVersion

FILES, VECTORS = "files", "vectors"
_READERS = 8  # threads that read and decode
_REPEATS = 3
_INPUTS = ("avg", "max")


@dataclass(frozen=True)
class Timing:
    """One measurement.

    Attributes:
        source: `files` (read, decode and predict), or `vectors` (read from the store and predict).
        device: CPU or GPU.
        cpus: CPUs of the node.
        images: number of images.
        start: seconds to load the network and to predict for the first time.
        seconds: seconds from disk to prediction for all images, the median of three repetitions.
        peak_bytes: peak of the process's memory; GPU memory is not included.
    """

    source: str
    device: str
    cpus: float
    images: int
    start: float
    seconds: float
    peak_bytes: int


@dataclass(frozen=True)
class Sample:
    """The images to measure with.

    Attributes:
        keys: keys of the files.
        contents: S32[N], sorted, their contents.
    """

    keys: tuple[str, ...]
    contents: Contents


def choose_sample(snapshot: Snapshot, split: str, images: int) -> Sample:
    """Choose labelled images of a split, evenly spaced in the order of contents. For a task."""
    examples = read_examples(snapshot, (split,))
    count = min(images, len(examples))
    rows = np.unique(np.linspace(0, len(examples) - 1, count).astype(np.int64))
    chosen = examples.take(rows)
    return Sample(tuple(chosen.keys.to_pylist()), chosen.contents)


def find_networks(
    models: Sequence[KerasModel], weights: Sequence[str], batch_size: int, seed: int, work: Location
) -> list[EngineFactory | None]:
    """Find the networks that made the vectors of models. For a task, because it imports Keras.

    Args:
        models: the models.
        weights: where to look for their weights, as in `extract --weights`.
        batch_size: images per batch.
        seed: seed of random weights.
        work: folder of the run.

    Returns:
        For each model the factory of its network; None if it takes images.

    Raises:
        InputError: none of the weights is that of a model.
    """
    return [
        _find_network(model, weights, batch_size, seed, work.join(f"network-{number}"))
        for number, model in enumerate(models)
    ]


def _find_network(
    model: KerasModel, weights: Sequence[str], batch_size: int, seed: int, work: Location
) -> EngineFactory | None:
    made = model.model_metadata.features
    if model.model_metadata.takes == "images":
        return None
    try:
        return find_network(made, weights, batch_size, seed, work)
    except InputError as error:
        raise InputError(
            f"--timings: {model.name} takes vectors of {made.get('backbone')} with the weights "
            f"{made.get('weights')}, which are needed to measure it from files: {error}"
        ) from error


def measure_all(
    run: Run[Any],
    models: Sequence[KerasModel],
    backbones: Sequence[EngineFactory | None],
    vectors: Sequence[TableVersion | None],
    sample: Sample,
) -> list[list[Timing]]:
    """Measure all models, one after the other, on CPUs and, if there is one, on a GPU.

    Args:
        run: the run.
        models: the models.
        backbones: for each model, the network that makes its vectors; None if it takes images.
        vectors: for each model, the table of its vectors; None if it takes images.
        sample: the images.

    Returns:
        The measurements of each model.
    """
    import ray

    cluster = current_cluster()
    cpus = cluster.largest("CPU")
    devices = ["CPU", *(["GPU"] if cluster.largest("GPU") >= 1 else [])]
    found = []
    for model, backbone, table in zip(models, backbones, vectors, strict=True):
        timings = []
        for source in (FILES, *([VECTORS] if table is not None else [])):
            for device in devices:
                gpu = device == "GPU"
                # With an environment of its own the task gets a new process. Without a GPU it must
                # see none: TensorFlow would take one that the task did not ask for.
                variables = {"VISAO_RAY_DEVICE": device}
                if not gpu:
                    variables["CUDA_VISIBLE_DEVICES"] = ""
                task = ray.remote(max_calls=1)(measure).options(
                    num_cpus=cpus, num_gpus=float(gpu), runtime_env={"env_vars": variables}
                )
                given = (model, backbone, table, sample, source, device, cpus)
                with Waiting(run.say):
                    timings.append(ray.get(task.remote(*given)))
                run.say(line(model.name, timings[-1]))
        found.append(timings)
    return found


def line(name: str, timing: Timing) -> str:
    """Return a measurement as one line for the terminal."""
    return (
        f"{name} from {timing.source} on {timing.device}: {timing.images:,} images in "
        f"{timing.seconds:.2f} s ({timing.images / timing.seconds:,.0f}/s), start "
        f"{timing.start:.1f} s, peak {timing.peak_bytes / 1e9:.2f} GB"
    )


def measure(
    model: KerasModel,
    backbone: EngineFactory | None,
    vectors: TableVersion | None,
    sample: Sample,
    source: str,
    device: str,
    cpus: float,
) -> Timing:
    """Measure one model in this process. For a task in a new process."""
    start = time.perf_counter()
    if source == VECTORS:
        assert vectors is not None
        step = _classifier(model)
        rows = find_rows(vectors, sample.contents, schemas.OK)

        def predict() -> int:
            return sum(len(step(part)) for part in _stored(vectors, rows, model.batch_size))

    else:
        engine = (backbone or model).build()
        shape = backbone or model
        after = _classifier(model) if backbone is not None else None

        def predict() -> int:
            count = 0
            for pixels in _decoded(sample.keys, shape, model.batch_size * 4):
                outputs = engine(pixels)
                if after is not None:
                    outputs = {"probability": after(outputs)}
                count += len(next(iter(outputs.values())))
            return count

    predict()
    started = time.perf_counter() - start
    seconds = []
    for _ in range(_REPEATS):
        begin = time.perf_counter()
        count = predict()
        seconds.append(time.perf_counter() - begin)
    return Timing(
        source=source,
        device=device,
        cpus=cpus,
        images=count,
        start=max(0.0, started - seconds[0]),
        seconds=statistics.median(seconds),
        peak_bytes=peak_memory(),
    )


def _classifier(model: KerasModel) -> Callable[[dict[str, Any]], npt.NDArray[np.float32]]:
    """Load a model that takes vectors; return a function from vectors to its first output."""
    loaded, metadata = artifact.load(model.at)
    rows = model.batch_size * 4
    shape = (rows, metadata.width)

    def step(found: dict[str, Any]) -> npt.NDArray[np.float32]:
        count = len(found[_INPUTS[0]])
        filled = {}
        for name in _INPUTS:
            filled[name] = np.zeros(shape, np.float32)
            filled[name][:count] = found[name]
        return next(iter(artifact.outputs(loaded, filled).values()))[:count]

    return step


def _stored(vectors: TableVersion, rows: Any, batch: int) -> Iterator[dict[str, Any]]:
    for part in read_rows(vectors, rows, list(_INPUTS)):
        found = {name: tables.matrix(pa.chunked_array([part[name]])) for name in _INPUTS}
        for start in range(0, len(part), batch * 4):
            yield {name: values[start : start + batch * 4] for name, values in found.items()}


def _decoded(
    keys: Sequence[str], shape: EngineFactory, batch: int
) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield batches uint8[n, S, S, 3]; the next one is read and decoded meanwhile."""

    def load(key: str) -> npt.NDArray[np.uint8]:
        return decode(locate(key).read_bytes(), shape.image_size, shape.resize)

    with ThreadPoolExecutor(_READERS) as pool:
        parts = [keys[start : start + batch] for start in range(0, len(keys), batch)]
        waiting = [pool.submit(load, key) for key in parts[0]] if parts else []
        for following in [*parts[1:], ()]:
            ready = waiting
            waiting = [pool.submit(load, key) for key in following]
            yield np.stack([one.result() for one in ready])


def peak_memory() -> int:
    """Return the peak of this process's resident memory, in bytes; only Linux reports it."""
    with open("/proc/self/status") as status:
        (peak,) = (text.split()[1] for text in status if text.startswith("VmHWM:"))
    return int(peak) * 1024
