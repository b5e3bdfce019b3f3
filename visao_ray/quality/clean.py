"""The clean job: which labels are probably wrong, and what to look at first.

Probabilities come from models that saw neither the image nor its group (`out_of_fold`). Reading,
fitting and judging run in tasks; the driver holds counts and what the page shows.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from visao_ray.core import tables
from visao_ray.core.errors import InputError
from visao_ray.core.ray_session import start_ray
from visao_ray.core.resources import current_cluster, remotely
from visao_ray.core.run import Run
from visao_ray.core.storage import Location
from visao_ray.datasets.spec import SPLITS, Dataset
from visao_ray.evaluation.comparison import MetricMeasure, Standing, compare
from visao_ray.evaluation.metrics import METRICS
from visao_ray.quality import suspicion
from visao_ray.quality.files import Files, read_files
from visao_ray.quality.out_of_fold import (
    PENALTIES,
    Rows,
    fit_and_predict,
    fold_loss,
    fold_probabilities,
    read_rows,
)
from visao_ray.quality.settings import CleanSettings
from visao_ray.quality.verdicts import to_csv
from visao_ray.reports.clean import CleanPage, Suspect, write_clean
from visao_ray.store import schemas
from visao_ray.store.join import Snapshot, latest_verdicts, pin, plain_vectors
from visao_ray.store.proof import Contents
from visao_ray.store.store import Store

TRAIN, VAL, TEST = SPLITS
#: Ways to train: with all labels, without flagged images, with flagged labels replaced.
AS_THEY_ARE, FILTERED, RELABELLED = "as they are", "without flagged", "relabelled"
_OTHERS_SHOWN = 3

ISSUES = tables.named_schema(
    "issues",
    [
        ("key", pa.string()),
        ("label", pa.string()),
        ("group", pa.string()),
        ("split", pa.string()),
        ("probability", pa.float32()),
        ("model_probability", pa.float32()),
        ("suggestion", pa.string()),
        ("suggestion_probability", pa.float32()),
        ("is_confident", pa.bool_()),
        ("is_threshold", pa.bool_()),
        ("is_issue", pa.bool_()),
        ("rank", pa.int32()),
        ("verdict", pa.string()),
    ],
)


@dataclass(frozen=True)
class Judgement:
    """What was found, for the driver.

    Attributes:
        images: number of labels that were to be judged, one per content.
        judged: number of labels that were judged; the others are the only group of their class.
        confident: labels flagged by confident learning.
        threshold: labels flagged by the study's thresholds.
        undecided: flagged labels, by the chosen rule, that no person has decided on.
        decided: number of labels with each verdict.
        agreement: how far groups agree.
        views: result of each way to train, by name.
        suspects: what to look at first.
    """

    images: int
    judged: int
    confident: int
    threshold: int
    undecided: int
    decided: dict[str, int]
    agreement: suspicion.Agreement
    views: dict[str, Standing]
    suspects: tuple[Suspect, ...]


def find_label_issues(settings: CleanSettings, run: Run[Any]) -> None:
    """Run the clean job.

    Args:
        settings: settings of the job.
        run: the run.

    Raises:
        InputError: no such store or extractor, no vectors, or fewer groups than folds.
    """
    import ray

    store = Store.open(settings.store)
    dataset = Dataset.from_json(store.description.dataset)
    extractor = store.the_extractor(settings.extractor)
    start_ray()
    snapshot = pin(store, run.id, plain_vectors(extractor), as_of=settings.as_of)
    judged = (TRAIN, VAL) if settings.include_val else (TRAIN,)
    splits = (TRAIN, VAL, TEST) if settings.test else (TRAIN, VAL)
    with run.timed("read"):
        rows = remotely(
            read_rows, snapshot, dataset, splits, judged, settings.folds, settings.repeats,
            settings.seed, keep=True,
        )  # fmt: skip
        ray.wait([rows])
    with run.timed("fit"):
        c = settings.c or _choose_penalty(rows, settings, run)
        run.say(
            f"fitting {settings.repeats} × {settings.folds} models, each on the other folds' groups"
        )
        parts = _of_folds(fold_probabilities, rows, settings.repeats, settings.folds, c)
        ray.wait(list(parts.values()), num_returns=len(parts))
    with run.timed("judge"):
        listed = [(repeat, fold, [reference]) for (repeat, fold), reference in parts.items()]
        found = remotely(judge_labels, rows, listed, settings, snapshot, dataset, c, run.out)
    _report(run, settings, store, dataset, snapshot, found, c)


def _choose_penalty(rows: Any, settings: CleanSettings, run: Run[Any]) -> float:
    """Return the inverse penalty with the smallest log loss on rows that were not fitted on."""
    import ray

    waiting = {c: _of_folds(fold_loss, rows, 1, settings.folds, c) for c in PENALTIES}
    losses = {}
    for c, parts in waiting.items():
        of_folds = ray.get(list(parts.values()))
        losses[c] = sum(loss for loss, _ in of_folds) / max(sum(n for _, n in of_folds), 1)
    best = min(losses, key=lambda c: losses[c])
    run.say(f"penalty 1/{best:g}: log loss {losses[best]:.3f} on the labels as they are")
    return best


def _of_folds(function: Any, rows: Any, repeats: int, folds: int, c: float) -> dict[Any, Any]:
    """Start a task for each fold of each repeat."""
    import ray

    task = ray.remote(function).options(
        num_cpus=1, max_retries=3, **current_cluster().avoid_gpu_nodes
    )
    return {
        (repeat, fold): task.remote(rows, repeat, fold, c)
        for repeat in range(repeats)
        for fold in range(folds)
    }


def judge_labels(
    reference: list[Any],
    parts: list[tuple[int, int, list[Any]]],
    settings: CleanSettings,
    snapshot: Snapshot,
    dataset: Dataset,
    c: float,
    out: Location,
) -> Judgement:
    """Judge all labels and write the table `issues` and `filter.csv`. For a task.

    The probabilities of all images and classes are in memory three times, float32 each.

    Args:
        reference: reference to the rows, in a list.
        parts: repeat, fold, and reference to the probabilities of its rows.
        settings: settings of the job.
        snapshot: versions of the store.
        dataset: dataset of the store.
        c: inverse of the L2 penalty.
        out: folder of the run.

    Returns:
        What was found.
    """
    import ray

    rows: Rows = ray.get(reference[0])
    of_models, own = _mean_probabilities(rows, parts)
    known = np.flatnonzero(np.isfinite(own))
    if not len(known):
        raise InputError(f"{snapshot.store}: every class has images of one group only")
    labels, groups = rows.labels[known], rows.groups[known]
    present, inverse = np.unique(labels, return_inverse=True)
    compact: npt.NDArray[np.int32] = np.asarray(inverse, np.int32)
    agrees = suspicion.agreement(compact, groups, len(present))
    probabilities = suspicion.combine(
        of_models[np.ix_(known, present)], compact, groups, agrees.weight
    )
    positive = None
    if dataset.positive in rows.classes:
        place = np.flatnonzero(present == rows.classes.index(dataset.positive))
        positive = int(place[0]) if len(place) else None
    flags = {
        "confident": suspicion.confident_flags(probabilities, compact),
        "thresholds": suspicion.threshold_flags(
            probabilities, compact, positive, settings.high, settings.low
        ),
    }
    files = read_files(snapshot)
    verdicts = _verdicts(snapshot, files, rows.examples.contents[known])
    undecided = np.array([verdict is None for verdict in verdicts])
    probability = probabilities[np.arange(len(known)), compact]
    suggested = suspicion.suggestions(probabilities, compact)
    order = suspicion.review_order(probability, undecided)
    issue = flags[settings.rule]
    places = {
        "probability": probability,
        "model_probability": of_models[known, labels],
        "suggestion": present[suggested],
        "suggestion_probability": probabilities[np.arange(len(known)), suggested],
        "is_confident": flags["confident"],
        "is_threshold": flags["thresholds"],
        "is_issue": issue,
        "rank": _ranks(order, len(known)),
    }
    table = _issues(rows, known, places, verdicts, files)
    tables.write(out.join("issues"), table, ISSUES)
    out.join("filter.csv").write_bytes(_filter(table))
    views = _compare_views(
        rows, known[issue & undecided], present[suggested][issue & undecided], settings, c
    )
    return Judgement(
        images=int(rows.judged.sum()),
        judged=len(known),
        confident=int(flags["confident"].sum()),
        threshold=int(flags["thresholds"].sum()),
        undecided=int((issue & undecided).sum()),
        decided=dict(Counter(verdict for verdict in verdicts if verdict is not None)),
        agreement=agrees,
        views=views,
        suspects=_suspects(rows, known, order[: settings.shown], places, files),
    )


def _mean_probabilities(
    rows: Rows, parts: list[tuple[int, int, list[Any]]]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the mean over repeats, float32[N, C], and that of the label, NaN if never known."""
    import ray

    total = np.zeros((len(rows), len(rows.classes)), np.float32)
    times = np.zeros((len(rows), len(rows.classes)), np.int8)
    for repeat, fold, reference in parts:
        found = ray.get(reference[0])
        _, held = rows.of_fold(repeat, fold)
        fitted = np.isfinite(found)
        total[held] += np.where(fitted, found, 0)
        times[held] += fitted
    own = np.arange(len(rows)), rows.labels
    judged = rows.judged & (times[own] > 0)
    np.divide(total, times, out=total, where=times > 0)
    return total, np.where(judged, total[own], np.nan).astype(np.float32)


