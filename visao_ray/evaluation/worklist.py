"""What a model says of images, as a CSV and a summary; first what should be looked at first.

With a class that must not be missed, images are ordered by its probability; without one, by how
uncertain the model is. Rows are streamed: a process holds 100 bytes of each listed content.
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

#: Images whose pictures a page shows.
FIRST = 60
#: Classes up to which the CSV has the probability of each; of more, the most probable ones.
ALL_CLASSES = 20
TOP_CLASSES = 5
DEFAULT_THRESHOLD = 0.5
#: Where the positive class has at least this share of the threshold, it is near.
NEAR = 0.5

#: How an image stands: positive, nearly so, or not; without a positive class all are the same.
POSITIVE, NEAR_POSITIVE, OTHER = "positive", "near", "other"
ERROR, NO_VECTORS = "error", "no_vectors"
_STATES = (POSITIVE, NEAR_POSITIVE, OTHER)
_NOT_READ = "not_read: the file could not be read; the next run tries again"
_SCAN_ROWS = 8192
_UNUSABLE = f"status IN ('{schemas.ERROR}', '{schemas.UNREAD}')"


@dataclass(frozen=True)
class Decision:
    """How probabilities become a decision.

    Attributes:
        classes: in the order of probabilities; empty where the model has none.
        positive: the class that must not be missed; None where there is none.
        threshold: on its probability.
        target_recall: that the threshold was chosen for on val; None: nobody chose it.
        figures: of the model on test, by name, each with value, low, high and n.
        evaluation: URI of the file they come from; None: there is none.
    """

    classes: tuple[str, ...]
    positive: str | None
    threshold: float = DEFAULT_THRESHOLD
    target_recall: float | None = None
    figures: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    evaluation: str | None = None

    @property
    def other(self) -> str | None:
        """The class that is not the positive one, where there are two."""
        if self.positive is None or len(self.classes) != 2:
            return None
        return next(name for name in self.classes if name != self.positive)

    @property
    def column(self) -> str:
        """Name of the CSV's column with the decision; it says the threshold."""
        return f"decision_at_{self.threshold:.4g}"


