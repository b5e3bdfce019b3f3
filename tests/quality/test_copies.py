"""Copies with other bytes are found, and other pictures are not taken for copies."""

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from visao_ray.images.decode import decode
from visao_ray.images.summary import sharpness, summarize
from visao_ray.quality import copies
from visao_ray.quality.neighbours import Blocks

SIDE = 64
FILMS = 400
EACH = 40  # copies of a kind


def reencoded(image: Image.Image, quality: int = 90) -> Image.Image:
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=quality)
    return Image.open(io.BytesIO(sink.getvalue()))


def cropped(image: Image.Image, *shares: float) -> Image.Image:
    """Cut shares of the width and height: left, top, right, bottom."""
    left, top, right, bottom = shares
    width, height = image.size
    return image.crop(
        (round(left * width), round(top * height), round((1 - right) * width),
         round((1 - bottom) * height))
    )  # fmt: skip


def scaled(image: Image.Image, share: float = 0.8) -> Image.Image:
    return image.resize((round(image.width * share), round(image.height * share)))


KINDS = {
    "saved again": lambda image: reencoded(image, 50),
    "resized": lambda image: reencoded(scaled(image)),
    "cropped on two sides": lambda image: reencoded(cropped(image, 0.05, 0.05, 0, 0)),
    "cropped by little": lambda image: reencoded(cropped(image, 0.01, 0.03, 0.02, 0.04)),
    "cropped on all sides": lambda image: reencoded(cropped(image, 0.05, 0.05, 0.05, 0.05)),
    "brighter": lambda image: reencoded(ImageEnhance.Brightness(image).enhance(1.15)),
    "darker": lambda image: reencoded(ImageEnhance.Brightness(image).enhance(0.85)),
    "mirrored": lambda image: reencoded(ImageOps.mirror(image)),
    "all at once": lambda image: reencoded(
        ImageOps.mirror(scaled(ImageEnhance.Brightness(cropped(image, 0.05, 0, 0, 0.05)).enhance(
            1.15))), 50
    ),
}  # fmt: skip


def small(image: Image.Image) -> np.ndarray:
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return summarize(decode(sink.getvalue(), 224), SIDE)[0]


@pytest.fixture(scope="module")
def found(shared):
    """The copies among 400 real films and 40 planted copies of each kind, by pair."""
    folder = shared / "data/chest_xray_224/train"
    files = sorted(folder.glob("*/*.jpeg"))[:: 5216 // FILMS][:FILMS]
    films = [Image.open(file).convert("L") for file in files]
    pictures = [small(film) for film in films]
    planted = {}
    for number, (kind, change) in enumerate(KINDS.items()):
        for source in range(number * EACH, (number + 1) * EACH):
            planted[source, len(pictures)] = kind
            pictures.append(small(change(films[source % FILMS])))
    stacked = np.stack(pictures)
    pairs = copies.propose(stacked, seed=0)
    result = copies.decide(pairs, copies.align(pairs, stacked))
    return {(source % FILMS, copy): kind for (source, copy), kind in planted.items()}, result


@pytest.mark.parametrize("kind", KINDS)
def test_planted_copies_of_real_films_are_found(found, kind):
    planted, result = found
    pairs = set(zip(result.first.tolist(), result.second.tolist(), strict=True))
    wanted = {pair for pair, each in planted.items() if each == kind}
    assert len(wanted & pairs) >= 0.95 * EACH


def test_few_other_pairs_are_taken_for_copies(found):
    planted, result = found
    # Film 0 may have two planted copies, which are copies of each other.
    source = {copy: film for film, copy in planted} | {film: film for film in range(FILMS)}
    pairs = list(zip(result.first.tolist(), result.second.tolist(), strict=True))
    wrong = [pair for pair in pairs if source[pair[0]] != source[pair[1]]]
    assert len(wrong) <= 0.02 * len(pairs)


def test_mirrored_pairs_are_marked(found):
    planted, result = found
    of_pair = dict(
        zip(zip(result.first.tolist(), result.second.tolist(), strict=True), result.mirrored,
            strict=True)
    )  # fmt: skip
    for pair, kind in planted.items():
        if pair in of_pair:
            assert of_pair[pair] == (kind in ("mirrored", "all at once"))


def test_pictures_of_one_grey_level_are_not_copies():
    flat = np.full((50, SIDE, SIDE), 200, np.uint8)
    assert not len(copies.propose(flat, seed=0))


def test_sets_join_pairs():
    pairs = copies.Copies(
        np.array([0, 1, 4]), np.array([1, 2, 5]), np.ones(3, np.float32), np.zeros(3, bool)
    )
    sets = pairs.sets(7)
    assert sets[0] == sets[1] == sets[2] != sets[4] == sets[5]
    assert sets[3] == sets[6] == -1


def test_a_crop_is_described_as_the_cropped_picture():
    draw = np.random.default_rng(0)
    large = Image.fromarray(draw.integers(0, 256, (16, 16), np.uint8)).resize((640, 640))
    part = large.crop((32, 32, 608, 608))  # a twentieth less on every side
    whole, cut = small(large), small(part)
    described = copies.descriptors(whole[None], (False, (0.05, 0.05, 0.05, 0.05)))
    assert float((described @ copies.descriptors(cut[None]).T)[0, 0]) > 0.99
    mirrored = small(ImageOps.mirror(part))
    described = copies.descriptors(whole[None], (True, (0.05, 0.05, 0.05, 0.05)))
    assert float((described @ copies.descriptors(mirrored[None]).T)[0, 0]) > 0.99


def test_blocks_find_near_points_without_comparing_all_pairs():
    draw = np.random.default_rng(1)
    centres = draw.normal(0, 4, (60, 12))
    points = (centres[draw.integers(0, 60, 9000)] + draw.normal(0, 1, (9000, 12))).astype(
        np.float32
    )
    blocks = Blocks(points, seed=0)
    assert len(blocks.sizes) == 9
    assert blocks.sizes.sum() == 9000
    queries = points[:300] + draw.normal(0, 0.01, (300, 12)).astype(np.float32)
    rows, hits, distances = blocks.within(queries, np.full(300, -1), 0.2, 3)
    assert set(zip(rows.tolist(), hits.tolist(), strict=True)) >= {(at, at) for at in range(300)}
    assert np.allclose(distances, np.linalg.norm(queries[rows] - points[hits], axis=1), atol=1e-2)
    rows, hits, _ = blocks.within(points[:300], np.arange(300), 0.05, 3)
    assert not set(zip(rows.tolist(), hits.tolist(), strict=True)) & {(at, at) for at in range(300)}


def test_mean_distance_is_that_of_all_pairs_in_one_block():
    points = np.random.default_rng(2).normal(size=(200, 5)).astype(np.float32)
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    expected = np.sort(distances, axis=1)[:, 1:11].mean(axis=1)
    assert np.allclose(Blocks(points, 0).mean_distance(10), expected, atol=1e-3)


def test_sharpness_falls_with_blur_and_colour_is_read_as_grey():
    from PIL import ImageFilter

    noise = Image.fromarray(np.random.default_rng(3).integers(0, 256, (90, 80), np.uint8))
    blurred = noise.filter(ImageFilter.GaussianBlur(2))
    assert sharpness(np.asarray(blurred)) < 0.3 * sharpness(np.asarray(noise))
    grey = np.asarray(noise)[:, :, None]
    one, two = summarize(grey, 64), summarize(np.repeat(grey, 3, axis=2), 64)
    assert np.array_equal(one[0], two[0])
    assert one[1] == two[1]
    assert sharpness(np.zeros((2, 2), np.uint8)) == 0.0
