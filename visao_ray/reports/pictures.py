"""Small pictures of image files for pages."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from visao_ray.core.storage import locate
from visao_ray.images.decode import DecodeError, thumbnail

SIDE = 224  # longer side in pixels
_READERS = 8  # files to read at once


def read_pictures(keys: Iterable[str], side: int = SIDE) -> list[bytes | None]:
    """Return a small JPEG of each file; None for a file that cannot be read any more.

    Args:
        keys: paths or URIs of files.
        side: longer side of the JPEG in pixels.

    Returns:
        One entry per key.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        return list(pool.map(lambda key: _read(key, side), keys))


def data_uri(picture: bytes | None) -> str | None:
    """Return a JPEG as a URI that holds it, for pages that load nothing; None for None."""
    if picture is None:
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(picture).decode('ascii')}"


def _read(key: str, side: int) -> bytes | None:
    try:
        image = thumbnail(locate(key).read_bytes(), side)
    except (OSError, DecodeError):
        return None
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=80)
    return sink.getvalue()
