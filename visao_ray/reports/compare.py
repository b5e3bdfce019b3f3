"""The page of a comparison of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from visao_ray.core.storage import Location
from visao_ray.evaluation.metrics import METRICS
from visao_ray.reports import formats
from visao_ray.reports.pictures import data_uri, read_pictures
from visao_ray.reports.report import render

_LEVEL = 0.05  # of a probability that is called small
#: Metrics of the table, if the models have them; the one that is compared comes first.
_SHOWN = ("accuracy", "balanced_accuracy", "macro_f1", "roc_auc", "log_loss")


@dataclass(frozen=True)
class Missed:
    """An image that models miss.

    Attributes:
        title: which models miss it.
        key: key of its file.
        label: its label.
        predicted: the class that they predict instead (of the first model, if there are several).
        probability: probability of the predicted class; the smallest one, if there are several.
    """

    title: str
    key: str
    label: str
    predicted: str
    probability: float


@dataclass(frozen=True)
class ComparePage:
    """The content of the page.

    Attributes:
        dataset: name of the dataset.
        store: URI of the store.
        split: split of the images.
        metric: title of the metric that is compared.
        names: names of the models.
        sizes: size of each model's file, in bytes.
        compared: `details` of result.json.
        metrics: figures of each model.
        images: number of images.
        left_out: number of images that some model has not predicted.
        column: column by which results are listed; None without one.
        missed: images to look at.
        command: command line of the run.
    """

    dataset: str
    store: str
    split: str
    metric: str
    names: Sequence[str]
    sizes: Sequence[int]
    compared: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    images: int
    left_out: int
    column: str | None
    missed: Sequence[Missed]
    command: str


def write_compare(page: ComparePage, place: Location) -> None:
    """Write the page as one HTML document; reads the pictures that it shows. For a task."""
    keys = list(dict.fromkeys(one.key for one in page.missed))
    pictures = dict(zip(keys, map(data_uri, read_pictures(keys)), strict=True))
    place.write_bytes(render_compare(page, pictures).encode())


def render_compare(page: ComparePage, pictures: Mapping[str, str | None]) -> str:
    """Render the page; it needs no network, and all values are escaped.

    Args:
        page: the content.
        pictures: a small picture of each shown file as a URI, by key; None if it cannot be read.

    Returns:
        The HTML.
    """
    missed: dict[str, list[Missed]] = {}
    for one in page.missed:
        missed.setdefault(one.title, []).append(one)
    return render(
        "compare.html.j2",
        {
            "page": page,
            "headline": headline(page),
            "columns": [METRICS[name].title for name in _columns(page)],
            "points": _kind(page) == "share",
            "models": _models(page),
            "pairs": [_pair(pair, _kind(page)) for pair in page.compared["pairs"]],
            "matrix": _matrix(page),
            "timings": _timings(page),
            "by": _by(page),
            "missed": missed,
            "pictures": pictures,
        },
    )


def headline(page: ComparePage) -> str:
    """Say in one sentence which differences are more than chance."""
    certain = [pair for pair in page.compared["pairs"] if _is_certain(pair)]
    if not certain:
        return (
            f"On {page.images:,} images of {page.split}, no difference in {page.metric} is larger "
            "than chance."
        )
    of = len(page.compared["pairs"])
    corrected = ""
    if of > 1 and page.compared["metric"] == "accuracy":  # which McNemar's test is about
        count = sum(pair["p_holm"] < _LEVEL for pair in certain)
        corrected = f" ({count} after correction for {of} pairs)"
    who = "the two models" if of == 1 else f"{len(certain)} of {of} pairs of models"
    return (
        f"On {page.images:,} images of {page.split}, {who} differ in {page.metric} by more than "
        f"chance{corrected}."
    )


def _is_certain(pair: Mapping[str, Any]) -> bool:
    difference = pair["difference"]
    return difference["low"] is not None and (difference["low"] > 0 or difference["high"] < 0)


def _kind(page: ComparePage) -> str:
    return _kind_of(page.compared["metric"])


def _kind_of(metric: str) -> str:
    """Return how `formats` shows a metric."""
    return "area" if METRICS[metric].unit == "number" else "share"


def _columns(page: ComparePage) -> list[str]:
    first = page.compared["metric"]
    names = [first, *(name for name in _SHOWN if name != first)]
    return [name for name in names if all(name in found for found in page.metrics)]


def _models(page: ComparePage) -> list[dict[str, Any]]:
    found = []
    for name, size, metrics in zip(page.names, page.sizes, page.metrics, strict=True):
        entries = [
            formats.with_interval(metrics[column], _kind_of(column)) for column in _columns(page)
        ]
        found.append({"name": name, "metrics": entries, "megabytes": f"{size / 1e6:.1f}"})
    return found


def _pair(pair: Mapping[str, Any], kind: str) -> dict[str, Any]:
    test = pair["mcnemar"]
    return {
        "first": pair["first"],
        "second": pair["second"],
        "difference": formats.difference(pair["difference"], kind),
        "certain": _is_certain(pair),
        "first_only": f"{test['first_only']:,}",
        "second_only": f"{test['second_only']:,}",
        "p": _p(test["p"]),
        "p_holm": _p(pair["p_holm"]),
    }


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _matrix(page: ComparePage) -> list[list[str]]:
    """Return the share of images on which two models differ, as texts; empty on the diagonal."""
    shares = {
        frozenset((pair["first"], pair["second"])): pair["disagree"]
        for pair in page.compared["pairs"]
    }
    return [
        [
            "" if one == other else f"{100 * shares[frozenset((one, other))]:.1f}{formats.SPACE}%"
            for other in page.names
        ]
        for one in page.names
    ]


def _timings(page: ComparePage) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "source": timing["source"],
            "device": timing["device"],
            "images": f"{timing['images']:,}",
            "seconds": f"{timing['seconds']:.2f}",
            "speed": f"{timing['images'] / timing['seconds']:,.0f}",
            "start": f"{timing['start']:.1f}",
            "memory": f"{timing['peak_bytes'] / 1e9:.2f}",
        }
        for name in page.names
        for timing in page.compared["models"][name].get("timings", ())
    ]


def _by(page: ComparePage) -> list[dict[str, Any]]:
    return [
        {
            "value": line["value"],
            "n": f"{line['n']:,}",
            "metrics": [
                formats.with_interval(line["metrics"][name], _kind(page)) for name in page.names
            ],
        }
        for line in page.compared["by"]
    ]
