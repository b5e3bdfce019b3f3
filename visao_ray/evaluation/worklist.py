"""Predictions of images as a CSV and a summary, with the images to check first at the top.

With a positive class, images are ordered by its probability; without one, by the uncertainty of the
model. Rows are streamed: a process holds 100 bytes per listed content.
"""

from __future__ import annotations

import json
import os
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from visao_ray.core.errors import InputError
from visao_ray.core.storage import Location, locate, reason
from visao_ray.evaluation.curves import histograms
from visao_ray.evaluation.metrics.accuracy import ACCURACY
from visao_ray.evaluation.metrics.roc_auc import ROC_AUC
from visao_ray.evaluation.metrics.top5 import TOP5
from visao_ray.inference.engines.keras import KerasModel
from visao_ray.models.normalization import Vectors
from visao_ray.store import schemas
from visao_ray.store.proof import Contents, as_bytes, ids
from visao_ray.store.rows import find_rows, places_of, read_rows
from visao_ray.store.table import TableVersion

#: Number of images that the page shows.
FIRST = 60
#: Up to this many classes, the CSV has all probabilities; otherwise those of the top classes.
ALL_CLASSES = 20
TOP_CLASSES = 5
DEFAULT_THRESHOLD = 0.5
#: From this share of the threshold on, an image is near positive.
NEAR = 0.5

#: States of an image; without a positive class, all predicted images are OTHER.
POSITIVE, NEAR_POSITIVE, OTHER = "positive", "near", "other"
ERROR, NO_VECTORS = "error", "no_vectors"
_STATES = (POSITIVE, NEAR_POSITIVE, OTHER)
_NOT_READ = "not_read: the file could not be read; the next run tries again"
_SCAN_ROWS = 8192
_UNUSABLE = f"status IN ('{schemas.ERROR}', '{schemas.UNREAD}')"


@dataclass(frozen=True)
class DecisionRule:
    """How probabilities become a decision.

    Attributes:
        classes: in the order of probabilities; empty if the model has none.
        positive: the positive class, which must not be missed; None without one.
        threshold: threshold on its probability.
        target_recall: target recall of the threshold on val; None for the default threshold.
        figures: metrics of the model on test, by name, each with value, low, high and n.
        evaluation: URI of the evaluation.json with these metrics; None without one.
    """

    classes: tuple[str, ...]
    positive: str | None
    threshold: float = DEFAULT_THRESHOLD
    target_recall: float | None = None
    figures: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    evaluation: str | None = None

    @property
    def other(self) -> str | None:
        """The negative class if there are two classes and a positive one, else None."""
        if self.positive is None or len(self.classes) != 2:
            return None
        return next(name for name in self.classes if name != self.positive)

    @property
    def column(self) -> str:
        """Name of the CSV column with the decision; it contains the threshold."""
        return f"decision_at_{self.threshold:.4g}"


def read_decision_rule(model: KerasModel, uri: str | None) -> DecisionRule:
    """Read the threshold of a model from its evaluation; it is 0.5 without an evaluation.

    Args:
        model: the model.
        uri: URI of an evaluation.json of jobs/evaluate.py or jobs/train.py.

    Returns:
        The decision rule.

    Raises:
        InputError: no such file, or one of another model.
    """
    metadata = model.model_metadata
    positive = metadata.dataset.positive_among(metadata.classes)
    if uri is None:
        return DecisionRule(metadata.classes, positive)
    where = f"--evaluation {uri}"
    try:
        content = json.loads(locate(uri).read_bytes())
        of, metrics, threshold = content["model"], content["metrics"], content["threshold"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{where}: not an evaluation.json of jobs/evaluate.py ({reason(error)})"
        ) from None
    if of["digest"] != model.digest:
        raise InputError(
            f"{where}: belongs to another model ({of['name']}, sha256 {of['digest'][:8]}…) than "
            f"--model ({model.name}, sha256 {model.digest[:8]}…); evaluate this model"
        )
    suffix = "_at_threshold" if threshold else ""
    found = metrics.get(f"test{suffix}") or {}
    figures = {}
    if positive is not None and positive in found.get("per_class", {}):
        of_class = found["per_class"][positive]
        figures = {f"{name} of {positive}": of_class[name] for name in ("recall", "precision")}
    overall = (ACCURACY, TOP5, ROC_AUC)
    figures |= {metric.title: found[metric.name] for metric in overall if metric.name in found}
    if not threshold:
        return DecisionRule(metadata.classes, positive, figures=figures, evaluation=uri)
    return DecisionRule(
        metadata.classes,
        positive,
        threshold["threshold"],
        threshold["target_recall"],
        figures,
        uri,
    )


