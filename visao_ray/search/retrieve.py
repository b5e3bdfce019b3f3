"""The evaluate action of the search job: how many neighbours share the class of their query.

    prepare (task): images, queries, gallery  →  search (tasks, exact)  →  summarise (task)

The search is exact and reads all vectors of the gallery: the figures are those of the vectors, not
of an index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from visao_ray.core import tables
from visao_ray.core.errors import InputError
from visao_ray.core.ray_session import start_ray
from visao_ray.core.resources import remotely
from visao_ray.core.run import Run
from visao_ray.core.storage import Location
from visao_ray.core.waiting import Waiting
from visao_ray.datasets.spec import Dataset
from visao_ray.evaluation.bootstrap import Floats
from visao_ray.evaluation.labelled_scores import sorted_codes
from visao_ray.evaluation.retrieval import (
    NEIGHBOURS,
    Distances,
    Hits,
    Positions,
    mean_estimates,
    nearest,
    require_finite,
)
from visao_ray.reports.formats import with_interval
from visao_ray.reports.search import Example, Neighbour, SearchPage, write_search
from visao_ray.search.settings import RetrievalSettings
from visao_ray.search.spaces import Space, SpaceRows, find_space
from visao_ray.store.join import Examples, Snapshot, pin, pin_table, read_examples
from visao_ray.store.store import Store
from visao_ray.store.table import TableVersion

_QUERIES = 2048  # of one task
_GALLERY = 100_000  # rows of the gallery in memory at once
_STUDY_BATCH = 512
_EXAMPLES = 6  # queries on the page, of each kind
_SHOWN = 6  # neighbours of each

#: The first column is the name of the vectors that were searched.
TABLE = tables.named_schema(
    "neighbours",
    [
        ("vectors", pa.string()),
        ("key", pa.string()),
        ("label", pa.string()),
        ("group", pa.string()),
        ("precision_at_20", pa.float32()),
        ("neighbours", pa.list_(pa.string())),
        ("labels", pa.list_(pa.string())),
        ("distances", pa.list_(pa.float32())),
    ],
)


@dataclass(frozen=True)
class Prepared:
    """The images of an evaluation, and their vectors in each space.

    Attributes:
        examples: images of the queries and of the gallery that have vectors in all spaces.
        labels: int32[N], class codes.
        groups: int32[N], group codes.
        classes: names of the classes, in the order of their codes.
        queries: int64[Q], rows of the queries.
        gallery: int64[G], rows of the gallery.
        spaces: the vectors in each space.
        without: number of images that were left out because a space has no vector of them.
    """

    examples: Examples
    labels: npt.NDArray[np.int32]
    groups: npt.NDArray[np.int32]
    classes: tuple[str, ...]
    queries: npt.NDArray[np.int64]
    gallery: npt.NDArray[np.int64]
    spaces: tuple[SpaceRows, ...]
    without: int

    def batches(self, settings: RetrievalSettings) -> list[tuple[npt.NDArray[np.int64], Any]]:
        """Return the rows of queries and of their gallery for each task."""
        if settings.protocol == "gallery":
            starts = range(0, len(self.queries), _QUERIES)
            return [(self.queries[start : start + _QUERIES], self.gallery) for start in starts]
        rng = np.random.default_rng(settings.seed)
        shuffled = rng.permutation(self.queries)
        starts = range(0, len(shuffled), _STUDY_BATCH)
        parts = [np.sort(shuffled[start : start + _STUDY_BATCH]) for start in starts]
        return [(part, part) for part in parts]


@dataclass(frozen=True)
class Found:
    """What was found in one space.

    Attributes:
        name: name of the space.
        width: number of values of a vector.
        metrics: measures over all queries, `per_class`, and `per_chapter` if there are chapters.
        behind: how much each measure of the first space is higher, on the same queries; empty for
            the first space itself.
    """

    name: str
    width: int
    metrics: dict[str, Any]
    behind: dict[str, Any]


def evaluate_search(settings: RetrievalSettings, run: Run[Any]) -> None:
    """Run the evaluate action: search the neighbours of each query, and measure them.

    Args:
        settings: settings of the job.
        run: the run.

    Raises:
        InputError: no such store or vectors, or no queries, or no gallery.
    """
    store = Store.open(settings.store)
    spaces = [find_space(store, name, settings.extractor) for name in settings.vectors]
    start_ray()
    snapshot = pin(store, run.id, results=None, as_of=settings.as_of)
    pinned = {
        space.table: pin_table(store, space.table, run.id, settings.as_of) for space in spaces
    }
    dataset = Dataset.from_json(store.description.dataset)
    with run.timed("prepare"):
        prepared = remotely(_prepare, snapshot, spaces, pinned, settings, keep=True)
        counts = remotely(_counts, prepared, settings)
    batches = counts.pop("batches")
    run.counts |= counts
    run.say(
        f"{counts['queries']:,} queries of {settings.queries}, {counts['gallery']:,} images in the "
        "gallery"
    )
    if counts["without_vectors"]:
        run.warn(
            f"{counts['without_vectors']:,} labelled images have no vectors in one of "
            f"{', '.join(settings.vectors)}: they are left out"
        )
    near = []
    for number, space in enumerate(spaces):
        with run.timed("search"), Waiting(run.say):
            near.append(_search_all(prepared, number, batches, settings))
        run.say(f"{space.name}: searched")
    with run.timed("measure"):
        found, examples = remotely(
            _summarise, prepared, near, settings, dataset.chapter_digits, run.out
        )
    run.metrics = {settings.queries: found[0].metrics}
    run.inputs |= {
        **snapshot.to_json(),
        "dataset": dataset.to_json(),
        "vectors": {space.name: space.table for space in spaces},
    }
    run.inputs["versions"] |= {name: table.version for name, table in pinned.items()}
    run.details |= {
        "protocol": settings.protocol,
        "vectors": [
            {"name": one.name, "width": one.width, **_overall(one.metrics), "behind": one.behind}
            for one in found
        ],
    }
    for line in _lines(found, settings.queries):
        run.say(line)
    page = SearchPage(
        dataset=dataset.name,
        store=store.uri,
        queries=settings.queries,
        gallery=tuple(settings.gallery),
        study=settings.protocol == "study",
        counts=run.counts,
        vectors=tuple((one.name, one.width, one.metrics, one.behind) for one in found),
        examples=examples,
        command=run.command,
    )
    with run.timed("page"):
        remotely(write_search, page, run.out.join("search.html"))
    run.say(f"page: {run.out.join('search.html').uri}")


def _prepare(
    snapshot: Snapshot,
    spaces: Sequence[Space],
    pinned: dict[str, TableVersion],
    settings: RetrievalSettings,
) -> Prepared:
    """Find queries, gallery and vectors. For a task."""
    splits = tuple(dict.fromkeys([settings.queries, *settings.gallery]))
    found = [read_examples(replace(snapshot, results=table), splits) for table in pinned.values()]
    contents = found[0].contents
    for other in found[1:]:
        contents = np.intersect1d(contents, other.contents, assume_unique=True)
    examples = found[0].take(np.flatnonzero(np.isin(found[0].contents, contents)))
    texts = examples.labels.dictionary_decode().to_numpy(zero_copy_only=False)
    classes, labels = np.unique(texts, return_inverse=True)
    labelled = len(read_examples(snapshot, splits))
    groups, _ = sorted_codes(examples.group_names)
    split = np.array(examples.splits.dictionary_decode().to_pylist(), object)
    queries = np.flatnonzero(split == settings.queries)
    gallery = np.flatnonzero(np.isin(split, settings.gallery))
    for rows, what, value in (
        (queries, "--queries", settings.queries),
        (gallery, "--gallery", ",".join(settings.gallery)),
    ):
        if not len(rows):
            raise InputError(
                f"{what} {value}: {snapshot.store} has no labelled images of it with vectors"
            )
    if settings.limit is not None and settings.limit < len(queries):
        rng = np.random.default_rng(settings.seed)
        queries = np.sort(rng.choice(queries, settings.limit, replace=False))
    vectors = [
        SpaceRows.of(space, pinned[space.table], snapshot.images, examples) for space in spaces
    ]
    # Components are fitted on the gallery without val and test, so that no query is fitted.
    train = gallery[split[gallery] == "train"]
    return Prepared(
        examples=examples,
        labels=labels.astype(np.int32),
        groups=groups.astype(np.int32),
        classes=tuple(map(str, classes)),
        queries=queries,
        gallery=gallery,
        spaces=tuple(one.fitted(train, settings.seed) for one in vectors),
        without=labelled - len(examples),
    )


def _counts(prepared: list[Any], settings: RetrievalSettings) -> dict[str, int]:
    import ray

    found: Prepared = ray.get(prepared[0])
    return {
        "batches": len(found.batches(settings)),
        "queries": len(found.queries),
        "gallery": len(found.gallery),
        "classes": len(np.unique(found.labels[found.queries])),
        "without_vectors": found.without,
    }


def _search_all(prepared: Any, number: int, batches: int, settings: RetrievalSettings) -> list[Any]:
    """Search the neighbours of all queries in one space; returns a reference for each batch."""
    import ray

    task = ray.remote(_search_batch).options(num_cpus=1)
    references = [task.remote([prepared], number, batch, settings) for batch in range(batches)]
    ray.wait(references, num_returns=len(references), fetch_local=False)
    return references


def _search_batch(
    prepared: list[Any], number: int, batch: int, settings: RetrievalSettings
) -> list[tuple[Positions, Distances]]:
    """Return the neighbours of each query of a batch: rows and distances. For a task."""
    import ray

    found: Prepared = ray.get(prepared[0])
    queries, gallery = found.batches(settings)[batch]
    space = found.spaces[number]
    mapped = space.file.open()
    asked = space.read(queries, mapped)
    require_finite(asked)
    # In the study's protocol, nothing is left out, not even the query.
    groups = found.groups[queries] if settings.protocol == "gallery" else np.full(len(queries), -1)
    best: list[tuple[Positions, Distances]] = []
    for start in range(0, len(gallery), _GALLERY):
        rows = gallery[start : start + _GALLERY]
        part = nearest(asked, groups, space.read(rows, mapped), found.groups[rows], NEIGHBOURS)
        these = [(rows[places], distances) for places, distances in part]
        best = [_merge(*pair) for pair in zip(best, these, strict=True)] if best else these
    return best


def _merge(
    one: tuple[Positions, Distances], other: tuple[Positions, Distances]
) -> tuple[Positions, Distances]:
    """Return the nearest of two lists; of equally near ones, those of the first come first."""
    rows, distances = (np.concatenate(pair) for pair in zip(one, other, strict=True))
    order = np.argsort(distances, kind="stable")[:NEIGHBOURS]
    return rows[order], distances[order]


def _summarise(
    prepared: list[Any],
    near: list[list[Any]],
    settings: RetrievalSettings,
    chapter_digits: int,
    out: Location,
) -> tuple[list[Found], tuple[Example, ...]]:
    """Measure the neighbours, write the table, and choose examples for the page. For a task."""
    import ray

    images: Prepared = ray.get(prepared[0])
    batches = images.batches(settings)
    order = np.argsort(np.concatenate([queries for queries, _ in batches]), kind="stable")
    measure = _Measure(images, settings, chapter_digits)
    found: list[Found] = []
    rows = []
    first: dict[str, Floats] = {}
    examples: tuple[Example, ...] = ()
    for space, references in zip(images.spaces, near, strict=True):
        lists = [one for part in ray.get(references) for one in part]
        of_query = [lists[place] for place in order]
        measures = _hits(images, of_query, settings).measures()
        behind = measure.differences(first, measures) if first else {}
        if not first:
            first, examples = measures, _examples(images, of_query, measures["precision_at_20"])
        name = space.space.name
        found.append(Found(name, space.width, measure.metrics(measures), behind))
        rows.append(_rows(images, name, of_query, measures["precision_at_20"]))
    tables.write(out.join("neighbours"), pa.concat_tables(rows), TABLE)
    return found, examples


def _hits(
    images: Prepared,
    neighbours: Sequence[tuple[Positions, Distances]],
    settings: RetrievalSettings,
) -> Hits:
    # In the study's protocol the batch stands for the gallery: chance is that of all queries.
    gallery = images.gallery if settings.protocol == "gallery" else images.queries
    places = np.full(len(images.labels), -1)
    places[gallery] = np.arange(len(gallery))
    left_out = images.groups[images.queries]
    if settings.protocol == "study":
        left_out = np.full(len(images.queries), -1)
    return Hits.of(
        [places[rows] for rows, _ in neighbours],
        images.labels[images.queries],
        left_out,
        images.labels[gallery],
        images.groups[gallery],
    )


@dataclass(frozen=True)
class _Measure:
    """Estimates of means over the queries.

    Attributes:
        images: the images.
        settings: settings of the job.
        chapter_digits: leading digits of a class that name its chapter; 0: there are no chapters.
    """

    images: Prepared
    settings: RetrievalSettings
    chapter_digits: int

    def metrics(self, measures: dict[str, Floats]) -> dict[str, Any]:
        """Return the measures over all queries, per class and per chapter, as JSON."""
        labels = self.images.labels[self.images.queries]
        found = self._means(measures)[0]
        found["per_class"] = self._by(measures, np.array(self.images.classes)[labels])
        if self.chapter_digits:
            chapters = np.array([name[: self.chapter_digits] for name in self.images.classes])
            found["per_chapter"] = self._by(measures, chapters[labels])
        return found

    def differences(self, first: dict[str, Floats], other: dict[str, Floats]) -> dict[str, Any]:
        """Return how much the measures of the first space are higher, on the same queries."""
        return self._means({name: first[name] - other[name] for name in first}, share=False)[0]

    def _by(self, measures: dict[str, Floats], names: npt.NDArray[np.str_]) -> dict[str, Any]:
        distinct, codes = np.unique(names, return_inverse=True)
        return dict(zip(map(str, distinct), self._means(measures, codes), strict=True))

    def _means(
        self,
        measures: dict[str, Floats],
        strata: npt.NDArray[np.int64] | None = None,
        share: bool = True,
    ) -> list[dict[str, Any]]:
        settings = self.settings
        groups = self.images.groups[self.images.queries]
        found = mean_estimates(measures, groups, strata, settings.replicates, settings.seed, share)
        return [{name: one.to_json() for name, one in of.items()} for of in found]


def _rows(
    images: Prepared,
    name: str,
    neighbours: Sequence[tuple[Positions, Distances]],
    precision: Floats,
) -> pa.Table:
    """Return the rows of the table `neighbours`."""
    rows = images.examples.take(images.queries)
    ends = np.concatenate([[0], np.cumsum([len(found) for found, _ in neighbours])])
    flat = pa.array(np.concatenate([found for found, _ in neighbours]))
    offsets = pa.array(ends, pa.int32())
    distances = np.concatenate([distance for _, distance in neighbours])

    def lists(values: pa.Array) -> pa.Array:
        return pa.ListArray.from_arrays(offsets, values)

    labels = images.examples.labels.dictionary_decode()
    table = pa.table(
        {
            "vectors": pa.array([name] * len(rows)),
            "key": rows.keys,
            "label": rows.labels.dictionary_decode(),
            "group": rows.group_names,
            "precision_at_20": pa.array(precision, pa.float32()),
            "neighbours": lists(images.examples.keys.take(flat)),
            "labels": lists(labels.take(flat)),
            "distances": lists(pa.array(distances, pa.float32())),
        }
    )
    return table.cast(TABLE)


def _examples(
    images: Prepared, neighbours: Sequence[tuple[Positions, Distances]], precision: Floats
) -> tuple[Example, ...]:
    """Choose queries for the page: those with the fewest neighbours of their class, and others.

    The others are evenly spaced among all queries, in the order of their precision.
    """
    order = np.argsort(precision, kind="stable")
    worst = order[:_EXAMPLES]
    rest = order[_EXAMPLES:]
    places = np.linspace(0, len(rest) - 1, min(_EXAMPLES, len(rest))).astype(int)
    spread = rest[places]
    names = np.array(images.classes, object)[images.labels]
    keys = images.examples.keys

    def shown(place: int) -> Example:
        row = images.queries[place]
        rows, distances = neighbours[place]
        return Example(
            keys[row].as_py(),
            names[row],
            float(precision[place]),
            tuple(
                Neighbour(keys[near].as_py(), names[near], float(distance))
                for near, distance in zip(
                    rows[:_SHOWN].tolist(), distances[:_SHOWN].tolist(), strict=True
                )
            ),
        )

    return tuple(shown(place) for place in [*worst.tolist(), *spread[::-1].tolist()])


def _overall(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the measures over all queries, without those of classes and chapters."""
    return {name: value for name, value in metrics.items() if not name.startswith("per_")}


def _lines(found: Sequence[Found], split: str) -> list[str]:
    """Format the measures as lines of text, one for each space."""
    names = ("accuracy_at_1", "map_at_5", "precision_at_20")
    width = max(len(one.name) for one in found)
    lines = [f"{split:<{width}}  {'  '.join(f'{name:<22}' for name in names)}".rstrip()]
    for one in found:
        cells = "  ".join(f"{with_interval(one.metrics[name], 'area'):<22}" for name in names)
        lines.append(f"{one.name:<{width}}  {cells}".rstrip())
    return lines
