"""The tasks of the augment job that make files: copies as JPEG, the labels file, the picture."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from PIL import Image, ImageDraw

from visao_ray.core.storage import Location, is_outage, locate, reason
from visao_ray.datasets.spec import SPLITS
from visao_ray.images.augment import augment_view
from visao_ray.images.decode import DecodeError, decode
from visao_ray.images.recipes import RECIPES
from visao_ray.quality.augment_plan import CopySpec, read_groups
from visao_ray.store import schemas
from visao_ray.store.join import Snapshot
from visao_ray.store.table import TableVersion, write_fragments

_THREADS = 8  # of a task, that read, augment and write
_SHEET_IMAGES = 8
_SHEET_COPIES = 5
_SHEET_SIDE = 160
_CAPTION = 16


@dataclass(frozen=True)
class CopyUnit:
    """Arguments of every task that makes copies.

    Attributes:
        listing: a table of schema `augment_plan.LISTING`; unit n starts at row n · `rows`.
        rows: number of images per unit.
        spec: pixels and places of the copies.
        table: URI of the table of copies.
        schema: its schema.
    """

    listing: TableVersion
    rows: int
    spec: CopySpec
    table: str
    schema: pa.Schema


@dataclass(frozen=True)
class Copied:
    """Result of one task.

    Attributes:
        fragments: metadata of the uncommitted rows, as JSON.
        copies: number of files written.
        errors: number of copies that could not be made, by reason.
        messages: one message per image that could not be used.
    """

    fragments: list[str]
    copies: int
    errors: dict[str, int]
    messages: list[str]

    def to_row(self) -> pa.Table:
        """Return the result as a table of one row, for Ray Data."""
        return pa.table({"written": [json.dumps(asdict(self))]})

    @classmethod
    def from_json(cls, text: str) -> Copied:
        """Restore the result from the value that `to_row` wrote."""
        return cls(**json.loads(text))


def write_copies(block: pa.Table, unit: CopyUnit) -> pa.Table:
    """Make the copies of one unit. A task that is retried writes the same files again.

    Args:
        block: table with the column `unit`, whose only value is the number of the unit.
        unit: arguments of all units.

    Returns:
        A table of one row, a `Copied`.

    Raises:
        OSError: the object store failed. This is not an error of the file, so Ray retries the task.
    """
    (number,) = block["unit"].to_pylist()
    listed = unit.listing.open().to_table(offset=number * unit.rows, limit=unit.rows).to_pylist()
    with ThreadPoolExecutor(_THREADS) as pool:
        parts = list(pool.map(partial(_copies_of, unit.spec), listed))
    rows = [row for part in parts if isinstance(part, list) for row in part]
    errors: Counter[str] = Counter()
    messages = []
    for image, part in zip(listed, parts, strict=True):
        if isinstance(part, str):
            errors[part.partition(":")[0]] += len(image["views"])
            messages.append(f"{image['source']}: {part}")
    made = pa.Table.from_pylist(rows, schema=unit.schema)
    fragments = write_fragments(unit.table, unit.schema, made) if rows else []
    return Copied(fragments, len(rows), dict(errors), messages).to_row()


def _copies_of(spec: CopySpec, image: Mapping[str, Any]) -> list[dict[str, Any]] | str:
    """Write the copies of one image; return their rows, or why it cannot be used."""
    try:
        data = locate(image["source"]).read_bytes()
    except OSError as error:
        if is_outage(error):
            raise
        return f"{type(error).__name__}: {reason(error)}"
    content_id = image["content_id"]
    if hashlib.sha256(data).digest() != content_id:
        return "changed: has other bytes than when it was extracted; run jobs/extract.py first"
    try:
        pixels = decode(data, spec.image_size, spec.resize, repeat_grey=False)
    except DecodeError as error:
        return f"{error.error_type}: {reason(error)}"
    rows = []
    for view in image["views"]:
        # Named by its content, as in the vectors of `extract --augment`: the pixels are the same.
        drawn = augment_view(pixels, RECIPES[spec.recipe], spec.seed, content_id.hex(), view)
        file = encode_copy(drawn, spec, content_id, view)
        place = spec.place(image["label"], content_id, view)
        place.write_bytes(file)
        rows.append(
            {
                "key": place.uri,
                "content_id": content_id,
                "source": image["source"],
                "recipe": spec.recipe,
                "seed": spec.seed,
                "view": view,
                "label": image["label"],
                "bytes": len(file),
            }
        )
    return rows


def encode_copy(
    pixels: npt.NDArray[np.uint8], spec: CopySpec, content_id: bytes, view: int
) -> bytes:
    """Encode a copy as JPEG; its comment names the source's digest, recipe, seed and view.

    Colours keep their full resolution (4:4:4).

    Args:
        pixels: uint8[S, S, C], C = 1 or 3.
        spec: quality, recipe and seed.
        content_id: SHA-256 of the image.
        view: number of the view.

    Returns:
        The file.
    """
    comment = f"source sha256:{content_id.hex()} recipe {spec.recipe} seed {spec.seed} view {view}"
    sink = io.BytesIO()
    picture = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    picture.save(sink, "JPEG", quality=spec.quality, subsampling=0, comment=comment)
    return sink.getvalue()


def write_labels(snapshot: Snapshot, made: TableVersion, place: Location) -> int:
    """Write a file for `--labels` with label, group and split of every copy. For a task.

    Args:
        snapshot: versions of the store.
        made: table of the copies.
        place: the CSV to write.

    Returns:
        The number of copies.
    """
    sink = io.StringIO(newline="")
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(("key", "label", "group", "split"))
    count = 0
    for key, label, group in read_groups(snapshot, made):
        writer.writerow((key, label, group, SPLITS[0]))
        count += 1
    place.write_bytes(sink.getvalue().encode())
    return count


def write_sheet(made: TableVersion, spec: CopySpec, place: Location) -> None:
    """Draw a few images beside their copies, as many of each class. For a task.

    Args:
        made: table of the copies.
        spec: how the images were resized.
        place: the JPEG to write.
    """
    rows = made.read(["key", "content_id", "source", "label", "view"]).sort_by("key").to_pylist()
    by_image: dict[bytes, list[dict[str, Any]]] = {}
    for row in rows:
        if row["view"] > 0:
            by_image.setdefault(row["content_id"], []).append(row)
    by_label: dict[str, list[list[dict[str, Any]]]] = {}
    for copies in by_image.values():
        by_label.setdefault(copies[0]["label"], []).append(copies)
    chosen: list[list[dict[str, Any]]] = []
    for turn in range(_SHEET_IMAGES):
        chosen += [part[turn] for part in by_label.values() if turn < len(part)]
    chosen = sorted(chosen[:_SHEET_IMAGES], key=lambda copies: str(copies[0]["label"]))
    if not chosen:
        return
    columns = 1 + min(_SHEET_COPIES, max(map(len, chosen)))
    side, height = _SHEET_SIDE, _SHEET_SIDE + _CAPTION
    sheet = Image.new("RGB", (columns * side, len(chosen) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for line, copies in enumerate(chosen):
        shown = sorted(copies, key=lambda row: int(row["view"]))[:_SHEET_COPIES]
        names = [f"{copies[0]['label']}", *(f"view {row['view']}" for row in shown)]
        for column, key in enumerate([copies[0]["source"], *(row["key"] for row in shown)]):
            pixels = decode(locate(key).read_bytes(), spec.image_size, spec.resize)
            small = Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS)
            sheet.paste(small, (column * side, line * height + _CAPTION))
            draw.text((column * side + 4, line * height + 2), names[column], fill="black")
    sink = io.BytesIO()
    sheet.save(sink, "JPEG", quality=90)
    place.write_bytes(sink.getvalue())


def copies_schema(spec: CopySpec) -> pa.Schema:
    """Return the schema of the table of the copies of a spec."""
    return schemas.copies(asdict(spec))