@dataclass(frozen=True)
class Request:
    """Which images to list, and from which tables.

    Attributes:
        images: table of files.
        results: predictions of the model.
        decision: how to decide and order.
        since: list images first seen at or after this time; None for any.
        batch: list images of this batch; None for any.
        vectors: whether the model takes vectors, which some images may not have yet.
    """

    images: TableVersion
    results: TableVersion
    decision: DecisionRule
    since: datetime | None
    batch: str | None
    vectors: bool


@dataclass(frozen=True)
class KnownImages:
    """The images that needed no work when the job started.

    Attributes:
        contents: `S32`, sorted, contents with a row by the model.
        unusable: keys of files that could not be used.
    """

    contents: Contents
    unusable: pa.Array


@dataclass
class Worklist:
    """The summary of the listed images.

    Attributes:
        counts: counts of all files of the store; `listed = known + new`, `new = predicted + errors
            + without_vectors`.
        states: number of listed files by state: `positive`, `near`, `other`, `error`, `no_vectors`.
        classes: number of listed files by most probable class.
        histogram: histogram of the probability that gives the order; see `curves.histograms`.
        first: key, first_seen, batch, label, rank, predicted, probability and state of the first
            `FIRST` images.
    """

    counts: dict[str, Any] = field(default_factory=dict)
    states: Counter[str] = field(default_factory=Counter)
    classes: Counter[str] = field(default_factory=Counter)
    histogram: dict[str, Any] = field(default_factory=dict)
    first: list[dict[str, Any]] = field(default_factory=list)


def read_known_images(images: TableVersion, results: TableVersion | None) -> KnownImages:
    """Read which images need no work, before the job reads or predicts any. Runs in a task."""
    contents = np.zeros(0, "S32") if results is None else np.unique(ids(results))
    return KnownImages(contents, images.read(["key"], _UNUSABLE)["key"].combine_chunks())


def write_worklist(request: Request, known: Sequence[Any], csv: Location) -> Worklist:
    """Write the CSV of the requested images, and count all files of the store. Runs in a task.

    Without `since` and `batch`, it lists the images that were new to the model.

    Args:
        request: which images to list.
        known: list with a reference to the result of `read_known_images`.
        csv: location of the file.

    Returns:
        The summary of the listed images.

    Raises:
        InputError: a probability is not finite.
    """
    import ray

    source = _FileReader(request, ray.get(known[0]))
    parts = [files.contents[files.selected & files.ok] for files in source.batches()]
    ranked = _rank(request, np.unique(np.concatenate([np.zeros(0, "S32"), *parts])))
    worklist = Worklist()
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    schema = _schema(request.decision)
    with _stream(csv) as stream, pacsv.CSVWriter(stream, schema) as writer:
        for files in source.batches():
            _count(files, counts, reasons)
            selected = files.take(np.flatnonzero(files.selected))
            places = np.where(selected.ok, places_of(selected.contents, ranked.contents), -1)
            table = _table(selected, places, ranked, request.decision)
            writer.write_table(table.select(schema.names).cast(schema))
            _summarise(worklist, selected, table, places, ranked)
    worklist.first.sort(key=lambda row: row["rank"])
    worklist.counts = {**counts, "errors_by_reason": dict(reasons.most_common())}
    if request.decision.classes:
        score = ranked.score
        worklist.histogram = histograms(score, {"different images": np.ones(len(score), bool)})
    return worklist


@dataclass(frozen=True)
class _Files:
    """A batch of files of the store, in the order of the table.

    Attributes:
        table: key, first_seen, batch and label.
        contents: `S32`[N]; empty if a file was not read.
        known: bool[N], whether the file needed no work when the job started.
        selected: bool[N], whether the CSV lists it.
        ok: bool[N], whether it has a prediction.
        reasons: object[N], why it has no prediction; None if it has one.
    """

    table: pa.Table
    contents: Contents
    known: npt.NDArray[np.bool_]
    selected: npt.NDArray[np.bool_]
    ok: npt.NDArray[np.bool_]
    reasons: npt.NDArray[np.object_]

    def take(self, rows: npt.NDArray[np.int64]) -> _Files:
        """Return the files at these positions."""
        return _Files(
            self.table.take(pa.array(rows)),
            self.contents[rows],
            self.known[rows],
            self.selected[rows],
            self.ok[rows],
            self.reasons[rows],
        )


