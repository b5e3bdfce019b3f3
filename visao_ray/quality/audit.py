"""The audit job: look for what makes the metrics of a store's models wrong.

Reading, comparing and checking run in tasks; the driver holds counts and what the page shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from visao_ray.core import tables
from visao_ray.core.errors import InputError
from visao_ray.core.ray_session import start_ray
from visao_ray.core.resources import current_cluster, remotely
from visao_ray.core.run import Run
from visao_ray.core.storage import Location
from visao_ray.datasets.spec import Dataset
from visao_ray.quality import copies, reading
from visao_ray.quality.check import Check, Found, Pair
from visao_ray.quality.copies import Copies
from visao_ray.quality.evidence import Evidence, Pictures, Vectors
from visao_ray.quality.files import Files, read_files
from visao_ray.quality.reading import Positions
from visao_ray.quality.registry import CHECKS
from visao_ray.quality.settings import AuditSettings
from visao_ray.reports.audit import (
    SERIOUS,
    AuditPage,
    Section,
    ShownFile,
    ShownPair,
    write_audit,
)
from visao_ray.store import schemas
from visao_ray.store.join import Snapshot, pin, plain_vectors
from visao_ray.store.store import Store
from visao_ray.store.table import TableVersion

_SHOWN = 12  # pairs and files of each check on the page
_PAIRS_A_TASK = 4000

PAIRS = tables.named_schema(
    "pairs",
    [
        ("check", pa.string()),
        ("first", pa.string()),
        ("second", pa.string()),
        ("note", pa.string()),
        ("similarity", pa.float32()),
    ],
)


@dataclass(frozen=True)
class Audited:
    """What an audit found, for the driver.

    Attributes:
        files: number of files.
        usable: number of files that can be used.
        contents: number of distinct contents.
        sections: what each check found.
        metrics: figures by split and name.
    """

    files: int
    usable: int
    contents: int
    sections: tuple[Section, ...]
    metrics: dict[str, dict[str, Any]]


def audit_store(settings: AuditSettings, run: Run[Any]) -> None:
    """Run the audit job.

    Args:
        settings: settings of the job.
        run: the run.

    Raises:
        InputError: no such store, extractor or check, or a check of `--fail-on` cannot run.
    """
    store = Store.open(settings.store)
    for name in settings.fail_on:
        CHECKS.find(name, "--fail-on")
    extractor = None
    if not settings.quick and (store.extractors() or settings.extractor):
        extractor = store.the_extractor(settings.extractor)
    start_ray()
    results = plain_vectors(extractor) if extractor else None
    snapshot = pin(store, run.id, results, as_of=settings.as_of)
    checks, skipped = _choose(settings, snapshot)
    with run.timed("read"):
        files = remotely(read_files, snapshot, keep=True)
    with run.timed("compare"):
        evidence = _gather(run, settings, snapshot, files, {check.needs for check in checks})
    with run.timed("check"):
        names = [check.name for check in checks]
        audited = remotely(run_checks, names, files, *evidence, settings.seed, run.out)
    _report(run, store, settings, audited, skipped, snapshot)


def _choose(settings: AuditSettings, snapshot: Snapshot) -> tuple[list[Check], dict[str, str]]:
    """Return the checks that can run, and why the others cannot, by name.

    Raises:
        InputError: a check of `--fail-on` cannot run.
    """
    lacking = {}
    if settings.quick:
        lacking = dict.fromkeys(("pictures", "vectors"), "left out by --quick")
    elif snapshot.results is None:
        lacking = dict.fromkeys(
            ("pictures", "vectors"), "the store has no vectors (jobs/extract.py adds them)"
        )
    elif not schemas.pictures(snapshot.results.schema):
        lacking["pictures"] = (
            "these vectors were extracted by an earlier release, which stored no small copies"
        )
    skipped = {
        check.name: lacking[check.needs] for check in CHECKS.values() if check.needs in lacking
    }
    for name in settings.fail_on:
        if name in skipped:
            raise InputError(f"--fail-on {name}: cannot be checked: {skipped[name]}")
    return [check for check in CHECKS.values() if check.name not in skipped], skipped


def _gather(
    run: Run[Any], settings: AuditSettings, snapshot: Snapshot, files: Any, needs: set[str]
) -> tuple[Any, Any, Any]:
    """Return references to pictures and vectors, and the copies; None for what is not needed."""
    import ray

    results, seed = snapshot.results, settings.seed
    pictures = near = vectors = None
    if results is not None and "pictures" in needs:
        run.say("comparing the small copies of all images")
        pictures, near = ray.get(remotely(_compare, results, files, seed, keep=True))
        pairs, rows = near
        run.say(f"{len(pairs):,} pairs look alike; aligning their pictures")
        near = _align(results, pairs, rows)
        pictures = ray.put(pictures)
    if results is not None and "vectors" in needs:
        vectors = remotely(_read_vectors, results, files, seed, keep=True)
    return near, pictures, vectors


def _compare(
    results: TableVersion, files: list[Any], seed: int
) -> tuple[Pictures, tuple[Positions, Positions]]:
    pictures, pairs, rows = reading.read_pictures(results, _get(files).contents, seed)
    return pictures, (pairs, rows)


def _read_vectors(results: TableVersion, files: list[Any], seed: int) -> Vectors:
    return reading.read_vectors(results, _get(files).contents, seed)


def _align(results: TableVersion, pairs: Positions, rows: Positions) -> Copies:
    """Align pairs in tasks on the whole cluster, and keep those that are copies."""
    import ray

    pairs = pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))]
    task = ray.remote(reading.align_pairs).options(
        num_cpus=1, max_retries=3, **current_cluster().avoid_gpu_nodes
    )
    waiting = []
    for part in copies.shares(pairs, _PAIRS_A_TASK):
        local = part.copy()
        local[:, :2] = rows[part[:, :2]]
        waiting.append(task.remote(results, local, np.unique(local[:, :2])))
    similarity = np.concatenate([*ray.get(waiting), np.zeros(0, np.float32)])
    return copies.decide(pairs, similarity)


def run_checks(
    names: Sequence[str],
    files: list[Any],
    near: Copies | None,
    pictures: list[Any] | None,
    vectors: list[Any] | None,
    seed: int,
    out: Location,
) -> Audited:
    """Run checks and write the tables `findings` and `pairs`. For a task.

    Args:
        names: names of the checks.
        files: reference to the files, in a list.
        near: copies, if they were looked for.
        pictures: reference to figures of the small copies, in a list.
        vectors: reference to the vectors, in a list.
        seed: seed of all random numbers.
        out: folder of the run.

    Returns:
        What was found.
    """
    of = _get(files)
    evidence = Evidence(
        of,
        seed,
        near,
        _get(pictures) if pictures is not None else None,
        _get(vectors) if vectors is not None else None,
    )
    found = {name: CHECKS[name].run(evidence) for name in names}
    _write_findings(of, found, out)
    pairs = [
        {"check": name, "first": of.key(pair.first), "second": of.key(pair.second),
         "note": pair.note, "similarity": pair.similarity}
        for name, each in found.items()
        for pair in each.pairs
    ]  # fmt: skip
    tables.write(out.join("pairs"), pa.Table.from_pylist(pairs, schema=PAIRS), PAIRS)
    metrics: dict[str, dict[str, Any]] = {}
    for each in found.values():
        for split, figures in each.metrics.items():
            metrics.setdefault(split, {}).update(figures)
    return Audited(
        files=len(of),
        usable=int(of.usable.sum()),
        contents=len(of.contents),
        sections=tuple(_section(CHECKS[name], each, of) for name, each in found.items()),
        metrics=metrics,
    )


def _write_findings(files: Files, found: dict[str, Found], out: Location) -> None:
    """Write a row per file with the score and the flag of each check."""
    fields = [(name, pa.string()) for name in ("key", "label", "group", "split", "batch")]
    columns: list[Any] = [
        files.keys,
        *(_texts(column) for column in (files.label, files.group, files.split, files.batch)),
    ]
    for name, each in found.items():
        fields += [(f"{name}_score", pa.float32()), (f"is_{name}", pa.bool_())]
        columns += [each.scores, each.flags]
    schema = tables.named_schema("findings", fields)
    tables.write(out.join("findings"), pa.table(columns, names=schema.names), schema)


def _texts(column: Any) -> pa.Array:
    codes = pa.array(column.codes, mask=column.codes < 0)
    return pa.DictionaryArray.from_arrays(codes, pa.array(column.names, pa.string())).cast(
        pa.string()
    )


def _section(check: Check, found: Found, files: Files) -> Section:
    def shown(row: int, note: str = "") -> ShownFile:
        return ShownFile(files.key(row), files.label.text(row), files.split.text(row), note)

    def pair(each: Pair) -> ShownPair:
        return ShownPair(shown(each.first), shown(each.second), each.note, each.similarity)

    return Section(
        name=check.name,
        title=check.title,
        explanation=check.explanation,
        summary=found.summary,
        count=found.count,
        pairs=tuple(pair(each) for each in found.pairs[:_SHOWN]),
        files=tuple(shown(row, found.notes.get(row, "")) for row in found.worst(_SHOWN))
        if not found.pairs
        else (),
        table=found.table,
    )


def _report(
    run: Run[Any],
    store: Store,
    settings: AuditSettings,
    audited: Audited,
    skipped: dict[str, str],
    snapshot: Snapshot,
) -> None:
    for section in audited.sections:
        report = run.warn if section.name in SERIOUS and section.count else run.say
        report(f"{section.name}: {section.summary}")
    flagged = {section.name: section.count for section in audited.sections}
    run.counts = {
        "files": audited.files,
        "usable": audited.usable,
        "contents": audited.contents,
        "flagged": flagged,
    }
    run.metrics = audited.metrics
    run.inputs = snapshot.to_json()
    run.details = {
        "summaries": {section.name: section.summary for section in audited.sections},
        "skipped": skipped,
    }
    failed = [section for section in audited.sections
              if section.name in settings.fail_on and section.count]  # fmt: skip
    if failed:
        found = "; ".join(f"{section.name}: {section.summary}" for section in failed)
        run.failure = f"{found} (--fail-on); see {run.out.join('audit.html').uri}"
    page = AuditPage(
        dataset=Dataset.from_json(store.description.dataset).name,
        store=store.uri,
        files=audited.files,
        usable=audited.usable,
        contents=audited.contents,
        sections=audited.sections,
        skipped=tuple((CHECKS[name].title, reason) for name, reason in skipped.items()),
        failure=run.failure,
        command=run.command,
    )
    with run.timed("page"):
        remotely(write_audit, page, run.out.join("audit.html"))
    run.say(f"page: {run.out.join('audit.html').uri}")


def _get(reference: list[Any]) -> Any:
    import ray

    return ray.get(reference[0])
