"""The manifest job: list what is new below --data, and set --labels, without reading images."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from visao_ray.core.errors import InputError
from visao_ray.core.ray_session import start_ray
from visao_ray.core.resources import remotely
from visao_ray.core.run import Run
from visao_ray.datasets.listing import STAY, to_counts
from visao_ray.features.extract import (
    Source,
    list_source,
    maintain_store,
    mark_missing,
    open_source,
    set_labels_and_splits,
)
from visao_ray.features.settings import ManifestSettings
from visao_ray.store import proof
from visao_ray.store.export import Selection, plan_parts, write_parts
from visao_ray.store.proof import Contents, as_bytes
from visao_ray.store.store import PLAIN, Store, Writer
from visao_ray.store.table import TableVersion, quoted

_LOOKUP_BATCH = 2048  # keys per query of an index


def make_manifest(settings: ManifestSettings, run: Run[Any]) -> None:
    """Run the manifest job: list --data, and write the files that the next extraction would read.

    It creates no store, and changes an existing one only with --labels or --mark-missing.

    Args:
        settings: settings of the job.
        run: the run.

    Raises:
        InputError: the data does not exist, the folders do not fit the dataset, there are labels
            but no store, or another process writes to the store.
    """
    source = open_source(settings)
    store = Store.find(source.store)
    changes = settings.labels is not None or settings.mark_missing
    if changes and store is None:
        flag = "--mark-missing" if settings.labels is None else f"--labels {settings.labels}"
        raise InputError(
            f"{flag}: there is no store {source.store} yet; create it with jobs/extract.py"
        )
    start_ray()
    with contextlib.ExitStack() as stack:
        writer = None
        if changes and store is not None:
            writer = stack.enter_context(store.writing(run.owner, run.say, run.predecessor))
        gone = _list(run, source, store)
        if writer is not None:
            _change(run, writer, source, gone)


def _list(run: Run[Any], source: Source, store: Store | None) -> list[str]:
    """List --data, compare it with the store and write the listing.

    Returns URIs of files with the keys of vanished images.
    """
    images = store.images.latest() if store is not None and store.images.exists() else None
    vectors = {}
    if store is not None and images is not None:
        names = [name for name, recipes in store.extractors().items() if PLAIN in recipes]
        vectors = {name: store.vectors(name).latest() for name in names}
    without = remotely(_lacking_any, images, vectors, keep=True) if vectors else None
    table, counts = list_source(run, source, images, without)
    lacking = remotely(_count_lacking, table, images, vectors) if vectors else {}
    for name, count in lacking.items():
        run.say(f"{count:,} of the unchanged files have no vectors of {name}")
    run.say(f"{counts.listed:,} listed = {counts.new:,} new + {counts.known:,} known")
    run.counts = {**to_counts(counts), "without_vectors": lacking}
    if store is not None and images is not None:
        versions = {f"vectors/{name}/{PLAIN}": at.version for name, at in vectors.items()}
        run.inputs = {"store": store.uri, "versions": {"images": images.version, **versions}}
    with run.timed("write"):
        run.out.join("listing").delete()  # from an earlier start of the run
        listed = Selection(table)
        write_parts(run, listed, remotely(plan_parts, listed), "listing")
    run.say(f"files that the next extraction will read: {run.out.join('listing').uri}")
    return counts.gone


def _change(run: Run[Any], writer: Writer, source: Source, gone: list[str]) -> None:
    with run.timed("decide"):
        if gone:
            mark_missing(writer, gone)
        set_labels_and_splits(run, writer, source)
    maintain_store(run, writer)


def _lacking_any(images: TableVersion, vectors: Mapping[str, TableVersion]) -> Contents:
    """Return contents of readable images that lack vectors of any extractor, `S32`[N], sorted."""
    lacking = [proof.contents_without(images, at, 1) for at in vectors.values()]
    return np.unique(np.concatenate(lacking))


def _count_lacking(
    table: TableVersion, images: TableVersion, vectors: Mapping[str, TableVersion]
) -> dict[str, int]:
    """Count the listed unchanged files that have no vectors, by extractor."""
    parts = [np.zeros(0, "S32")]
    for batch in table.scan(["key"], f"`row` = '{STAY}'", _LOOKUP_BATCH):
        keys = ", ".join(quoted(key) for key in batch["key"].to_pylist())
        parts.append(as_bytes(images.read(["content_id"], f"key IN ({keys})")["content_id"]))
    contents = np.concatenate(parts)
    return {
        name: int(np.isin(contents, proof.contents_without(images, at, 1)).sum())
        for name, at in vectors.items()
    }
