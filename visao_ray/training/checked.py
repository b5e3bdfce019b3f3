"""Every image is decoded once before training, to tell of those that cannot be read in time."""

from __future__ import annotations

import time
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from visao_ray import stages, tables
from visao_ray.checkpoint import checkpointed
from visao_ray.features.pipeline import Loading, load, tell_stages
from visao_ray.resources import Worker, fit_actors, look
from visao_ray.runs import Run
from visao_ray.stages import SPENT
from visao_ray.storage import Location
from visao_ray.tables import TABLE

_BLOCK = 64  # images
#: JPEG is decoded at an eighth of its size then, but all of its data are gone through.
_LOADING = Loading(image_size=32, resize="stretch", recipe="none", views=0, seed=0)


def check_images(run: Run[Any], dataset: str, manifest: Location) -> Location:
    """Write `checked/manifest`, the images that can be read, and `checked/errors`, the others.

    Returns the former. An interrupted check goes on where it was.

    Args:
        dataset: its name, for logs and metrics.
        manifest: of all images.

    Raises:
        RuntimeError: not every image ended in exactly one of the two.
    """
    import ray

    checked = run.out.join("checked")
    total = tables.rows(manifest)
    pool = fit_actors(None, Worker(gpus=0), look())

    def check() -> None:
        from visao_ray.sink import TablesSink

        started = time.time()
        schemas = {"manifest": tables.MANIFEST, "errors": tables.ERRORS}
        sink = TablesSink(checked, schemas, run.labels("check", dataset))
        committed = run.work.join("checked")
        with checkpointed(committed, "key"), run.progress(committed, _BLOCK, total):
            images = ray.data.read_parquet(
                manifest.path, filesystem=manifest.filesystem, **pool.reader
            )
            images.set_name(run.name("check", dataset))
            images.repartition(target_num_rows_per_block=_BLOCK, strict=True).map_batches(
                check_block,
                batch_size=None,
                batch_format="pyarrow",
                **pool.loader,
            ).write_datasink(
                sink,
                ray_remote_args=pool.writer,
                concurrency=pool.writers,
            )
        tell_stages(run, "check", sink.stages, pool, started, actors=False)

    run.once("check", check)
    usable, errors = checked.join("manifest"), checked.join("errors")
    ok, failed = tables.rows(usable), tables.rows(errors)
    if ok + failed != total:
        raise RuntimeError(f"the counts do not add up: {total} images, {ok} ok, {failed} errors")
    run.counts |= {"images": total, "ok": ok, "errors": failed}
    run.say(f"{total:,} images = {ok:,} ok + {failed:,} errors")
    return usable


def check_block(block: pa.Table) -> pa.Table:
    """Rows for the sink: those of the manifest for images that can be read, errors for others."""
    loaded = load(block, _LOADING)
    readable = loaded["pixels"].is_valid()
    block = block.append_column(stages.FIELD, loaded[SPENT])
    parts = {
        "manifest": (block.filter(readable.combine_chunks()), tables.MANIFEST),
        "errors": (loaded.filter(pc.invert(readable)), tables.ERRORS),
    }
    return pa.concat_tables(
        [
            rows.select([*schema.names, SPENT])
            .cast(schema.remove_metadata().append(stages.FIELD))
            .append_column(TABLE, pa.array([name] * rows.num_rows, pa.string()))
            for name, (rows, schema) in parts.items()
        ],
        promote_options="default",
    )
