"""The plan of a rendered dataset: every image with its declared and its true label."""

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Literal

from visao_ray.core.errors import InputError
from visao_ray.synthetic.headings import MOST_HEADINGS, ncm_headings

DatasetName = Literal["chest_xray", "vazios", "ncm"]

_VIEW = ("truck", "blur", "dark", "two_containers")
_DIFFICULTIES = {
    "NORMAL": ("blur", "dark", "rotated", "devices"),
    "PNEUMONIA": ("subtle", "subtle", "blur", "dark", "rotated", "devices"),
    "nvazio": ("nearly_empty", "nearly_empty", "foam", "foam", *_VIEW),
    "vazio": ("dirty_floor", "dirty_floor", "dirty_floor", *_VIEW),
}
_STRAY_DUPLICATE = 8
"""One duplicate in this many may be in the folder of another class than its original."""


@dataclass(frozen=True)
class SyntheticRecipe:
    """Everything that determines a rendered dataset: the same recipe gives the same bytes."""

    dataset: DatasetName = "vazios"
    """Which dataset: `chest_xray`, `vazios` or `ncm`."""
    images: int = 1000
    """Images in the dataset, duplicates included."""
    classes: int = MOST_HEADINGS
    """Headings of the `ncm` dataset, 1 to 868 (the other datasets have two classes)."""
    seed: int = 0
    """Seed of every draw, 0 or more."""
    difficult: float = 0.1
    """Share of images that are hard cases (nearly empty, foam, blur, ...), 0 to 1."""
    wrong_labels: float = 0.0
    """Share of images in the folder of a wrong class, 0 to 1 (the study found 0.025)."""
    duplicates: float = 0.0
    """Share of files that are byte-for-byte copies of another file under another name, 0 to 1."""
    imbalance: Literal["even", "long_tail"] = "long_tail"
    """Images per `ncm` class: even, or decreasing with the rank of the class as in the study."""
    unlabelled: bool = False
    """Put all images in one folder, in an order that does not reveal their classes."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            InputError: a value is out of range.
        """
        if self.dataset not in ("chest_xray", "vazios", "ncm"):
            raise InputError(f"dataset={self.dataset!r}: choose chest_xray, vazios or ncm")
        if self.imbalance not in ("even", "long_tail"):
            raise InputError(f"imbalance={self.imbalance!r}: choose even or long_tail")
        if self.images < 1:
            raise InputError(f"images={self.images}: a dataset needs at least one image")
        if self.seed < 0:
            raise InputError(f"seed={self.seed}: choose 0 or more")
        if not 1 <= self.classes <= MOST_HEADINGS:
            raise InputError(f"classes={self.classes}: choose 1 to {MOST_HEADINGS}")
        for name in ("difficult", "wrong_labels", "duplicates"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}={getattr(self, name)}: choose a share from 0 to 1")
        if self.wrong_labels + self.duplicates >= 1:
            raise InputError("wrong_labels + duplicates must leave some images as they are")
        if self.wrong_labels and len(self.class_names) < 2:
            raise InputError("wrong_labels needs at least two classes")

    @property
    def class_names(self) -> tuple[str, ...]:
        """Classes of the dataset in index order."""
        if self.dataset == "chest_xray":
            return ("NORMAL", "PNEUMONIA")
        if self.dataset == "vazios":
            return ("nvazio", "vazio")
        return ncm_headings(self.classes)


@dataclass(frozen=True, slots=True)
class PlannedImage:
    """One file of the dataset with its true label."""

    key: str
    """Path under the images folder; its folder is the declared label."""
    label: str
    """The declared label."""
    true_label: str
    """The class that the image shows."""
    index: int
    """Number of the picture for `render`; a duplicate has the number of its original."""
    difficulty: str
    """Name of the hard case, or empty."""
    duplicate_of: str
    """Key of the original of a duplicate, or empty."""
    group: str
    """Patient (`chest_xray`), lot (`ncm`: scans of one shipment) or the scan itself."""
    quality: int
    """JPEG quality."""


def plan(recipe: SyntheticRecipe) -> Iterator[PlannedImage]:
    """Yield all images of the dataset, class by class, in constant memory."""
    return (planned(recipe, position) for position in range(recipe.images))


def planned(recipe: SyntheticRecipe, position: int) -> PlannedImage:
    """Return the image at one position of the plan, without planning the others."""
    source = position
    role = shuffled(position, recipe.images, _mix(recipe.seed, 1))
    duplicates = _duplicates(recipe)
    if role < duplicates:
        source = _source(recipe, position, duplicates)
        role = shuffled(source, recipe.images, _mix(recipe.seed, 1))
    names = recipe.class_names
    true_class = _class_of(recipe, source)
    if role < duplicates + round(recipe.images * recipe.wrong_labels):
        others = len(names) - 1
        true_class = (true_class + 1 + _mix(recipe.seed, 2, source) % others) % len(names)
    true_label = names[true_class]
    rank = shuffled(source, recipe.images, _mix(recipe.seed, 3))
    difficulty = ""
    if rank < round(recipe.images * recipe.difficult):
        hard = _DIFFICULTIES.get(true_label, _VIEW)
        difficulty = hard[_mix(recipe.seed, 4, source) % len(hard)]
    key, group = _name(recipe, position)
    return PlannedImage(
        key=key,
        label=names[_class_of(recipe, position)],
        true_label=true_label,
        index=_index(recipe, source),
        difficulty=difficulty,
        duplicate_of="" if source == position else _name(recipe, source)[0],
        group=group,
        quality=70 + _mix(recipe.seed, 5, source) % 26,
    )


