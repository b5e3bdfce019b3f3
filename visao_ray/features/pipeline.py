"""The extraction graph on Ray Data: manifest → read and decode → network → features and errors.

Reading, decoding and augmenting share one task, so compressed bytes never travel and an image that
cannot be read is known with its reason (Ray's own `download` would give a null without one).
Pixels travel as uint8; floats exist inside the actor alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from visao_ray import tables
from visao_ray.bases.base import BASES
from visao_ray.bases.manifest import check_errors, find_layout, make_manifest
from visao_ray.checkpoint import checkpointed
from visao_ray.errors import InputError
from visao_ray.features.backbones import Backbone, resolve
from visao_ray.features.extractor import LOADED, Extractor
from visao_ray.images.augment import RECIPES, augment, view_rng
from visao_ray.images.decode import DecodeError, decode
from visao_ray.resources import fit_actors, look
from visao_ray.runs import Run, execute, start_ray
from visao_ray.settings import ExtractSettings, ManifestSettings
from visao_ray.storage import Location, locate, reason

_LIGHT = 0.2  # CPUs asked for by tasks that hardly compute
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

    check_source(settings, settings.manifest)
    start_ray()
    weights = run.work.join("backbone.npz")
    with run.timed("weights"):
        backbone, warning = _resolve_remotely(settings, weights)
    if warning:
        run.warn(warning)
    manifest = list_images(settings, settings.manifest, run)
    about = {
        **backbone.about(),
        "resize": settings.resize,
        "augment": settings.augment,
        "views": settings.augmented_views,
    }
    schema = tables.features(backbone.width, about)
    _check_same(run.out.join("features"), about)
    total = tables.rows(manifest)
    done_before = tables.rows(run.out.join("features")) + tables.rows(run.out.join("errors"))
    pool = fit_actors(settings.workers, settings.worker(), look())
    run.say(
        f"{total:,} images through {backbone.name} ({backbone.weights} weights, "
        f"{backbone.image_size}², {backbone.width} numbers twice) on {pool}"
    )

    def extract() -> None:
        from visao_ray.sink import TablesSink

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
            ray.data.read_parquet(
                manifest.path,
                filesystem=manifest.filesystem,
                num_cpus=_LIGHT,
            ).repartition(target_num_rows_per_block=block, strict=True).map_batches(
                load,
                batch_size=None,
                batch_format="pyarrow",
                fn_kwargs={"loading": loading},
                **pool.loader,
            ).map_batches(
                Extractor,
                fn_constructor_args=(weights, settings.batch_size),
                batch_size=None,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=pool.size),
                **pool.actor,
            ).write_datasink(
                TablesSink(run.out, {"features": schema, "errors": tables.ERRORS}),
                # Nothing to wait for: what is extracted but not committed is lost in a kill.
                ray_remote_args={"num_cpus": 0},
                concurrency=pool.writers,
            )

    run.once("extract", extract)
    _summarise(run, total, settings)
    if "extract" in run.timings:
        rows = run.counts["rows"] + run.counts["errors"] - done_before
        run.throughput["images_per_second"] = max(rows, 0) / run.timings["extract"]
    run.inputs["manifest"] = manifest.uri
    run.details |= {"about": about, "width": backbone.width, "workers": pool.size}
    check_errors(run, settings.max_errors)


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


def check_source(settings: ManifestSettings, manifest: str | None) -> None:
    """Look at the manifest, or else at the folders of `--data`, before anything that takes long.

    Raises:
        InputError: no manifest there, or one of another base; folders that do not fit the base.
    """
    if manifest is None:
        find_layout(locate(settings.data), BASES[settings.base], settings.ignore)
        return
    first = tables.open_table(locate(manifest), "manifest").head(1, columns=["base"])
    found = first["base"].to_pylist()
    if settings.base is not None and found and found[0] != settings.base:
        raise InputError(f"--manifest {manifest}: lists base {found[0]}, not {settings.base}")


def list_images(settings: ManifestSettings, manifest: str | None, run: Run[Any]) -> Location:
    """The manifest that was given, or one made from `--data` in OUT/listing."""
    if manifest is not None:
        return locate(manifest)
    out = run.out.join("listing")
    made = execute(settings.part(ManifestSettings, out=out.uri, max_errors=1.0), make_manifest)
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

    found: tuple[Backbone, str | None] = ray.get(
        ray.remote(find).options(num_cpus=0, max_retries=0).remote()
    )
    return found


def load(block: pa.Table, loading: Loading) -> pa.Table:
    """Read, decode and augment the images of a block of manifest rows.

    Returns rows of `LOADED`: pixels are uint8[S,S,3] as bytes, and null on the rows of images that
    could not be read. Only train images get augmented views.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        loaded = pool.map(lambda row: _load_one(row, loading), block.to_pylist())
        rows = [row for views in loaded for row in views]
    return pa.Table.from_pylist(rows, schema=LOADED)


def _load_one(row: Mapping[str, Any], loading: Loading) -> list[dict[str, Any]]:
    def failed(stage: str, error_type: str, message: str) -> list[dict[str, Any]]:
        told = {"stage": stage, "error_type": error_type, "message": message}
        return [{"key": row["key"], "uri": row["uri"], **told}]

    if row["status"] != "ok":
        stage, error_type, message = row["error"].split(": ", 2)  # as the manifest found it
        return failed(stage, error_type, message)
    try:
        image = decode(
            locate(row["uri"]).read_bytes(),
            loading.image_size,
            "letterbox" if loading.resize == "letterbox" else "stretch",
        )
    except OSError as error:
        return failed("download", type(error).__name__, reason(error))
    except DecodeError as error:
        return failed("decode", error.error_type, reason(error))
    same = {name: row[name] for name in ("key", "label", "split", "group", "content_id")}
    views = [{**same, "view": 0, "pixels": image.tobytes()}]
    if row["split"] == "train":
        recipe = RECIPES[loading.recipe]
        for view in range(1, loading.views + 1):
            varied = augment(image, recipe, view_rng(loading.seed, row["key"], view))
            views.append({**same, "view": view, "pixels": varied.tobytes()})
    return views


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
