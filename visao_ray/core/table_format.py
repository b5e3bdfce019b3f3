"""The name and format version that a table states in the metadata of its schema."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from visao_ray.core.errors import InputError

_NAME = b"visao_ray.table"


@dataclass(frozen=True)
class TableFormat:
    """The format of a kind of tables.

    Attributes:
        noun: what the version is called in messages and in the metadata.
        version: the version that this code reads and writes.
        advice: what to do about a table of another version.
    """

    noun: str
    version: str
    advice: str

    def metadata(self, name: str) -> dict[bytes, bytes]:
        """Return the metadata of the schema of a table."""
        return {_NAME: name.encode(), self._key: self.version.encode()}

    def validate(self, schema: pa.Schema, name: str, where: str) -> None:
        """Check that a schema belongs to a table, in the version that this code writes.

        Args:
            schema: the schema.
            name: expected name of the table.
            where: location of the table, for the error message.

        Raises:
            InputError: it does not; the message says which table or version it is instead.
        """
        metadata = schema.metadata or {}
        found = metadata.get(_NAME, b"none of visao_ray's").decode()
        if found != name:
            raise InputError(f"{where}: a table '{name}' is needed, but this one is '{found}'")
        version = metadata.get(self._key, b"?").decode()
        if version != self.version:
            raise InputError(
                f"{where}: table '{name}' has {self.noun} {version}, this program reads "
                f"{self.version}; {self.advice}"
            )

    @property
    def _key(self) -> bytes:
        return f"visao_ray.{self.noun}".encode()