def _verdicts(snapshot: Snapshot, files: Files, contents: Contents) -> list[str | None]:
    """Return the verdict on each content: that on any of its files."""
    if snapshot.verdicts is None:
        return [None] * len(contents)
    latest = latest_verdicts(snapshot.verdicts)
    places = pc.index_in(files.keys, pa.array(list(latest), pa.string()))
    decisions = list(latest.values())
    found: dict[bytes, str] = {}
    for row in np.flatnonzero(places.is_valid().to_numpy(zero_copy_only=False) & files.usable):
        decision = decisions[places[int(row)].as_py()]
        found[bytes(files.contents[files.content[row]])] = str(decision["verdict"])
    return [found.get(bytes(content)) for content in contents]


def _ranks(order: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int32]:
    ranks = np.zeros(count, np.int32)  # 0: decided already
    ranks[order] = np.arange(1, len(order) + 1)
    return ranks


def _issues(
    rows: Rows,
    known: npt.NDArray[np.int64],
    places: dict[str, npt.NDArray[Any]],
    verdicts: list[str | None],
    files: Files,
) -> pa.Table:
    """Return a row per file: copies of one content have the same figures."""
    positions = np.full(len(rows) + 1, -1)
    positions[known] = np.arange(len(known))
    contents = np.searchsorted(rows.examples.contents, files.contents)
    hit = contents < len(rows)
    hit[hit] = rows.examples.contents[contents[hit]] == files.contents[hit]
    of_content = np.where(hit, contents, len(rows))
    of_file = np.where(files.usable, of_content[files.content], len(rows))
    kept = np.flatnonzero((of_file < len(rows)) & rows.judged[np.minimum(of_file, len(rows) - 1)])
    row, place = of_file[kept], positions[of_file[kept]]
    unknown = place < 0
    classes = np.array([*rows.classes, None], object)

    def column(name: str) -> pa.Array:
        values = places[name][place]
        if name == "suggestion":
            values = classes[values]
        elif name == "rank":
            return pa.array(values, mask=unknown | (values == 0))
        return pa.array(values, mask=unknown)

    columns = {name: column(name) for name in places}
    columns |= {
        "key": files.keys.take(pa.array(kept)),
        "label": pa.array(classes[rows.labels[row]], pa.string()),
        "group": rows.examples.groups.dictionary_decode().take(pa.array(row)),
        "split": pa.array(rows.splits[row].tolist(), pa.string()),
        "verdict": pa.array(
            [None if one < 0 else verdicts[one] for one in place.tolist()], pa.string()
        ),
    }
    table = pa.table([columns[name] for name in ISSUES.names], names=ISSUES.names).cast(ISSUES)
    return table.sort_by([("rank", "ascending"), ("key", "ascending")])