def read_decision(model: KerasModel, uri: str | None) -> Decision:
    """The decision that a model's evaluation found, or that of 0.5 without one.

    Args:
        model: whose probabilities they are.
        uri: of an evaluation.json that jobs/evaluate.py or jobs/train.py wrote.

    Raises:
        InputError: no such file, or one of another model.
    """
    metadata = model.model_metadata
    positive = metadata.dataset.positive_among(metadata.classes)
    if uri is None:
        return Decision(metadata.classes, positive)
    where = f"--evaluation {uri}"
    try:
        content = json.loads(locate(uri).read_bytes())
        of, metrics, threshold = content["model"], content["metrics"], content["threshold"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{where}: is no evaluation.json of jobs/evaluate.py ({reason(error)})"
        ) from None
    if of["digest"] != model.digest:
        raise InputError(
            f"{where}: is of another model ({of['name']}, sha256 {of['digest'][:8]}…) than "
            f"--model ({model.name}, sha256 {model.digest[:8]}…); evaluate this one"
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
        return Decision(metadata.classes, positive, figures=figures, evaluation=uri)
    return Decision(
        metadata.classes,
        positive,
        threshold["threshold"],
        threshold["target_recall"],
        figures,
        uri,
    )


@dataclass(frozen=True)
class Request:
    """Which images are listed, and from where.

    Attributes:
        images: table of files.
        results: predictions of the model.
        decision: how they are decided and ordered.
        since: images first seen from then on; None: whenever.
        batch: images that entered under this name; None: under any.
        vectors: whether the model takes vectors, which images may lack.
    """

    images: TableVersion
    results: TableVersion
    decision: Decision
    since: datetime | None
    batch: str | None
    vectors: bool


@dataclass(frozen=True)
class Before:
    """What needed no work when the job began.

    Attributes:
        contents: `S32`, sorted, that have a row by the model.
        unusable: keys of files that could not be used.
    """

    contents: Contents
    unusable: pa.Array


@dataclass
class Worklist:
    """What was listed.

    Attributes:
        counts: of all files of the store; `listed = known + new`, `new = predicted + errors +
            without_vectors`.
        states: listed files by what they are: `positive`, `near` or `other`, `error`, `no_vectors`.
        classes: listed files by their most probable class.
        histogram: of the probability by which they are ordered; see `curves.histograms`.
        first: key, first_seen, batch, label, predicted, probability and state of the first ones.
    """

    counts: dict[str, Any] = field(default_factory=dict)
    states: Counter[str] = field(default_factory=Counter)
    classes: Counter[str] = field(default_factory=Counter)
    histogram: dict[str, Any] = field(default_factory=dict)
    first: list[dict[str, Any]] = field(default_factory=list)


def look_before(images: TableVersion, results: TableVersion | None) -> Before:
    """What needs no work, before anything is read or predicted. For a task."""
    contents = np.zeros(0, "S32") if results is None else np.unique(ids(results))
    return Before(contents, images.read(["key"], _UNUSABLE)["key"].combine_chunks())


def write_worklist(request: Request, before: Sequence[Any], csv: Location) -> Worklist:
    """Write the CSV of the images that are asked for, and count all of them. For a task.

    Without `since` and `batch`, those that were new to the model are listed.

    Args:
        request: which images.
        before: a list with a reference to what `look_before` returned.
        csv: place of the file.

    Raises:
        InputError: a probability is not finite.
    """
    import ray

    source = _Source(request, ray.get(before[0]))
    parts = [files.contents[files.chosen & files.ok] for files in source.batches()]
    ranked = _rank(request, np.unique(np.concatenate([np.zeros(0, "S32"), *parts])))
    worklist = Worklist()
    counts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    schema = _schema(request.decision)
    with _stream(csv) as stream, pacsv.CSVWriter(stream, schema) as writer:
        for files in source.batches():
            _count(files, counts, reasons)
            listed = files.take(np.flatnonzero(files.chosen))
            places = np.where(listed.ok, places_of(listed.contents, ranked.contents), -1)
            table = _table(listed, places, ranked, request.decision)
            writer.write_table(table.select(schema.names).cast(schema))
            _summarise(worklist, listed, table, places, ranked)
    worklist.first.sort(key=lambda row: row["rank"])
    worklist.counts = {**counts, "errors_by_reason": dict(reasons.most_common())}
    if request.decision.classes:
        score = ranked.score
        worklist.histogram = histograms(score, {"different images": np.ones(len(score), bool)})
    return worklist


@dataclass(frozen=True)
class _Files:
    """Some files of the store, in the order in which they lie there.

    Attributes:
        table: key, first_seen, batch and label.
        contents: `S32`[N]; empty where a file was not read.
        known: bool[N], whether the file needed no work when the job began.
        chosen: bool[N], whether it is listed.
        ok: bool[N], whether it has a prediction.
        reasons: [N], why it has none; None where it has one.
    """

    table: pa.Table
    contents: Contents
    known: npt.NDArray[np.bool_]
    chosen: npt.NDArray[np.bool_]
    ok: npt.NDArray[np.bool_]
    reasons: npt.NDArray[np.object_]

    def take(self, rows: npt.NDArray[np.int64]) -> _Files:
        """These files."""
        return _Files(
            self.table.take(pa.array(rows)),
            self.contents[rows],
            self.known[rows],
            self.chosen[rows],
            self.ok[rows],
            self.reasons[rows],
        )


class _Source:
    """Streams the files of the store with what is known of them now."""

    def __init__(self, request: Request, before: Before) -> None:
        self._request, self._before = request, before
        self._ok = np.unique(ids(request.results, f"status = '{schemas.OK}'"))
        columns = ["content_id", "error_type", "message"]
        failed = request.results.read(columns, f"status = '{schemas.ERROR}'").to_pylist()
        self._failed = {
            row["content_id"]: f"{row['error_type']}: {row['message']}" for row in failed
        }

    def batches(self) -> Iterator[_Files]:
        """All files but missing ones."""
        columns = ["key", "first_seen", "batch", "label", "content_id", "status", "error"]
        where = f"status != '{schemas.MISSING}'"
        for batch in self._request.images.scan(columns, where, _SCAN_ROWS):
            yield self._files(pa.table(batch))

    def _files(self, rows: pa.Table) -> _Files:
        request, before = self._request, self._before
        readable = pc.equal(rows["status"], schemas.OK).to_numpy()
        contents = as_bytes(pc.fill_null(rows["content_id"], bytes(32)))
        ok = readable & (places_of(contents, self._ok) >= 0)
        unusable = pc.is_in(rows["key"], before.unusable).to_numpy()
        known = (places_of(contents, before.contents) >= 0) | (unusable & ~readable)
        chosen = ~known if request.since is None and request.batch is None else np.ones_like(known)
        if request.since is not None:
            since = pa.scalar(request.since, schemas.TIME)
            chosen &= pc.greater_equal(rows["first_seen"], since).to_numpy()
        if request.batch is not None:
            chosen &= pc.fill_null(pc.equal(rows["batch"], request.batch), False).to_numpy()
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
            chosen,
            ok,
            reasons,
        )


