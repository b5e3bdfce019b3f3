"""Decoding: correct pixels, or a clear error."""

import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from odd_files import (
    OddFile,
    coloured,
    encoded,
    film,
    plainly_decoded,
    png_bomb,
    resized,
    write_odd_files,
)
from PIL import Image

from visao_ray.images.decode import (
    MAX_PIXELS,
    DecodeError,
    ImageHeader,
    decode,
    read_header,
)

pytestmark = pytest.mark.filterwarnings("error")

ROOT = Path(__file__).resolve().parents[2]
FILMS = ROOT.parent / "shared" / "data" / "chest_xray_full"


@pytest.fixture(scope="module")
def odd_files(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[OddFile, bytes]]:
    folder = tmp_path_factory.mktemp("odd")
    good = [
        encoded(picture, "JPEG", quality=95) for picture in (film(500, 700), coloured(300, 400))
    ]
    files = write_odd_files(folder, good)
    assert sorted(file.name for file in files) == sorted(path.name for path in folder.iterdir())
    return [(file, (folder / file.name).read_bytes()) for file in files if file.bytes_exist]


def check(file: OddFile, data: bytes) -> str:
    """Return what is wrong with the decoded file; empty if nothing is."""
    try:
        pixels = decode(data, 224)
    except DecodeError as error:
        message = str(error)
        if file.readable or error.error_type != file.reason:
            return f"{file.name}: {error.error_type}: {message}"
        if not message or "\n" in message:
            return f"{file.name}: not one line: {message!r}"
        return ""
    if not file.readable:
        return f"{file.name}: decoded, but should be {file.reason}"
    if pixels.shape != (224, 224, 3) or pixels.dtype != np.uint8 or not pixels.flags.writeable:
        return f"{file.name}: {pixels.shape} {pixels.dtype}"
    assert file.pixels is not None
    off = np.abs(pixels.astype(int) - file.pixels)
    if off.mean() > file.tolerance[0] or off.max() > file.tolerance[1]:
        return f"{file.name}: off by {off.mean():.2f} on average, {off.max()} at most"
    return ""


def test_every_odd_file_gives_its_pixels_or_its_error(odd_files):
    assert len(odd_files) > 40
    assert not [problem for file, data in odd_files if (problem := check(file, data))]


def test_decoding_in_sixteen_threads_is_correct_and_gives_no_warning(odd_files):
    with ThreadPoolExecutor(16) as pool:
        problems = pool.map(lambda pair: check(*pair), odd_files * 4)
    assert not [problem for problem in problems if problem]


def test_headers_agree_with_pixels_as_displayed(odd_files):
    for file, data in odd_files:
        if file.readable:
            header = read_header(data)
            shown = (900, 1200) if file.name == "rotated.jpg" else Image.open(io.BytesIO(data)).size
            assert (header.width, header.height) == shown, file.name
    assert read_header(encoded(coloured(30, 40), "JPEG")) == ImageHeader(40, 30, "RGB", "JPEG")


def test_header_needs_no_pixels_and_large_scans_give_no_warning():
    assert read_header(encoded(film(300, 400), "JPEG")[:700]).width == 400
    assert read_header(png_bomb(13_000)).width == 13_000  # Pillow warns from 9,460 on


@pytest.mark.parametrize("pillow_limit", [Image.MAX_IMAGE_PIXELS, None])
@pytest.mark.parametrize("side", [13_378, 50_000])
def test_bombs_are_refused_before_any_pixel(side, pillow_limit, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillow_limit)
    assert (side - 1) ** 2 <= MAX_PIXELS or side == 50_000
    for call in (read_header, lambda bomb: decode(bomb, 8)):
        with pytest.raises(DecodeError) as caught:
            call(png_bomb(side))
        assert caught.value.error_type == "decompression_bomb"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"<!DOCTYPE html>\n<html>", "the file starts with '<!DOCTYPE html>'"),
        (b"\x01\x02\x03", "the file starts with 01 02 03"),
        (b"\x00\x00\x00\x01Bud1" + bytes(99), ".DS_Store"),
        (bytes(128) + b"DICM" + bytes(99), "DICOM"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (b"", "empty"),
    ],
)
def test_messages_say_what_the_file_is(data, words):
    with pytest.raises(DecodeError) as caught:
        decode(data, 224)
    assert words in str(caught.value)


def test_errors_survive_pickling():
    error = pickle.loads(pickle.dumps(DecodeError("truncated", "the file is cut short")))
    assert (error.error_type, str(error)) == ("truncated", "the file is cut short")


FORMATS = {
    "jpeg": {"image_format": "JPEG"},
    "progressive": {"image_format": "JPEG", "progressive": True},
    "png": {"image_format": "PNG"},
    "tiff": {"image_format": "TIFF"},
    "gif": {"image_format": "GIF"},
    "bmp": {"image_format": "BMP"},
    "webp": {"image_format": "WEBP"},
    "jp2": {"image_format": "JPEG2000"},
}