def _filter(table: pa.Table) -> bytes:
    """Return the flagged files without a verdict as decisions to drop them."""
    return to_csv(
        {
            "key": row["key"],
            "verdict": schemas.DROP,
            "note": f"flagged: {row['label']} {row['probability']:.3f}",
        }
        for row in table.to_pylist()
        if row["is_issue"] and row["verdict"] is None
    )


def _compare_views(
    rows: Rows,
    flagged: npt.NDArray[np.int64],
    suggested: npt.NDArray[np.int64],
    settings: CleanSettings,
    c: float,
) -> dict[str, Standing]:
    """Fit on train as it is, without flagged images and relabelled; compare on other rows."""
    held = np.flatnonzero(rows.splits == (TEST if settings.test else VAL))
    train = np.flatnonzero(rows.splits == TRAIN)
    if not len(held):
        return {}
    relabelled = rows.labels.copy()
    relabelled[flagged] = suggested
    filtered = np.setdiff1d(train, flagged)
    ways = {
        AS_THEY_ARE: (train, rows.labels[train]),
        FILTERED: (filtered, rows.labels[filtered]),
        RELABELLED: (train, relabelled[train]),
    }
    probabilities = [
        fit_and_predict(rows, fitted, labels, held, c) for fitted, labels in ways.values()
    ]
    standings = compare(
        probabilities,
        rows.labels[held],
        rows.groups[held],
        MetricMeasure(METRICS["accuracy"]),
        references={"all": 0},
        replicates=settings.replicates,
        seed=settings.seed,
    )
    return dict(zip(ways, standings, strict=True))


