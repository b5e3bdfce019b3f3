"""The augment job: augmented copies of train images as JPEG files, each with a row in the store.

For tools that train from folders, and to look at what a recipe does. Jobs of this library augment
by themselves: `extract --augment` and `train --augment` draw the same pixels without files.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from visao_ray.core.errors import InputError
from visao_ray.core.object_store import list_files
from visao_ray.core.ray_session import start_ray
from visao_ray.core.resources import current_cluster, remotely
from visao_ray.core.run import Run
from visao_ray.core.storage import locate
from visao_ray.core.waiting import Waiting
from visao_ray.features.extract import maintain_store, new_listing
from visao_ray.inference.committing import COMMIT_FRAGMENTS, COMMIT_S
from visao_ray.quality.augment_files import (
    Copied,
    CopyUnit,
    copies_schema,
    write_copies,
    write_labels,
    write_sheet,
)
from visao_ray.quality.augment_plan import Amount, CopyPlan, CopySpec, plan_copies
from visao_ray.quality.settings import AugmentSettings
from visao_ray.store import schemas
from visao_ray.store.join import Snapshot
from visao_ray.store.store import Store, Writer
from visao_ray.store.table import Table

_PROGRESS_S = 10.0
_MESSAGES_SHOWN = 3


def augment_images(settings: AugmentSettings, run: Run[Any]) -> None:
    """Run the augment job: make the copies that are missing, remove those no longer wanted.

    Args:
        settings: settings of the job.
        run: the run.

    Raises:
        InputError: no such store, no labelled train images, the folder has other files, copies of
            that name were made with other settings, or another process writes to the store.
        RuntimeError: the counts do not add up.
    """
    store = Store.open(settings.store_uri())
    name = settings.name or f"{settings.recipe}@{settings.seed}"
    made = store.copies(name)
    folder = locate(settings.folder or f"{store.uri.rstrip('/')}/copies/{name}")
    spec = CopySpec(
        recipe=settings.recipe,
        seed=settings.seed,
        image_size=settings.image_size,
        resize=settings.resize,
        quality=settings.quality,
        folder=folder.uri,
    )
    _check_place(made, spec, name)
    start_ray()
    with store.writing(run.owner, run.say, run.predecessor) as writer:
        at = writer.ensure(made, copies_schema(spec))
        snapshot = Snapshot(
            store.uri,
            writer.version(store.images),
            writer.version(store.verdicts) if store.verdicts.exists() else None,
        )
        amount = Amount(settings.copies, settings.balance, settings.most_copies, settings.originals)
        with run.timed("plan"):
            plan: CopyPlan = remotely(plan_copies, snapshot, at, spec, amount, new_listing(run))
        writer.moved(made, plan.table)
        total = sum(plan.copies.values())
        images = sum(plan.images.values())
        run.say(
            f"{images:,} train images, {total:,} copies ({spec.recipe}, {spec.image_size} px): "
            f"{plan.known:,} known, {plan.new:,} new"
        )
        if plan.removed:
            run.say(f"{plan.removed:,} files removed: their image is no longer in train like that")
        if plan.conflicts:
            run.warn(f"{plan.conflicts:,} images left out: their files have different labels")
        with run.timed("augment"):
            errors = _make(run, writer, made, plan, spec, settings.rows_per_block)
        failed = errors.total()
        rows = writer.version(made).count()
        if rows != total - failed:
            raise RuntimeError(f"{total - failed:,} copies should have a row, but {rows:,} have")
        maintain_store(run, writer)
        at = writer.version(made)
        with run.timed("labels"):
            remotely(write_labels, snapshot, at, run.out.join("labels.csv"))
            remotely(write_sheet, at, spec, run.out.join("copies.jpg"))
    run.counts |= {
        "images": images,
        "copies": total,
        "known": plan.known,
        "new": plan.new,
        "ok": plan.new - failed,
        "errors": failed,
        "errors_by_reason": dict(errors.most_common()),
        "removed": plan.removed,
        "by_label": {
            label: {"images": count, "copies": plan.copies[label]}
            for label, count in plan.images.items()
        },
    }
    run.details = {"name": name, **asdict(spec)}
    run.say(
        f"{plan.new:,} new = {plan.new - failed:,} ok + {failed:,} errors; per class: "
        + ", ".join(f"{label} {count:,}" for label, count in list(plan.copies.items())[:6])
        + (", …" if len(plan.copies) > 6 else "")
    )
    run.say(f"copies: {folder.uri}; labels and groups: {run.out.join('labels.csv').uri}")


def _check_place(made: Table, spec: CopySpec, name: str) -> None:
    """Check that the folder belongs to these copies, before anything is written or removed."""
    if not made.exists():
        found = next(iter(list_files(locate(spec.folder))), None)
        if found is not None:
            raise InputError(
                f"--folder {spec.folder}: is not empty (it has {found.path}); choose a new folder, "
                "because the job removes copies that are no longer wanted"
            )
        return
    before = schemas.description(made.latest().schema)
    changed = [key for key, value in asdict(spec).items() if before.get(key) != value]
    if changed:
        earlier = ", ".join(f"{key} {before.get(key)}" for key in changed)
        raise InputError(
            f"copies '{name}' of the store were made with {earlier}; repeat those settings, or "
            "choose another --name"
        )


def _make(
    run: Run[Any], writer: Writer, made: Table, plan: CopyPlan, spec: CopySpec, unit_rows: int
) -> Counter[str]:
    """Stream the images through tasks that write copies, and commit their rows every few seconds.

    Returns the number of copies that could not be made, by reason.
    """
    import ray

    errors: Counter[str] = Counter()
    if not plan.rows:
        return errors
    unit = CopyUnit(plan.listing, unit_rows, spec, made.uri, copies_schema(spec))
    rows = ray.data.from_blocks(
        [pa.table({"unit": [number]}) for number in range(-(-plan.rows // unit_rows))]
    )
    rows.set_name(run.name("augment", writer.store.description.dataset["name"]))
    rows = rows.map_batches(
        write_copies,
        batch_size=None,
        batch_format="pyarrow",
        fn_kwargs={"unit": unit},
        num_cpus=1,
        **current_cluster().avoid_gpu_nodes,
    )
    pending: list[str] = []
    messages: list[str] = []
    done = 0
    committed = reported = started = time.monotonic()
    with Waiting(run.say):
        for batch in rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for text in batch["written"].to_pylist():
                copied = Copied.from_json(text)
                pending += copied.fragments
                errors.update(copied.errors)
                messages += copied.messages[:_MESSAGES_SHOWN]
                done += copied.copies
            now = time.monotonic()
            if now - committed >= COMMIT_S or len(pending) >= COMMIT_FRAGMENTS:
                writer.append(made, pending)
                pending, committed = [], now
            if now - reported >= _PROGRESS_S:
                reported = now
                run.say(f"{done:,} of {plan.new:,} copies ({done / (now - started):,.1f}/s)")
    writer.append(made, pending)
    if done + errors.total() != plan.new:
        raise RuntimeError(
            f"the counts do not add up: {plan.new} copies to make, {done} made, "
            f"{errors.total()} errors"
        )
    if done:
        run.throughput["copies_per_second"] = done / (time.monotonic() - started)
    if messages:
        shown = "; ".join(messages[:_MESSAGES_SHOWN])
        run.warn(f"{errors.total():,} copies could not be made: {shown}")
    return errors
