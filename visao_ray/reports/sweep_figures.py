"""Figures of a hyperparameter sweep: settings, importance, learning and class-weight curves."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from visao_ray.reports.figures import (
    GRID,
    INK,
    MUTED,
    NEGATIVE,
    POSITIVE,
    TEST,
    VAL,
    Figure,
    draw,
    printable,
)

#: Of the finalists, the winner first.
FINALISTS = (POSITIVE, TEST, NEGATIVE, "#7a3e9d", "#8a6d1a", "#b0346b")
_FEW = 6  # up to so many numbers get one tick each, at equal distances
_TICKS = 7
_GUTTER = -0.13  # height at which a line passes an axis that does not apply to its trial
_ZERO_GAP = 0.16  # between 0 and the smallest positive number of a logarithmic axis


@dataclass(frozen=True)
class Axis:
    """A setting on the parallel coordinates.

    Attributes:
        title: of the setting.
        places: position of each trial in 0..1; None if the setting does not apply to it.
        ticks: position and label.
        band: how far trials of one value are spread, so that their lines can be distinguished.
    """

    title: str
    places: tuple[float | None, ...]
    ticks: tuple[tuple[float, str], ...]
    band: float = 0.0


def axis(title: str, values: Sequence[Any], log: bool = False) -> Axis | None:
    """Return the axis of one setting.

    Args:
        title: of the setting.
        values: of the trials; None if the setting does not apply to the trial. Numbers, texts and
            booleans; more than six different numbers make a continuous axis.
        log: a continuous axis is logarithmic; 0 has its own place at the bottom.

    Returns:
        The axis, or None if the setting does not vary.
    """
    known = [value for value in values if value is not None]
    levels = sorted(set(known), key=_order)
    if len(levels) < 2:
        return None
    if len(levels) <= _FEW or any(isinstance(v, str | bool) for v in levels):
        place = {level: index / (len(levels) - 1) for index, level in enumerate(levels)}
        step = math.ceil(len(levels) / _TICKS)
        ticks = [(place[level], _label(level)) for level in levels[::step]]
        band = min(0.07, 0.5 / len(levels))
        return Axis(title, tuple(place.get(v) for v in values), tuple(ticks), band)
    numbers = [float(value) for value in known]
    if log and min(numbers) >= 0:
        position, marks = _logarithmic(numbers)
    else:
        position, marks = _linear(min(numbers), max(numbers))
    places = tuple(None if v is None else position(float(v)) for v in values)
    return Axis(title, places, tuple((position(mark), _label(mark)) for mark in marks))


def _order(value: Any) -> tuple[Any, ...]:
    if not isinstance(value, str):
        return (0, value)
    try:
        factor = float(value.removeprefix("×"))
    except ValueError:
        factor = 0.0
    return (1, value != "none", factor, value)


def _label(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        text = f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
        # Without superfluous zeros: 1e-4, not 0.0001 or 1e-04.
        return f"{value:.2g}".replace("e-0", "e-") if "e" in text or len(text) > 6 else text
    return _clipped(str(value), 10)


def _clipped(text: str, limit: int) -> str:
    clean = printable(text)
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def _logarithmic(numbers: Sequence[float]) -> tuple[Any, list[float]]:
    positive = [number for number in numbers if number > 0]
    low, high = math.log10(min(positive)), math.log10(max(positive))
    foot = _ZERO_GAP if len(positive) < len(numbers) else 0.0

    def position(number: float) -> float:
        if number <= 0:
            return 0.0
        return foot + (1 - foot) * (math.log10(number) - low) / max(high - low, 1e-12)

    powers = range(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)
    marks = [10.0**power for power in powers[:: max(1, math.ceil(len(powers) / 6))]]
    if len(marks) < 2:
        marks = [10**low, 10**high]
    return position, [*([0.0] if foot else []), *marks]


def _linear(low: float, high: float) -> tuple[Any, list[float]]:
    from matplotlib.ticker import MaxNLocator

    span = max(high - low, 1e-12)
    marks = [float(mark) for mark in MaxNLocator(5).tick_values(low, high)]
    inside = [mark for mark in marks if low - 1e-9 * span <= mark <= high + 1e-9 * span]
    return (lambda number: min(1.0, max(0.0, (number - low) / span))), inside


def objective_axis(title: str, values: Sequence[float], lower_is_better: bool) -> Axis:
    """Return the last axis, with better values higher; far worse trials are put at the bottom."""
    sign = -1.0 if lower_is_better else 1.0
    signed = sign * np.asarray(values, np.float64)
    low, high = _without_outliers(signed)
    if not high > low:
        return Axis(title, tuple(0.5 for _ in values), ((0.5, f"{values[0]:.4g}"),))
    position, marks = _linear(low, high)
    ticks = [(position(mark), f"{abs(mark):.4g}") for mark in marks]
    if signed.min() < low:
        ticks = [tick for tick in ticks if tick[0] > 0.08]
        ticks.insert(0, (0.0, f"{'>' if lower_is_better else '<'} {abs(low):.3g}"))
    return Axis(title, tuple(position(value) for value in signed), tuple(ticks))


def _without_outliers(signed: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Lowest and highest value, without those far below the lower quartile."""
    quarter, half = np.quantile(signed, [0.25, 0.5], method="higher")
    fence = quarter - 4 * (half - quarter) - 1e-9
    return float(signed[signed >= fence].min()), float(signed.max())


