"""The extract job: send new images below --data through a network, and store their vectors."""

from __future__ import annotations

import hashlib
import json
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from visao_ray.core.errors import InputError
from visao_ray.core.ray_session import start_ray
from visao_ray.core.resources import ActorPool, current_cluster, fit_actors, remotely
from visao_ray.core.run import Run
from visao_ray.core.storage import Location, locate
from visao_ray.datasets import listing
from visao_ray.datasets.assignment import apply_labels, assign_splits
from visao_ray.datasets.labels import check_labels
from visao_ray.datasets.listing import Layout, ListingCounts, ListingSpec, find_layout
from visao_ray.datasets.registry import find_dataset
from visao_ray.datasets.settings import SourceOptions
from visao_ray.datasets.spec import Dataset
from visao_ray.features.settings import ExtractSettings
from visao_ray.inference.committing import GraphResult
from visao_ray.inference.engines.base import EngineFactory
from visao_ray.inference.engines.registry import ENGINES, find_engine
from visao_ray.inference.graph import Work, run_graph
from visao_ray.inference.loading import Loading
from visao_ray.store import proof, schemas
from visao_ray.store.counts import count_images
from visao_ray.store.store import Description, Store, Writer, create_or_open
from visao_ray.store.table import Table, TableVersion

_CONTRADICTIONS_SHOWN = 5
#: The numeric precision in the names of vectors.
_PRECISION = "f32"


def extract_images(settings: ExtractSettings, run: Run[Any]) -> None:
    """Run the extract job: read images that are new to the store, and extract missing vectors.

    Args:
        settings: settings of the job.
        run: the run.

    Raises:
        InputError: the data does not exist, the folders do not fit the dataset, the backbone or its
            weights are not available, another process writes to the store, or too many images
            cannot be used (after they are written).
    """
    source = open_source(settings)
    find_engine(settings)
    start_ray()
    pool = fit_actors(settings.workers, settings.worker(), current_cluster())
    with run.timed("weights"):
        engine, warning = resolve_engine(settings, run)
    if warning:
        run.warn(warning)
    with source.writing(run) as writer:
        store = writer.store
        name = extractor_name(engine)
        vectors = store.vectors(name)
        writer.ensure(store.images, schemas.IMAGES)
        found = read_new(
            run, writer, source, engine, vectors, pool, settings.rows_per_block, pictures=True
        )
        if settings.augmented_views:
            augment_train(run, writer, engine, name, settings, pool)
        maintain_store(run, writer)
    run.details |= {
        "engine": settings.engine,
        "extractor": name,
        "metadata": dict(engine.metadata),
        "workers": pool.size,
    }
    run.inputs["extractor"] = name
    source.check_errors(run, found.errors.total(), settings.max_errors)


@dataclass(frozen=True)
class Source:
    """The images of a job, and the store that they are added to.

    Attributes:
        settings: --data and its related settings.
        dataset: the dataset of --dataset, or of the store.
        data: location of --data.
        layout: folders below --data.
        store: URI of the store.
        is_new: whether the store does not exist yet.
    """

    settings: SourceOptions
    dataset: Dataset
    data: Location
    layout: Layout
    store: str
    is_new: bool

    def writing(self, run: Run[Any]) -> Any:
        """Open the store for writing; create it if it does not exist."""
        shares = self.layout.shares(self.settings.val_share, self.settings.test_share)
        description = Description(self.dataset.to_json(), run.settings.seed, *shares)
        return create_or_open(self.store, description, run.owner, run.say, run.predecessor)

    def require_classes(self) -> None:
        """Check, for a job that then fits a model, that there is a folder of every class.

        There is no check if the store exists or a labels file is given, as these may have the
        labels.

        Raises:
            InputError: a class has no folder, or there are fewer than two classes.
        """
        if self.settings.labels is not None or not self.is_new:
            return
        found = self.layout.classes
        missing = sorted(set(self.dataset.classes) - set(found))
        if missing or len(found) < 2:
            which = ", ".join(missing) or "a second class"
            raise InputError(
                f"--data {self.data.uri}: no folder of {which} (dataset {self.dataset.name}), so "
                "no model can be fitted; add it, or pass the labels with --labels FILE"
            )

    def check_errors(self, run: Run[Any], errors: int, most: float) -> None:
        """Fail if too many new images could not be used. Call it after they are written.

        Args:
            run: the run, with its counts.
            errors: number of unusable new images.
            most: largest share of unusable new images.

        Raises:
            InputError: the share of unusable images is larger than `most`.
        """
        new = run.counts["new"]
        if errors and errors > most * new:
            reasons = ", ".join(
                f"{count:,} {name}" for name, count in run.counts["errors_by_reason"].items()
            )
            raise InputError(
                f"--data {self.data.uri}: {errors:,} of {new:,} new images cannot be used "
                f"({reasons}), more than --max-errors {most:g}; the column 'error' of the "
                "table images gives the reasons"
            )


