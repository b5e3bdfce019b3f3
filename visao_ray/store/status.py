"""Status of a store: its tables, images, coverage by results, and the runs that read it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from visao_ray.core.lease import read_holder
from visao_ray.core.object_store import list_files
from visao_ray.core.tables import SPLITS
from visao_ray.store import proof, schemas
from visao_ray.store.counts import count_images
from visao_ray.store.join import RUN_TAG
from visao_ray.store.store import PLAIN, RESULTS, Store
from visao_ray.store.table import Table, TableVersion

_SCAN_ROWS = 65_536
_LABELS_SHOWN = 30
_READABLE = f"status = '{schemas.OK}'"


def read_status(uri: str) -> dict[str, Any]:
    """Read the status of a store, ready for JSON. For a task: 100 bytes per image at the peak.

    Args:
        uri: URI of the store.

    Returns:
        `store`, `description` (dataset, seed and shares of the splits), `writer` (the holder of the
        lease, or null), `tables`, `images` (rows by status, readable ones by split and label; ""
        stands for none), `results` (number of images with results of each extractor and model) and
        `runs` (tables that each run has read).

    Raises:
        InputError: there is no store, or it has another format.
    """
    store = Store.open(uri)
    tables = store.tables()
    versions = {name: table.latest() for name, table in tables.items()}
    holder = read_holder(store.location.join("lease"))
    found = {name: _table(table, versions[name]) for name, table in tables.items()}
    runs: dict[str, list[str]] = {}
    for name, facts in found.items():
        for tag in facts["tags"]:
            if tag.startswith(RUN_TAG):
                runs.setdefault(tag.removeprefix(RUN_TAG), []).append(name)
    images = versions.get("images")
    return {
        "store": store.uri,
        "description": asdict(store.description),
        "writer": asdict(holder) if holder is not None else None,
        "tables": found,
        "images": _images(images) if images is not None else {"status": {}, "splits": {}},
        "results": _coverage(images, versions) if images is not None else {},
        "runs": runs,
    }


def render_status(status: Mapping[str, Any]) -> str:
    """Format the status as text with aligned columns."""
    description, writer = status["description"], status["writer"]
    dataset = description["dataset"]
    facts = [
        ("store", status["store"]),
        (
            "dataset",
            dataset["name"] + (f" ({', '.join(dataset['classes'])})" * bool(dataset["classes"])),
        ),
        ("created", description["created"]),
        (
            "splits",
            f"seed {description['seed']}, val {description['val_share']:.0%}, "
            f"test {description['test_share']:.0%} of the groups without a split in folders or "
            "labels",
        ),
        ("writer", _writer(writer)),
    ]
    blocks = [_aligned(facts, left=2), _tables(status["tables"]), _counts(status["images"])]
    if status["results"]:
        blocks.append(_results(status["results"]))
    runs = [(f"run {run}", ", ".join(names)) for run, names in sorted(status["runs"].items())]
    blocks.append(_aligned([("read by", ""), *runs], left=2) if runs else "read by no run")
    return "\n\n".join(blocks)


def size(count: float) -> str:
    """Format a number of bytes in MB or GB."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def _table(table: Table, at: TableVersion) -> dict[str, Any]:
    dataset = at.open()
    indexes = {}
    for index in dataset.describe_indices():
        facts = dataset.stats.index_stats(index.name)
        indexes[index.field_names[0]] = {"not_indexed": int(facts["num_unindexed_fragments"])}
    return {
        "rows": int(dataset.count_rows()),
        "version": at.version,
        "versions": len(dataset.versions()),
        "fragments": len(dataset.get_fragments()),
        "bytes": sum(file.bytes for file in list_files(table.location)),
        "indexes": indexes,
        "tags": table.tags(),
    }


def _images(images: TableVersion) -> dict[str, Any]:
    counts = count_images(images)
    return {
        "status": dict(sorted(counts.status.items())),
        "splits": {
            split: dict(sorted(labels.items())) for split, labels in sorted(counts.labels.items())
        },
    }


