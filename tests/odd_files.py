"""Bad and odd image files, as in real datasets, with the pixels that they must decode to.

The expected pixels come from the arrays that the files are made of, or from Pillow's full decode
for the good files that the caller passes. They never come from the code under test.
"""

import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

Pixels = npt.NDArray[np.uint8]

SIZE = 224
LOSSLESS = (0.5, 2)  # rounding in 8 bits
JPEG = (1.5, 24)  # 8x8 blocks at quality 95


@dataclass(frozen=True, eq=False)
class OddFile:
    """One file in the folder.

    Attributes:
        name: file name.
        readable: True if it must decode.
        reason: the expected `DecodeError.error_type`; empty if readable or not on disk.
        pixels: expected uint8[224, 224, 3] with `resize="stretch"`; None if not readable.
        tolerance: largest mean and largest single absolute difference from `pixels`.
        bytes_exist: False for a broken link, which is listed but cannot be read.
    """

    name: str
    readable: bool
    reason: str = ""
    pixels: Pixels | None = None
    tolerance: tuple[float, int] = LOSSLESS
    bytes_exist: bool = True


def film(height: int, width: int) -> Pixels:
    """Draw an asymmetric picture with ribs, slopes and a spot, uint8[height, width]."""
    y, x = np.mgrid[0:height, 0:width] / np.array([height, width]).reshape(2, 1, 1)
    picture = 120 + 60 * np.sin(14 * y + 3 * x) * np.exp(-((x - 0.4) ** 2) * 6)
    picture += 50 * (x - 0.5) + 40 * np.exp(-((x - 0.8) ** 2 + (y - 0.2) ** 2) * 60)
    return picture.clip(0, 255).astype(np.uint8)


def coloured(height: int, width: int) -> Pixels:
    """Draw a different picture in each channel, uint8[height, width, 3]."""
    gray = film(height, width)
    return np.stack([gray, 255 - gray[::-1], gray[:, ::-1] // 2 + 60], axis=2)


def encoded(image: Pixels | Image.Image, image_format: str, **options: Any) -> bytes:
    """Encode an array or Pillow image as the bytes of a file."""
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    stream = io.BytesIO()
    image.save(stream, image_format, **options)
    return stream.getvalue()


def resized(pixels: Pixels, size: int = SIZE) -> Pixels:
    """Resize grey or RGB pixels to uint8[size, size, 3] with Lanczos."""
    image = Image.fromarray(pixels).convert("RGB")
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS))


def plainly_decoded(data: bytes, size: int = SIZE) -> Pixels:
    """Decode a file fully, convert it to RGB, and resize it with Lanczos: uint8[size, size, 3]."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    return np.asarray(image.resize((size, size), Image.Resampling.LANCZOS))


def png_bomb(side: int) -> bytes:
    """Make a tiny, well-formed 1-bit PNG that claims side x side pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    body = zlib.compress(bytes(100_000))
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def tiff_12_bit(pixels: npt.NDArray[np.uint16]) -> bytes:
    """Make a grey TIFF with 12 bits per pixel, which Pillow can read but not write."""
    pairs = pixels.reshape(-1, 2).astype(np.uint16)
    first, second = pairs[:, 0], pairs[:, 1]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1)
    body = packed.astype(np.uint8).tobytes()
    height, width = pixels.shape
    tags = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: height}
    tags[279] = len(body)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\x00" + struct.pack("<I", 8 + len(body)) + body + directory


def without_adobe_marker(jpeg: bytes) -> bytes:
    """Return a JPEG without its APP14 segment; browsers still treat its CMYK as inverted."""
    start = jpeg.index(b"\xff\xee")
    length = int.from_bytes(jpeg[start + 2 : start + 4])
    return jpeg[:start] + jpeg[start + 2 + length :]


