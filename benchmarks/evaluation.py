"""What the evaluation of a million predictions takes, intervals included.

    python benchmarks/evaluation.py [--full]

Predictions are made up: labels by Zipf's law (the largest of 868 classes has 13 % of the rows, the
smallest 0.016 %), scores with a skill of about 60 % right, groups of one and two rows, val and test
mixed row by row. `evaluate_predictions` runs on each table in a process of its own, with 1,000
replicates, every interval and every class:

a. 200,000 rows of 868 classes, half val and half test, in memory;
b. 1,000,000 rows of 2 classes, half val and half test, in memory, with an operating threshold;
c. with --full: 1,000,000 rows of 868 classes, all test, in a mapped file.

The rival is what everyone writes first: scikit-learn's `roc_auc_score` and
`average_precision_score` for each class and replicate, with the multiplicities as weights. It is
timed on some classes of the first split and extrapolated to all of them; its values must be ours.
The two are compared by CPU seconds, which other work on the machine changes little.
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
_BATCH = 50_000  # rows made at once
_TRIED = 6  # classes and replicates that the rival is timed on


@dataclass(frozen=True)
class Case:
    """A table to evaluate, and what it may take.

    Attributes:
        name: of the case.
        rows: all splits together.
        classes: C.
        splits: that the rows are shared among.
        mapped: the table stays in its file; otherwise it is read into memory.
        seconds: the bar on time.
        memory: the bar on the peak, in bytes: of the whole process, or of its private memory if
            the table is mapped.
        times: the bar on the rival's CPU seconds over ours.
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
        """The classes."""
        return tuple(f"{index:04}" for index in range(self.classes))

    @property
    def positive(self) -> str | None:
        """The positive class, where there are two."""
        return self.names[1] if self.classes == 2 else None


@dataclass(frozen=True)
class Measured:
    """What one evaluation took, and the rival's.

    Attributes:
        seconds: of `evaluate_predictions`.
        cpu: its CPU seconds, all threads together.
        peak: bytes, of the whole process.
        private: bytes, without mapped files.
        rival: CPU seconds of the rival, extrapolated.
        rival_pairs: classes and replicates that this rests on.
        difference: the largest between the rival's observed values and ours.
    """

    seconds: float
    cpu: float
    peak: int
    private: int
    rival: float
    rival_pairs: int
    difference: float


CASES = (
    Case("a", 200_000, 868, ("val", "test"), False, 300, 3 * GB, 300),
    Case("b", 1_000_000, 2, ("val", "test"), False, 240, 3 * GB, 10),
    Case("c", 1_000_000, 868, ("test",), True, 1200, 4 * GB, 300),
)


def write_table(case: Case, path: Path) -> None:
    """A predictions table as an Arrow file, made a batch at a time."""
    rng = np.random.default_rng([case.rows, case.classes])
    share = 1 / np.arange(1, case.classes + 1)
    label = rng.choice(case.classes, case.rows, p=share / share.sum())
    group = rng.permutation(np.arange(case.rows) * 2 // 3)
    split = group // 2 % len(case.splits)  # groups have two rows and one in turns
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
    """The table, mapped or in memory."""
    if case.mapped:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    with pa.OSFile(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def evaluate(case: Case, path: Path, answer: Any) -> None:
    """Evaluate the table and send what it took and gave. Runs in a process of its own."""
    from visao_ray.evaluation.predictions import evaluate_predictions

    table = read_table(case, path)
    start, cpu = time.perf_counter(), time.process_time()
    found = evaluate_predictions(table, case.names, case.positive, replicates=REPLICATES)
    spent = (time.perf_counter() - start, time.process_time() - cpu, memory("VmHWM", "self"))
    answer.send((spent, found.metrics))


def rival(case: Case, path: Path, metrics: dict[str, Any]) -> tuple[float, int, float]:
    """CPU seconds of the naive way, the pairs they rest on, and how far its values are off."""
    from visao_ray.evaluation.bootstrap import group_multiplicities
    from visao_ray.evaluation.labelled_scores import class_codes, sorted_codes

    split = case.splits[0]
    table = read_table(case, path)
    chosen = pc.equal(table["split"], split)
    label = class_codes(table["label"].filter(chosen), case.names)
    group, groups = sorted_codes(table["group"].filter(chosen))
    (weight,) = group_multiplicities(groups, 1, 0)
    classes = np.linspace(0, case.classes - 1, min(case.classes, _TRIED // 2)).astype(int)
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
            if replicate == 0:  # what was observed
                pair = ((area, ours["roc_auc"]), (precision, ours["average_precision"]))
                difference = max(difference, *(abs(a - b["value"]) for a, b in pair))
    pairs = 2 * len(classes)
    everything = case.classes * (REPLICATES + 1) * len(case.splits)
    return spent / pairs * everything, pairs, difference


def memory(field: str, process: int | str) -> int:
    """Bytes that Linux reports of a process; 0 where it has ended."""
    try:
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        pass
    return 0


def measure(case: Case, folder: Path) -> Measured:
    """Make the table, evaluate it, and time the rival on a slice of it."""
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
    found = Measured(*spent, private, *rival(case, path, metrics))
    path.unlink()
    return found


def main() -> int:
    """Measure, print the table, and say whether the bars hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="case c too: 3.5 GB on disk")
    parser.add_argument(
        "--quick", action="store_true", help="a hundredth of the rows, 20 classes: whether it works"
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
            ratio = found.rival / found.cpu
            rows += [
                (f"{what}, seconds", f"{found.seconds:.1f} ({found.cpu:.1f} of CPU)"),
                (f"{what}, peak of the process, GB", f"{found.peak / GB:.2f}"),
                (f"{what}, of it private, GB", f"{found.private / GB:.2f}"),
                (
                    f"{what}, scikit-learn, CPU hours",
                    f"{found.rival / 3600:.1f} (from {found.rival_pairs} of its classes and draws)",
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
