"""Write docs/study.md: the rows of the 2019 study beside what was measured here.

    python examples/study/page.py record examples/study/02c-chest.toml OUT/result.json [--note TEXT]
    python examples/study/page.py compare COMPARE/result.json [--note TEXT]
    python examples/study/page.py

The first command keeps the figures of a run in examples/study/results/, the second those of a
comparison of models. The last one writes the page from these files, the settings files beside this
one and defects.toml. It takes no figure from anywhere else.
"""

from __future__ import annotations

import argparse
import json
import re
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "study.md"
RESULTS = HERE / "results"
COMPARISON = RESULTS / "compare.json"
#: Figures of a row, in this order, if the run has them; the split is test where it was evaluated.
FIGURES = {"accuracy": "accuracy", "roc_auc": "AUC", "balanced_accuracy": "balanced accuracy"}
_TITLE = r"(?:Rows? )?(?:The )?(.+?) of the study's (?:chest films|container scans):? (.+)"
BASES = {"chest": "Chest films", "vazios": "Container scans"}


INTRODUCTION = """\
<!-- Written by `python examples/study/page.py`; change that program or its inputs. -->
# The 2019 study, repeated

[The study](https://ivanbrasilico.github.io/projeto/) compared networks on public chest films and on
container scans that are not public. This page has its rows beside what was measured here, each with
its settings file in `examples/study/`, and what was wrong with its method beside the tests that
guard against it.

**Figures of the two cannot be compared directly.** The study's chest rows chose epochs and settings
on the test images, and the test images of its container rows were train images too. Here val
chooses, and a patient or container stands in one split. The films of the public test folder were
not available when this was measured: test is a part of the train folder, set aside by patient. Its
films are like those of train, so they are easier than those of the test folder.
"""