def parallel(axes: Sequence[Axis], default: int | None) -> Figure:
    """Draw one line per trial across all axes; the best trials lie in front.

    Args:
        axes: of the settings, and the objective last; all of the same trials, best first.
        default: place of the default head among the trials.

    Returns:
        The figure.
    """
    count = len(axes[0].places)
    quality = np.linspace(1, 0, count) if count > 1 else np.ones(1)

    def height(axis: Axis, trial: int) -> float:
        place, spread = axis.places[trial], float(quality[trial]) - 0.5
        return _GUTTER + 0.05 * spread if place is None else place + axis.band * spread

    def paint(canvas: Any) -> None:
        from matplotlib.collections import LineCollection
        from matplotlib.colors import LinearSegmentedColormap

        shade = LinearSegmentedColormap.from_list("shade", ["#d5dce5", "#93b1d3", "#123f73"])
        lines = [
            [(x, height(axis, trial)) for x, axis in enumerate(axes)]
            for trial in reversed(range(count))
        ]
        faint = 0.85 if count <= 60 else 0.55
        canvas.add_collection(
            LineCollection(
                lines[:-1],
                colors=[(*shade(q**1.6)[:3], faint + (1 - faint) * q**6) for q in quality[:0:-1]],
                linewidths=[0.8 + 0.8 * q**3 for q in quality[:0:-1]],
                zorder=2,
            )
        )
        winner = "winner"
        if default == 0:
            winner = "winner: the default head"
        elif default is not None:
            points = lines[count - 1 - default]
            canvas.plot(*zip(*points, strict=True), color=INK, linewidth=1.6,
                        linestyle=(0, (4, 2)), zorder=4, label="default head")  # fmt: skip
        canvas.plot(
            *zip(*lines[-1], strict=True), color=POSITIVE, linewidth=2.6, zorder=5, label=winner
        )
        box = {"facecolor": "white", "alpha": 0.82, "edgecolor": "none", "pad": 0.8}
        for x, one in enumerate(axes):
            canvas.plot([x, x], [0, 1], color="#8b98a9", linewidth=1.1, zorder=6)
            ticks = list(one.ticks)
            if None in one.places:
                ticks.append((_GUTTER, "n/a"))
            for y, text in ticks:
                canvas.plot(x, y, "_", color="#8b98a9", markersize=5, zorder=6)
                canvas.text(x + 0.08, y, text, fontsize=9, va="center", zorder=7, bbox=box,
                            color=MUTED if text == "n/a" else INK)  # fmt: skip
            title = "\n".join(textwrap.wrap(printable(one.title), 11)[:5])
            canvas.text(x, 1.07, title, fontsize=9, ha="center", va="bottom", fontweight="bold")
        canvas.set(xlim=(-0.45, len(axes) - 0.25), ylim=(_GUTTER - 0.06, 1.06))
        canvas.axis("off")
        canvas.figure.legend(loc="outside lower center", ncols=2)

    names = ", ".join(axis.title for axis in axes)
    alt = f"Parallel coordinates of {count} trials over {names}; the best trials lie in front"
    return draw(paint, alt, max(6.5, 0.8 + 0.78 * len(axes)), 5.0)


