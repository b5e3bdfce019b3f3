"""The page of suspicious labels, on which a person decides with a few keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from visao_ray.core.storage import Location
from visao_ray.reports import formats
from visao_ray.reports.pictures import data_uri, read_pictures
from visao_ray.reports.report import render

_SIDE = 512  # longer side of a picture in pixels


@dataclass(frozen=True)
class Suspect:
    """An image whose label a person should look at.

    Attributes:
        keys: keys of its files: copies with the same bytes get the same decision.
        label: its label.
        split: its split.
        probability: probability of the label.
        suggestion: the most probable other class.
        suggestion_probability: its probability.
        flagged: whether the chosen rule flags the label.
        group: labels of the other images of its group, as text.
    """

    keys: tuple[str, ...]
    label: str
    split: str
    probability: float
    suggestion: str
    suggestion_probability: float
    flagged: bool
    group: str


@dataclass(frozen=True)
class CleanPage:
    """The content of the page.

    Attributes:
        dataset: name of the dataset.
        store: URI of the store.
        run: id of the run; decisions that are not saved yet are kept in the browser under it.
        classes: names of classes to choose from.
        images: number of labels that were to be judged.
        judged: number of labels that were judged.
        flagged: flagged labels without a verdict.
        rule: rule of the flags.
        decided: number of labels with each verdict.
        unsure: estimate of the share of images that nobody can tell.
        views: result of each way to train, by name.
        evaluated: split on which these were compared.
        suspects: the images, in the order to look at them.
        command: command line of the run.
    """

    dataset: str
    store: str
    run: str
    classes: tuple[str, ...]
    images: int
    judged: int
    flagged: int
    rule: str
    decided: Mapping[str, int]
    unsure: Mapping[str, Any]
    views: Mapping[str, Any]
    evaluated: str
    suspects: tuple[Suspect, ...]
    command: str


def write_clean(page: CleanPage, place: Location) -> None:
    """Write the page as one HTML document; reads the pictures that it shows. For a task."""
    read = read_pictures([one.keys[0] for one in page.suspects], _SIDE)
    place.write_bytes(render_clean(page, [data_uri(picture) for picture in read]).encode())


def render_clean(page: CleanPage, pictures: list[str | None]) -> str:
    """Render the page; it needs no network, and all values are escaped.

    Args:
        page: the content.
        pictures: the picture of each suspect as a URI; None if it cannot be read.

    Returns:
        The HTML.
    """
    images = [
        asdict(one) | {"picture": picture}
        for one, picture in zip(page.suspects, pictures, strict=True)
    ]
    data = {"run": page.run, "classes": list(page.classes), "images": images}
    return render(
        "clean.html.j2",
        {
            "page": page,
            "data": data,
            "views": _views(page),
            "unsure": formats.with_interval(page.unsure),
            "headline": headline(page),
        },
    )


def headline(page: CleanPage) -> str:
    """Say in one sentence what was found."""
    if not page.flagged:
        return f"{page.judged:,} labels were judged, and none is flagged."
    share = 100 * page.flagged / page.judged
    return (
        f"{page.flagged:,} of {page.judged:,} labels ({share:.2g}{formats.SPACE}%) are probably "
        "wrong or hard to tell."
    )


def _views(page: CleanPage) -> list[dict[str, str]]:
    return [
        {
            "name": name,
            "accuracy": formats.with_interval(view["objective"]),
            "n": f"{view['objective']['n']:,}",
            "lead": formats.difference(view["over_all"]) if place else "",
        }
        for place, (name, view) in enumerate(page.views.items())
    ]