class _FileReader:
    """Streams the files of the store with their state."""

    def __init__(self, request: Request, known: KnownImages) -> None:
        self._request, self._known = request, known
        self._ok = np.unique(ids(request.results, f"status = '{schemas.OK}'"))
        columns = ["content_id", "error_type", "message"]
        failed = request.results.read(columns, f"status = '{schemas.ERROR}'").to_pylist()
        self._failed = {
            row["content_id"]: f"{row['error_type']}: {row['message']}" for row in failed
        }

    def batches(self) -> Iterator[_Files]:
        """Yield all files except missing ones."""
        columns = ["key", "first_seen", "batch", "label", "content_id", "status", "error"]
        where = f"status != '{schemas.MISSING}'"
        for batch in self._request.images.scan(columns, where, _SCAN_ROWS):
            yield self._files(pa.table(batch))

    def _files(self, rows: pa.Table) -> _Files:
        request = self._request
        readable = pc.equal(rows["status"], schemas.OK).to_numpy()
        contents = as_bytes(pc.fill_null(rows["content_id"], bytes(32)))
        ok = readable & (places_of(contents, self._ok) >= 0)
        unusable = pc.is_in(rows["key"], self._known.unusable).to_numpy()
        known = (places_of(contents, self._known.contents) >= 0) | (unusable & ~readable)
        selected = (
            ~known if request.since is None and request.batch is None else np.ones_like(known)
        )
        if request.since is not None:
            since = pa.scalar(request.since, schemas.TIME)
            selected &= pc.greater_equal(rows["first_seen"], since).to_numpy()
        if request.batch is not None:
            selected &= pc.fill_null(pc.equal(rows["batch"], request.batch), False).to_numpy()
        reasons = np.full(len(known), None, object)
        for row in np.flatnonzero(~ok).tolist():
            content = rows["content_id"][row].as_py()
            if not readable[row]:
                reasons[row] = rows["error"][row].as_py() or "unreadable"
            else:
                reasons[row] = self._failed.get(content) or (
                    f"{NO_VECTORS}: extract it first" if request.vectors else _NOT_READ
                )
        return _Files(
            rows.select(["key", "first_seen", "batch", "label"]),
            contents,
            known,
            selected,
            ok,
            reasons,
        )


@dataclass(frozen=True)
class _Ranked:
    """Contents with predictions, and their order.

    Attributes:
        contents: `S32`[N], sorted.
        predicted: int64[N], the most probable class.
        score: float32[N], p(positive), or the probability of the most probable class.
        rank: int64[N], from 1; check rank 1 first.
        states: int64[N], indices into `_STATES`.
        shown: float32[N, K], the probabilities in the CSV.
        shown_classes: int64[N, K], their classes.
    """

    contents: Contents
    predicted: npt.NDArray[np.int64]
    score: Vectors
    rank: npt.NDArray[np.int64]
    states: npt.NDArray[np.int64]
    shown: Vectors
    shown_classes: npt.NDArray[np.int64]


def _rank(request: Request, contents: Contents) -> _Ranked:
    decision = request.decision
    count, width = len(contents), len(decision.classes)
    shown_count = width if width <= ALL_CLASSES else TOP_CLASSES
    shown = np.zeros((count, shown_count), np.float32)
    shown_classes = np.tile(np.arange(shown_count), (count, 1))
    predicted, score = np.zeros(count, np.int64), np.zeros(count, np.float32)
    column = decision.classes.index(decision.positive) if decision.positive else None
    found = find_rows(request.results, contents, schemas.OK) if width else np.zeros(0, np.int64)
    for batch in read_rows(request.results, found, ["content_id", "probability"]):
        places = places_of(as_bytes(batch["content_id"]), contents)
        values = batch["probability"].flatten().to_numpy(zero_copy_only=False)
        values = values.reshape(len(batch), width)
        if not np.isfinite(values).all():
            raise InputError(
                f"{request.results.uri}: probabilities hold NaN or infinity; the model diverged"
            )
        predicted[places] = values.argmax(axis=1)
        score[places] = values.max(axis=1) if column is None else values[:, column]
        if width > ALL_CLASSES:
            top = np.argsort(-values, axis=1, kind="stable")
            shown_classes[places] = top[:, :shown_count]
        shown[places] = np.take_along_axis(values, shown_classes[places], axis=1)
    # Without a positive class, the least certain images come first.
    order = np.argsort(score if column is None else -score, kind="stable")
    rank = np.empty(count, np.int64)
    rank[order] = np.arange(1, count + 1)
    states = np.full(count, _STATES.index(OTHER))
    if column is not None:
        states[score >= NEAR * decision.threshold] = _STATES.index(NEAR_POSITIVE)
        states[score >= decision.threshold] = _STATES.index(POSITIVE)
    return _Ranked(contents, predicted, score, rank, states, shown, shown_classes)