def importance(shares: Mapping[str, float]) -> Figure:
    """Draw the share of the objective's variance that each setting explains, as bars."""
    ranked = sorted(shares.items(), key=lambda item: -item[1])

    def paint(axes: Any) -> None:
        places = range(len(ranked))
        widths = [100 * share for _, share in ranked]
        axes.barh(places, widths, color=TEST, height=0.66)
        for y, width in zip(places, widths, strict=True):
            text = f"{width:.0f} %" if width >= 0.95 else "< 1 %"
            axes.annotate(text, (width, y), (4, 0), textcoords="offset points", va="center",
                          fontsize=9)  # fmt: skip
        axes.set_yticks(places, [_clipped(name.replace("_", " "), 24) for name, _ in ranked])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set(xlim=(0, max(widths) * 1.14 or 1), xlabel="share of the variation explained, %")

    listed = ", ".join(f"{name} {100 * share:.0f} %" for name, share in ranked)
    return draw(paint, f"Importance of each setting: {listed}", 6.4, 1.1 + 0.27 * len(ranked))


def learning(
    curves: Mapping[int, tuple[Sequence[int], Sequence[float]]],
    finalists: Sequence[int],
    fitted: Mapping[int, float],
    halved: Collection[int],
    objective: str,
    lower_is_better: bool,
) -> Figure | None:
    """Draw the objective on val by epoch: every trial thin, the finalists in colour.

    Args:
        curves: trial number to its epochs and values (NaN: undefined).
        finalists: trial numbers, best first.
        fitted: finalists without epochs, and their objective.
        halved: trials that successive halving stopped; their ends are marked.
        objective: its name.
        lower_is_better: whether small values are better.

    Returns:
        The figure, or None if no value is finite.
    """
    every = np.array([v for _, values in curves.values() for v in values], np.float64)
    every = np.concatenate([every, np.array(list(fitted.values()), np.float64)])
    every = every[np.isfinite(every)]
    if not curves or not every.size:
        return None
    colored = dict(zip(finalists, FINALISTS, strict=False))

    def paint(axes: Any) -> None:
        for number, (epochs, values) in curves.items():
            if number not in colored:
                marker = "." if len(values) == 1 else ""
                axes.plot(epochs, values, marker=marker, linestyle="-", color=VAL, linewidth=0.7,
                          alpha=0.6, markersize=4, zorder=2)  # fmt: skip
        ends = [
            (curves[number][0][-1], curves[number][1][-1]) for number in halved if number in curves
        ]
        if ends:
            axes.plot(*zip(*ends, strict=True), "o", color="#5d6b7d", markersize=2.6, zorder=3,
                      linestyle="none", label="stopped by halving")  # fmt: skip
        for place, (number, color) in reversed(list(enumerate(colored.items()))):
            label = f"trial {number}" + (" (winner)" if place == 0 else "")
            width = 2.4 if place == 0 else 1.5
            if number in curves:
                epochs, values = curves[number]
                marker = "o" if len(values) == 1 else ""
                axes.plot(epochs, values, marker=marker, color=color, linewidth=width, markersize=5,
                          zorder=10 - place, label=label)  # fmt: skip
            elif number in fitted:
                axes.axhline(fitted[number], color=color, linewidth=width, linestyle=(0, (4, 2)),
                             zorder=10 - place, label=f"{label}, no epochs")  # fmt: skip
        worst = 0.97 if lower_is_better else 0.03
        cut, best = np.quantile(every, worst), every.min() if lower_is_better else every.max()
        margin = 0.06 * abs(best - cut) or 0.01
        bottom, top = sorted((float(best), float(cut)))
        axes.set(xlabel="epoch", ylabel=f"{_clipped(objective, 44)} on val")
        axes.set_ylim(bottom - margin, top + margin)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_title("Every trial, epoch by epoch")
        handles, labels = axes.get_legend_handles_labels()
        axes.figure.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=2)

    alt = f"{objective} on val by epoch: {len(curves)} trials, {len(colored)} finalists in colour"
    return draw(paint, alt, 5.6, 4.4)


