"""One Lance table: opened at a version, and changed by commits that happen exactly once.

Tasks write fragments (`write_fragments`) and return their metadata; the holder of the store's lease
commits them. A commit is a transaction with its own id. After an error, the id is searched among
the versions since, because a lost acknowledgement must not append rows twice.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import lance
import pyarrow as pa
from lance.commit import CommitConflictError
from lance.dataset import LanceOperation, Transaction
from lance.fragment import FragmentMetadata

from visao_ray.core.lease import LeaseLost
from visao_ray.core.object_store import storage_options
from visao_ray.core.storage import Location, is_outage, reason
from visao_ray.store import schemas

#: Lance's default is 6 GiB per process. Look-up actors use the larger cache.
INDEX_CACHE = 64 * 1024**2
LOOKUP_INDEX_CACHE = 512 * 1024**2
_METADATA_CACHE = 64 * 1024**2
#: Set for each table when it is created, so that no later release of Lance changes it.
_FILE_FORMAT: Literal["2.1"] = "2.1"

_BATCH_ROWS = 4096  # of a scan; a row of vectors has 8 kB
_IO_BUFFER = 64 * 1024**2
_MERGE_ROWS = 8192  # Lance joins a source of small batches in little memory, but not a whole table
_TRIES = 5  # attempts of a commit
_PAUSE_S = 1.0
_RETRIES = 12  # of one S3 request, about 20 s; Lance's 3 are too few for a restart of the server


@dataclass(frozen=True)
class TableVersion:
    """A table at one version: small, picklable and without secrets, so any task may get it.

    Attributes:
        uri: local path or s3://bucket/prefix of the table.
        version: number of the version, from 1.
    """

    uri: str
    version: int

    def open(self, index_cache: int = INDEX_CACHE) -> lance.LanceDataset:
        """Open the table at this version, with caches of limited size."""
        return _open(self.uri, self.version, index_cache)

    @property
    def schema(self) -> pa.Schema:
        """Schema of the table, with its description in the metadata."""
        return self.open().schema

    def count(self, where: str | None = None) -> int:
        """Count all rows, or those for which the SQL expression `where` holds."""
        return int(self.open().count_rows(where))

    def scan(
        self,
        columns: Sequence[str],
        where: str | None = None,
        batch_rows: int = _BATCH_ROWS,
    ) -> Iterator[pa.RecordBatch]:
        """Stream columns of the rows for which `where` holds, in physical order."""
        scanner = self.open().scanner(
            columns=list(columns),
            filter=where,
            batch_size=batch_rows,
            batch_readahead=4,
            fragment_readahead=2,
            io_buffer_size=_IO_BUFFER,
            scan_in_order=True,
        )
        yield from scanner.to_batches()

    def read(self, columns: Sequence[str], where: str | None = None) -> pa.Table:
        """Read columns of the rows for which `where` holds into memory."""
        kinds = self.schema
        schema = pa.schema([kinds.field(name).remove_metadata() for name in columns])
        batches = [
            pa.RecordBatch.from_arrays(list(batch.columns), schema=schema)
            for batch in self.scan(columns, where)
        ]
        return pa.Table.from_batches(batches, schema=schema)


class Table:
    """A table of a store, which may not exist yet.

    Args:
        location: folder of the table.
    """

    def __init__(self, location: Location) -> None:
        self.location = location

    @property
    def uri(self) -> str:
        """Address for Lance: a local path or an S3 URI."""
        return self.location.path if self.location.is_local else self.location.uri

    def exists(self) -> bool:
        """Whether it was created."""
        versions = self.location.join("_versions")
        if not versions.is_local:
            return versions.exists()
        # If a process is killed while it creates the table, folders without a version remain.
        return any(entry.name.endswith(".manifest") for entry in versions.children())

    def create(self, schema: pa.Schema) -> int:
        """Create the empty table unless it exists; return its version."""
        if self.exists():
            return self.latest().version
        dataset = lance.write_dataset(
            schema.empty_table(),
            self.uri,
            schema=schema,
            mode="create",
            data_storage_version=_FILE_FORMAT,
            storage_options=_options(self.uri),
        )
        return int(dataset.version)

    def latest(self) -> TableVersion:
        """Return the newest version."""
        return TableVersion(self.uri, int(_open(self.uri, None).version))

    def at(self, version: int | str) -> TableVersion:
        """Return the version with this number or tag."""
        return TableVersion(self.uri, int(_open(self.uri, version).version))

    def tags(self) -> dict[str, int]:
        """Return name and version of each tag."""
        found = _open(self.uri, None).tags.list()
        return {name: int(tag["version"]) for name, tag in found.items()}

    def tag(self, name: str, version: int) -> None:
        """Tag a version, so that clean-up keeps it; an existing tag of this name is not moved."""
        if name not in self.tags():
            _open(self.uri, None).tags.create(name, version)

    def untag(self, name: str) -> bool:
        """Remove a tag; return whether there was one."""
        if name not in self.tags():
            return False
        _open(self.uri, None).tags.delete(name)
        return True


def write_fragments(
    uri: str, schema: pa.Schema, rows: pa.Table, max_rows: int = 1024**2
) -> list[str]:
    """Write rows as fragments that are not part of a version yet; return their metadata as JSON.

    For tasks. Clean-up removes fragments that are never committed.
    """
    found = lance.fragment.write_fragments(
        rows.select(schema.names).cast(schema),
        uri,
        schema=schema,
        mode="append",
        max_rows_per_file=max_rows,
        data_storage_version=_FILE_FORMAT,
        storage_options=_options(uri),
    )
    return [json.dumps(fragment.to_json()) for fragment in found]


def append(at: TableVersion, fragments: Iterable[str]) -> TableVersion:
    """Commit fragments.

    Args:
        at: the version to start from.
        fragments: metadata of the fragments, as JSON.

    Returns:
        The new version, or `at` without fragments.

    Raises:
        LeaseLost: another process fenced the table since `at`.
    """
    metadata = [FragmentMetadata.from_json(fragment) for fragment in fragments]
    if not metadata:
        return at
    return commit(at, LanceOperation.Append(metadata))


def merge(
    at: TableVersion, rows: pa.RecordBatchReader | pa.Table, when: str | None = None
) -> tuple[TableVersion, int]:
    """Update rows of a table by its key column with the columns of `rows`; no row is added.

    Args:
        at: the version to start from; its schema declares the key.
        rows: the key column and the columns to update; each key at most once.
        when: SQL expression on `source.…` and `target.…` that restricts the update.

    Returns:
        The new version, and the number of updated rows.

    Raises:
        LeaseLost: another process changed the table since `at`.
    """
    builder = at.open().merge_insert(_key(at)).when_matched_update_all(when)
    if when is not None:
        builder.use_index(False)  # with an index and a condition, Lance treats the key as nullable
    return _execute_merge(at, builder, rows)


def insert_new(at: TableVersion, rows: pa.RecordBatchReader | pa.Table) -> tuple[TableVersion, int]:
    """Add the rows with new keys.

    Args:
        at: the version to start from; its schema declares the key.
        rows: the rows; each key at most once.

    Returns:
        The new version, and the number of added rows.

    Raises:
        LeaseLost: another process changed the table since `at`.
    """
    # For Lance, two inserts of the same key do not conflict if they are committed as transactions.
    # A fence between reading and committing does conflict.
    at = commit(at, _no_op(at))
    builder = at.open().merge_insert(_key(at)).when_not_matched_insert_all()
    return _execute_merge(at, builder, rows)


def delete(at: TableVersion, rows: Sequence[int]) -> TableVersion:
    """Delete rows by their row ids.

    Args:
        at: the version to start from.
        rows: row ids from a scan of this version.

    Returns:
        The new version, or `at` without rows.

    Raises:
        LeaseLost: another process changed the table since `at`.
    """
    by_fragment: dict[int, list[int]] = {}
    for row in rows:
        by_fragment.setdefault(row >> 32, []).append(row)
    fragments = {fragment.fragment_id: fragment for fragment in at.open().get_fragments()}
    changed, removed = [], []
    for number, part in by_fragment.items():
        remaining = fragments[number].delete(f"_rowid IN ({','.join(map(str, part))})")
        if remaining is None:
            removed.append(number)
        else:
            changed.append(remaining)
    return commit(at, LanceOperation.Delete(changed, removed, "by row id")) if by_fragment else at


def fence(at: TableVersion) -> TableVersion:
    """Commit an operation that changes nothing, so that commits from earlier versions fail.

    The operation replaces the table's fragments by themselves. Lance then refuses an append, an
    update, a deletion or a rewrite that started from an earlier version. This was found by
    measurement and is not documented; `tests/store/test_rules.py` fails if it no longer holds.
    """
    for attempt in range(_TRIES):
        found = TableVersion(at.uri, int(_open(at.uri, None).version))
        try:
            return commit(found, _no_op(found))
        except LeaseLost:  # a stale writer committed in between; after the fence it cannot
            if attempt == _TRIES - 1:
                raise
    raise AssertionError


def _no_op(at: TableVersion) -> LanceOperation.BaseOperation:
    dataset = at.open()
    fragments = [fragment.metadata for fragment in dataset.get_fragments()]
    return LanceOperation.Merge(fragments, dataset.lance_schema)


@contextmanager
def conflict_as_lease_lost(uri: str) -> Iterator[None]:
    """Raise `LeaseLost` if Lance refuses a commit because another process changed the table."""
    try:
        yield
    except (CommitConflictError, OSError) as error:
        if isinstance(error, CommitConflictError) or "commit conflict" in str(error):
            raise LeaseLost(f"{uri}: another writer changed the table: {reason(error)}") from error
        raise


def commit(at: TableVersion, operation: LanceOperation.BaseOperation) -> TableVersion:
    """Commit an operation that was prepared on a version, exactly once.

    Args:
        at: the version.
        operation: the operation.

    Returns:
        The new version.

    Raises:
        LeaseLost: it conflicts with a commit of another process since `at`.
        OSError: the object store kept failing.
    """
    return _commit_once(at, Transaction(at.version, operation))


def _commit_once(at: TableVersion, transaction: Transaction) -> TableVersion:
    failure: Exception | None = None
    for attempt in range(_TRIES):
        time.sleep(_PAUSE_S * max(0, attempt - 1))
        try:
            # The previous attempt may have succeeded although its response was an error or was
            # lost.
            found = _find(at, transaction.uuid) if failure is not None else None
            if found is not None:
                return found
            if isinstance(failure, CommitConflictError):
                break
            done = lance.LanceDataset.commit(at.uri, transaction, storage_options=_options(at.uri))
            return TableVersion(at.uri, int(done.version))
        except Exception as error:
            failure = error
    assert failure is not None
    with conflict_as_lease_lost(at.uri):
        raise failure


def _find(at: TableVersion, uuid: str) -> TableVersion | None:
    """Return the version after `at` that a transaction made, if any."""
    dataset = _open(at.uri, None)
    for version in range(at.version + 1, int(dataset.version) + 1):
        transaction = dataset.read_transaction(version)
        if transaction is not None and transaction.uuid == uuid:
            return TableVersion(at.uri, version)
    return None


def _execute_merge(
    at: TableVersion, builder: Any, rows: pa.RecordBatchReader | pa.Table
) -> tuple[TableVersion, int]:
    if isinstance(rows, pa.Table):
        rows = pa.RecordBatchReader.from_batches(
            rows.schema, iter(rows.to_batches(max_chunksize=_MERGE_ROWS))
        )
    transaction, counts = builder.conflict_retries(0).execute_uncommitted(rows)
    changed = int(counts["num_updated_rows"] + counts["num_inserted_rows"])
    if not changed:
        return at, 0
    return _commit_once(at, transaction), changed


def _key(at: TableVersion) -> str:
    (key,) = (
        field.name for field in at.schema if (field.metadata or {}).keys() & schemas.KEY_MARK.keys()
    )
    return str(key)


def _open(
    uri: str, version: int | str | None, index_cache: int = INDEX_CACHE
) -> lance.LanceDataset:
    try:
        return lance.dataset(
            uri,
            version=version,
            index_cache_size_bytes=index_cache,
            metadata_cache_size_bytes=_METADATA_CACHE,
            storage_options=_options(uri),
        )
    except ValueError as error:
        if is_outage(error):  # Lance reports an outage as a ValueError
            raise OSError(str(error)) from error
        raise


def _options(uri: str) -> dict[str, str] | None:
    if not uri.startswith("s3://"):
        return None
    return {**storage_options(), "client_max_retries": str(_RETRIES)}


def quoted(text: str) -> str:
    """Return a text as a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


def reason_of_lance(error: BaseException) -> str:
    """Return the first line of an error, without its position in Lance's source code."""
    text = re.sub(r"\.?,? /\S+\.rs:\d.*$", "", str(error), flags=re.MULTILINE)
    return reason(OSError(text.removeprefix("Invalid user input: ")))