def write_odd_files(folder: Path, good: Sequence[bytes]) -> list[OddFile]:
    """Write odd files of every kind into a folder, and return the pixels they must decode to.

    Args:
        folder: an existing folder.
        good: one or more well-formed JPEG files, used in turn.

    Returns:
        The files.
    """
    files: list[OddFile] = []

    def bad(name: str, data: bytes, reason: str) -> None:
        (folder / name).write_bytes(data)
        files.append(OddFile(name, False, reason))

    def odd(
        name: str, data: bytes, pixels: Pixels, tolerance: tuple[float, int] = LOSSLESS
    ) -> None:
        (folder / name).write_bytes(data)
        files.append(OddFile(name, True, "", pixels, tolerance))

    gray, rgb = film(300, 400), coloured(300, 400)
    gray_224, rgb_224 = resized(gray), resized(rgb)
    rng = np.random.default_rng(2019)

    # Not readable
    png = encoded(rgb, "PNG")
    bad("truncated.jpg", good[0][: len(good[0]) * 2 // 3], "truncated")
    bad("truncated_by_two_bytes.jpg", good[0][:-2], "truncated")
    bad("truncated.png", png[: len(png) // 2], "truncated")
    bad("empty.jpg", b"", "empty")
    bad("text.jpeg", b"patient;label\nperson1;PNEUMONIA\n", "not_an_image")
    bad("page.png", b"<!DOCTYPE html><html><body>404</body></html>", "not_an_image")
    bad("random.jpg", b"\x00" + rng.bytes(5000), "not_an_image")
    bad("zeros.jpg", bytes(4096), "not_an_image")
    bad("header_only.jpg", good[0][:20], "corrupt")
    bad("bomb.png", png_bomb(50_000), "decompression_bomb")
    bad("small_bomb.png", png_bomb(14_000), "decompression_bomb")
    bad("float.tif", encoded(Image.fromarray(gray.astype(np.float32)), "TIFF"), "unsupported_mode")
    bad("int32.tif", encoded(Image.fromarray(gray.astype(np.int32)), "TIFF"), "unsupported_mode")
    bad(".DS_Store", b"\x00\x00\x00\x01Bud1\x00\x00\x10\x00" + bytes(6000), "not_an_image")
    bad("Thumbs.db", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(2048), "not_an_image")
    bad("._x.jpeg", b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        ", "not_an_image")

    # Odd sizes and depths
    odd(
        "1x1.png",
        encoded(np.full((1, 1), 77, np.uint8), "PNG"),
        np.full((224, 224, 3), 77, np.uint8),
    )
    wide = film(2, 30_000)
    odd("30000x2.png", encoded(wide, "PNG"), resized(wide))
    deep = (np.linspace(0, 65535, 300 * 400).reshape(300, 400)).astype(np.uint16)
    deep_224 = resized(np.rint(deep / 257).astype(np.uint8))
    odd("16bit.png", encoded(Image.fromarray(deep), "PNG"), deep_224)
    odd("16bit.tif", encoded(Image.fromarray(deep), "TIFF"), deep_224)
    odd("16bit_big_endian.tif", encoded(_big_endian(deep), "TIFF"), deep_224)
    white_is_zero = encoded(Image.fromarray(65535 - deep), "TIFF", tiffinfo={262: 0})
    odd("16bit_white_is_zero.tif", white_is_zero, deep_224)
    odd("12bit.tif", tiff_12_bit(deep >> 4), deep_224)
    black_and_white = gray > 120
    odd(
        "1bit.png",
        encoded(Image.fromarray(black_and_white), "PNG"),
        resized(black_and_white * np.uint8(255)),
    )

    # Colour models and transparency
    odd("wrong_extension.jpg", png, rgb_224)
    odd("gray.bmp", encoded(gray, "BMP"), gray_224)
    odd("lzw.tif", encoded(rgb, "TIFF", compression="tiff_lzw"), rgb_224)
    odd("wavelet.jp2", encoded(rgb, "JPEG2000", irreversible=False), rgb_224)
    ink = np.dstack([film(300, 400), film(300, 400)[::-1], film(300, 400)[:, ::-1], gray // 3])
    paper = np.rint((255.0 - ink[..., :3]) * (255.0 - ink[..., 3:]) / 255).astype(np.uint8)
    cmyk = encoded(Image.fromarray(ink, "CMYK"), "JPEG", quality=95)
    odd("cmyk_adobe.jpg", cmyk, resized(paper), JPEG)
    odd("cmyk_unmarked.jpg", without_adobe_marker(cmyk), resized(paper), JPEG)
    table = rng.integers(0, 256, (256, 3), np.uint8)
    palette = Image.fromarray(gray)
    palette.putpalette(table.tobytes())
    odd("palette.png", encoded(palette, "PNG"), resized(table[gray]))
    opacity = rng.integers(0, 256, 256, np.uint8)
    odd(
        "palette_transparent.png",
        encoded(palette, "PNG", transparency=opacity.tobytes()),
        resized(_over_white(table[gray], opacity[gray])),
    )
    alpha = film(400, 300).T
    odd("rgba.png", encoded(np.dstack([rgb, alpha]), "PNG"), resized(_over_white(rgb, alpha)))
    gray_alpha = Image.merge("LA", [Image.fromarray(gray), Image.fromarray(alpha)])
    odd("la.png", encoded(gray_alpha, "PNG"), resized(_over_white(gray, alpha)))
    keyed = np.where((gray == 100)[..., None], 255, np.repeat(gray[..., None], 3, 2))
    odd("colour_key.png", encoded(gray, "PNG", transparency=100), resized(keyed.astype(np.uint8)))

    # EXIF orientation, progressive and animated files
    large = film(1200, 900)
    exif = Image.Exif()
    exif[274] = 6  # shown after a quarter turn clockwise
    turned = encoded(np.rot90(large), "JPEG", quality=95, exif=exif)
    odd("rotated.jpg", turned, resized(large), JPEG)
    odd("progressive.jpg", encoded(rgb, "JPEG", quality=95, progressive=True), rgb_224, JPEG)
    later = [Image.fromarray(255 - gray)]
    frames: dict[str, Any] = {"save_all": True, "append_images": later, "duration": 50}
    odd("animated.gif", encoded(gray, "GIF", **frames), gray_224)
    odd("animated.png", encoded(gray, "PNG", **frames), gray_224)
    odd("animated.webp", encoded(rgb, "WEBP", lossless=True, **frames), rgb_224)

    # Names
    names = (
        "with space.jpg",
        "ção.jpg",
        "%41.jpg",
        "100%.jpg",
        "a#b.jpg",
        "q?x=1.jpg",
        "LOUD.JPEG",
    )
    for index, name in enumerate(names):
        data = good[index % len(good)]
        odd(name, data, plainly_decoded(data), JPEG)

    # Broken links
    (folder / "vanished.jpg").symlink_to("no such file.jpg")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    files += [OddFile(name, False, bytes_exist=False) for name in ("vanished.jpg", "loop.jpg")]
    return files


def _over_white(colour: Pixels, alpha: Pixels) -> Pixels:
    share = (alpha / 255).reshape(*alpha.shape, *[1] * (colour.ndim - 2))
    return np.rint(colour * share + 255 * (1 - share)).astype(np.uint8)


def _big_endian(pixels: npt.NDArray[np.uint16]) -> Image.Image:
    height, width = pixels.shape
    return Image.frombytes("I;16B", (width, height), pixels.astype(">u2").tobytes())
