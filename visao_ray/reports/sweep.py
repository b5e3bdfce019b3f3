"""The page of hyperparameter sweeps: the winner, its lead with intervals, and what mattered."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from visao_ray.core import tables
from visao_ray.core.run import Run
from visao_ray.core.storage import Location
from visao_ray.datasets.spec import Dataset
from visao_ray.evaluation.metrics import METRICS
from visao_ray.reports import sweep_figures
from visao_ray.reports.figures import Figure
from visao_ray.reports.formats import SPACE, estimate, plain
from visao_ray.reports.report import render
from visao_ray.reports.titles import heading, kind, overall, title

TOP = 10
#: Lines in a figure; of more trials the best are drawn.
DRAWN = 400
CURVES_SHOWN = 3
REASONS_SHOWN = 20
_NBSP = "\u00a0"
_MINUS = "\u2212"
_KINDS = {"dense": "dense head", "logistic": "logistic regression", "svm": "RBF SVM"}
_ENDED = {
    "epochs": "ran all epochs",
    "patience": "no more progress (patience)",
    "halving": "stopped by halving",
    "fitted": "fitted in one go",
}
_OF_LAYERS = {"units", "activation"}
_OF_EPOCHS = {
    *("layers", "units", "activation", "dropout", "l1", "l2", "optimizer", "learning_rate"),
    *("schedule", "batch_size", "label_smoothing"),
}
_LOGARITHMIC = {"learning_rate", "l1", "l2", "c", "gamma"}
_CONFUSIONS = 20  # shown


@dataclass(frozen=True)
class SweepPage:
    """The sweep of one dataset, from its tables and result.json; no metric is computed here.

    Attributes:
        dataset: name of the dataset.
        objective: title of the objective.
        objective_mode: "min" if lower is better.
        trials: one row per trial; trial 0 is the default head.
        history: number, epoch, train_loss, val_loss, val_objective.
        finalists: best first: `trial`, `settings`, `objective` {value, low, high, n},
            `over_default` and `over_median` (paired leads over these trials; above 0 is better,
            whatever the mode), `first` (share of the bootstrap replicates, or of the folds if there
            are any, in which it is the best finalist). If empty, the trials are ranked by their own
            objectives, without intervals.
        importance: setting to share 0..1; may be empty.
        class_weight_curves: number, factor, threshold, recall, precision; None for more than two
            classes.
        class_weights: class-weight ablation, finalists retrained with every class weight: `trial`,
            `class_weight`, `objective` and `over_none` as above; only for more than two classes.
        metrics: every metric of the winner on val, as `classification_metrics` returns them.
        positive: class of the class-weight curves.
        classes: number of classes.
        counts: `images`, and rows of `train` and `val`; all optional.
        sample: rows of `train` and `val` that the search saw, if they were a sample: then `trials`,
            `history`, `class_weight_curves`, `importance` and `class_weights` are of the sample,
            and `finalists`, `refits` and `metrics` of all rows.
        refits: heads refitted on all rows: as `trials`, with `refit_of`.
        seconds: wall time.
        warnings: of this dataset.
    """

    dataset: str
    objective: str
    objective_mode: Literal["max", "min"]
    trials: pa.Table
    history: pa.Table
    finalists: Sequence[Mapping[str, Any]] = ()
    importance: Mapping[str, float | None] = field(default_factory=dict)
    class_weight_curves: pa.Table | None = None
    class_weights: Sequence[Mapping[str, Any]] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)
    positive: str | None = None
    classes: int = 2
    counts: Mapping[str, Any] = field(default_factory=dict)
    sample: Mapping[str, int] | None = None
    refits: pa.Table | None = None
    seconds: float = 0.0
    warnings: Sequence[str] = ()


def sweep_report(
    title: str, command: str, pages: Sequence[SweepPage], warnings: Sequence[str] = ()
) -> str:
    """Render the sweeps of one or several datasets as one HTML document that needs no network.

    Every name, setting and message is escaped.

    Args:
        title: of the document.
        command: the command line that made it.
        pages: one per dataset, in order.
        warnings: of the whole run, shown at the top.

    Returns:
        The HTML text.
    """
    return render(
        "sweep.html.j2",
        {
            "title": title,
            "command": command,
            "warnings": list(dict.fromkeys(warnings)),
            "datasets": [_dataset(page) for page in pages],
        },
    )


def read_sweep_page(out: Location, dataset: Dataset, result: Mapping[str, Any]) -> SweepPage:
    """Read the sweep of one dataset.

    Args:
        out: folder of the sweep, with its tables.
        dataset: of the sweep.
        result: result.json of the sweep.

    Returns:
        The data of the page.
    """
    classes, counts, details = result["inputs"]["classes"], result["counts"], result["details"]
    objective = details["objective"]["name"]

    def read(name: str) -> pa.Table:
        return tables.open_table(out.join(name), name).to_table()

    def read_if_written(name: str) -> pa.Table | None:
        return read(name) if tables.rows(out.join(name)) else None

    return SweepPage(
        dataset=dataset.name,
        objective=details["objective"]["text"],
        objective_mode="max" if METRICS[objective].greater_is_better else "min",
        trials=read("trials"),
        history=read("history"),
        finalists=details["finalists"],
        importance=details["importance"],
        class_weight_curves=read_if_written("class_weight_curves"),
        class_weights=details["class_weights"],
        metrics=result["metrics"]["val"],
        positive=dataset.positive_among(classes) if len(classes) == 2 else None,
        classes=len(classes),
        counts={"images": counts["images"], **counts["rows"]},
        sample=counts.get("sample"),
        refits=read_if_written("refits"),
        seconds=details["seconds"],
        warnings=result["warnings"],
    )


def write_sweep_report(run: Run[Any], title: str, pages: Sequence[SweepPage]) -> None:
    """Write `report.html` of a run.

    Args:
        run: of the sweep job.
        title: of the document.
        pages: one per dataset, in order.
    """
    report = run.out.join("report.html")
    report.write_bytes(sweep_report(title, run.command, pages, run.warnings).encode())
    run.say(f"report: {report.uri}")


def describe_head(settings: Mapping[str, Any]) -> str:
    """Describe a head in one line, without settings that do not apply or have no effect."""
    of = _relevant(settings)
    said: list[str] = []
    if "layers" in of or "units" in of:
        layers = of.get("layers", 1 if of.get("units") else 0)
        hidden = f"{layers} × {plain(of.get('units'))} {of.get('activation', '')}".strip()
        said.append(hidden if layers else "no hidden layer")
    said += [f"{name} {_short(of[name])}" for name in ("dropout", "l1", "l2") if of.get(name)]
    if "optimizer" in of:
        said.append(f"{of['optimizer']} {_short(of.get('learning_rate', ''))}".strip())
    if of.get("schedule", "constant") != "constant":
        said.append(f"{of['schedule']} schedule")
    if "batch_size" in of:
        said.append(f"batch {of['batch_size']}")
    if of.get("label_smoothing"):
        said.append(f"smoothing {_short(of['label_smoothing'])}")
    said += [
        f"{sign} {_short(of[name])}" for name, sign in (("c", "C"), ("gamma", "γ")) if name in of
    ]
    if "pool" in of:
        said.append("both pools" if of["pool"] == "both" else f"{of['pool']} pool")
    if "standardise" in of:
        said.append("standardised" if of["standardise"] else "not standardised")
    if of.get("views", "all") != "all":
        said.append(f"{of['views']} view{'' if of['views'] == 1 else 's'}")
    weight = of.get("class_weight", "none")
    if weight != "none":
        by_class = weight.items() if isinstance(weight, Mapping) else ()
        factors = ", ".join(f"{name}={factor:g}" for name, factor in by_class)
        said.append(f"class weight {factors or weight}")
    return " · ".join(said)


def _relevant(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that apply to this kind of head."""
    kind = settings.get("kind") or "dense"
    without = {"c", "gamma"} if kind == "dense" else _OF_EPOCHS
    if kind != "dense":
        without = without | ({"gamma"} if kind == "logistic" else {"class_weight"})
    if kind == "dense" and settings.get("layers") == 0:
        without = without | _OF_LAYERS
    relevant = {name: value for name, value in settings.items() if name not in without | {"kind"}}
    if "views" in relevant and relevant["views"] is None:
        relevant["views"] = "all"
    return {name: value for name, value in relevant.items() if value is not None}


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else plain(value)