def main() -> None:
    """Keep figures of a run, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    verbs = parser.add_subparsers(dest="verb")
    record = verbs.add_parser("record", help="keep the figures of a run for a row")
    record.add_argument("settings", type=Path)
    record.add_argument("result", type=Path)
    record.add_argument("--note", default="", help="what differs from the settings file")
    compare = verbs.add_parser("compare", help="keep the figures of a comparison of models")
    compare.add_argument("result", type=Path)
    compare.add_argument("--note", default="", help="what the models are")
    given = parser.parse_args()
    if given.verb == "record":
        keep(given.result, RESULTS / f"{given.settings.stem}.json", given.note)
    elif given.verb == "compare":
        keep(given.result, COMPARISON, given.note)
    PAGE.write_text(page())


def keep(result: Path, place: Path, note: str) -> None:
    """Copy what the page shows from a result.json.

    Args:
        result: the file of a finished run.
        place: where to keep it.
        note: what differs from the settings file.
    """
    content = json.loads(result.read_text())
    metrics = {
        split: {name: value for name, value in found.items() if isinstance(value, dict)}
        for split, found in content["metrics"].items()
        if split in ("val", "test")
    }
    kept: dict[str, Any] = {
        "job": content["job"],
        "date": content["finished"][:10],
        "note": note,
        "metrics": metrics,
        "seconds": sum(content["timings"].values()),
    }
    if content["job"] == "augment":
        kept["counts"] = {name: content["counts"][name] for name in ("images", "copies")}
        kept["by_label"] = content["counts"]["by_label"]
    if content["job"] == "compare":
        kept["models"] = {
            name: {key: model[key] for key in ("file_bytes", "metrics", "timings")}
            for name, model in content["details"]["models"].items()
        }
        kept["pairs"] = content["details"]["pairs"]
        kept["images"] = content["counts"]["images"]
    place.parent.mkdir(exist_ok=True)
    place.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


def page() -> str:
    """Build the page from the files of this folder alone.

    Returns:
        The Markdown.
    """
    lines = [INTRODUCTION]
    for base, title in BASES.items():
        lines += [f"## {title}", "", *_rows(base), ""]
    lines += ["## Techniques on the same images", "", *_comparison(), ""]
    lines += ["## What was wrong, and what prevents it", "", *_defects(), ""]
    return "\n".join(lines)


def _rows(base: str) -> list[str]:
    lines = ["| row | technique | study | here | command in |", "|---|---|---|---|---|"]
    for file in sorted(HERE.glob(f"*-{base}*.toml")):
        comment = _comment(file)
        row, title = re.fullmatch(_TITLE, _part(comment, r"(.+?)\.")).groups()
        reported = _part(comment, r"The study reported: (.+?)\.(?= |$)")
        kept = RESULTS / f"{file.stem}.json"
        here = _figures(json.loads(kept.read_text())) if kept.exists() else "not measured"
        lines.append(f"| {row} | {title} | {reported} | {here} | `{file.name}` |")
    return lines


def _comment(file: Path) -> str:
    text = file.read_text().split("\n\n")[0]
    return re.sub(r"\s+", " ", re.sub(r"^#( |$)", "", text, flags=re.MULTILINE))


def _part(text: str, pattern: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise SystemExit(f"error: no text like '{pattern}' in: {text[:60]}")
    return found.group(1)


def _figures(kept: dict[str, Any]) -> str:
    if kept["job"] == "augment":
        each = ", ".join(f"{one['copies']:,} {label}" for label, one in kept["by_label"].items())
        counts = kept["counts"]
        return f"{counts['copies']:,} copies ({each}) of {counts['images']:,} train images"
    split = "test" if kept["metrics"].get("test") else "val"
    metrics = kept["metrics"][split]
    parts = [
        f"{title} {_interval(metrics[name])}"
        for name, title in FIGURES.items()
        if metrics.get(name, {}).get("value") is not None
    ]
    n = next(iter(metrics.values()))["n"]
    note = f"; {kept['note']}" if kept["note"] else ""
    return f"{', '.join(parts)} on {n:,} images of {split}, {kept['date']}{note}"


def _interval(entry: dict[str, Any]) -> str:
    if entry["low"] is None:
        return f"{entry['value']:.3f}"
    return f"{entry['value']:.3f} ({entry['low']:.3f} to {entry['high']:.3f})"


def _comparison() -> list[str]:
    if not COMPARISON.exists():
        return ["Not measured yet."]
    kept = json.loads(COMPARISON.read_text())
    (split,) = kept["metrics"]
    lines = [
        f"`jobs/compare.py` on {kept['images']:,} images of {split}, {kept['date']}. Speed is from",
        "disk to prediction, the median of three; CPU is both cores of one machine. Val chose the",
        f"epochs, so its figures are slightly too good. {kept['note']}",
        "",
        "| model | accuracy | AUC | file, MB | from | images/s | start, s | peak memory, GB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, model in kept["models"].items():
        metrics = model["metrics"]
        first = [
            name,
            _interval(metrics["accuracy"]),
            _interval(metrics["roc_auc"]),
            f"{model['file_bytes'] / 1e6:.1f}",
        ]
        for timing in model.get("timings", []):
            speed = timing["images"] / timing["seconds"]
            measured = [
                f"{timing['source']}, {timing['device']}",
                f"{speed:,.0f}",
                f"{timing['start']:.1f}",
                f"{timing['peak_bytes'] / 1e9:.2f}",
            ]
            lines.append("| " + " | ".join([*first, *measured]) + " |")
            first = [""] * len(first)
    lines += [
        "",
        "| first | second | difference in accuracy, points | McNemar p | corrected (Holm) |",
        "|---|---|---|---|---|",
    ]
    for pair in kept["pairs"]:
        low, value, high = (100 * pair["difference"][name] for name in ("low", "value", "high"))
        lines.append(
            f"| {pair['first']} | {pair['second']} | {value:+.1f} ({low:+.1f} to {high:+.1f}) | "
            f"{_p(pair['mcnemar']['p'])} | {_p(pair['p_holm'])} |"
        )
    return lines


def _p(value: float) -> str:
    return "< .001" if value < 0.001 else f"{value:.3f}"


def _defects() -> list[str]:
    defects = tomllib.loads((HERE / "defects.toml").read_text())["defect"]
    lines = ["| in the study | here | tests |", "|---|---|---|"]
    for defect in defects:
        tests = "<br>".join(f"`{name.removeprefix('tests/')}`" for name in defect["tests"])
        lines.append(f"| {defect['study']} | {defect['here']} | {tests} |")
    return lines


if __name__ == "__main__":
    main()
