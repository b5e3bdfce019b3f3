"""One Lance table: opened at a version, and changed by commits that happen exactly once.

Tasks write fragments (`write_fragments`) and hand back their metadata; whoever holds the store's
lease commits them. A commit is a transaction with an id of its own: after an error it is looked for
among the versions since, because an acknowledgement that is lost must not append rows twice.
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

#: Lance's own default is 6 GiB a process. Look-up actors take the larger one.
INDEX_CACHE = 64 * 1024**2
LOOKUP_INDEX_CACHE = 512 * 1024**2
_METADATA_CACHE = 64 * 1024**2
#: Written into each table when it is created, so that no later release of Lance changes it.
_FILE_FORMAT: Literal["2.1"] = "2.1"

_BATCH_ROWS = 4096  # of a scan; a row of vectors has 8 kB
_IO_BUFFER = 64 * 1024**2
_MERGE_ROWS = 8192  # Lance joins a source of small batches in little memory, a whole table not
_TRIES = 5  # to see a commit through
_PAUSE_S = 1.0
_RETRIES = 12  # of one S3 request: some 20 s; with Lance's 3 a server that restarts fails the job


@dataclass(frozen=True)
class TableVersion:
    """A table at one version: small, picklable and without secrets, so it may go to any task.

    Attributes:
        uri: of the table, a local path or s3://bucket/prefix.
        version: of the table, from 1.
    """

    uri: str
    version: int

    def open(self, index_cache: int = INDEX_CACHE) -> lance.LanceDataset:
        """The table at this version, with bounded caches."""
        return _open(self.uri, self.version, index_cache)

    @property
    def schema(self) -> pa.Schema:
        """Its columns, with what made it in the metadata."""
        return self.open().schema

    def count(self, where: str | None = None) -> int:
        """Rows there are, or those for which the SQL expression `where` holds."""
        return int(self.open().count_rows(where))

    def scan(
        self,
        columns: Sequence[str],
        where: str | None = None,
        batch_rows: int = _BATCH_ROWS,
    ) -> Iterator[pa.RecordBatch]:
        """Stream columns of the rows for which `where` holds, in the order they lie there."""
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
        """Columns of rows in memory."""
        kinds = self.schema
        schema = pa.schema([kinds.field(name).remove_metadata() for name in columns])
        batches = [
            pa.RecordBatch.from_arrays(list(batch.columns), schema=schema)
            for batch in self.scan(columns, where)
        ]
        return pa.Table.from_batches(batches, schema=schema)


class Table:
    """A table of a store, at its place.

    Args:
        location: folder of the table.
    """

    def __init__(self, location: Location) -> None:
        self.location = location

    @property
    def uri(self) -> str:
        """As Lance takes it."""
        return self.location.path if self.location.is_local else self.location.uri

    def exists(self) -> bool:
        """Whether it was created."""
        versions = self.location.join("_versions")
        if not versions.is_local:
            return versions.exists()
        # A kill in the middle of its creation leaves folders without a version.
        return any(entry.name.endswith(".manifest") for entry in versions.children())

    def create(self, schema: pa.Schema) -> int:
        """Create the empty table unless it exists; returns its version."""
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
        """The newest version there is."""
        return TableVersion(self.uri, int(_open(self.uri, None).version))

    def at(self, version: int | str) -> TableVersion:
        """The version of that number or tag."""
        return TableVersion(self.uri, int(_open(self.uri, version).version))

    def tags(self) -> dict[str, int]:
        """Name and version of each tag."""
        found = _open(self.uri, None).tags.list()
        return {name: int(tag["version"]) for name, tag in found.items()}

    def tag(self, name: str, version: int) -> None:
        """Keep a version from clean-up under a name; an existing tag of that name stays."""
        if name not in self.tags():
            _open(self.uri, None).tags.create(name, version)

    def untag(self, name: str) -> bool:
        """Remove a tag; returns whether there was one."""
        if name not in self.tags():
            return False
        _open(self.uri, None).tags.delete(name)
        return True


def write_fragments(
    uri: str, schema: pa.Schema, rows: pa.Table, max_rows: int = 1024**2
) -> list[str]:
    """Write rows as files of a table that no version names yet; returns their metadata as JSON.

    Runs in tasks. Files that are never committed are removed by clean-up.
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
    """Commit fragments on top of a version.

    Raises:
        LeaseLost: somebody fenced the table since `at`.
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
        rows: the key column and those to update, every key at most once.
        when: SQL expression on `source.…` and `target.…` that restricts the update.

    Returns:
        The new version, and how many rows were updated.

    Raises:
        LeaseLost: somebody else changed the table since `at`.
    """
    builder = at.open().merge_insert(_key(at)).when_matched_update_all(when)
    if when is not None:
        builder.use_index(False)  # with both, Lance takes the key for one that may be null
    return _merged(at, builder, rows)