def losses(
    epochs: Sequence[int],
    train: Sequence[float],
    val: Sequence[float],
    best: int | None,
    number: int,
) -> Figure:
    """Draw the train and val loss of one trial, and the epoch whose weights were saved."""

    def paint(axes: Any) -> None:
        marker = "o" if len(epochs) == 1 else ""
        for values, color, label in (
            (train, "#8593a5", "train, as optimised"),
            (val, POSITIVE, "val"),
        ):
            axes.plot(epochs, values, color=color, label=label, marker=marker, markersize=4)
        if best:
            axes.axvline(best, color=INK, linewidth=1.1, linestyle=(0, (2, 3)), label="best epoch")
        axes.set(xlabel="epoch", ylabel="loss")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_title(f"Loss of the winner, trial {number}")
        axes.figure.legend(loc="outside lower center", ncols=3)

    return draw(paint, f"Train and val loss of trial {number} by epoch", 5.6, 4.4)


def class_weight_curves(
    curves: Mapping[float, Sequence[tuple[float, float, float]]],
    title: str,
    positive: str,
    corner: tuple[float, float],
) -> Figure:
    """Draw recall against precision: one curve per class weight, along which the threshold moves.

    Args:
        curves: weight of the positive class to (threshold, recall, precision), NaN: undefined.
        title: of the panel.
        positive: the class.
        corner: lowest recall and precision shown.

    Returns:
        The figure.
    """
    factors = sorted(curves)

    def paint(axes: Any) -> None:
        from matplotlib.colors import LinearSegmentedColormap

        shade = LinearSegmentedColormap.from_list("class weight", ["#7fb5d6", "#1d5fa6", "#c2570c"])
        for index, factor in enumerate(factors):
            color = shade(index / max(len(factors) - 1, 1))
            rows = sorted(curves[factor])
            axes.plot([r for _, r, _ in rows], [p for _, _, p in rows], color=color,
                      linewidth=1.6, label=f"weight {factor:g}")  # fmt: skip
            for threshold, recall, precision in rows:
                if threshold == 0.5 and math.isfinite(recall) and math.isfinite(precision):
                    axes.plot(recall, precision, "D", markersize=6.5, markerfacecolor="white",
                              markeredgecolor=color, markeredgewidth=1.8, zorder=5,
                              clip_on=False)  # fmt: skip
        axes.plot([], [], "D", markersize=6, markerfacecolor="white", markeredgecolor=INK,
                  linestyle="none", label="threshold 0.5")  # fmt: skip
        named = _clipped(positive, 22)
        axes.set(xlabel=f"recall of {named}", ylabel=f"precision of {named}")
        (left, bottom) = corner
        axes.set_xlim(left, 1 + 0.015 * (1 - left))
        axes.set_ylim(bottom, 1 + 0.015 * (1 - bottom))
        axes.set_title(_clipped(title, 44))
        axes.grid(visible=True, color=GRID)
        axes.figure.legend(loc="outside lower center", ncols=3)

    listed = ", ".join(f"{factor:g}" for factor in factors)
    alt = f"{title}: recall against precision of {positive} at class weights {listed}"
    return draw(paint, alt, 4.6, 4.4)