def open_source(settings: SourceOptions) -> Source:
    """Check the store, the dataset and the top folders of --data, before Ray starts.

    Args:
        settings: --data and its related settings.

    Returns:
        The source.

    Raises:
        InputError: one of them is missing, or they do not fit each other.
    """
    assert settings.data is not None
    uri = settings.store_uri()
    store = Store.find(uri)
    if settings.dataset is not None:
        dataset = find_dataset(settings.dataset)
    elif store is not None:
        dataset = Dataset.from_json(store.description.dataset)
    else:
        raise InputError(
            f"--store {uri}: does not exist yet, so --dataset is needed: chest_xray, vazios, ncm "
            "or a TOML file"
        )
    if settings.labels is not None and not locate(settings.labels).exists():
        raise InputError(f"--labels {settings.labels}: there is no such file")
    data = locate(settings.data)
    layout = find_layout(data, dataset, settings.ignore)
    return Source(settings, dataset, data, layout, uri, is_new=store is None)


def resolve_engine(settings: ExtractSettings, run: Run[Any]) -> tuple[EngineFactory, str | None]:
    """Resolve the settings to an engine, in a task, because the driver imports no TensorFlow.

    Args:
        settings: settings of the job.
        run: the run.

    Returns:
        The factory of the engine, and a warning to show, or None.

    Raises:
        InputError: the engine is not available.
    """
    import ray

    task = ray.remote(_resolve).options(**current_cluster().zero_cpu_options)
    found: tuple[EngineFactory, str | None] = ray.get(task.remote(settings, run.work))
    return found


def _resolve(settings: ExtractSettings, work: Location) -> tuple[EngineFactory, str | None]:
    return ENGINES[settings.engine].resolve(settings, settings.seed, work)