def lot_of(seed: int, index: int) -> tuple[int, int]:
    """Return the patient or lot of picture `index`, and its number within the lot, from 1.

    Every block of five pictures has three lots, so the result does not depend on other blocks.
    """
    block, place = divmod(index, 5)
    sizes = _SIZES[_mix(seed, 6, block) % len(_SIZES)]
    for lot, size in enumerate(sizes):
        if place < size:
            return 3 * block + lot, place + 1
        place -= size
    raise AssertionError("sizes add up to five")


_SIZES = ((1, 1, 3), (1, 3, 1), (3, 1, 1), (1, 2, 2), (2, 1, 2), (2, 2, 1))


def shuffled(position: int, size: int, key: int) -> int:
    """Permute `range(size)` by a key, and return the new position (Feistel, cycle-walking).

    The shares of a dataset are exact, and no list of positions is kept in memory.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = position >> half, position & mask
        for turn in range(4):
            left, right = right, left ^ (_mix(key, turn, right) & mask)
        position = left << half | right
        if position < size:
            return position


def _mix(*words: int) -> int:
    """Return a 64-bit hash of small integers (the finaliser of splitmix64)."""
    state = 0
    for word in words:
        state = (state + word + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ state >> 27) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state


@lru_cache(maxsize=8)
def class_counts(recipe: SyntheticRecipe) -> tuple[int, ...]:
    """Return the number of files in each declared class; they add up to `recipe.images`."""
    images, classes = recipe.images, len(recipe.class_names)
    if recipe.dataset == "chest_xray":
        normal = max(1, round(images / 4)) if images > 1 else 0
        return (normal, images - normal)
    if recipe.dataset == "vazios" or recipe.imbalance == "even":
        return tuple(images * (c + 1) // classes - images * c // classes for c in range(classes))
    ranks = [shuffled(c, classes, _mix(recipe.seed, 7)) for c in range(classes)]
    if images < classes:
        return tuple(int(rank < images) for rank in ranks)
    weights = [1.0 / (rank + 8) for rank in ranks]
    scale = (images - classes) / math.fsum(weights)
    shares = [weight * scale for weight in weights]
    counts = [1 + int(share) for share in shares]
    # The classes with the largest remainders get the images left over by rounding down.
    order = sorted(range(classes), key=lambda c: shares[c] - int(shares[c]), reverse=True)
    for c in order[: images - sum(counts)]:
        counts[c] += 1
    return tuple(counts)


@lru_cache(maxsize=8)
def _starts(recipe: SyntheticRecipe) -> tuple[int, ...]:
    return tuple(accumulate(class_counts(recipe), initial=0))


def _class_of(recipe: SyntheticRecipe, position: int) -> int:
    return bisect_right(_starts(recipe), position) - 1


def _index(recipe: SyntheticRecipe, position: int) -> int:
    """Return the number of a picture.

    A class starts at a multiple of five, so no patient has two classes.
    """
    if recipe.dataset == "chest_xray" and _class_of(recipe, position) == 1:
        return position + -_starts(recipe)[1] % 5
    return position


def _duplicates(recipe: SyntheticRecipe) -> int:
    return min(round(recipe.images * recipe.duplicates), recipe.images - 1)


def _source(recipe: SyntheticRecipe, position: int, duplicates: int) -> int:
    """Return the position of a duplicate's original: in its own folder, or sometimes in any."""
    starts = _starts(recipe)
    c = _class_of(recipe, position)
    low, high = starts[c], starts[c + 1]
    if _mix(recipe.seed, 8, position) % _STRAY_DUPLICATE == 0:
        low, high = 0, recipe.images
    for span, first in ((high - low, low), (recipe.images, 0)):
        draw = _mix(recipe.seed, 9, position)
        for step in range(span):
            source = first + (draw + step) % span
            if shuffled(source, recipe.images, _mix(recipe.seed, 1)) >= duplicates:
                return source
    raise AssertionError("duplicates never fill a dataset")


def _name(recipe: SyntheticRecipe, position: int) -> tuple[str, str]:
    """Return the key and the group of a file."""
    if recipe.unlabelled:
        number = shuffled(position, recipe.images, _mix(recipe.seed, 11))
        name = f"arrived-{recipe.seed}-{number:06d}"
        return f"arrived/{name}.jpg", name
    index = _index(recipe, position)
    label = recipe.class_names[_class_of(recipe, position)]
    if recipe.dataset == "vazios":
        return f"{label}/{index:06d}.jpg", f"{label}-{index:06d}"
    lot, number = lot_of(recipe.seed, index)
    if recipe.dataset == "ncm":
        return f"{label}/{index:06d}.jpg", f"{label}-lot{lot:06d}"
    if label == "NORMAL":
        return f"NORMAL/IM-{lot:04d}-{number:04d}.jpeg", f"IM-{lot:04d}"
    cause = ("bacteria", "virus")[_mix(recipe.seed, 10, lot) % 2]
    return f"PNEUMONIA/person{lot}_{cause}_{index}.jpeg", f"person{lot}"