@dataclass(frozen=True)
class _Trial:
    number: int
    settings: Mapping[str, Any]
    objective: float | None
    row: Mapping[str, Any]
    refitted: bool = False  # after a search on a sample: all figures are of all rows

    @property
    def kind(self) -> str:
        return str(self.settings.get("kind") or "dense")

    @property
    def failed(self) -> bool:
        return self.objective is None

    @property
    def reason(self) -> str:
        return str(self.row.get("error") or "its objective was undefined on val")


def _trials(page: SweepPage) -> list[_Trial]:
    """All trials by number; a trial without a finite objective counts as failed."""
    found = [_trial(row, row["number"]) for row in page.trials.to_pylist()]
    return sorted(found, key=lambda trial: trial.number)


def _trial(row: Mapping[str, Any], number: int, refitted: bool = False) -> _Trial:
    clean = {name: _finite(value) for name, value in row.items()}
    settings = {
        name.removeprefix("setting."): value
        for name, value in clean.items()
        if name.startswith("setting.")
    }
    ok = clean.get("status", "ok") == "ok"
    return _Trial(number, settings, clean["objective"] if ok else None, clean, refitted)


def _refitted(page: SweepPage, ranked: Sequence[_Trial]) -> list[_Trial]:
    """The same trials, with the figures of all rows for heads that were refitted."""
    if page.refits is None:
        return list(ranked)
    again = {
        row["refit_of"]: _trial(row, row["refit_of"], refitted=True)
        for row in page.refits.to_pylist()
    }
    known = {number: trial for number, trial in again.items() if not trial.failed}
    return [known.get(trial.number, trial) for trial in ranked]


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _dataset(page: SweepPage) -> dict[str, Any]:
    trials = _trials(page)
    lower = page.objective_mode == "min"
    finalists = {entry["trial"]: entry for entry in page.finalists}
    place = {trial: index for index, trial in enumerate(finalists)}
    ranked = sorted(
        (trial for trial in trials if not trial.failed),
        key=lambda trial: (
            place.get(trial.number, len(place)),
            (trial.objective or 0.0) * (1 if lower else -1),
            trial.number,
        ),
    )
    varied = _varied(trials)
    shown = _refitted(page, ranked)
    return {
        "page": page,
        "headline": _headline(page, shown, len(trials)),
        "won": _won(page, shown),
        "tiles": _tiles(page, shown),
        "top": _top(page, shown),
        "fixed": {
            name: value
            for name, value in (trials[0].settings if trials else {}).items()
            if name not in varied and value is not None
        },
        "parallel": _parallel(page, ranked, varied),
        "importance": _importance(page),
        "curves": _curves(page, ranked),
        "class_weight_curves": _class_weight_curves(page, ranked),
        "class_weights": [
            {
                "trial": entry["trial"],
                "name": entry["class_weight"],
                "objective": _estimate(entry["objective"]),
                "lead": _lead(entry["over_none"]) if entry["class_weight"] != "none" else None,
            }
            for entry in page.class_weights
        ],
        "winner": _winner(page),
        "ended": _ended(trials),
        "failures": _failures(trials),
        "trials": len(trials),
        "succeeded": len(ranked),
        "drawn": min(DRAWN, len(ranked)),
        "finalists": len(finalists),
    }