def _schema(decision: DecisionRule) -> pa.Schema:
    """Return the columns of the CSV."""
    text, number = pa.string(), pa.float32()
    fields = [("key", text), ("first_seen", text), ("batch", text), ("label", text)]
    if decision.classes:
        fields += [("rank", pa.int64()), ("predicted", text)]
    if decision.other is not None:
        fields.append((decision.column, text))
    if len(decision.classes) > ALL_CLASSES:
        for place in range(1, TOP_CLASSES + 1):
            fields += [(f"class_{place}", text), (f"probability_{place}", number)]
    else:
        fields += [(f"probability_{name}", number) for name in decision.classes]
    return pa.schema([*fields, ("error", text)])


def _table(
    files: _Files, places: npt.NDArray[np.int64], ranked: _Ranked, decision: DecisionRule
) -> pa.Table:
    """Return rows of the CSV; a file without a prediction has a reason instead."""
    columns = {name: files.table[name] for name in files.table.column_names}
    seconds = columns["first_seen"].cast(pa.timestamp("s", "UTC"), safe=False)
    columns["first_seen"] = pc.strftime(seconds, format="%Y-%m-%dT%H:%M:%SZ")
    columns["error"] = pa.array(files.reasons, pa.string())
    if not decision.classes:
        return pa.table(columns)

    def of(values: npt.NDArray[Any]) -> pa.Array:
        found = values[places] if len(values) else np.zeros(len(places), values.dtype)
        return pa.array(found, mask=places < 0)

    names = pa.array(decision.classes)
    columns["rank"] = of(ranked.rank)
    columns["predicted"] = names.take(of(ranked.predicted))
    if decision.other is not None:
        classes = pa.array([decision.other, decision.positive])
        columns[decision.column] = classes.take(
            of((ranked.score >= decision.threshold).astype(int))
        )
    for place in range(ranked.shown.shape[1]):
        if len(decision.classes) > ALL_CLASSES:
            columns[f"class_{place + 1}"] = names.take(of(ranked.shown_classes[:, place]))
            columns[f"probability_{place + 1}"] = of(ranked.shown[:, place])
        else:
            columns[f"probability_{decision.classes[place]}"] = of(ranked.shown[:, place])
    return pa.table(columns)


def _count(files: _Files, counts: Counter[str], reasons: Counter[str]) -> None:
    """Count all files, selected or not."""
    new = ~files.known
    failed = [str(text).split(":", 1)[0] for text in files.reasons[new & ~files.ok]]
    without = failed.count(NO_VECTORS)
    counts.update(
        listed=len(new),
        known=int(files.known.sum()),
        new=int(new.sum()),
        predicted=int((new & files.ok).sum()),
        errors=len(failed) - without,
        without_vectors=without,
    )
    reasons.update(text for text in failed if text != NO_VECTORS)


def _summarise(
    worklist: Worklist,
    files: _Files,
    table: pa.Table,
    places: npt.NDArray[np.int64],
    ranked: _Ranked,
) -> None:
    """Add selected files to the summary."""
    failed = [str(text).split(":", 1)[0] for text in files.reasons[~files.ok]]
    without = failed.count(NO_VECTORS)
    worklist.states.update({NO_VECTORS: without, ERROR: len(failed) - without})
    states = np.bincount(ranked.states[places[files.ok]], minlength=len(_STATES))
    worklist.states.update(dict(zip(_STATES, states.tolist(), strict=True)))
    if "rank" not in table.column_names:
        return
    worklist.classes.update(table["predicted"].drop_null().to_pylist())
    ranks = table["rank"].fill_null(FIRST + 1).to_numpy()
    first = np.flatnonzero(ranks <= FIRST)
    names = ["key", "first_seen", "batch", "label", "rank", "predicted"]
    for place, row in zip(places[first], table.select(names).take(first).to_pylist(), strict=True):
        state = _STATES[ranked.states[place]]
        worklist.first.append({**row, "probability": float(ranked.score[place]), "state": state})


@contextmanager
def _stream(place: Location) -> Iterator[Any]:
    """Open a file for writing; a local file gets its name only when it is complete."""
    if not place.is_local:
        with place.filesystem.open_output_stream(place.path) as stream:
            yield stream
        return
    os.makedirs(os.path.dirname(place.path), exist_ok=True)
    partial = f"{place.path}.{uuid.uuid4().hex}.partial"
    with open(partial, "wb") as file:
        yield file
    os.replace(partial, place.path)
