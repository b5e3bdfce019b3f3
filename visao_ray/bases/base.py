"""The three bases: their classes, the class that must not be missed, and what belongs together."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from visao_ray.errors import InputError


@dataclass(frozen=True)
class Base:
    """An image base.

    Attributes:
        name: as people say it.
        classes: class folders in index order; empty when `class_pattern` tells them.
        class_pattern: what a class folder looks like where the list is open (ncm).
        positive: the class whose recall matters most, or None.
        group_pattern: what of a file's name says which patient or container it shows; a file it
            does not fit is a group of its own.
        chapter_digits: how many first digits of a class make its chapter; 0 where there are none.
    """

    name: str
    classes: tuple[str, ...]
    class_pattern: str
    positive: str | None
    group_pattern: str | None
    chapter_digits: int = 0

    def group(self, key: str) -> str:
        """The patient or container that an image shows, from its key.

        The file's stem where no rule fits, so that the same scan under two folders is one group.
        """
        stem = key.rsplit("/", 1)[-1].rsplit(".", 1)[0]
        if self.group_pattern:
            match = re.match(self.group_pattern, stem)
            if match:
                return match.group(0)
        return stem

    def has_class(self, label: str) -> bool:
        """Whether a label is one of this base's, or looks like one where the list is open."""
        return label in self.classes or bool(
            self.class_pattern and re.fullmatch(self.class_pattern, label)
        )

    def check_classes(self, found: list[str], where: str) -> tuple[str, ...]:
        """The classes in index order, if the folders found fit this base.

        Raises:
            InputError: a folder is missing or does not belong; the message names it.
        """
        if self.classes:
            missing = [name for name in self.classes if name not in found]
            strange = [name for name in found if name not in self.classes]
            expected = ", ".join(self.classes)
            if missing and not found:
                raise InputError(f"{where}: no class folders; {self.name} expects {expected}")
            if missing or strange:
                told = [f"missing {', '.join(missing)}"] if missing else []
                told += [f"unexpected {', '.join(strange[:5])}"] if strange else []
                raise InputError(
                    f"{where}: the folders do not fit base {self.name} ({'; '.join(told)}); it "
                    f"expects {expected}. Rename them, or pass --ignore FOLDER"
                )
            return self.classes
        strange = [name for name in found if not re.fullmatch(self.class_pattern, name)]
        if strange:
            raise InputError(
                f"{where}: folder '{strange[0]}' is no class of base {self.name} (4-digit "
                "headings such as 8703). Rename it, or pass --ignore FOLDER"
            )
        if len(found) < 2:
            raise InputError(f"{where}: at least two class folders are needed, found {len(found)}")
        return tuple(sorted(found))


#: The bases of the 2019 study. Folder names and class order are the study's.
BASES: Mapping[str, Base] = MappingProxyType(
    {
        base.name: base
        for base in (
            Base(
                name="chest_xray",
                classes=("NORMAL", "PNEUMONIA"),
                class_pattern="",
                positive="PNEUMONIA",
                group_pattern=r"person\d+|(?:NORMAL2-)?IM-\d+",
            ),
            Base(
                name="vazios",
                classes=("nvazio", "vazio"),
                class_pattern="",
                positive="nvazio",
                group_pattern=None,
            ),
            Base(
                name="ncm",
                classes=(),
                class_pattern=r"\d{4}",
                positive=None,
                group_pattern=None,
                chapter_digits=2,
            ),
        )
    }
)