def _suspects(
    rows: Rows,
    known: npt.NDArray[np.int64],
    order: npt.NDArray[np.int64],
    places: dict[str, npt.NDArray[Any]],
    files: Files,
) -> tuple[Suspect, ...]:
    wanted = np.searchsorted(files.contents, rows.examples.contents[known[order]])
    by_content: dict[int, list[int]] = {}
    for file in np.flatnonzero(np.isin(files.content, wanted)):
        by_content.setdefault(int(files.content[file]), []).append(int(file))
    suspects = []
    for one, content in zip(order, wanted, strict=True):
        row = int(known[one])
        mates = np.flatnonzero(rows.groups == rows.groups[row])
        mates = mates[mates != row]
        others = Counter(rows.classes[label] for label in rows.labels[mates])
        suspects.append(
            Suspect(
                keys=tuple(files.key(file) for file in by_content[int(content)]),
                label=rows.classes[rows.labels[row]],
                split=str(rows.splits[row]),
                probability=float(places["probability"][one]),
                suggestion=rows.classes[places["suggestion"][one]],
                suggestion_probability=float(places["suggestion_probability"][one]),
                flagged=bool(places["is_issue"][one]),
                group=", ".join(
                    f"{count} {name}" for name, count in others.most_common(_OTHERS_SHOWN)
                ),
            )
        )
    return tuple(suspects)


def _report(
    run: Run[Any],
    settings: CleanSettings,
    store: Store,
    dataset: Dataset,
    snapshot: Snapshot,
    found: Judgement,
    c: float,
) -> None:
    decided = sum(found.decided.values())
    run.say(
        f"{found.images:,} labels = {found.judged:,} judged + {found.images - found.judged:,} of "
        "classes with one group"
    )
    run.say(
        f"{found.confident:,} flagged by confident learning, {found.threshold:,} by the "
        f"thresholds; {decided:,} have a verdict"
    )
    run.counts = {
        "images": found.images,
        "judged": found.judged,
        "not_judged": found.images - found.judged,
        "flagged": {"confident": found.confident, "thresholds": found.threshold},
        "undecided": found.undecided,
        "verdicts": {kind: found.decided.get(kind, 0) for kind in schemas.VERDICT_KINDS},
    }
    evaluated = TEST if settings.test else VAL
    views = {name: standing.to_json() for name, standing in found.views.items()}
    run.metrics = {
        evaluated: {f"accuracy ({name})": view["objective"] for name, view in views.items()}
    }
    unsure = unsure_share(found.decided)
    run.inputs = snapshot.to_json()
    run.details = {
        "rule": settings.rule,
        "c": c,
        "group_agreement": vars(found.agreement),
        "views": views,
        "unsure": unsure,
        "shown": len(found.suspects),
    }
    page = CleanPage(
        dataset=dataset.name,
        store=store.uri,
        run=run.id,
        classes=tuple(dataset.classes) or tuple(sorted({one.label for one in found.suspects})),
        images=found.images,
        judged=found.judged,
        flagged=found.undecided,
        rule=settings.rule,
        decided=found.decided,
        unsure=unsure,
        views=views,
        evaluated=evaluated,
        suspects=found.suspects,
        command=run.command,
    )
    with run.timed("page"):
        remotely(write_clean, page, run.out.join("clean.html"))
    run.say(f"page: {run.out.join('clean.html').uri}")


def unsure_share(decided: dict[str, int]) -> dict[str, Any]:
    """Estimate the share of images that no person can tell, from the verdicts.

    Args:
        decided: number of images with each verdict.

    Returns:
        `value`, `low`, `high` and `n`; 95 % interval of Wilson (JASA 22, 1927); None without any.
    """
    from scipy.stats import binomtest

    n = sum(decided.values())
    if not n:
        return {"value": None, "low": None, "high": None, "n": 0}
    unsure = decided.get(schemas.UNSURE, 0)
    interval = binomtest(unsure, n).proportion_ci(0.95, method="wilson")
    return {
        "value": unsure / n,
        "low": float(interval.low),
        "high": float(interval.high),
        "n": n,
    }
