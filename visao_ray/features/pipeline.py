"""The extraction graph on Ray Data: manifest → read and decode → network → features and errors.

Reading, decoding and augmenting share one task, so compressed bytes never travel and an image that
cannot be read is known with its reason (Ray's own `download` would give a null without one).
Pixels travel as uint8; floats exist inside the actor alone.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from visao_ray import stages, tables
from visao_ray.bases.manifest import check_errors, find_layout, list_dataset
from visao_ray.checkpoint import checkpointed
from visao_ray.datasets.registry import find_dataset
from visao_ray.datasets.spec import Dataset
from visao_ray.errors import InputError
from visao_ray.features.backbones import Backbone, resolve
from visao_ray.features.extractor import LOADED, Extractor
from visao_ray.forecast import Nodes
from visao_ray.images.augment import RECIPES, augment, view_rng
from visao_ray.images.decode import DecodeError, decode
from visao_ray.resources import ActorPool, fit_actors, look
from visao_ray.runs import Run, execute, start_ray
from visao_ray.settings import ExtractSettings, ManifestSettings
from visao_ray.stages import SPENT, Stages
from visao_ray.storage import Location, is_outage, locate, reason

_BLOCK_BYTES = 120 * 1024**2  # Ray Data parts what is larger than 128 MiB
_READERS = 8  # images read and decoded at once in one task


@dataclass(frozen=True)
class Loading:
    """How an image becomes pixels; goes to every loading task."""

    image_size: int
    resize: str
    recipe: str
    views: int
    seed: int


def extract_features(settings: ExtractSettings, run: Run[Any]) -> None:
    """The extract job: writes `features` and `errors`; makes a manifest first if none is given.

    Raises:
        InputError: no such manifest, a backbone or weights that cannot be had, or too many
            unreadable images.
    """
    import ray

    dataset = find_dataset(settings.dataset) if settings.dataset else None
    check_source(settings, dataset, settings.manifest)
    start_ray()
    pool = fit_actors(settings.workers, settings.worker(), look())
    weights = run.work.join("backbone.npz")
    with run.timed("weights"):
        backbone, warning = _resolve_remotely(settings, weights)
    if warning:
        run.warn(warning)
    manifest = list_images(settings, dataset, settings.manifest, run)
    about = {
        **backbone.about(),
        "resize": settings.resize,
        "augment": settings.augment,
        "views": settings.augmented_views,
    }
    schema = tables.features(backbone.width, about)
    _check_block(settings, backbone.image_size)
    _check_same(run.out.join("features"), about)
    total = tables.rows(manifest)
    done_before = tables.rows(run.out.join("features")) + tables.rows(run.out.join("errors"))
    run.say(
        f"{total:,} images through {backbone.name} ({backbone.weights} weights, "
        f"{backbone.image_size}², {backbone.width} numbers twice) on {pool}"
    )

    name = _dataset_of(manifest)
    labels = run.labels("extract", name)

    def extract() -> None:
        from visao_ray.sink import TablesSink

        started = time.time()
        sink = TablesSink(run.out, {"features": schema, "errors": tables.ERRORS}, labels)
        loading = Loading(
            image_size=backbone.image_size,
            resize=settings.resize,
            recipe=settings.augment,
            views=settings.augmented_views,
            seed=settings.seed,
        )
        committed = run.work.join("committed")
        block = settings.rows_per_block
        with checkpointed(committed, "key"), run.progress(committed, block, total):
            images = ray.data.read_parquet(
                manifest.path, filesystem=manifest.filesystem, **pool.reader
            )
            images.set_name(run.name("extract", name))
            images.repartition(target_num_rows_per_block=block, strict=True).map_batches(
                load,
                batch_size=None,
                batch_format="pyarrow",
                fn_kwargs={"loading": loading},
                **pool.loader,
            ).map_batches(
                Extractor,
                fn_constructor_args=(weights, settings.batch_size, labels),
                # A whole block; with GPUs, Ray Data wants it as a number.
                batch_size=block * (1 + settings.augmented_views) if pool.gpus else None,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=pool.size),
                **pool.actor,
            ).write_datasink(
                sink,
                # Nothing to wait for: what is extracted but not committed is lost in a kill.
                ray_remote_args=pool.writer,
                concurrency=pool.writers,
            )
        tell_stages(run, "extract", sink.stages, pool, started)

    run.once("extract", extract)
    _summarise(run, total, settings)
    if "extract" in run.timings:
        rows = run.counts["rows"] + run.counts["errors"] - done_before
        run.throughput["images_per_second"] = max(rows, 0) / run.timings["extract"]
    run.inputs["manifest"] = manifest.uri
    if dataset is not None:
        run.inputs["dataset"] = dataset.to_json()
    run.details |= {"about": about, "width": backbone.width, "workers": pool.size}
    check_errors(run, settings.max_errors)


def _check_block(settings: ExtractSettings, side: int) -> None:
    """Views of an image are committed together, so their pixels must fit in one block of Ray Data.

    Raises:
        InputError: they would be parted.
    """
    each = (1 + settings.augmented_views) * side**2 * 3
    most = _BLOCK_BYTES // each
    if settings.augmented_views and settings.rows_per_block > most:
        raise InputError(
            f"--rows-per-block {settings.rows_per_block}: with {settings.augmented_views} views of "
            f"{side}² a block holds {most} images at most"
        )


def _check_same(features: Location, about: Mapping[str, Any]) -> None:
    """Features made in different ways never mix: what an earlier run left must be of this kind.

    Raises:
        InputError: the weights behind the same settings are others now.
    """
    if not tables.rows(features):
        return
    before = tables.about(tables.open_table(features, "features").schema)
    for name in sorted(before.keys() | about.keys()):
        if before.get(name) != about.get(name):
            raise InputError(
                f"--out: {features.uri} was begun with {name} {before.get(name)}, now it is "
                f"{about.get(name)}; --fresh starts anew"
            )


def check_source(settings: ManifestSettings, dataset: Dataset | None, manifest: str | None) -> None:
    """Look at the manifest, or else at the folders of `--data`, before anything that takes long.

    Raises:
        InputError: no manifest there, or one of another dataset; folders that do not fit it.
    """
    if manifest is None:
        assert dataset is not None  # the settings see to it
        find_layout(locate(settings.data), dataset, settings.ignore)
        return
    found = _dataset_of(locate(manifest))
    if dataset is not None and found and found != dataset.name:
        raise InputError(f"--manifest {manifest}: lists dataset {found}, not {dataset.name}")


def _dataset_of(manifest: Location) -> str:
    """Name of the dataset of its first row; empty where it has none."""
    first = tables.open_table(manifest, "manifest").head(1, columns=["dataset"])
    return "".join(first["dataset"].to_pylist())


def list_images(
    settings: ManifestSettings, dataset: Dataset | None, manifest: str | None, run: Run[Any]
) -> Location:
    """The manifest that was given, or one made from `--data` in OUT/listing."""
    if manifest is not None:
        return locate(manifest)
    out = run.out.join("listing")
    assert dataset is not None  # the settings see to it
    listing = settings.part(
        ManifestSettings,
        dataset=settings.dataset or dataset.name,
        out=out.uri,
        max_errors=1.0,
    )
    made = execute(listing, partial(list_dataset, dataset))
    run.inputs["data"] = settings.data
    run.warnings += made["warnings"]
    return out.join("manifest")


def _resolve_remotely(settings: ExtractSettings, keep: Location) -> tuple[Backbone, str | None]:
    """The backbone without its weights, which are kept in a file for the actors.

    Runs in a task, so that the driver never imports TensorFlow.
    """
    import ray

    def find() -> tuple[Backbone, str | None]:
        backbone, warning = resolve(settings, settings.seed)
        backbone.write(keep)
        return replace(backbone, arrays=(), file=b""), warning

    found: tuple[Backbone, str | None] = ray.get(ray.remote(find).options(**look().light).remote())
    return found


def load(block: pa.Table, loading: Loading) -> pa.Table:
    """Read, decode and augment the images of a block of manifest rows.

    Returns rows of `LOADED`: pixels are uint8[S,S,3] as bytes, and null on the rows of images that
    could not be read. Only train images get augmented views.
    """
    start = time.perf_counter()
    with ThreadPoolExecutor(_READERS) as pool:
        images = list(pool.map(lambda row: _load_one(row, loading), block.to_pylist()))
    rows = [row for views, _ in images for row in views]
    made = pa.Table.from_pylist(rows, schema=LOADED)
    seconds = time.perf_counter() - start
    spent = stages.loaded(
        [len(views) for views, _ in images], [cost for _, cost in images], seconds
    )
    return made.set_column(LOADED.get_field_index(SPENT), stages.FIELD, spent)


def _load_one(
    row: Mapping[str, Any], loading: Loading
) -> tuple[list[dict[str, Any]], tuple[float, float, float, float]]:
    """The rows of an image, and its costs as `stages.loaded` takes them."""
    start = time.perf_counter()
    data = b""
    try:
        if row["status"] == "ok":
            data = locate(row["uri"]).read_bytes()
        read = time.perf_counter()
        rows = _views(row, data, loading)
    except OSError as error:
        if is_outage(error):
            raise  # Ray Data tries again, and stops the job at last: it says nothing of the image
        read = time.perf_counter()
        rows = [_failed(row, "download", type(error).__name__, reason(error))]
    except DecodeError as error:
        rows = [_failed(row, "decode", error.error_type, reason(error))]
    pixels = sum(len(one.get("pixels", b"")) for one in rows)
    return rows, (len(data), pixels, read - start, time.perf_counter() - read)


def _failed(row: Mapping[str, Any], stage: str, error_type: str, message: str) -> dict[str, Any]:
    told = {"stage": stage, "error_type": error_type, "message": message}
    return {"key": row["key"], "uri": row["uri"], **told}


def _views(row: Mapping[str, Any], data: bytes, loading: Loading) -> list[dict[str, Any]]:
    """The rows of an image file; raises DecodeError."""
    if row["status"] != "ok":
        return [_failed(row, *row["error"].split(": ", 2))]  # as the manifest found it
    letterbox = loading.resize == "letterbox"
    image = decode(data, loading.image_size, "letterbox" if letterbox else "stretch")
    same = {name: row[name] for name in ("key", "label", "split", "group", "content_id")}
    views = [{**same, "view": 0, "pixels": image.tobytes()}]
    if row["split"] == "train":
        recipe = RECIPES[loading.recipe]
        for view in range(1, loading.views + 1):
            varied = augment(image, recipe, view_rng(loading.seed, row["key"], view))
            views.append({**same, "view": view, "pixels": varied.tobytes()})
    return views


def tell_stages(
    run: Run[Any], step: str, found: Stages, pool: ActorPool, started: float, actors: bool = True
) -> None:
    """Where the seconds of a step went: on the terminal, and in `details.stages` of result.json.

    Args:
        started: when the step was, in seconds since 1970.
        actors: whether there were any.
    """
    if not found.images:
        return
    size = pool.size if actors else 0
    free = look().total("CPU") - size * pool.actor["num_cpus"]
    loaders = max(1, math.floor(free / pool.loader["num_cpus"] + 1e-9))
    nodes = Nodes(1, loaders, size, pool.writers)
    run.details.setdefault("stages", {})[step] = stages.about(found, nodes, started)
    run.say(stages.summary(found, nodes))


def _summarise(run: Run[Any], images: int, settings: ExtractSettings) -> None:
    """Count what was written and check that every image ended in exactly one place.

    Raises:
        RuntimeError: the counts do not add up.
    """
    by_split: dict[str, Counter[str]] = {split: Counter() for split in tables.SPLITS}
    ok = rows = 0
    features = run.out.join("features")
    if tables.rows(features):
        for batch in tables.batches(features, "features", ["view", "split", "label"]):
            table = pa.table(batch)
            rows += table.num_rows
            plain = table.filter(pc.equal(table["view"], 0))
            ok += plain.num_rows
            counted = plain.group_by(["split", "label"]).aggregate([([], "count_all")])
            for row in counted.to_pylist():
                by_split[row["split"]][row["label"]] += row["count_all"]
    reasons: Counter[str] = Counter()
    errors = run.out.join("errors")
    if tables.rows(errors):
        for batch in tables.batches(errors, "errors", ["error_type"]):
            reasons.update(batch["error_type"].to_pylist())
    run.counts |= {
        "images": images,
        "ok": ok,
        "errors": reasons.total(),
        "rows": rows,
        "by_split": {split: dict(sorted(labels.items())) for split, labels in by_split.items()},
        "errors_by_reason": dict(reasons.most_common()),
    }
    run.say(f"{images:,} images = {ok:,} ok + {reasons.total():,} errors; {rows:,} features rows")
    expected = ok + settings.augmented_views * by_split["train"].total()
    if ok + reasons.total() != images or rows != expected:
        raise RuntimeError(
            f"the counts do not add up: {images} images, {ok} ok, {reasons.total()} errors, {rows} "
            f"rows of {expected}"
        )