@pytest.mark.parametrize("kind", FORMATS)
def test_a_cut_anywhere_is_an_error(kind):
    data = encoded(film(150, 200), **FORMATS[kind])
    trailer = {"png": 4, "gif": 2}.get(kind, 0)  # bytes after the last one of the pixels
    rng = np.random.default_rng(7)
    ends = [*rng.integers(1, len(data) - 64, 80), *range(len(data) - 64, len(data) - trailer)]
    for end in ends:
        with pytest.raises(DecodeError):
            decode(data[:end], 64)


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_bytes_give_pixels_or_a_decode_error(kind):
    data = np.frombuffer(encoded(film(150, 200), **FORMATS[kind]), np.uint8)
    rng = np.random.default_rng(8)
    failed = 0
    for _ in range(150):
        damaged = data.copy()
        where = rng.integers(0, min(len(data), 400), 4)
        damaged[where] = rng.integers(0, 256, 4)
        try:
            assert decode(damaged.tobytes(), 16).shape == (16, 16, 3)
        except DecodeError:
            failed += 1
    assert failed > 0


# By EXIF orientation: the stored array to the displayed one, as the standard defines it.
DISPLAYED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored, 1),
}


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", DISPLAYED)
def test_exif_orientation_is_applied(orientation, image_format):
    stored = film(600, 1000)  # large enough for the JPEG to be reduced while it is decoded
    exif = Image.Exif()
    exif[274] = orientation
    options = {"quality": 95} if image_format == "JPEG" else {}
    data = encoded(stored, image_format, exif=exif, **options)
    displayed = np.ascontiguousarray(DISPLAYED[orientation](stored))

    header = read_header(data)
    assert (header.height, header.width) == displayed.shape
    assert np.abs(decode(data, 200).astype(int) - resized(displayed, 200)).max() <= 6
    upright = decode(encoded(displayed, image_format, **options), 200, "letterbox")
    turned = decode(data, 200, "letterbox")
    assert np.abs(turned.astype(int) - upright).max() <= 6


def test_letterbox_keeps_the_aspect_ratio_and_continues_the_border():
    scan = np.full((100, 200, 3), (250, 240, 230), np.uint8)
    scan[25:75, 50:150] = (10, 60, 90)
    boxed = decode(encoded(scan, "PNG"), 224, "letterbox")
    assert (boxed[:56] == (250, 240, 230)).all()
    assert (boxed[-56:] == (250, 240, 230)).all()
    content = np.argwhere(np.abs(boxed.astype(int) - (10, 60, 90)).max(axis=2) < 60)
    assert content.min(axis=0).tolist() == [84, 56]
    assert content.max(axis=0).tolist() == [139, 167]
    black = np.pad(film(300, 100) // 2 + 100, 10)
    assert (decode(encoded(black, "PNG"), 224, "letterbox")[:, :50] == 0).all()
    assert decode(encoded(film(2, 3000), "PNG"), 224, "letterbox").shape == (224, 224, 3)


def difference(data: bytes, draft: bool = True) -> np.ndarray:
    """Return the absolute difference of each pixel from a full decode."""
    return np.abs(decode(data, 224, draft=draft).astype(int) - plainly_decoded(data))


@pytest.mark.parametrize("shape", [(1051, 1416), (1300, 900), (460, 470), (3000, 4000)])
def test_reduced_decode_is_close_to_the_full_one(shape):
    rng = np.random.default_rng(9)
    noisy = (film(*shape) + rng.normal(0, 6, shape)).clip(0, 255).astype(np.uint8)
    noisy[20:60, 30:40] = 255  # a letter burnt into the film
    for picture in (noisy, np.stack([noisy, noisy[::-1], noisy], axis=2)):
        data = encoded(picture, "JPEG", quality=90)
        off = difference(data)
        assert off.mean() < 0.5
        assert off.max() <= 16
        assert (
            np.abs(decode(data, 224, draft=False).astype(int) - plainly_decoded(data)).max() <= 12
        )


def test_reduced_decode_of_real_films_is_close_to_the_full_one():
    paths = sorted(FILMS.rglob("*.jpeg"))[::6]
    if not paths:
        pytest.skip(f"no chest films under {FILMS}")
    off = np.stack([difference(path.read_bytes()) for path in paths])
    print(f"\n{len(paths)} films: mean {off.mean():.3f}, largest {off.max()}")
    assert off.mean() < 0.3
    assert off.mean(axis=(1, 2, 3)).max() < 0.5
    assert np.percentile(off, 99.9) <= 2
    assert off.max() <= 24


def test_wrong_settings_are_refused():
    data = encoded(film(10, 10), "PNG")
    with pytest.raises(ValueError, match="size"):
        decode(data, 0)
    with pytest.raises(ValueError, match="crop"):
        decode(data, 224, "crop")  # type: ignore[arg-type]


def test_import_loads_no_heavy_packages():
    code = (
        "import sys, visao_ray.images.decode, visao_ray.images.augment\n"
        "print(sorted({'tensorflow', 'ray', 'keras'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
