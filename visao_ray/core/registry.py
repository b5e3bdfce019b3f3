"""Registries of values that are chosen by name: built-in ones and those that plugins add."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, TypeVar

from visao_ray.core import plugins
from visao_ray.core.errors import InputError


class Named(Protocol):
    """A value that has a name."""

    @property
    def name(self) -> str:
        """The name in the registry."""


T = TypeVar("T", bound=Named)


class Registry(Mapping[str, T]):
    """Values by name, in the order of registration.

    In a worker process of Ray, a look-up first imports the plugins of the job.

    Args:
        noun: what a value is, such as "metric"; for messages.
        built_in: values of the library.
    """

    def __init__(self, noun: str, built_in: Iterable[T]) -> None:
        self._noun = noun
        self._values = {one.name: one for one in built_in}
        self.built_in = tuple(self._values)

    def register(self, value: T) -> None:
        """Add a value under its name.

        Args:
            value: the value; registering the same object again does nothing.

        Raises:
            InputError: the name is taken.
        """
        if self._values.get(value.name, value) is not value:
            raise InputError(f"{self._noun} '{value.name}' exists already; choose another name")
        self._values[value.name] = value

    def find(self, name: str, flag: str) -> T:
        """Return the value of a name from the command line.

        Args:
            name: the name.
            flag: the flag that has this name, for the error message.

        Returns:
            The value.

        Raises:
            InputError: there is no such value; the message lists the known names.
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