def _coverage(
    images: TableVersion, versions: Mapping[str, TableVersion]
) -> dict[str, dict[str, int]]:
    """Count, for each table of results, the readable images that have all of its views."""
    found = {}
    for name, results in versions.items():
        if not name.startswith(RESULTS):
            continue
        augmented = name.startswith("vectors/") and not name.endswith(f"/{PLAIN}")
        where = f"{_READABLE} AND split = 'train'" if augmented else _READABLE
        contents = proof.ids(images, where)
        views = _views(results)
        lacking = proof.contents_without(images, results, max(views, 1))
        found[name] = {
            "views": views,
            "images": int(len(contents) - np.isin(contents, lacking).sum()),
            "of": len(contents),
            "errors": results.count(f"status = '{schemas.ERROR}'"),
        }
    return found


def _views(results: TableVersion) -> int:
    seen: set[int] = set()
    for batch in results.scan(["view"], _READABLE, _SCAN_ROWS):
        seen.update(batch["view"].unique().to_pylist())
    return len(seen)


def _writer(writer: Mapping[str, Any] | None) -> str:
    if writer is None:
        return "none"
    owner = writer["owner"]
    return (
        f"{owner['host']} pid {owner['pid']} (job {owner['job']}, run {owner['run']}) since "
        f"{writer['since']}, last heartbeat {writer['seen']}"
    )


def _tables(tables: Mapping[str, Mapping[str, Any]]) -> str:
    rows: list[tuple[str, ...]] = [
        ("table", "rows", "version", "versions", "fragments", "size", "indexes", "tags")
    ]
    for name, facts in tables.items():
        indexes = [
            column
            + (f" ({index['not_indexed']} fragments not indexed)" if index["not_indexed"] else "")
            for column, index in facts["indexes"].items()
        ]
        numbers = [f"{facts[key]:,}" for key in ("rows", "version", "versions", "fragments")]
        listed = ", ".join(indexes) or "none"
        rows.append((name, *numbers, size(facts["bytes"]), listed, f"{len(facts['tags']):,}"))
    return _aligned(rows, left=1, also_left=(6,))


def _counts(images: Mapping[str, Any]) -> str:
    status = ", ".join(f"{count:,} {name}" for name, count in images["status"].items())
    splits = images["splits"]
    totals: Counter[str] = Counter()
    for labels in splits.values():
        totals.update(labels)
    shown = [label for label, _ in totals.most_common(_LABELS_SHOWN)]
    names = [split for split in (*SPLITS, "") if split in splits]
    rows: list[tuple[str, ...]] = [
        ("readable images", *(split or "no split" for split in names), "all")
    ]
    for label in shown:
        counts = [splits[split].get(label, 0) for split in names]
        rows.append(
            (label or "no label", *(f"{count:,}" for count in counts), f"{totals[label]:,}")
        )
    if len(totals) > len(shown):
        rows.append((f"{len(totals) - len(shown):,} more (--json)", *[""] * len(names), ""))
    sums = [sum(splits[split].values()) for split in names]
    rows.append(("all", *(f"{count:,}" for count in sums), f"{sum(sums):,}"))
    return f"images: {status or 'none'}\n\n{_aligned(rows, left=1)}"


def _results(results: Mapping[str, Mapping[str, int]]) -> str:
    rows: list[tuple[str, ...]] = [("results", "views", "images", "of", "share", "errors")]
    for name, facts in results.items():
        share = f"{facts['images'] / facts['of']:.1%}" if facts["of"] else "-"
        numbers = [f"{facts[key]:,}" for key in ("views", "images", "of")]
        rows.append((name, *numbers, share, f"{facts['errors']:,}"))
    return _aligned(rows, left=1)


def _aligned(rows: Sequence[Sequence[str]], left: int, also_left: Sequence[int] = ()) -> str:
    """Align rows of text: the first `left` columns and `also_left` to the left, others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if place < left or place in also_left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
