"""The description of a dataset: its classes, its positive class, and its groups."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from visao_ray.core.errors import InputError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Dataset:
    """Description of an image dataset: small, frozen and picklable.

    Attributes:
        name: letters, digits, `_`, `-` and `.`.
        classes: class names in index order; empty if `class_pattern` describes them.
        class_pattern: regular expression that a whole class name matches, for an open list of
            classes.
        positive: the class whose recall matters most, or None.
        group_pattern: regular expression that matches the patient or container of the image at the
            start of the file's stem. A file that does not match is a group of its own.
        chapter_digits: number of leading characters of a class name that name its chapter; 0 for
            no chapters.

    Raises:
        InputError: the fields contradict each other; the message names key, value and fix.
    """

    name: str
    classes: tuple[str, ...] = ()
    class_pattern: str | None = None
    positive: str | None = None
    group_pattern: str | None = None
    chapter_digits: int = 0

    def __post_init__(self) -> None:
        for key in ("name", "class_pattern", "positive", "group_pattern"):
            _check_text(key, getattr(self, key), optional=key != "name")
        if not re.fullmatch(r"[\w.-]+", self.name):
            raise _wrong("name", self.name, "use letters, digits, '_', '-' and '.'")
        if type(self.chapter_digits) is not int or self.chapter_digits < 0:
            raise _wrong("chapter_digits", self.chapter_digits, "write a whole number from 0")
        for key in ("class_pattern", "group_pattern"):
            _check_pattern(key, getattr(self, key))
        self._check_classes_field()
        if self.positive is not None and not self.has_class(self.positive):
            known = ", ".join(self.classes) or f"names that match {self.class_pattern}"
            raise _wrong("positive", self.positive, f"it is not one of the classes ({known})")

    def _check_classes_field(self) -> None:
        names = self.classes
        if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names):
            raise _wrong("classes", names, 'write a list of strings such as ["empty", "full"]')
        if bool(names) == bool(self.class_pattern):
            have = "are both given" if names else "are both missing"
            raise InputError(
                f"keys 'classes' and 'class_pattern' {have}: give classes = [...], or "
                "class_pattern = '...' for an open list of classes"
            )
        if not names:
            return
        for place, name in enumerate(names):
            if name in names[:place]:
                raise _wrong("classes", name, "it appears twice; remove one")
            if not name or "/" in name or name in SPLITS:
                raise _wrong(
                    "classes", name, "use the name of the class folder, not train, val or test"
                )
        if len(names) < 2:
            raise _wrong("classes", list(names), "at least two classes are needed")

    def group_of(self, key: str) -> str:
        """Return the patient or container that an image shows, from its key.

        If no rule matches, this is the file's stem, so the same scan in two folders is one group.

        Args:
            key: path or URI of the image.

        Returns:
            The name of the group.
        """
        stem = key.rsplit("/", 1)[-1].rsplit(".", 1)[0]
        match = re.match(self.group_pattern, stem) if self.group_pattern else None
        return (match.group(0) if match else "") or stem

    def has_class(self, label: str) -> bool:
        """Return whether a label is a class, or matches the pattern of an open list of classes."""
        if self.class_pattern:
            return re.fullmatch(self.class_pattern, label) is not None
        return label in self.classes

    def positive_among(self, classes: Sequence[str]) -> str | None:
        """Return the positive class if it is one of `classes`, else None."""
        return self.positive if self.positive in classes else None

    def check_classes(self, found: list[str], where: str) -> tuple[str, ...]:
        """Check that the class folders found are those of this dataset.

        Args:
            found: names of folders.
            where: start of an error message.

        Returns:
            The classes in index order.

        Raises:
            InputError: a folder is missing or unexpected; the message names it.
        """
        strange = [name for name in found if not self.has_class(name)]
        if self.classes:
            missing = [name for name in self.classes if name not in found]
            expected = ", ".join(self.classes)
            if missing and not found:
                raise InputError(f"{where}: no class folders; {self.name} expects {expected}")
            if missing or strange:
                wrong = [f"missing {', '.join(missing)}"] if missing else []
                wrong += [f"unexpected {', '.join(strange[:5])}"] if strange else []
                raise InputError(
                    f"{where}: the folders do not fit dataset {self.name} ({'; '.join(wrong)}); it "
                    f"expects {expected}. Rename them, or pass --ignore FOLDER"
                )
            return self.classes
        if strange:
            raise InputError(
                f"{where}: folder '{strange[0]}' is no class of dataset {self.name}; its classes "
                f"match {self.class_pattern}. Rename it, or pass --ignore FOLDER"
            )
        if len(found) < 2:
            raise InputError(f"{where}: at least two class folders are needed, found {len(found)}")
        return tuple(sorted(found))

    def to_json(self) -> dict[str, Any]:
        """Return all fields as JSON values; `from_json` restores the same dataset."""
        return {**asdict(self), "classes": list(self.classes)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Dataset:
        """Build a dataset from its fields.

        Args:
            values: fields from `to_json` or a TOML file.

        Returns:
            The dataset.

        Raises:
            InputError: a key is unknown or a value is wrong; the message names key, value and fix.
        """
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                fix = f"did you mean '{close[0]}'?" if close else f"the keys are {', '.join(known)}"
                raise InputError(f"unknown key '{key}': {fix}")
        classes = values.get("classes", ())
        return cls(**{**values, "classes": tuple(classes) if type(classes) is list else classes})


def _check_text(key: str, value: object, optional: bool) -> None:
    if not isinstance(value, str) and not (optional and value is None):
        raise _wrong(key, value, "write a text in quotes")


def _check_pattern(key: str, pattern: str | None) -> None:
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise _wrong(key, pattern, f"not a regular expression: {error}") from None


def _wrong(key: str, value: object, fix: str) -> InputError:
    return InputError(f"key '{key}', value {value!r}: {fix}")
