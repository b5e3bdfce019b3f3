"""The verdicts job: people's decisions on images, from a CSV into the store and back.

The latest verdict on a file counts, so a decision is undone by another one: `keep` gives a file its
own label back. Readers apply verdicts; no pixel and no vector is read again.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from visao_ray.core.errors import InputError
from visao_ray.core.ray_session import start_ray
from visao_ray.core.resources import remotely
from visao_ray.core.run import Run
from visao_ray.core.storage import is_outage, locate, reason
from visao_ray.datasets.spec import Dataset
from visao_ray.features.extract import maintain_store
from visao_ray.quality.settings import VerdictsSettings
from visao_ray.store import schemas
from visao_ray.store.join import latest_verdicts
from visao_ray.store.store import Store
from visao_ray.store.table import TableVersion, quoted, write_fragments

COLUMNS = ("key", "verdict", "label", "note")
_LOOKUP_BATCH = 1000  # keys per query of an index


@dataclass(frozen=True)
class Decision:
    """A person's decision on a file.

    Attributes:
        key: key of the file.
        verdict: one of `schemas.VERDICT_KINDS`.
        label: the new label, for `relabel`; else None.
        note: any text, or None.
    """

    key: str
    verdict: str
    label: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class Recorded:
    """Counts of a file of decisions: `listed = new + known + unknown`.

    Attributes:
        new: decisions that differ from the latest one on their file.
        known: decisions that do not.
        unknown: decisions on files that are not in the store.
        fragments: metadata of the uncommitted rows, as JSON.
    """

    new: int
    known: int
    unknown: int
    fragments: tuple[str, ...]


def record_verdicts(settings: VerdictsSettings, run: Run[Any]) -> None:
    """Run the verdicts job.

    Args:
        settings: settings of the job.
        run: the run.

    Raises:
        InputError: no such store or file, a wrong line, or another process writes to the store.
    """
    store = Store.open(settings.store_uri())
    dataset = Dataset.from_json(store.description.dataset)
    decisions = read_decisions(settings.file, dataset) if settings.file is not None else []
    start_ray()
    if settings.file is not None:
        source = settings.source or settings.file.rpartition("/")[2]
        with store.writing(run.owner, run.say, run.predecessor) as writer:
            at = writer.ensure(store.verdicts, schemas.VERDICTS)
            images = writer.version(store.images)
            recorded = remotely(write_decisions, images, at, decisions, source)
            writer.append(store.verdicts, recorded.fragments)
            maintain_store(run, writer)
        run.counts = {
            "listed": len(decisions),
            "new": recorded.new,
            "known": recorded.known,
            "unknown": recorded.unknown,
        }
        run.say(
            f"{len(decisions):,} decisions = {recorded.new:,} new + {recorded.known:,} known + "
            f"{recorded.unknown:,} on files that are not in the store"
        )
        if recorded.unknown:
            run.warn(
                f"--file {settings.file}: {recorded.unknown:,} of {len(decisions):,} keys name no "
                "file of the store; keys are those of the table images"
            )
    if settings.save is not None:
        saved = _save(store, settings.save)
        run.counts["saved"] = saved
        run.say(f"{saved:,} verdicts in {settings.save}")


def read_decisions(uri: str, dataset: Dataset) -> list[Decision]:
    """Read and check a CSV of decisions.

    Args:
        uri: a UTF-8 CSV with a header: key, verdict and, if needed, label and note.
        dataset: dataset that defines the valid labels.

    Returns:
        The decisions, in the order of the file.

    Raises:
        InputError: the file cannot be read, or a line is wrong; the message names file, line,
            value and fix.
    """
    try:
        text = locate(uri).read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and is_outage(error):
            raise
        why = reason(error) if isinstance(error, OSError) else "not a UTF-8 text"
        raise InputError(f"--file {uri}: cannot be read: {why}") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    names = reader.fieldnames or []
    for name in names:
        if name not in COLUMNS:
            raise InputError(
                f"--file {uri}: unknown column '{name}'; the columns are {', '.join(COLUMNS)}"
            )
    for name in COLUMNS[:2]:
        if name not in names:
            raise InputError(
                f"--file {uri}: column '{name}' is missing; the columns are {', '.join(COLUMNS)}"
            )
    decisions: dict[str, Decision] = {}
    for row in reader:
        where = f"--file {uri}: line {reader.line_num}"
        values = {name: (row.get(name) or "").strip() or None for name in COLUMNS}
        decision = _check(values, dataset, where)
        if decision.key in decisions:
            raise InputError(f"{where}: key '{decision.key}' appears twice; keep one line per file")
        decisions[decision.key] = decision
    return list(decisions.values())


def _check(values: dict[str, str | None], dataset: Dataset, where: str) -> Decision:
    key, verdict, label = values["key"], values["verdict"], values["label"]
    if key is None:
        raise InputError(f"{where}: column 'key' is empty; write the file's key")
    if verdict not in schemas.VERDICT_KINDS:
        raise InputError(
            f"{where}: column 'verdict', value '{verdict or ''}' is no verdict; write "
            f"{', '.join(schemas.VERDICT_KINDS)}"
        )
    if verdict == schemas.RELABEL and (label is None or not dataset.has_class(label)):
        classes = ", ".join(dataset.classes) or f"names that match {dataset.class_pattern}"
        raise InputError(
            f"{where}: column 'label', value '{label or ''}' is not a class of dataset "
            f"{dataset.name}; choose one of {classes}"
        )
    if verdict != schemas.RELABEL:
        label = None  # the label of the file, as a saved table or a page shows it
    return Decision(key, verdict, label, values["note"])


def write_decisions(
    images: TableVersion, verdicts: TableVersion, decisions: Sequence[Decision], source: str
) -> Recorded:
    """Write the decisions that are new as rows that are not committed yet. For a task.

    Args:
        images: table of files.
        verdicts: table of verdicts.
        decisions: the decisions.
        source: who decided.

    Returns:
        The counts and the rows.
    """
    keys = [decision.key for decision in decisions]
    existing: set[str] = set()
    for start in range(0, len(keys), _LOOKUP_BATCH):
        listed = ", ".join(quoted(key) for key in keys[start : start + _LOOKUP_BATCH])
        existing |= set(images.read(["key"], f"key IN ({listed})")["key"].to_pylist())
    latest = latest_verdicts(verdicts)
    new = []
    for decision in decisions:
        before = latest.get(decision.key)
        same = before is not None and all(
            before[name] == value for name, value in asdict(decision).items()
        )
        if decision.key in existing and not same:
            new.append(decision)
    when = datetime.now(UTC)
    rows = [{**asdict(decision), "source": source, "when": when} for decision in new]
    table = pa.Table.from_pylist(rows, schema=schemas.VERDICTS)
    fragments = write_fragments(verdicts.uri, schemas.VERDICTS, table) if rows else []
    unknown = sum(key not in existing for key in keys)
    return Recorded(len(new), len(keys) - len(new) - unknown, unknown, tuple(fragments))


def _save(store: Store, uri: str) -> int:
    """Write the latest verdict of each file as a CSV that this job reads; return their number."""
    found = {}
    if store.verdicts.exists():
        found = remotely(latest_verdicts, store.verdicts.latest())
    locate(uri).write_bytes(to_csv([found[key] for key in sorted(found)]))
    return len(found)


def to_csv(decisions: Iterable[Mapping[str, Any]]) -> bytes:
    """Return decisions as a CSV that this job reads.

    Args:
        decisions: values by the names of COLUMNS; other names are ignored, missing ones are empty.

    Returns:
        The CSV in UTF-8.
    """
    sink = io.StringIO(newline="")
    writer = csv.DictWriter(sink, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for decision in decisions:
        writer.writerow({name: decision.get(name) or "" for name in COLUMNS})
    return sink.getvalue().encode()
