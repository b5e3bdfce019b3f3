"""The page of an evaluation of search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from visao_ray.core.storage import Location
from visao_ray.reports import formats
from visao_ray.reports.pictures import data_uri, read_pictures
from visao_ray.reports.report import render

#: Measures of the page, and how a reader knows them.
_TITLES = {
    "accuracy_at_1": "nearest",
    "map_at_5": "mAP of 5",
    "precision_at_10": "share of 10",
    "precision_at_20": "share of 20",
}
_CLASSES = 30  # rows of the table of classes


@dataclass(frozen=True)
class Neighbour:
    """A neighbour of a query.

    Attributes:
        key: key of its file.
        label: its label.
        distance: Euclidean distance to the query.
    """

    key: str
    label: str | None
    distance: float


@dataclass(frozen=True)
class Example:
    """A query with its nearest neighbours.

    Attributes:
        key: key of its file.
        label: its label; None if it is not known.
        precision: share of its 20 nearest neighbours with its label; None if it was not measured.
        neighbours: the nearest ones.
    """

    key: str
    label: str | None
    precision: float | None
    neighbours: tuple[Neighbour, ...]


@dataclass(frozen=True)
class SearchPage:
    """The content of the page.

    Attributes:
        dataset: name of the dataset.
        store: URI of the store.
        queries: split of the queries.
        gallery: splits of the gallery.
        study: whether neighbours were searched as in the 2019 study.
        counts: counts of the run.
        vectors: name, width, metrics and lead of the first, of all vectors that were searched.
        examples: queries to show, those with the fewest neighbours of their class first.
        command: command line of the run.
    """

    dataset: str
    store: str
    queries: str
    gallery: tuple[str, ...]
    study: bool
    counts: Mapping[str, Any]
    vectors: Sequence[tuple[str, int, Mapping[str, Any], Mapping[str, Any]]]
    examples: tuple[Example, ...]
    command: str


@dataclass(frozen=True)
class QueryPage:
    """The content of the page of some queries.

    Attributes:
        dataset: name of the dataset.
        store: URI of the store.
        vectors: name of the vectors.
        where: condition on the neighbours; None without one.
        images: number of images in the index.
        examples: the queries with their neighbours.
        command: command line of the run.
    """

    dataset: str
    store: str
    vectors: str
    where: str | None
    images: int
    examples: tuple[Example, ...]
    command: str


def write_search(page: SearchPage, place: Location) -> None:
    """Write the page as one HTML document; reads the pictures that it shows. For a task."""
    place.write_bytes(render_search(page, _pictures(page.examples)).encode())


def write_query(page: QueryPage, place: Location) -> None:
    """Write the page of some queries; reads the pictures that it shows. For a task."""
    pictures = _pictures(page.examples)
    place.write_bytes(render("query.html.j2", {"page": page, "pictures": pictures}).encode())


def _pictures(examples: Sequence[Example]) -> dict[str, str | None]:
    shown = [one.key for one in examples]
    shown += [near.key for one in examples for near in one.neighbours]
    keys = list(dict.fromkeys(shown))
    return dict(zip(keys, map(data_uri, read_pictures(keys)), strict=True))


def render_search(page: SearchPage, pictures: Mapping[str, str | None]) -> str:
    """Render the page; it needs no network, and all values are escaped.

    Args:
        page: the content.
        pictures: a small picture of each shown file as a URI, by key; None if it cannot be read.

    Returns:
        The HTML.
    """
    return render(
        "search.html.j2",
        {
            "page": page,
            "headline": headline(page),
            "titles": list(_TITLES.values()),
            "vectors": [_line(*one) for one in page.vectors],
            "classes": _classes(page, "per_class"),
            "chapters": _classes(page, "per_chapter"),
            "chance": formats.with_interval(page.vectors[0][2]["chance"]),
            "pictures": pictures,
        },
    )


def headline(page: SearchPage) -> str:
    """Say in one sentence how good the first vectors are."""
    name, _, metrics, _ = page.vectors[0]
    share = formats.with_interval(metrics["precision_at_20"])
    chance = formats.estimate(metrics["chance"])["value"]
    return (
        f"Of the 20 nearest images by {name}, {share} have the class of the query; {chance} would "
        "by chance."
    )


def _line(
    name: str, width: int, metrics: Mapping[str, Any], behind: Mapping[str, Any]
) -> dict[str, Any]:
    difference = behind.get("precision_at_20", {"low": None, "high": None})
    return {
        "name": name,
        "width": f"{width:,}",
        "values": [formats.with_interval(metrics[measure]) for measure in _TITLES],
        "behind": formats.difference(difference) if behind else "",
        "certain": difference["low"] is not None
        and (difference["low"] > 0 or difference["high"] < 0),
    }


def _classes(page: SearchPage, kind: str) -> list[dict[str, Any]]:
    """Return the classes or chapters with the smallest share of 20, the smallest first."""
    found = page.vectors[0][2].get(kind, {})
    order = sorted(found, key=lambda name: (found[name]["precision_at_20"]["value"], name))
    return [
        {
            "name": name,
            "n": f"{found[name]['precision_at_20']['n']:,}",
            "values": [formats.with_interval(found[name][measure]) for measure in _TITLES],
            "chance": formats.estimate(found[name]["chance"])["value"],
        }
        for name in order[:_CLASSES]
    ]
