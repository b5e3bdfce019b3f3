"""The page of a day: the images that a model predicted, those to check first at the top."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from visao_ray.core.resources import remotely
from visao_ray.core.run import Run
from visao_ray.core.storage import Location
from visao_ray.evaluation.predict import CSV, PredictionResult
from visao_ray.evaluation.worklist import (
    ERROR,
    FIRST,
    NEAR,
    NEAR_POSITIVE,
    NO_VECTORS,
    OTHER,
    POSITIVE,
    DecisionRule,
)
from visao_ray.reports import figures
from visao_ray.reports.figures import Figure
from visao_ray.reports.formats import estimate
from visao_ray.reports.pictures import data_uri, read_pictures
from visao_ray.reports.report import render

PAGE = "day.html"
_CLASSES_SHOWN = 12


def write_day(run: Run[Any], predicted: PredictionResult) -> None:
    """Write `day.html` below `run.out`, in a task that reads the pictures."""
    place = run.out.join(PAGE)
    with run.timed("page"):
        remotely(_write, predicted, run.warnings, place)
    run.say(f"images to check first: {place.uri}")


def render_day(
    predicted: PredictionResult, pictures: Sequence[bytes | None], warnings: Sequence[str] = ()
) -> str:
    """Render the page as one HTML document that needs no network; all values are escaped.

    Args:
        predicted: what the page shows.
        pictures: a JPEG of each of the first images; None if it cannot be read.
        warnings: shown at the top.

    Returns:
        The HTML.
    """
    return render("day.html.j2", _page(predicted, pictures, warnings))


def _write(predicted: PredictionResult, warnings: Sequence[str], place: Location) -> None:
    keys = [row["key"] for row in predicted.worklist.first[:FIRST]]
    pictures = read_pictures(keys)  # None if a file was deleted since; its card says so
    place.write_bytes(render_day(predicted, pictures, warnings).encode())


def _page(
    predicted: PredictionResult, pictures: Sequence[bytes | None], warnings: Sequence[str]
) -> dict[str, Any]:
    worklist, decision = predicted.worklist, predicted.decision
    cards = [
        {**row, "percent": f"{100 * row['probability']:.1f}", "uri": data_uri(picture)}
        for row, picture in zip(worklist.first[:FIRST], pictures, strict=True)
    ]
    ranked = sum(worklist.states[state] for state in (POSITIVE, NEAR_POSITIVE, OTHER))
    return {
        "predicted": predicted,
        "decision": decision,
        "table": CSV,
        "warnings": warnings,
        "counts": worklist.counts,
        "headline": _headline(predicted, ranked),
        "threshold_origin": _threshold_origin(decision),
        "tiles": _tiles(predicted),
        "cards": cards,
        "ranked": ranked,
        "order": _order(decision),
        "histogram": _histogram(predicted) if ranked and decision.classes else None,
        "classes": worklist.classes.most_common(_CLASSES_SHOWN),
        "more_classes": max(0, len(worklist.classes) - _CLASSES_SHOWN),
        "figures": {name: estimate(of, _kind(name)) for name, of in decision.figures.items()},
    }


def _headline(predicted: PredictionResult, ranked: int) -> str:
    decision, states = predicted.decision, predicted.worklist.states
    chosen = _chosen(predicted)
    if not states.total():
        return f"No images {chosen}."
    if decision.positive is not None:
        return (
            f"{states[POSITIVE]:,} of {ranked:,} images {chosen} have a probability of "
            f"{decision.positive} of at least {decision.threshold:.3g}."
        )
    if decision.classes:
        return f"{ranked:,} images {chosen}, the least certain first."
    return f"{ranked:,} images {chosen}. The model only embeds images; it has no classes."


def _threshold_origin(decision: DecisionRule) -> str:
    """Say how the threshold was chosen, as a sentence."""
    if decision.positive is None:
        return ""
    if decision.target_recall is not None:
        return (
            f"The threshold {decision.threshold:.3g} was chosen on val, where it finds at least "
            f"{100 * decision.target_recall:g} % of {decision.positive}."
        )
    why = (
        "the evaluation has no threshold"
        if decision.evaluation is not None
        else "no evaluation of the model was given (--evaluation)"
    )
    return f"The threshold is the default, {decision.threshold:g}, because {why}."


def _order(decision: DecisionRule) -> str:
    if decision.positive is not None:
        return f"Ordered by the probability of {decision.positive}, the highest first."
    return "Ordered by the probability of the most probable class, the lowest first."


def _tiles(predicted: PredictionResult) -> list[tuple[str, int]]:
    decision, states = predicted.decision, predicted.worklist.states
    tiles = [("images listed", states.total())]
    if decision.positive is not None:
        low = NEAR * decision.threshold
        tiles += [
            (f"{decision.positive}: at least {decision.threshold:.3g}", states[POSITIVE]),
            (f"just below: at least {low:.3g}", states[NEAR_POSITIVE]),
            (f"below {low:.3g}", states[OTHER]),
        ]
    tiles += [
        (name, states[state])
        for name, state in (("could not be predicted", ERROR), ("have no vectors yet", NO_VECTORS))
        if states[state]
    ]
    return tiles


def _histogram(predicted: PredictionResult) -> Figure:
    decision = predicted.decision
    named = decision.positive or "the most probable class"
    return figures.probabilities(
        predicted.worklist.histogram,
        decision.threshold if decision.positive is not None else None,
        "Probabilities of these images",
        figures.printable(f"predicted probability of {named}"),
        [figures.TEST],
    )


def _kind(name: str) -> str:
    return "area" if name == "ROC AUC" else "share"


def _chosen(predicted: PredictionResult) -> str:
    """Describe the listed images, in words that follow 'images'."""
    if predicted.since is None and predicted.batch is None:
        return "that were new to the model"
    parts = [f"first seen on or after {predicted.since}"] if predicted.since is not None else []
    parts += [f"of batch {predicted.batch}"] if predicted.batch is not None else []
    return " and ".join(parts)