def _winner(page: SweepPage) -> dict[str, Any] | None:
    """Every metric of the winner on val; for many classes also chapters, confusions and classes."""
    metrics = page.metrics
    if not metrics:
        return None
    per_class = metrics.get("per_class", {}) if page.classes > 2 else {}
    worst = sorted(
        (name for name in per_class if per_class[name]["support"]),
        key=lambda name: (per_class[name]["f1"]["value"] or 0.0, name),
    )
    return {
        "metrics": [
            (heading(name), estimate(metrics[name], kind(name))) for name in overall(metrics)
        ],
        "chapters": [
            (name, entry["support"], *(estimate(entry[k]) for k in ("accuracy", "accuracy_summed")))
            for name, entry in metrics.get("per_chapter", {}).items()
            if entry["support"]
        ],
        "confusions": metrics.get("top_confusions", ())[:_CONFUSIONS] if per_class else (),
        "classes": [
            (
                name,
                per_class[name]["support"],
                *(
                    estimate(per_class[name][k], kind)
                    for k, kind in (("recall", "share"), ("precision", "share"), ("f1", "area"))
                ),
            )
            for name in worst
        ],
    }


def _varied(trials: Sequence[_Trial]) -> list[str]:
    """Settings that differ among the trials they apply to, in the order of the table."""
    values: dict[str, set[str]] = {}
    for trial in trials:
        for name, value in (_relevant(trial.settings) | {"kind": trial.kind}).items():
            values.setdefault(name, set()).add(repr(value))
    order = trials[0].settings if trials else {}
    return [name for name in order if len(values.get(name, ())) > 1]


