"""Measure how many planted wrong labels `jobs/clean.py` finds, and what removing them changes.

    python benchmarks/labels.py --store out/chest/store        5 %, random and hard, three seeds
    python benchmarks/labels.py --store out/vazios/store --share 0.025 --kinds hard

The store is copied. Wrong labels are planted in train: at random, or among the fifth of images that
the models of an undisturbed run are least sure of (hard). The accuracies are those of a logistic
regression on test, whose labels are not touched: trained on the planted labels, without flagged
images, and after a person, simulated by the true labels, has decided on the first of the order.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as pads
from job import run_job
from sklearn.metrics import average_precision_score, roc_auc_score
from verdict import MACHINE, check_bars, show

#: Least values by kind, in the order of NAMES.
BARS = {"random": (0.99, 0.95, 0.90, 0.0), "hard": (0.0, 0.77, 0.0, 0.95)}
NAMES = ("AUROC", "average precision", "precision at the count", "recall within twice")

Rows = list[dict[str, Any]]


def main() -> int:
    """Run the benchmark and return its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", required=True, help="a store with vectors; it is copied")
    parser.add_argument("--share", type=float, default=0.05, help="share of train labels")
    parser.add_argument("--kinds", nargs="+", default=["random", "hard"], choices=list(BARS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="only to see that it works")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shutil.copytree(options.store, root / "store")
        before, _ = clean(root / "store", root / "undisturbed")
        print(f"\n{MACHINE}; {len(before):,} labels judged; {options.share:.1%} planted")
        lines: dict[str, list[list[float]]] = {kind: [] for kind in options.kinds}
        for kind in options.kinds:
            for seed in options.seeds:
                lines[kind].append(measure(root, before, kind, seed, options.share))
    bars = []
    for kind, found in lines.items():
        worst = np.min(np.array(found)[:, : len(NAMES)], axis=0)
        show(
            [
                (f"{kind}: {name}, by seed", " ".join(f"{one[place]:.3f}" for one in found))
                for place, name in enumerate(NAMES)
            ]
        )
        for name, least, value in zip(NAMES, BARS[kind], worst, strict=True):
            if least:
                bars.append((f"{kind}: {name} at least {least}", bool(value >= least)))
    return check_bars(bars, options.quick)


def measure(root: Path, before: Rows, kind: str, seed: int, share: float) -> list[float]:
    """Plant wrong labels in a copy of the store, and return the figures in the order of NAMES."""
    place = root / f"{kind}-{seed}"
    shutil.copytree(root / "store", place / "store")
    rng = np.random.default_rng(seed)
    count = round(share * len(before))
    least_sure = sorted(before, key=lambda row: row["model_probability"])
    pool = before if kind == "random" else least_sure[: len(before) // 5]
    planted = {pool[row]["key"]: pool[row] for row in rng.choice(len(pool), count, replace=False)}
    labels = place / "labels.csv"
    write(labels, ("key", "label"), [(key, row["suggestion"]) for key, row in planted.items()])
    run_job("manifest", place / "manifest", "--store", str(place / "store"), "--data",
            data_of(before), "--labels", str(labels))  # fmt: skip
    rows, result = clean(place / "store", place / "planted", "--test")
    wrong = np.array([row["key"] in planted for row in rows])
    score = -np.array([row["probability"] for row in rows])
    figures = [
        float(roc_auc_score(wrong, score)),
        float(average_precision_score(wrong, score)),
        float(wrong[:count].mean()),
        float(wrong[: 2 * count].sum() / count),
    ]
    flagged = np.array([row["is_confident"] for row in rows])
    decided = place / "decided.csv"
    write(
        decided,
        ("key", "verdict", "label"),
        [
            (row["key"], "relabel", planted[row["key"]]["label"])
            if row["key"] in planted
            else (row["key"], "keep", "")
            for row in rows[:count]
        ],
    )
    run_job("verdicts", place / "verdicts", "--store", str(place / "store"), "--file", str(decided))
    _, after = clean(place / "store", place / "after", "--test")
    accuracies = result["details"]["views"] | {
        "after a person": after["details"]["views"]["as they are"]
    }
    show(
        [
            (f"{kind}, seed {seed}: {count} planted", ""),
            *((f"  {name}", f"{value:.3f}") for name, value in zip(NAMES, figures, strict=True)),
            ("  default flag", f"{flagged.sum()} labels, precision {wrong[flagged].mean():.3f}, "
             f"recall {wrong[flagged].sum() / count:.3f}"),
            *((f"  accuracy on test, {name}", text(view["objective"]))
              for name, view in accuracies.items()),
            ("  seconds", f"{sum(result['timings'].values()):.0f}"),
        ]
    )  # fmt: skip
    return figures


def clean(store: Path, out: Path, *flags: str) -> tuple[Rows, dict[str, Any]]:
    """Run the job; return one row per image in the order to look at them, and the result.

    Identical files are left out: a wrong label of one of them would be a contradiction.
    """
    job = run_job("clean", out, "--store", str(store), "--minutes", "0.1", *flags)
    rows = pads.dataset(out / "issues").to_table().to_pylist()
    files = Counter(row["rank"] for row in rows)
    return [row for row in rows if row["rank"] and files[row["rank"]] == 1], job.result


def data_of(rows: Rows) -> str:
    """Return a folder with one file of the store: nothing else is listed again."""
    return str(Path(rows[0]["key"]).parent)


def write(file: Path, names: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Write a CSV."""
    with open(file, "w", newline="") as target:
        writer = csv.writer(target)
        writer.writerow(names)
        writer.writerows(rows)


def text(entry: dict[str, Any]) -> str:
    """Return a share with its interval and its count."""
    return f"{entry['value']:.4f} ({entry['low']:.4f} to {entry['high']:.4f}), n = {entry['n']:,}"


if __name__ == "__main__":
    sys.exit(main())