def extractor_name(engine: EngineFactory) -> str:
    """Return a readable name with a digest of everything that determines the vectors."""
    text = json.dumps(dict(engine.metadata), sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    weights = str(engine.metadata.get("weights", "")).removesuffix(".keras")
    parts = [
        engine.name,
        *filter(None, [weights]),
        str(engine.image_size),
        "".join(engine.outputs),
        _PRECISION,
    ]
    return "-".join([*dict.fromkeys(parts), digest])


def read_new(
    run: Run[Any],
    writer: Writer,
    source: Source,
    engine: EngineFactory | None,
    results: Table | None,
    pool: ActorPool,
    unit_rows: int,
    pictures: bool = False,
) -> GraphResult:
    """List --data, read what is new, set labels and splits, and check that the counts add up.

    Args:
        run: the run.
        writer: writer of the store.
        source: the images.
        engine: factory of the engine that computes results of new contents; None only checks that
            the images can be decoded.
        results: table of the results, or None.
        pool: numbers and resources of actors and tasks.
        unit_rows: number of files that one task loads.
        pictures: store a small copy of each image beside its results; see `images.summary`.

    Returns:
        The counts of the committed work.
    """
    settings = source.settings
    images = writer.store.images
    at = writer.version(images)
    before = at.count()
    without = None
    if results is not None:
        computed = writer.version(results) if results.exists() else None
        without = remotely(proof.contents_without, at, computed, 1, keep=True)
    table, counts = list_source(run, source, at, without)
    loading = Loading(32, "stretch")
    if engine is not None:
        loading = Loading(engine.image_size, engine.resize, pictures=pictures)
    work = Work(
        step="extract" if engine else "read",
        listing=table,
        files=counts.new,
        loading=loading,
        engine=engine,
        results=results,
        unit_rows=unit_rows,
        batch=settings.batch or datetime.now(UTC).strftime("%Y-%m-%d"),
    )
    if counts.new:
        through = f" through {engine.name} on {pool}" if engine else ""
        run.say(f"{counts.new:,} images{through}")
    with run.timed(work.step):
        done = run_graph(run, writer, work, pool)
    if counts.gone:
        mark_missing(writer, counts.gone)
    with run.timed("decide"):
        set_labels_and_splits(run, writer, source)
    _check_complete(run, writer, results, before + counts.added, without)
    _report_counts(run, counts, done, work.step)
    return done


def list_source(
    run: Run[Any], source: Source, images: TableVersion | None, without: Any
) -> tuple[TableVersion, ListingCounts]:
    """List --data, compare it with the store, and report what is new.

    Args:
        run: the run.
        source: the images.
        images: the store's table `images`, or None if it does not exist yet.
        without: object reference to the contents without results; None to treat all known contents
            as done.

    Returns:
        A table of schema `listing.LISTING` in the run's work folder, and the counts.

    Raises:
        InputError: there are no files, or the --labels file is wrong.
    """
    settings = source.settings
    if settings.labels is not None:  # check it now: it is applied at the end, maybe hours later
        remotely(check_labels, settings.labels, source.dataset, source.data)
    gone = run.work.join("gone") if settings.mark_missing else None
    quota = -(-settings.limit // (len(source.layout.folders) or 1)) if settings.limit else None
    spec = ListingSpec(
        source.data,
        source.dataset,
        tuple(settings.ignore),
        images,
        without,
        new_listing(run),
        quota,
        gone,
    )
    with run.timed("list"):
        table, counts = listing.list_new(spec, source.layout)
    _report_listing(run, source, counts)
    return table, counts


def set_labels_and_splits(run: Run[Any], writer: Writer, source: Source) -> None:
    """Apply --labels, then assign splits to images that have none."""
    store, settings = writer.store, source.settings
    if settings.labels is not None:
        at, labelled = remotely(
            apply_labels,
            writer.version(store.images),
            settings.labels,
            source.dataset,
            source.data,
        )
        writer.moved(store.images, at)
        changed = ", ".join(f"{count:,} {name}s" for name, count in labelled.changed.items())
        run.say(f"{settings.labels}: names {labelled.named:,} images; changed {changed}")
        run.counts["relabelled"] = labelled.changed["label"]
        if labelled.named < labelled.rows:
            run.warn(
                f"--labels {settings.labels}: {labelled.rows - labelled.named:,} of its "
                f"{labelled.rows:,} rows name no image of the store"
            )
    set_splits(run, writer)


def set_splits(run: Run[Any], writer: Writer) -> None:
    """Assign splits to images that have none, and report contradictions."""
    store = writer.store
    groups = writer.ensure(store.groups, schemas.GROUPS)
    images, groups, assigned = remotely(
        assign_splits, writer.version(store.images), groups, store.description
    )
    writer.moved(store.images, images)
    writer.moved(store.groups, groups)
    run.counts["contradictions"] = len(assigned.contradictions)
    if assigned.contradictions:
        shown = "; ".join(assigned.contradictions[:_CONTRADICTIONS_SHOWN])
        run.warn(
            f"{len(assigned.contradictions):,} groups or identical images are in more than one "
            f"split, so test metrics will be too optimistic: {shown}"
        )


def augment_train(
    run: Run[Any],
    writer: Writer,
    engine: EngineFactory,
    extractor: str,
    settings: ExtractSettings,
    pool: ActorPool,
) -> None:
    """Extract missing augmented views of train images; other images are not augmented."""
    store = writer.store
    recipe = f"{settings.augment}@{settings.seed}"
    results = store.vectors(extractor, recipe)
    views = tuple(range(1, settings.augmented_views + 1))
    at = writer.version(store.images)
    computed = writer.version(results) if results.exists() else None
    table, files = remotely(_list_train, at, computed, len(views), new_listing(run))
    if files:
        run.say(f"{len(views)} views ({settings.augment}) of {files:,} train images")
    work = Work(
        step="augment",
        listing=table,
        files=files,
        loading=Loading(engine.image_size, engine.resize, settings.augment, views, settings.seed),
        engine=engine,
        results=results,
        unit_rows=max(1, settings.rows_per_block // len(views)),
        batch="",
    )
    with run.timed("augment"):
        run_graph(run, writer, work, pool)
    _remove_repeated(run, writer, results)


def new_listing(run: Run[Any]) -> str:
    """Return the URI of a new listing, different from those of earlier starts of the run."""
    return run.work.join(f"listing-{uuid.uuid4().hex}.lance").uri


def _list_train(
    images: TableVersion, results: TableVersion | None, views: int, place: str
) -> tuple[TableVersion, int]:
    contents = proof.contents_without(images, results, views)
    return listing.list_contents(images, contents, place, "split = 'train'")


def maintain_store(run: Run[Any], writer: Writer) -> None:
    """Compact, index and clean up the store at the end of a job, and record its counts."""
    with run.timed("maintain"):
        cleaned = writer.maintain()
    run.counts["store"] = remotely(count_images, writer.version(writer.store.images)).to_json()
    run.inputs |= {
        "store": writer.store.uri,
        "versions": {
            name: writer.version(table).version for name, table in writer.store.tables().items()
        },
    }
    freed = sum(one.bytes for one in cleaned.values())
    if freed:
        run.details["freed_bytes"] = freed


def _report_listing(run: Run[Any], source: Source, counts: ListingCounts) -> None:
    labels = dict(counts.labels)
    unlabelled = labels.pop("", 0)
    lacking = f", {counts.without:,} without results" if counts.without else ""
    run.say(
        f"{counts.listed:,} files below {source.data.uri}: {counts.known:,} known, "
        f"{counts.added:,} new, {counts.changed:,} changed{lacking}"
    )
    if counts.vanished:
        marked = source.settings.mark_missing
        what = "marked as missing" if marked else "unchanged (--mark-missing marks them)"
        run.say(f"{counts.vanished:,} files of the store no longer exist: {what}")
    if unlabelled and source.settings.labels is None:
        others = source.layout.others
        where = f" in {', '.join(others[:5])}{', …' if others[5:] else ''}" if others else ""
        run.say(f"{unlabelled:,} files{where} are in no class folder, so they get no label")
    if not counts.listed:
        raise InputError(f"--data {source.data.uri}: there are no files; check the folder")


def mark_missing(writer: Writer, files: list[str]) -> None:
    """Mark images as missing; `files` are URIs of JSON files with lists of their keys."""
    keys = [key for file in files for key in json.loads(locate(file).read_bytes())]
    schema = pa.schema([schemas.IMAGES.field("key"), schemas.IMAGES.field("status")])
    rows = pa.table([keys, [schemas.MISSING] * len(keys)], schema=schema)
    writer.merge(writer.store.images, rows)


def _check_complete(
    run: Run[Any], writer: Writer, results: Table | None, expected: int, before: Any
) -> None:
    """Check that all listed files are in the store once, and that all new contents have results.

    Raises:
        RuntimeError: a file or a result is missing, or there are too many files.
    """
    images = writer.version(writer.store.images)
    rows = images.count()
    if rows != expected:
        raise RuntimeError(f"{expected:,} files should be in the store, but there are {rows:,}")
    if results is None or not results.exists():
        return
    _remove_repeated(run, writer, results)
    lacking = remotely(_still_lacking, images, writer.version(results), before)
    if lacking:
        raise RuntimeError(f"{lacking:,} images that were read have no results")


def _remove_repeated(run: Run[Any], writer: Writer, results: Table) -> None:
    if not results.exists():
        return
    at, removed = remotely(proof.remove_repeated, writer.version(results))
    writer.moved(results, at)
    if removed:
        run.warn(f"{removed:,} duplicate rows of {results.uri} were removed")


def _still_lacking(images: TableVersion, results: TableVersion, before: list[Any]) -> int:
    import numpy as np
    import ray

    now = proof.contents_without(images, results, 1)
    return len(np.setdiff1d(now, ray.get(before[0]), assume_unique=True))


def _report_counts(run: Run[Any], counts: ListingCounts, done: GraphResult, step: str) -> None:
    errors = done.errors.total()
    run.counts |= {
        **listing.to_counts(counts),
        "read": done.files,
        "ok": counts.new - errors,
        "errors": errors,
        "errors_by_reason": dict(done.errors.most_common()),
        "computed": done.computed,
    }
    if done.files:
        run.throughput["images_per_second"] = done.files / run.timings[step]
    run.say(
        f"{counts.listed:,} listed = {counts.new:,} new + {counts.known:,} known; "
        f"{counts.new:,} new = {counts.new - errors:,} ok + {errors:,} errors"
    )