# --- text


def _value(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "—"
    return f"{value:.4f}".replace("-", _MINUS)


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", _MINUS)


def _estimate(entry: Mapping[str, Any] | None) -> dict[str, str]:
    """Texts of a value and its interval; a dash if there is no value."""
    entry = entry or {}
    low, high = _finite(entry.get("low")), _finite(entry.get("high"))
    known = low is not None and high is not None
    return {
        "value": _value(entry.get("value")),
        "interval": f"{_value(low)}–{_value(high)}" if known else "",
        "n": f"{entry['n']:,}" if entry.get("n") else "",
    }


@dataclass(frozen=True)
class _Lead:
    """Lead of a head over another; positive is better, whatever the mode of the objective."""

    value: float
    low: float | None
    high: float | None

    @property
    def verdict(self) -> Literal["unknown", "luck", "better", "worse"]:
        if self.low is None or self.high is None:
            return "unknown"
        if self.low > 0:
            return "better"
        return "worse" if self.high < 0 else "luck"

    @property
    def interval(self) -> str:
        if self.low is None or self.high is None:
            return ""
        return f"{_signed(self.low)} to {_signed(self.high)}"

    @property
    def text(self) -> str:
        return _signed(self.value) + (f" ({self.interval})" if self.interval else "")


def _lead(entry: Mapping[str, Any] | None) -> _Lead | None:
    if not entry or _finite(entry.get("value")) is None:
        return None
    return _Lead(entry["value"], _finite(entry.get("low")), _finite(entry.get("high")))


def _entry(page: SweepPage, trial: _Trial) -> Mapping[str, Any]:
    """The entry of a finalist; for other trials one with their own objective."""
    for entry in page.finalists:
        if entry["trial"] == trial.number:
            return entry
    return {"trial": trial.number, "objective": {"value": trial.objective}}


def _folded(page: SweepPage) -> bool:
    """Whether finalists were evaluated on folds instead of one hold-out."""
    if page.sample is not None:
        return False
    folds = page.trials["folds"].to_pylist() if "folds" in page.trials.column_names else []
    return any(values is not None and len(values) > 1 for values in folds)


def _named(trial: _Trial) -> str:
    what = _KINDS.get(trial.kind, trial.kind)
    if trial.number == 0:
        return f"the default head (trial 0, a {what})"
    article = "an" if what.startswith("RBF") else "a"
    return f"{article} {what} (trial {trial.number})"


def _won(page: SweepPage, ranked: Sequence[_Trial]) -> str:
    """The winner in one short sentence."""
    if not ranked:
        return f"{page.dataset}: no trial succeeded"
    texts = _estimate(_entry(page, ranked[0]).get("objective"))
    interval = f" ({texts['interval']})" if texts["interval"] else ""
    value = f"{texts['value']}{interval}"
    return f"{page.dataset}: {_named(ranked[0])} won; its {page.objective} is {value}"


def _headline(page: SweepPage, ranked: Sequence[_Trial], tried: int) -> list[str]:
    """Sentences: the winner, its leads, and whether they are more than luck."""
    if not ranked:
        return [f"On {page.dataset} none of {tried:,} trials succeeded."]
    winner, entry = ranked[0], _entry(page, ranked[0])
    texts = _estimate(entry.get("objective"))
    value = texts["value"]
    if texts["interval"]:
        images = f", n{_NBSP}={_NBSP}{texts['n']}" if texts["n"] else ""
        value += f" (95{SPACE}%: {texts['interval']}{images})"
    name = _named(winner)
    said = [f"On {page.dataset} {name} won: its {page.objective} on val is {value}."]
    if len(ranked) == 1:
        others = "all others failed" if tried > 1 else "no other was tried"
        return [*said, f"It is the only trial that succeeded ({others}): nothing to compare with."]
    if winner.number == 0:
        said.append("It is the default head itself: the search found nothing better.")
    else:
        said.append(_compared("the default head", _lead(entry.get("over_default"))))
    said.append(_compared("the median trial", _lead(entry.get("over_median"))))
    first = _finite(entry.get("first"))
    if first is not None and len(page.finalists) > 1:
        said.append(
            f"Among the {len(page.finalists)} finalists it stays first in"
            f" {_percent(first)} of the {'folds' if _folded(page) else 'bootstrap replicates'}."
        )
    return said


def _compared(other: str, lead: _Lead | None) -> str:
    if lead is None:
        return f"How it compares with {other} is not known: no paired difference was computed."
    if lead.verdict == "unknown":
        return f"Its lead over {other} is {lead.text}; without an interval it may be luck."
    if lead.verdict == "luck":
        return f"Its lead over {other}, {lead.text}, cannot be distinguished from luck."
    if lead.verdict == "worse":
        return f"Against {other} it is worse, {lead.text}, by more than luck."
    return f"Its lead over {other}, {lead.text}, is more than luck."


def _percent(share: float) -> str:
    return f"{100 * share:.0f}{SPACE}%"


# --- tables


def _tiles(page: SweepPage, ranked: Sequence[_Trial]) -> list[dict[str, str]]:
    if not ranked:
        return []
    entry = _entry(page, ranked[0])
    texts = _estimate(entry.get("objective"))
    below = f"95{SPACE}%: {texts['interval']}" if texts["interval"] else "no interval"
    below += f" · n = {texts['n']}" if texts["n"] else ""
    tiles = [{"value": texts["value"], "name": f"{page.objective} of the winner", "small": below}]
    words = {"luck": "may be luck", "better": "more than luck", "worse": "worse", "unknown": ""}
    for key, other in (("over_default", "default head"), ("over_median", "median trial")):
        lead = _lead(entry.get(key))
        if lead is None or (key == "over_default" and ranked[0].number == 0):
            continue
        small = f"95{SPACE}%: {lead.interval} · {words[lead.verdict]}" if lead.interval else ""
        tiles.append(
            {"value": _signed(lead.value), "name": f"lead over the {other}", "small": small}
        )
    first = _finite(entry.get("first"))
    if first is not None and len(page.finalists) > 1:
        small = (
            f"among {len(page.finalists)} finalists, by {'folds' if _folded(page) else 'bootstrap'}"
        )
        tiles.append({"value": _percent(first), "name": "stays first", "small": small})
    return tiles


def _top(page: SweepPage, ranked: Sequence[_Trial]) -> dict[str, Any]:
    """The ten best heads, and the default head with its rank if it is not among them."""
    shown = list(enumerate(ranked, 1))[:TOP]
    shown += [(rank, t) for rank, t in enumerate(ranked, 1) if rank > TOP and t.number == 0]
    metrics = _other_metrics(page, [trial for _, trial in shown])
    rows = []
    for rank, trial in shown:
        entry = _entry(page, trial)
        lead = None if trial.number == 0 else _lead(entry.get("over_default"))
        first = _finite(entry.get("first"))
        folds = [v for v in trial.row.get("folds") or [] if _finite(v) is not None]
        epochs = 0 if trial.row.get("ended") == "fitted" else trial.row.get("epochs")
        rows.append(
            {
                "rank": rank,
                "number": trial.number,
                "kind": _KINDS.get(trial.kind, trial.kind),
                "simple": trial.kind != "dense",
                "default": trial.number == 0,
                "fitted": "all rows" if trial.refitted else "sample",
                "words": describe_head(trial.settings),
                "objective": _estimate(entry.get("objective")),
                "folds": f"{_value(min(folds))}–{_value(max(folds))}" if folds else "",
                "lead": {"value": _signed(lead.value), "interval": lead.interval} if lead else None,
                "first": "" if first is None else _percent(first),
                "metrics": [_value(trial.row.get(f"metric.{name}")) for name in metrics],
                "epochs": f"{trial.row.get('epoch')} of {epochs}" if epochs else "—",
                "seconds": trial.row.get("seconds"),
            }
        )
    return {
        "rows": rows,
        "metrics": [title(name) for name in metrics],
        "folds": any(row["folds"] for row in rows),
        "leads": any(row["lead"] for row in rows),
        "firsts": any(row["first"] for row in rows),
    }


def _other_metrics(page: SweepPage, shown: Sequence[_Trial]) -> list[str]:
    """Up to three metrics that differ from the objective."""
    useful = []
    for name, metric in METRICS.items():
        known = metric.title == page.objective
        if known or metric.of_class or page.classes < metric.fewest_classes:
            continue
        values = [trial.row.get(f"metric.{name}") for trial in shown]
        same = all(v == trial.objective for v, trial in zip(values, shown, strict=True))
        if not same and any(value is not None for value in values):
            useful.append(name)
    return useful[:3]


def _ended(trials: Sequence[_Trial]) -> dict[str, Any]:
    """Number of trials by way of ending (rows) and kind of head (columns)."""
    kinds = [kind for kind in _KINDS if any(trial.kind == kind for trial in trials)]
    kinds += sorted({trial.kind for trial in trials} - set(kinds))
    count = Counter(
        ("failed" if trial.failed else str(trial.row.get("ended") or "other"), trial.kind)
        for trial in trials
    )
    known = [*_ENDED, "other", "failed"]
    ways = [way for way in known if any(way == w for w, _ in count)]
    ways[-1:-1] = sorted({way for way, _ in count} - set(known))
    return {
        "kinds": [_KINDS.get(kind, kind) for kind in kinds],
        "rows": [
            {"way": _ENDED.get(way, way), "counts": [count[way, kind] for kind in kinds]}
            for way in ways
        ],
    }


def _failures(trials: Sequence[_Trial]) -> dict[str, Any]:
    """Reasons of failed trials, the most frequent first."""
    by_reason: dict[tuple[str, str], list[int]] = {}
    for trial in trials:
        if trial.failed:
            kind = _KINDS.get(trial.kind, trial.kind)
            by_reason.setdefault((trial.reason, kind), []).append(trial.number)
    rows = sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[1]))
    return {
        "trials": sum(len(numbers) for _, numbers in rows),
        "reasons": len(rows),
        "rows": [
            {
                "reason": reason,
                "kind": kind,
                "trials": len(numbers),
                "numbers": ", ".join(map(str, numbers[:12])) + (", …" if numbers[12:] else ""),
            }
            for (reason, kind), numbers in rows[:REASONS_SHOWN]
        ],
    }