@dataclass(frozen=True)
class _Ranked:
    """Contents with predictions, and how they are ordered.

    Attributes:
        contents: `S32`[N], sorted.
        predicted: int64[N], the most probable class.
        score: float32[N], p(positive), or that of the most probable class.
        rank: int64[N], from 1: what should be looked at first.
        states: int64[N], index into `_STATES`.
        shown: float32[N, K], the probabilities that the CSV has.
        shown_classes: int64[N, K], of which classes they are.
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
    kept = width if width <= ALL_CLASSES else TOP_CLASSES
    shown = np.zeros((count, kept), np.float32)
    shown_classes = np.tile(np.arange(kept), (count, 1))
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
            shown_classes[places] = np.argsort(-values, axis=1, kind="stable")[:, :kept]
        shown[places] = np.take_along_axis(values, shown_classes[places], axis=1)
    # Without a positive class the least certain come first.
    order = np.argsort(score if column is None else -score, kind="stable")
    rank = np.empty(count, np.int64)
    rank[order] = np.arange(1, count + 1)
    states = np.full(count, _STATES.index(OTHER))
    if column is not None:
        states[score >= NEAR * decision.threshold] = _STATES.index(NEAR_POSITIVE)
        states[score >= decision.threshold] = _STATES.index(POSITIVE)
    return _Ranked(contents, predicted, score, rank, states, shown, shown_classes)


def _schema(decision: Decision) -> pa.Schema:
    """The columns of the CSV."""
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
    files: _Files, places: npt.NDArray[np.int64], ranked: _Ranked, decision: Decision
) -> pa.Table:
    """Rows of the CSV; a file without a prediction has a reason instead."""
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
        said = pa.array([decision.other, decision.positive])
        columns[decision.column] = said.take(of((ranked.score >= decision.threshold).astype(int)))
    for place in range(ranked.shown.shape[1]):
        if len(decision.classes) > ALL_CLASSES:
            columns[f"class_{place + 1}"] = names.take(of(ranked.shown_classes[:, place]))
            columns[f"probability_{place + 1}"] = of(ranked.shown[:, place])
        else:
            columns[f"probability_{decision.classes[place]}"] = of(ranked.shown[:, place])
    return pa.table(columns)


def _count(files: _Files, counts: Counter[str], reasons: Counter[str]) -> None:
    """Count all files, listed or not."""
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
    """Add listed files to the summary, and keep the first ones."""
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
    """A file to write; it has its name when it is whole."""
    if not place.is_local:
        with place.filesystem.open_output_stream(place.path) as stream:
            yield stream
        return
    os.makedirs(os.path.dirname(place.path), exist_ok=True)
    partial = f"{place.path}.{uuid.uuid4().hex}.partial"
    with open(partial, "wb") as file:
        yield file
    os.replace(partial, place.path)