def insert_new(at: TableVersion, rows: pa.RecordBatchReader | pa.Table) -> tuple[TableVersion, int]:
    """Add the rows whose keys are not there yet; returns the new version and how many those were.

    Raises:
        LeaseLost: somebody else changed the table since `at`.
    """
    # Two inserts of one key do not conflict for Lance where they are committed as transactions; a
    # fence between reading and committing does.
    at = commit(at, _nothing(at))
    builder = at.open().merge_insert(_key(at)).when_not_matched_insert_all()
    return _merged(at, builder, rows)


def delete(at: TableVersion, rows: Sequence[int]) -> TableVersion:
    """Delete rows by their numbers, as a scan with row ids of this version gives them.

    Raises:
        LeaseLost: somebody else changed the table since `at`.
    """
    by_fragment: dict[int, list[int]] = {}
    for row in rows:
        by_fragment.setdefault(row >> 32, []).append(row)
    fragments = {fragment.fragment_id: fragment for fragment in at.open().get_fragments()}
    changed, gone = [], []
    for number, part in by_fragment.items():
        left = fragments[number].delete(f"_rowid IN ({','.join(map(str, part))})")
        if left is None:
            gone.append(number)
        else:
            changed.append(left)
    return commit(at, LanceOperation.Delete(changed, gone, "by row id")) if by_fragment else at


def fence(at: TableVersion) -> TableVersion:
    """Make commits of whoever started from an earlier version fail: a change of nothing.

    It puts the table's own fragments in the place of its fragments, so that Lance refuses an
    append, an update, a deletion or a rewrite that was begun before. That is measured, not
    documented; `tests/store/test_rules.py` says when it no longer holds.
    """
    for attempt in range(_TRIES):
        found = TableVersion(at.uri, int(_open(at.uri, None).version))
        try:
            return commit(found, _nothing(found))
        except LeaseLost:  # a stale writer committed in between; after the fence it cannot
            if attempt == _TRIES - 1:
                raise
    raise AssertionError


def _nothing(at: TableVersion) -> LanceOperation.BaseOperation:
    dataset = at.open()
    fragments = [fragment.metadata for fragment in dataset.get_fragments()]
    return LanceOperation.Merge(fragments, dataset.lance_schema)


@contextmanager
def refusals(uri: str) -> Iterator[None]:
    """Say that the lease is lost where Lance refuses a commit of its own making.

    Raises:
        LeaseLost: somebody else changed the table since.
    """
    try:
        yield
    except (CommitConflictError, OSError) as error:
        if isinstance(error, CommitConflictError) or "commit conflict" in str(error):
            raise LeaseLost(f"{uri}: another writer changed the table: {reason(error)}") from error
        raise


def commit(at: TableVersion, operation: LanceOperation.BaseOperation) -> TableVersion:
    """Commit an operation that was prepared on `at`, exactly once.

    Raises:
        LeaseLost: it conflicts with what somebody else committed since.
        OSError: the store kept failing.
    """
    return _see_through(at, Transaction(at.version, operation))


def _see_through(at: TableVersion, transaction: Transaction) -> TableVersion:
    failure: Exception | None = None
    for attempt in range(_TRIES):
        time.sleep(_PAUSE_S * max(0, attempt - 1))
        try:
            # The attempt before may have taken effect although its answer said otherwise, or none
            # came.
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
    with refusals(at.uri):
        raise failure


def _find(at: TableVersion, uuid: str) -> TableVersion | None:
    """The version that a transaction made after `at`, if any."""
    dataset = _open(at.uri, None)
    for version in range(at.version + 1, int(dataset.version) + 1):
        transaction = dataset.read_transaction(version)
        if transaction is not None and transaction.uuid == uuid:
            return TableVersion(at.uri, version)
    return None


def _merged(
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
    return _see_through(at, transaction), changed


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
        if is_outage(error):  # Lance calls it a wrong value
            raise OSError(str(error)) from error
        raise


def _options(uri: str) -> dict[str, str] | None:
    if not uri.startswith("s3://"):
        return None
    return {**storage_options(), "client_max_retries": str(_RETRIES)}


def quoted(text: str) -> str:
    """A text as a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"


def reason_of_lance(error: BaseException) -> str:
    """The first line of an error, without the place in Lance's own source where it was raised."""
    text = re.sub(r"\.?,? /\S+\.rs:\d.*$", "", str(error), flags=re.MULTILINE)
    return reason(OSError(text.removeprefix("Invalid user input: ")))