# --- figures


def _parallel(page: SweepPage, ranked: Sequence[_Trial], varied: Sequence[str]) -> Figure | None:
    drawn = list(ranked[:DRAWN])
    drawn += [trial for trial in ranked[DRAWN:] if trial.number == 0]
    if len(drawn) < 2:
        return None
    relevant = [_relevant(trial.settings) | {"kind": trial.kind} for trial in drawn]
    axes = [
        sweep_figures.axis(
            "head" if name == "kind" else name.replace("_", " "),
            [_on_axis(of.get(name), page.positive) for of in relevant],
            log=name in _LOGARITHMIC,
        )
        for name in varied
    ]
    settings = [axis for axis in axes if axis is not None]
    if not settings:
        return None
    values = [trial.objective or 0.0 for trial in drawn]
    last = sweep_figures.objective_axis(page.objective, values, page.objective_mode == "min")
    default = next((i for i, trial in enumerate(drawn) if trial.number == 0), None)
    return sweep_figures.parallel([*settings, last], default)


def _on_axis(value: Any, positive: str | None) -> Any:
    """A setting as a tick label: a factor of the positive class without the name of the class."""
    if isinstance(value, str) and value.startswith(f"{positive}=") and "," not in value:
        return f"×{value.removeprefix(f'{positive}=')}"
    return value


