"""Figures of reports as SVG text, drawn by matplotlib without global state."""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

INK = "#1f2a37"
MUTED = "#64748b"
GRID = "#e3e8ef"
TEST = "#1d5fa6"
VAL = "#94a3b8"
POSITIVE = "#c2570c"
NEGATIVE = "#2b7a78"
_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#b6c0cd",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 10,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "font.size": 10,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "visao_ray",
    # Class names and keys are untrusted: do not parse dollar signs as mathematical text.
    "text.parse_math": False,
    "text.color": INK,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "xtick.labelsize": 9,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "ytick.labelsize": 9,
}


@dataclass(frozen=True)
class Figure:
    """An SVG document and its alternative text."""

    svg: str
    alt: str


def printable(text: str) -> str:
    """Replace control characters, which would make an SVG invalid."""
    return "".join(c if c.isprintable() else "�" for c in text)


def draw(paint: Callable[[Any], None], alt: str, width: float = 5.4, height: float = 3.9) -> Figure:
    """Return the figure that `paint` draws on matplotlib Axes, in report style; sizes in inches."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(_STYLE):
        canvas = Canvas(figsize=(width, height), layout="constrained")
        paint(canvas.subplots())
        buffer = io.StringIO()
        canvas.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
        )
    svg = buffer.getvalue().replace("'DejaVu Sans', sans-serif", _FONTS)
    svg = svg.replace("'DejaVu Sans'", _FONTS)
    return Figure(svg[svg.index("<svg") :], printable(alt))


def _unit(axes: Any, x: str, y: str) -> None:
    axes.set(xlim=(-0.015, 1.015), ylim=(-0.015, 1.015), xlabel=x, ylabel=y)


def roc(curves: Mapping[str, Any], areas: Mapping[str, str], positive: str) -> Figure:
    """Draw ROC curves of the splits, with 0.5 and the operating threshold marked on test."""

    def paint(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color="#b6c0cd", linewidth=1, linestyle=(0, (2, 3)))
        for split, color in (("val", VAL), ("test", TEST)):
            if curves.get(split):
                points = curves[split]["roc"]
                axes.plot(
                    points["fpr"], points["tpr"], color=color, label=f"{split} · {areas[split]}"
                )
        _mark(axes, curves, "fpr", "recall")
        _unit(axes, "false alarms (share of the other class flagged)", "recall")
        axes.set_title("ROC curve")
        axes.legend(loc="lower right")

    return draw(paint, f"ROC curve for {positive}: {_listed(areas)}")


def precision_recall(curves: Mapping[str, Any], areas: Mapping[str, str], positive: str) -> Figure:
    """Draw precision-recall curves of the splits, with the thresholds marked on test."""

    def paint(axes: Any) -> None:
        for split, color in (("val", VAL), ("test", TEST)):
            if curves.get(split):
                points = curves[split]["pr"]
                axes.plot(
                    points["recall"],
                    points["precision"],
                    color=color,
                    label=f"{split} · {areas[split]}",
                )
                axes.axhline(
                    curves[split]["prevalence"], color=color, linewidth=1, linestyle=(0, (2, 3))
                )
        _mark(axes, curves, "recall", "precision")
        _unit(axes, "recall", "precision")
        axes.set_title("Precision–recall curve")
        axes.legend(loc="lower left")

    return draw(paint, f"Precision-recall curve for {positive}: {_listed(areas)}")


def _mark(axes: Any, curves: Mapping[str, Any], x: str, y: str) -> None:
    split = "test" if curves.get("test") else "val"
    if not curves.get(split):
        return
    markers = {
        "half": ("D", 7.5, "white", "0.5"),
        "operating": ("o", 9, POSITIVE, "operating threshold"),
    }
    for name, (marker, size, face, text) in markers.items():
        point = curves[split]["points"].get(name)
        if point and point[x] is not None and point[y] is not None:
            axes.plot(
                point[x],
                point[y],
                marker,
                markersize=size,
                markerfacecolor=face,
                markeredgecolor=INK,
                markeredgewidth=1.2,
                linestyle="none",
                label=text if name == "half" else f"{text} {point['threshold']:.3g}",
                zorder=5,
            )


def probabilities(
    histogram: Mapping[str, Any], threshold: float | None, title: str, x: str, colors: Sequence[str]
) -> Figure:
    """Draw a histogram of a probability by subset; bars are shares of their subset."""

    def paint(axes: Any) -> None:
        edges = histogram["edges"]
        for (name, counts), color in zip(histogram["counts"].items(), colors, strict=False):
            total = max(sum(counts), 1)
            axes.stairs(
                [100 * n / total for n in counts],
                edges,
                fill=True,
                color=color,
                alpha=0.42,
                label=f"{printable(name)} ({sum(counts):,})",
            )
            axes.stairs([100 * n / total for n in counts], edges, color=color, linewidth=1.4)
        # Most images are at the ends; the scale shows the few in between, which matter most.
        axes.set_yscale("symlog", linthresh=2, linscale=0.6)
        axes.set_yticks(
            [0, 1, 2, 5, 10, 20, 50, 100], [f"{v} %" for v in (0, 1, 2, 5, 10, 20, 50, 100)]
        )
        axes.minorticks_off()
        axes.set_ylim(0, 130)
        if threshold is not None:
            axes.axvline(threshold, color=INK, linewidth=1.4)
            axes.axvline(0.5, color=MUTED, linewidth=1.0, linestyle=(0, (2, 3)))
            right = threshold < 0.75
            axes.annotate(
                f"threshold {threshold:.3g}",
                (threshold, 100),
                (5 if right else -5, 0),
                textcoords="offset points",
                ha="left" if right else "right",
                va="center",
                fontsize=9,
            )
        axes.set(xlim=(0, 1), xlabel=x, ylabel="share of its images (compressed scale)")
        axes.set_title(title)
        axes.figure.legend(loc="outside lower center", ncols=2)

    described = ", ".join(f"{name} ({sum(n)} images)" for name, n in histogram["counts"].items())
    return draw(paint, f"{title}: histogram of {x} for {described}")


def calibration(bins: Mapping[str, Any], x: str, y: str) -> Figure:
    """Draw a reliability diagram of val and test; the area of a point grows with its images."""

    def paint(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color="#b6c0cd", linewidth=1, linestyle=(0, (2, 3)))
        for split, color in (("val", VAL), ("test", TEST)):
            if bins.get(split):
                part = bins[split]
                most = max(part["n"])
                axes.plot(part["predicted"], part["observed"], color=color, linewidth=1.2)
                axes.scatter(
                    part["predicted"],
                    part["observed"],
                    s=[12 + 90 * n / most for n in part["n"]],
                    color=color,
                    label=f"{split} · calibration error {part['expected_calibration_error']:.3f}",
                    zorder=4,
                )
        _unit(axes, x, y)
        axes.set_title("Calibration: predicted against observed")
        axes.figure.legend(loc="outside lower center", ncols=2)

    return draw(paint, "Calibration: predicted probability against observed share")


def top_k(curves: Mapping[str, Any]) -> Figure:
    """Draw top-k accuracy: the share of images with the true class among the k most probable."""

    def paint(axes: Any) -> None:
        for split, color in (("val", VAL), ("test", TEST)):
            if curves.get(split):
                shares = [100 * share for share in curves[split]["share"]]
                axes.plot(curves[split]["k"], shares, "o-", color=color, markersize=5, label=split)
        axes.set(ylim=(0, 103), xlabel="k most probable classes", ylabel="true class among them, %")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_title("Top-k accuracy")
        axes.legend(loc="lower right")

    return draw(paint, "Top-k accuracy for k from 1 to 10")


def recall_by_support(per_class: Mapping[str, Any], split: str) -> Figure:
    """Draw the recall of every class against its number of images."""
    points = [
        (entry["support"], entry["recall"]["value"])
        for entry in per_class.values()
        if entry["recall"]["value"] is not None
    ]

    def paint(axes: Any) -> None:
        axes.scatter(
            [n for n, _ in points],
            [100 * recall for _, recall in points],
            s=22,
            color=TEST,
            alpha=0.45,
            linewidths=0,
        )
        axes.set_xscale("log")
        most = max((n for n, _ in points), default=1)
        ticks = [
            t for t in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if t <= most * 1.5
        ]
        axes.set_xticks(ticks, [str(t) for t in ticks])
        axes.minorticks_off()
        axes.set(ylim=(-4, 104), xlabel=f"{split} images of the class", ylabel="recall, %")
        axes.set_title("Recall of each class")

    return draw(paint, f"Recall of {len(points)} classes against their number of {split} images")


def confusion(matrix: Sequence[Sequence[int]], classes: Sequence[str], title: str) -> Figure:
    """Draw a heat map of a confusion matrix; cells are shaded by their share of the row."""
    shares = [[n / max(sum(row), 1) for n in row] for row in matrix]
    names = [_short(name) for name in classes]
    size = min(9.0, 2.2 + 0.22 * len(classes))

    def paint(axes: Any) -> None:
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        axes.grid(visible=False)
        step = math.ceil(len(classes) / 45)
        ticks = range(0, len(classes), step)
        axes.set_xticks(ticks, [names[t] for t in ticks], rotation=90, fontsize=7.5)
        axes.set_yticks(ticks, [names[t] for t in ticks], fontsize=7.5)
        if len(classes) <= 40:
            for i, row in enumerate(matrix):
                for j, n in enumerate(row):
                    if n:
                        color = "white" if shares[i][j] > 0.55 else INK
                        axes.text(j, i, str(n), ha="center", va="center", fontsize=6.5, color=color)
        axes.set(xlabel="predicted", ylabel="true")
        axes.set_title(title)

    return draw(paint, f"{title}: {len(classes)} by {len(classes)} heat map", size, size)


def sweep(values: Sequence[float], objective: str) -> Figure:
    """Draw the objective of every trial, best first."""

    def paint(axes: Any) -> None:
        axes.plot(range(1, len(values) + 1), values, "o", color=VAL, markersize=5)
        axes.plot(1, values[0], "o", color=POSITIVE, markersize=9, label="winner")
        axes.set(xlabel="trials, best first", ylabel=objective)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_title("Every trial of the sweep")
        axes.legend(loc="best")

    return draw(paint, f"{objective} of {len(values)} trials, best first")


def setting_effect(
    settings: Sequence[float], values: Sequence[float], name: str, objective: str
) -> Figure:
    """Draw the objective, best first, against a setting (log scale for a wide range)."""

    def paint(axes: Any) -> None:
        axes.plot(settings, values, "o", color=VAL, markersize=5)
        axes.plot(settings[0], values[0], "o", color=POSITIVE, markersize=9, label="winner")
        if min(settings) > 0 and max(settings) / min(settings) > 20:
            axes.set_xscale("log")
            # The default labels of matplotlib are mathematical text, which is disabled.
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.xaxis.set_minor_formatter(lambda value, _: "")
        axes.set(xlabel=printable(name), ylabel=objective)
        axes.set_title(f"Effect of {printable(name)}")
        axes.legend(loc="best")

    return draw(paint, f"{objective} against {name} for {len(values)} trials")


def learning_curves(history: Mapping[str, Sequence[float]], name: str) -> Figure:
    """Draw a metric of the winning trial by epoch, on train and val."""

    def paint(axes: Any) -> None:
        for key, label, color in ((name, "train", VAL), (f"val_{name}", "val", POSITIVE)):
            if history.get(key):
                axes.plot(range(1, len(history[key]) + 1), history[key], color=color, label=label)
        axes.set(xlabel="epoch", ylabel=printable(name))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_title(f"Learning curve of the winner: {printable(name)}")
        axes.legend(loc="best")

    return draw(paint, f"{name} of the winning trial by epoch on train and val")


def _short(name: str, limit: int = 14) -> str:
    clean = printable(name)
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def _listed(areas: Mapping[str, str]) -> str:
    return ", ".join(f"{split} {text}" for split, text in areas.items())
