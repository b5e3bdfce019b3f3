"""The loading task: it reads, hashes, looks up, decodes and augments the files of one unit.

The bytes of a file are read once and stay in the task. Its output has one row per view, with uint8
pixels, and one channel if the file is grey.
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
from visao_ray.images.augment import augment_view
from visao_ray.images.decode import DecodeError, decode, read_header
from visao_ray.images.recipes import RECIPES
from visao_ray.images.summary import summarize
from visao_ray.inference.lookup import FIRST, KNOWN, REPEATED, Answer
from visao_ray.store import schemas
from visao_ray.store.table import TableVersion

_READERS = 8  # threads of a task that read files and decode images

_IMAGE = [field.remove_metadata().with_nullable(True) for field in schemas.IMAGES]
_RESULT = [field for field in schemas.results({}, {}, pictures=True) if field.name != "content_id"]

#: Rows between loading and the engine, one per view. `image` says what happens to the file's row in
#: `images` and is set on the first view only. `result` says whether the row goes to the results.
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
        image_size: side of the square image, in pixels.
        resize: how an image is made square.
        recipe: augmentation recipe.
        views: numbers of the views of each image; 0 is the unchanged image.
        seed: seed of the augmentation.
        pictures: whether to make the small copy of each image that is stored beside its vectors.
    """

    image_size: int
    resize: Literal["stretch", "letterbox"]
    recipe: str = "none"
    views: tuple[int, ...] = (0,)
    seed: int = 0
    pictures: bool = False


@dataclass(frozen=True)
class Unit:
    """Arguments of every loading task of a job.

    Attributes:
        listing: a table of schema `LISTING`; unit n starts at row n · `rows`.
        rows: number of files per unit.
        loading: how images become pixels.
        lookups: `ContentLookup` actors. Actor i is responsible for the contents whose first byte
            modulo the number of actors is i. Empty if nothing is computed.
        batch: batch name of new files in `images`.
        now: start of the job, in microseconds since 1970, UTC.
    """

    listing: TableVersion
    rows: int
    loading: Loading
    lookups: tuple[Any, ...]
    batch: str
    now: int


@dataclass
class _File:
    """A file while it is loaded: its row of the listing, its bytes, and the seconds to read it."""

    listed: Mapping[str, Any]
    number: int
    data: bytes = b""
    content_id: bytes | None = None
    unread: str = ""
    seconds: float = 0.0


def load_unit(block: pa.Table, unit: Unit) -> pa.Table:
    """Load the files of one unit.

    Files that cannot be read and images that cannot be decoded become rows with a reason.

    Args:
        block: table with the column `unit`, whose only value is the number of the unit.
        unit: arguments of all units.

    Returns:
        The rows, of schema `LOADED`.

    Raises:
        OSError: the object store failed. This is not an error of the file, so Ray retries the task.
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
    spent = profiling.loader_costs(
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
    """Look up the content of each file; return the answers by the number of the file."""
    if not lookups:
        return {file.number: Answer(KNOWN) for file in files}
    import ray

    shares: dict[int, list[_File]] = {}
    for file in files:
        if file.content_id is not None:
            shares.setdefault(file.content_id[0] % len(lookups), []).append(file)
    requests = [
        lookups[share].look_up.remote([f.content_id for f in part], [f.number for f in part])
        for share, part in shares.items()
    ]
    answers = {file.number: Answer(KNOWN) for file in files}
    for part, found in zip(shares.values(), ray.get(requests), strict=True):
        answers |= {file.number: answer for file, answer in zip(part, found, strict=True)}
    return answers


def _rows(
    file: _File, answer: Answer, unit: Unit
) -> tuple[list[dict[str, Any]], tuple[float, float, float, float]]:
    """Return the rows of a file, and its costs for `profiling.loader_costs`."""
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
            message = f"{error.error_type}: {reason(error)}"
            row |= {"image_status": schemas.ERROR, "image_error": message, "status": schemas.ERROR}
            row |= {"error_type": error.error_type, "message": reason(error)}
    pixels = sum(len(one.get("pixels") or b"") for one in rows)
    cost = (len(file.data), pixels, file.seconds, time.perf_counter() - start)
    return rows, cost


def _views(row: dict[str, Any], data: bytes, loading: Loading) -> list[dict[str, Any]]:
    """Return one row per view; only the first may change the file's row in `images`.

    Raises:
        DecodeError: the bytes are not a usable picture.
    """
    image = decode(data, loading.image_size, loading.resize, repeat_grey=False)
    if not row["result"]:
        return [row]  # only a check: another file computes these pixels, or no engine needs them
    if loading.pictures:
        thumbnail, sharpness = summarize(image, schemas.THUMBNAIL_SIDE)
        row = {**row, "thumbnail": thumbnail.tobytes(), "sharpness": sharpness}
    recipe = RECIPES[loading.recipe]
    rows = []
    for view in loading.views:
        name = row["content_id"].hex()
        varied = augment_view(image, recipe, loading.seed, name, view)
        rows.append({**row, "view": view, "pixels": varied.tobytes()})
        row = {**row, "image": STAY}
    return rows