def _importance(page: SweepPage) -> Figure | None:
    shares = {
        name.removeprefix("setting."): share
        for name, share in page.importance.items()
        if _finite(share) is not None and share is not None
    }
    return sweep_figures.importance(shares) if shares else None


def _curves(page: SweepPage, ranked: Sequence[_Trial]) -> list[Figure]:
    """The objective of all trials by epoch, and the winner's losses."""
    if not ranked:
        return []
    history: dict[int, list[Mapping[str, Any]]] = {}
    for row in page.history.to_pylist():
        history.setdefault(row["number"], []).append(row)
    for rows in history.values():
        rows.sort(key=lambda row: row["epoch"])
    drawn = [trial for trial in ranked[:DRAWN] if trial.number in history]
    finalists = [entry["trial"] for entry in page.finalists] or [ranked[0].number]
    curves = {
        trial.number: (
            [row["epoch"] for row in history[trial.number]],
            [_nan(row["val_objective"]) for row in history[trial.number]],
        )
        for trial in drawn
    }
    fitted = {
        trial.number: trial.objective
        for trial in ranked
        if trial.number in finalists and trial.number not in history and trial.objective is not None
    }
    halved = [trial.number for trial in drawn if trial.row.get("ended") == "halving"]
    figure = sweep_figures.learning(
        curves, finalists, fitted, halved, page.objective, page.objective_mode == "min"
    )
    figures = [figure] if figure else []
    own = history.get(ranked[0].number, [])
    epochs = [row["epoch"] for row in own]
    train, val = ([_nan(row[name]) for row in own] for name in ("train_loss", "val_loss"))
    if any(map(math.isfinite, [*train, *val])):
        best = ranked[0].row.get("epoch")
        figures.append(sweep_figures.losses(epochs, train, val, best, ranked[0].number))
    return figures


