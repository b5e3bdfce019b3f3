"""From a unit of the listing to pixels: read, hash, ask, decode, augment; one task a unit.

Reading, hashing and decoding use the same bytes, which never travel: what leaves the task is pixels
as uint8, with one channel where the file is grey, and one row a view.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import pyarrow as pa

from visao_ray.core import profiling
from visao_ray.core.profiling import SPENT
from visao_ray.core.storage import is_outage, locate, reason
from visao_ray.datasets.listing import APPEND, LATE, STAY
from visao_ray.images.augment import RECIPES, augment_view
from visao_ray.images.decode import DecodeError, decode, read_header
from visao_ray.inference.lookup import FIRST, KNOWN, REPEATED, Answer
from visao_ray.store import schemas
from visao_ray.store.table import TableVersion

_READERS = 8  # files read, and images decoded, at once in one task

_IMAGE = [field.remove_metadata().with_nullable(True) for field in schemas.IMAGES]
_RESULT = [field for field in schemas.results({}, {}) if field.name != "content_id"]

#: Rows between loading and the engine: one a view. `image` says what becomes of the file's row in
#: `images`, on its first view alone; `result` whether the row is one of the table of results.
LOADED = pa.schema(
    [
        *(field.with_name(f"image_{field.name}") for field in _IMAGE if field.name != "content_id"),
        pa.field("content_id", schemas.CONTENT_ID),
        pa.field("image", pa.string()),
        *_RESULT,
        pa.field("result", pa.bool_()),
        pa.field("pixels", pa.binary()),
        profiling.FIELD,
    ]
)


@dataclass(frozen=True)
class Loading:
    """How an image becomes pixels.

    Attributes:
        image_size: side in pixels.
        resize: how it is made square.
        recipe: of augmentation.
        views: numbers of the views that each image gets; 0 is the image as it is.
        seed: of the augmentation.
    """

    image_size: int
    resize: Literal["stretch", "letterbox"]
    recipe: str = "none"
    views: tuple[int, ...] = (0,)
    seed: int = 0


@dataclass(frozen=True)
class Unit:
    """What every loading task of a job is given.

    Attributes:
        listing: a table of `LISTING`; unit n is its rows from n · `rows` on.
        rows: files a unit.
        loading: how images become pixels.
        lookups: actors that know contents, each those whose first byte leaves its number as the
            rest of a division by how many there are; none where there are no results to make.
        batch: name under which new files enter.
        now: when the job began, in microseconds since 1970, UTC.
    """

    listing: TableVersion
    rows: int
    loading: Loading
    lookups: tuple[Any, ...]
    batch: str
    now: int


@dataclass
class _File:
    """A file on its way: its row of the listing, its bytes, and what they cost."""

    listed: Mapping[str, Any]
    number: int
    data: bytes = b""
    content_id: bytes | None = None
    unread: str = ""
    seconds: float = 0.0


def load_unit(block: pa.Table, unit: Unit) -> pa.Table:
    """The rows of `LOADED` of one unit, whose number is the only value of the column `unit`.

    Files that could not be fetched and images that cannot be decoded are rows with a reason.

    Raises:
        OSError: the object store failed; that says nothing of the file, so the task is tried again.
    """
    start = time.perf_counter()
    (number,) = block["unit"].to_pylist()
    listed = _open_listing(unit.listing).to_table(offset=number * unit.rows, limit=unit.rows)
    files = [_File(row, number * unit.rows + place) for place, row in enumerate(listed.to_pylist())]
    with ThreadPoolExecutor(_READERS) as pool:
        list(pool.map(_read, files))
        answers = _look_up(files, unit.lookups)
        parts = list(pool.map(lambda file: _rows(file, answers[file.number], unit), files))
    rows = [row for part, _ in parts for row in part]
    made = pa.Table.from_pylist(rows, schema=LOADED)
    spent = profiling.loaded(
        [len(part) for part, _ in parts],
        [cost for _, cost in parts],
        time.perf_counter() - start,
    )
    return made.set_column(LOADED.get_field_index(SPENT), profiling.FIELD, spent)


@cache
def _open_listing(listing: TableVersion) -> Any:
    return listing.open()


def _read(file: _File) -> None:
    start = time.perf_counter()
    try:
        file.data = locate(file.listed["key"]).read_bytes()
        file.content_id = hashlib.sha256(file.data).digest()
    except OSError as error:
        if is_outage(error):
            raise
        file.unread = f"{type(error).__name__}: {reason(error)}"
    file.seconds = time.perf_counter() - start


def _look_up(files: Sequence[_File], lookups: Sequence[Any]) -> dict[int, Answer]:
    """What is known of each file's content, by the file's number."""
    if not lookups:
        return {file.number: Answer(KNOWN) for file in files}
    import ray

    shares: dict[int, list[_File]] = {}
    for file in files:
        if file.content_id is not None:
            shares.setdefault(file.content_id[0] % len(lookups), []).append(file)
    asked = [
        lookups[share].look_up.remote([f.content_id for f in part], [f.number for f in part])
        for share, part in shares.items()
    ]
    answers = {file.number: Answer(KNOWN) for file in files}
    for part, found in zip(shares.values(), ray.get(asked), strict=True):
        answers |= {file.number: answer for file, answer in zip(part, found, strict=True)}
    return answers


def _rows(
    file: _File, answer: Answer, unit: Unit
) -> tuple[list[dict[str, Any]], tuple[float, float, float, float]]:
    """The rows of a file, and its costs as `profiling.loaded` takes them."""
    start = time.perf_counter()
    image = {f"image_{name}": value for name, value in file.listed.items() if name != "row"}
    image |= {"image_first_seen": unit.now, "image_batch": unit.batch}
    row: dict[str, Any] = {
        **image,
        "content_id": file.content_id,
        "image": file.listed["row"],
        "result": answer.state == FIRST and not file.unread,
        "view": unit.loading.views[0],
        "status": schemas.OK,
    }
    if answer.state == REPEATED and row["image"] == APPEND:
        row["image"] = LATE
    rows = [row]
    if file.unread:
        row |= {"image_status": schemas.UNREAD, "image_error": file.unread, "status": None}
    else:
        try:
            header = read_header(file.data)
            row |= {"image_width": header.width, "image_height": header.height}
            row |= {"image_mode": header.mode, "image_status": schemas.OK}
            if answer.status == schemas.ERROR:
                row |= {"image_status": schemas.ERROR, "image_error": answer.error}
            elif answer.state != KNOWN or not unit.lookups:
                rows = _views(row, file.data, unit.loading)
        except DecodeError as error:
            told = f"{error.error_type}: {reason(error)}"
            row |= {"image_status": schemas.ERROR, "image_error": told, "status": schemas.ERROR}
            row |= {"error_type": error.error_type, "message": reason(error)}
    pixels = sum(len(one.get("pixels") or b"") for one in rows)
    cost = (len(file.data), pixels, file.seconds, time.perf_counter() - start)
    return rows, cost


def _views(row: dict[str, Any], data: bytes, loading: Loading) -> list[dict[str, Any]]:
    """A row for each view; only the first says what becomes of the file's row in `images`.

    Raises:
        DecodeError: the bytes are no usable picture.
    """
    image = decode(data, loading.image_size, loading.resize, repeat_grey=False)
    if not row[
        "result"
    ]:  # decoded to know that it can be; the pixels are another file's or nobody's
        return [row]
    recipe = RECIPES[loading.recipe]
    rows = []
    for view in loading.views:
        name = row["content_id"].hex()
        varied = augment_view(image, recipe, loading.seed, name, view)
        rows.append({**row, "view": view, "pixels": varied.tobytes()})
        row = {**row, "image": STAY}
    return rows
