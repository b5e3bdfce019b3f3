"""Time and memory of the evaluation of a million predictions, with intervals.

    python benchmarks/evaluation.py [--full]

Predictions are random: labels follow Zipf's law (the largest of 868 classes has 13 % of the rows,
the smallest 0.016 %), about 60 % of the predictions are right, groups have one or two rows, and val
and test alternate. `evaluate_predictions` runs on each table in its own process, with 1,000
replicates and intervals for every class:

a. 200,000 rows of 868 classes, half val and half test, in memory;
b. 1,000,000 rows of 2 classes, half val and half test, in memory, with an operating threshold;
c. with --full: 1,000,000 rows of 868 classes, all test, in a mapped file.

The baseline is the straightforward way: `roc_auc_score` and `average_precision_score` of
scikit-learn for each class and replicate, with the multiplicities as weights. It is timed on some
classes of the first split and extrapolated to all of them; both must give the same values. They are
compared by CPU seconds, which depend little on other load of the machine.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.metrics import average_precision_score, roc_auc_score
from verdict import MACHINE, check_bars, show

REPLICATES = 1000
GB = 1e9
_BATCH = 50_000  # rows to generate at once
_TIMED = 6  # pairs of class and replicate that the baseline is timed on


@dataclass(frozen=True)
class Case:
    """A table to evaluate, and its bars.

    Attributes:
        name: name of the case.
        rows: number of rows in all splits.
        classes: number of classes.
        splits: splits of the rows.
        mapped: whether the table stays in its file; otherwise it is read into memory.
        seconds: maximum time.
        memory: maximum memory, in bytes: of the process, or of its private memory if the table is
            mapped.
        times: minimum ratio of CPU seconds, baseline to ours.
    """

    name: str
    rows: int
    classes: int
    splits: tuple[str, ...]
    mapped: bool
    seconds: float
    memory: float
    times: float

    @property
    def names(self) -> tuple[str, ...]:
        """The class names."""
        return tuple(f"{index:04}" for index in range(self.classes))

    @property
    def positive(self) -> str | None:
        """The positive class if there are two classes, else None."""
        return self.names[1] if self.classes == 2 else None


@dataclass(frozen=True)
class Measured:
    """Time and memory of one evaluation, and of the baseline.

    Attributes:
        seconds: wall time of `evaluate_predictions`.
        cpu: its CPU seconds in all threads.
        peak: peak memory of the process, in bytes.
        private: peak memory without mapped files, in bytes.
        baseline: CPU seconds of the baseline, extrapolated.
        baseline_pairs: number of pairs of class and replicate that were timed.
        difference: largest difference between observed values of the baseline and ours.
    """

    seconds: float
    cpu: float
    peak: int
    private: int
    baseline: float
    baseline_pairs: int
    difference: float


CASES = (
    Case("a", 200_000, 868, ("val", "test"), False, 300, 3 * GB, 300),
    Case("b", 1_000_000, 2, ("val", "test"), False, 240, 3 * GB, 10),
    Case("c", 1_000_000, 868, ("test",), True, 1200, 4 * GB, 300),
)


def write_table(case: Case, path: Path) -> None:
    """Write a predictions table to an Arrow file, batch by batch."""
    rng = np.random.default_rng([case.rows, case.classes])
    share = 1 / np.arange(1, case.classes + 1)
    label = rng.choice(case.classes, case.rows, p=share / share.sum())
    group = rng.permutation(np.arange(case.rows) * 2 // 3)
    split = group // 2 % len(case.splits)  # groups have two rows and one row in turns
    skill = 1.5 if case.classes == 2 else 3.5
    schema = pa.schema(
        [
            ("key", pa.string()),
            ("split", pa.string()),
            ("group", pa.string()),
            ("label", pa.string()),
            ("probability", pa.list_(pa.float32(), case.classes)),
        ]
    )
    names, splits = np.array(case.names), np.array(case.splits)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for start in range(0, case.rows, _BATCH):
            rows = slice(start, start + _BATCH)
            here = label[rows]
            p = rng.standard_normal((len(here), case.classes), dtype=np.float32)
            p[np.arange(len(here)), here] += skill
            np.exp(p, out=p)
            p /= p.sum(axis=1, keepdims=True)
            columns = [
                [f"{number:07}.jpg" for number in range(start, start + len(here))],
                splits[split[rows]],
                [f"container {number:06}" for number in group[rows]],
                names[here],
                pa.FixedSizeListArray.from_arrays(p.reshape(-1), case.classes),
            ]
            arrays = [pa.array(column) for column in columns]
            writer.write_batch(pa.record_batch(arrays, schema=schema))


def read_table(case: Case, path: Path) -> pa.Table:
    """Read the table, mapped or into memory."""
    if case.mapped:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    with pa.OSFile(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def evaluate(case: Case, path: Path, connection: Any) -> None:
    """Evaluate the table, and send measurements and metrics. Runs in its own process."""
    from visao_ray.evaluation.predictions import evaluate_predictions

    table = read_table(case, path)
    start, cpu = time.perf_counter(), time.process_time()
    found = evaluate_predictions(table, case.names, case.positive, replicates=REPLICATES)
    spent = (time.perf_counter() - start, time.process_time() - cpu, memory("VmHWM", "self"))
    connection.send((spent, found.metrics))


def measure_baseline(case: Case, path: Path, metrics: dict[str, Any]) -> tuple[float, int, float]:
    """Return CPU seconds of the baseline, the number of timed pairs, and the largest difference."""
    from visao_ray.evaluation.bootstrap import group_multiplicities
    from visao_ray.evaluation.labelled_scores import class_codes, sorted_codes

    split = case.splits[0]
    table = read_table(case, path)
    chosen = pc.equal(table["split"], split)
    label = class_codes(table["label"].filter(chosen), case.names)
    group, groups = sorted_codes(table["group"].filter(chosen))
    (weight,) = group_multiplicities(groups, 1, 0)
    classes = np.linspace(0, case.classes - 1, min(case.classes, _TIMED // 2)).astype(int)
    spent, difference = 0.0, 0.0
    for c in classes:
        score = pc.list_element(table["probability"], int(c)).filter(chosen).to_numpy()
        ours = metrics[split]["per_class"][case.names[c]]
        for replicate in range(2):
            row_weight = weight[group, replicate].astype(float)
            start = time.process_time()
            area = roc_auc_score(label == c, score, sample_weight=row_weight)
            precision = average_precision_score(label == c, score, sample_weight=row_weight)
            spent += time.process_time() - start
            if replicate == 0:  # the observed values
                pair = ((area, ours["roc_auc"]), (precision, ours["average_precision"]))
                difference = max(difference, *(abs(a - b["value"]) for a, b in pair))
    pairs = 2 * len(classes)
    everything = case.classes * (REPLICATES + 1) * len(case.splits)
    return spent / pairs * everything, pairs, difference


def memory(field: str, process: int | str) -> int:
    """Return a memory field of a process in bytes; 0 if it has ended."""
    try:
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


def measure(case: Case, folder: Path) -> Measured:
    """Write the table, evaluate it, and time the baseline on a part of it."""
    path = folder / f"{case.name}.arrow"
    print(f"{case.name}: {case.rows:,} rows, {case.classes} classes", file=sys.stderr, flush=True)
    write_table(case, path)
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=evaluate, args=(case, path, sender))
    process.start()
    sender.close()
    private = 0
    while not receiver.poll(0.02):
        private = max(private, memory("RssAnon", process.pid or 0))
    spent, metrics = receiver.recv()
    process.join()
    found = Measured(*spent, private, *measure_baseline(case, path, metrics))
    path.unlink()
    return found


def main() -> int:
    """Measure, print the results, and check the bars."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="also run case c: 3.5 GB on disk")
    parser.add_argument(
        "--quick", action="store_true", help="1 % of the rows, 20 classes, to check that it works"
    )
    options = parser.parse_args()
    cases = CASES if options.full else CASES[:2]
    bars: list[tuple[str, bool]] = []
    rows: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory(prefix="visao_ray_benchmark_") as name:
        for case in cases:
            if options.quick:
                case = replace(case, rows=case.rows // 100, classes=min(case.classes, 20))
            found = measure(case, Path(name))
            what = f"{case.name}: {case.rows:,} rows x {case.classes} classes"
            kind, used = ("private", found.private) if case.mapped else ("process", found.peak)
            ratio = found.baseline / found.cpu
            rows += [
                (f"{what}, seconds", f"{found.seconds:.1f} ({found.cpu:.1f} of CPU)"),
                (f"{what}, peak of the process, GB", f"{found.peak / GB:.2f}"),
                (f"{what}, private memory, GB", f"{found.private / GB:.2f}"),
                (
                    f"{what}, scikit-learn, CPU hours",
                    f"{found.baseline / 3600:.1f} (from {found.baseline_pairs} of its pairs)",
                ),
            ]
            bars += [
                (
                    f"{case.name} takes {found.seconds:.0f} s (bar: {case.seconds:.0f})",
                    found.seconds <= case.seconds,
                ),
                (
                    f"{case.name} peaks at {used / GB:.2f} GB of {kind} memory"
                    f" (bar: {case.memory / GB:.0f})",
                    used <= case.memory,
                ),
                (
                    f"{case.name}: scikit-learn / ours {ratio:,.0f} (bar: {case.times:.0f})",
                    ratio >= case.times,
                ),
                (
                    f"{case.name} differs from scikit-learn by {found.difference:.0e} (bar: 1e-9)",
                    found.difference <= 1e-9,
                ),
            ]
    print(f"\n{MACHINE}; {REPLICATES:,} replicates, two groups for every three rows")
    show(rows)
    return check_bars(bars, options.quick)


if __name__ == "__main__":
    sys.exit(main())
