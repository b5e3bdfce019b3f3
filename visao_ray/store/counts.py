"""Counts of the images of a store."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from visao_ray.core.tables import SPLITS
from visao_ray.store import schemas
from visao_ray.store.table import TableVersion

_SCAN_ROWS = 65_536


@dataclass(frozen=True)
class ImageCounts:
    """Counts of the rows of `images`.

    Attributes:
        status: images by status.
        errors: images that are not `ok`, by reason.
        labels: images that are `ok`, by split and label; "" stands for none.
    """

    status: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    labels: dict[str, Counter[str]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the counts as result.json has them; train, val and test are always present."""
        ok, errors = sum(labels.total() for labels in self.labels.values()), self.errors.total()
        by_split = {**{split: Counter[str]() for split in SPLITS}, **self.labels}
        return {
            "images": ok + errors,
            "ok": ok,
            "errors": errors,
            "errors_by_reason": dict(self.errors.most_common()),
            "by_split": {split: dict(sorted(labels.items())) for split, labels in by_split.items()},
        }


def count_images(images: TableVersion) -> ImageCounts:
    """Count all images of a store in one scan. For a task."""
    counts = ImageCounts()
    for batch in images.scan(["split", "label", "status", "error"], batch_rows=_SCAN_ROWS):
        rows = pa.table(batch)
        grouped = rows.group_by(["status", "split", "label"]).aggregate([([], "count_all")])
        for row in grouped.to_pylist():
            counts.status[row["status"]] += row["count_all"]
            if row["status"] == schemas.OK:
                labels = counts.labels.setdefault(row["split"] or "", Counter())
                labels[row["label"] or ""] += row["count_all"]
        failed = rows.filter(pc.not_equal(rows["status"], schemas.OK))
        reasons = failed.select(["status", "error"]).to_pylist()
        counts.errors.update((row["error"] or row["status"]).split(":", 1)[0] for row in reasons)
    return counts