def _nan(value: float | None) -> float:
    return math.nan if value is None else value


def _class_weight_curves(page: SweepPage, ranked: Sequence[_Trial]) -> dict[str, Any] | None:
    """Panels of the best finalists, on common axes, and their points at threshold 0.5."""
    if page.class_weight_curves is None or page.class_weight_curves.num_rows == 0:
        return None
    curves: dict[int, dict[float, list[tuple[float, float, float]]]] = {}
    for row in page.class_weight_curves.to_pylist():
        point = (row["threshold"], _nan(row["recall"]), _nan(row["precision"]))
        curves.setdefault(row["number"], {}).setdefault(row["factor"], []).append(point)
    shown = [trial for trial in ranked if trial.number in curves][:CURVES_SHOWN]
    if not shown:
        return None
    positive = page.positive or "the positive class"
    at_half = [
        (trial, factor, recall, precision)
        for trial in shown
        for factor, points in sorted(curves[trial.number].items())
        for threshold, recall, precision in points
        if threshold == 0.5
    ]
    corner = (
        _corner([recall for _, _, recall, _ in at_half]),
        _corner([precision for *_, precision in at_half]),
    )
    return {
        "positive": positive,
        "figures": [
            sweep_figures.class_weight_curves(
                curves[trial.number],
                f"Trial {trial.number}: {_KINDS.get(trial.kind, trial.kind)}",
                positive,
                corner,
            )
            for trial in shown
        ],
        "rows": [
            {
                "number": trial.number,
                "kind": _KINDS.get(trial.kind, trial.kind),
                "factor": f"{factor:g}",
                "recall": _value(recall),
                "precision": _value(precision),
            }
            for trial, factor, recall, precision in at_half
        ],
    }


def _corner(values: Sequence[float]) -> float:
    """Lower limit of an axis that leaves room below the points at threshold 0.5."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return 0.0
    return max(0.0, math.floor(10 * (1 - 2 * (1 - min(known)) - 0.1)) / 10)
