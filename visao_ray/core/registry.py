"""What can be chosen by name: the library's own, and what plugins add."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, TypeVar

from visao_ray.core import plugins
from visao_ray.core.errors import InputError


class Named(Protocol):
    """Something that is chosen by its name."""

    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)


class Registry(Mapping[str, T]):
    """Values by name, in the order in which they were registered.

    A look-up in a worker process of Ray first imports the plugins of the job.

    Args:
        noun: what one of them is, such as "metric".
        built_in: those of the library.
    """

    def __init__(self, noun: str, built_in: Iterable[T]) -> None:
        self._noun = noun
        self._values = {one.name: one for one in built_in}
        self.built_in = tuple(self._values)

    def register(self, value: T) -> None:
        """Add a value under its name.

        Raises:
            InputError: the name is taken.
        """
        if self._values.get(value.name, value) is not value:
            raise InputError(f"{self._noun} '{value.name}' exists already; choose another name")
        self._values[value.name] = value

    def find(self, name: str, flag: str) -> T:
        """The value of that name.

        Args:
            name: as on the command line.
            flag: that it was given to, which begins the message of an error.

        Raises:
            InputError: there is none; the message names those there are.
        """
        if name in self:
            return self[name]
        raise InputError(
            f"{flag} {name}: unknown {self._noun}; there are {', '.join(self)}, and what a "
            "--plugin FILE.py registers"
        )

    def __getitem__(self, name: str) -> T:
        plugins.load_listed()
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        plugins.load_listed()
        return iter(tuple(self._values))

    def __len__(self) -> int:
        plugins.load_listed()
        return len(self._values)
