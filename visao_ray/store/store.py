"""The store of a dataset: its tables, and the writer that may change them.

    STORE/store.json                         the dataset, the seed and the shares of the splits
    STORE/images.lance                       one row per file
    STORE/groups.lance                       one row per group, with its split
    STORE/verdicts.lance                     decisions of people
    STORE/vectors/EXTRACTOR/RECIPE.lance     one row per content and view
    STORE/predictions/MODEL.lance            one row per content
    STORE/copies/NAME.lance                  one row per augmented copy
    STORE/indexes/NAME.lance                 one row per content: a vector, columns to filter by
    STORE/lease                              the current writer

Any process may read a version at any time. Writers take the store's lease: see `Store.writing`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from visao_ray.core.errors import InputError
from visao_ray.core.lease import Lease, Owner, require_conditional_puts
from visao_ray.core.storage import Location, locate, reason
from visao_ray.store import maintenance, schemas, table
from visao_ray.store.maintenance import KEEP, Cleaned
from visao_ray.store.table import Table, TableVersion

_SUFFIX = ".lance"
#: The recipe of unaugmented images.
PLAIN = "none"
#: First parts of the names of tables of results: one row per content and view.
RESULTS = ("vectors/", "predictions/")

#: Columns of each table that are searched by value and that no update changes.
_INDEXED = {"images": ("key", "content_id"), "groups": ("group",)}
_RESULTS_INDEXED = ("content_id",)


@dataclass(frozen=True)
class Description:
    """Description of a store; fixed when it is created.

    Attributes:
        dataset: fields of the dataset, as JSON.
        seed: seed of the splits.
        val_share: share of val among the groups without a split in folders or labels.
        test_share: share of test among them.
        created: time of creation, in UTC.
    """

    dataset: Mapping[str, Any]
    seed: int
    val_share: float
    test_share: float
    created: str = ""


class Store:
    """An existing store, for reading.

    Args:
        location: its folder or prefix.
        description: its description.
    """

    def __init__(self, location: Location, description: Description) -> None:
        self.location = location
        self.description = description

    @classmethod
    def open(cls, uri: str) -> Store:
        """Open a store.

        Args:
            uri: URI of the store.

        Returns:
            The store.

        Raises:
            InputError: there is none, or it has another format.
        """
        found = cls.find(uri)
        if found is None:
            raise InputError(
                f"--store {uri}: there is no store (no store.json); create one with "
                "jobs/extract.py --data … --store …"
            )
        return found

    @classmethod
    def find(cls, uri: str) -> Store | None:
        """Open a store if it exists.

        Args:
            uri: URI of the store.

        Returns:
            The store; None if there is none yet.

        Raises:
            InputError: it has another format, or cannot be read.
        """
        location = locate(uri)
        file = location.join("store.json")
        try:
            if not file.exists():
                return None
            content = json.loads(file.read_bytes())
        except (OSError, ValueError) as error:
            raise InputError(f"--store {uri}: cannot be read: {reason(error)}") from error
        if content.get("format") != schemas.FORMAT:
            raise InputError(
                f"--store {uri}: has format {content.get('format')}, this program reads "
                f"{schemas.FORMAT}; use the release of visao_ray that made it"
            )
        del content["format"]
        return cls(location, Description(**content))

    @property
    def uri(self) -> str:
        """URI of the store."""
        return self.location.uri

    @property
    def images(self) -> Table:
        """The table of files."""
        return self._table("images")

    @property
    def groups(self) -> Table:
        """The table of groups."""
        return self._table("groups")

    @property
    def verdicts(self) -> Table:
        """The table of decisions of people."""
        return self._table("verdicts")

    def vectors(self, extractor: str, recipe: str = PLAIN) -> Table:
        """Return the vectors of an extractor, of unaugmented images or of an augmentation recipe.

        The table may not exist yet.
        """
        return self._table("vectors", extractor, recipe)

    def predictions(self, model: str) -> Table:
        """Return the predictions of a model; the table may not exist yet."""
        return self._table("predictions", model)

    def copies(self, name: str) -> Table:
        """Return the table of the augmented copies of a name; the table may not exist yet."""
        return self._table("copies", name)

    def index(self, name: str) -> Table:
        """Return the search index of a name; the table may not exist yet."""
        return self._table("indexes", name)

    def indexes(self) -> list[str]:
        """Return the names of the search indexes."""
        return [name.removesuffix(_SUFFIX) for name in self._below("indexes")]

    def extractors(self) -> dict[str, list[str]]:
        """Return the extractors that have vectors, with the recipes of each."""
        found = {}
        for name in self._below("vectors"):
            recipes = [entry.removesuffix(_SUFFIX) for entry in self._below("vectors", name)]
            if recipes:
                found[name] = recipes
        return found

    def the_extractor(self, wanted: str | None) -> str:
        """Return the wanted extractor, or the only one of the store.

        Args:
            wanted: name of the extractor; None: the only one.

        Returns:
            The name of the extractor.

        Raises:
            InputError: no such extractor, none at all, or more than one to choose from.
        """
        names = list(self.extractors())
        if wanted is not None:
            if wanted in names:
                return wanted
            raise InputError(
                f"--extractor {wanted}: {self.uri} has {', '.join(names) or 'no vectors'}"
            )
        if not names:
            raise InputError(
                f"--store {self.uri}: has no vectors yet; jobs/extract.py --data … --store "
                f"{self.uri} creates them"
            )
        if len(names) > 1:
            raise InputError(
                f"--store {self.uri}: has vectors of {', '.join(names)}; choose one with "
                "--extractor"
            )
        return names[0]

    def models(self) -> list[str]:
        """Return the models that have predictions."""
        return [name.removesuffix(_SUFFIX) for name in self._below("predictions")]

    def tables(self) -> dict[str, Table]:
        """Return every existing table by its name below the store."""
        found = {name: self._table(name) for name in ("images", "groups", "verdicts")}
        for extractor, recipes in self.extractors().items():
            for recipe in recipes:
                found[f"vectors/{extractor}/{recipe}"] = self.vectors(extractor, recipe)
        for model in self.models():
            found[f"predictions/{model}"] = self.predictions(model)
        for name in self.indexes():
            found[f"indexes/{name}"] = self.index(name)
        for entry in self._below("copies"):
            if entry.endswith(_SUFFIX):
                name = entry.removesuffix(_SUFFIX)
                found[f"copies/{name}"] = self.copies(name)
        return {name: each for name, each in found.items() if each.exists()}

    @contextmanager
    def writing(
        self,
        owner: Owner,
        say: Callable[[str], None] | None = None,
        dead: Owner | None = None,
    ) -> Iterator[Writer]:
        """Take the store's lease and fence its tables against stale writers.

        Args:
            owner: this process.
            say: function that prints one line.
            dead: see `Lease`.

        Yields:
            The writer; the lease is released at the end of the block.

        Raises:
            InputError: another process holds the lease, or the server ignores conditional puts.
        """
        require_conditional_puts(self.location)
        with Lease(self.location.join("lease"), owner, say=say, dead=dead) as lease:
            yield Writer(self, lease)

    def _table(self, *parts: str) -> Table:
        return Table(self.location.join(*parts[:-1], parts[-1] + _SUFFIX))

    def _below(self, *parts: str) -> list[str]:
        return [entry.name for entry in self.location.join(*parts).children() if entry.is_folder]


def name_of(table: TableVersion, store: str) -> str:
    """Return the name of a table below its store, as in `Store.tables`."""
    return table.uri.removeprefix(store).strip("/").removesuffix(_SUFFIX)


@contextmanager
def create_or_open(
    uri: str,
    description: Description,
    owner: Owner,
    say: Callable[[str], None] | None = None,
    dead: Owner | None = None,
) -> Iterator[Writer]:
    """Open a store for writing; create it first if it does not exist.

    Args:
        uri: URI of the store.
        description: description of a new store.
        owner: this process.
        say: function that prints one line.
        dead: see `Lease`.

    Yields:
        The writer; the lease is released at the end of the block.

    Raises:
        InputError: as `Store.writing`, or the store exists and is for another dataset.
    """
    location = locate(uri)
    require_conditional_puts(location)
    with Lease(location.join("lease"), owner, say=say, dead=dead) as lease:
        store = Store.find(uri)
        if store is None:
            created = datetime.now(UTC).isoformat(timespec="seconds")
            content = {**asdict(description), "created": created, "format": schemas.FORMAT}
            location.join("store.json").write_bytes(
                (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
            )
            store = Store.open(uri)
        elif dict(store.description.dataset) != dict(description.dataset):
            raise InputError(
                f"--store {uri}: is for dataset {store.description.dataset['name']}, as described "
                "when it was created; leave --dataset out, or choose another --store"
            )
        yield Writer(store, lease)


class Writer:
    """Writer of a store: this process holds the lease, and every change of a table is made here.

    The writer continues from the versions that it made itself. If it continued from the newest
    version, it would not notice that another process has taken the lease.

    Args:
        store: the store.
        lease: the lease, which is held.
    """

    def __init__(self, store: Store, lease: Lease) -> None:
        self.store = store
        self._lease = lease
        self._versions: dict[str, TableVersion] = {}
        for found in store.tables().values():
            self._versions[found.uri] = table.fence(found.latest())

    def check(self) -> None:
        """Raise LeaseLost if another process may hold the lease now."""
        self._lease.check()

    def version(self, of: Table) -> TableVersion:
        """Return the newest version of a table that this writer knows."""
        return self._versions[of.uri]

    def ensure(self, of: Table, schema: pa.Schema) -> TableVersion:
        """Create a table unless it exists.

        Args:
            of: the table.
            schema: its schema.

        Returns:
            Its newest version.

        Raises:
            InputError: it exists with other columns.
        """
        if of.uri not in self._versions:
            self.check()
            # A stale writer may have created it since this writer started.
            self._versions[of.uri] = table.fence(TableVersion(of.uri, of.create(schema)))
        found = self._versions[of.uri]
        if found.schema.names != schema.names:
            raise InputError(
                f"{of.uri}: has the columns {', '.join(found.schema.names)}, expected "
                f"{', '.join(schema.names)}"
            )
        return found

    def append(self, to: Table, fragments: Sequence[str]) -> None:
        """Commit fragments that tasks wrote; `fragments` holds their metadata as JSON."""
        self.check()
        self._versions[to.uri] = table.append(self.version(to), fragments)

    def merge(
        self, into: Table, rows: pa.RecordBatchReader | pa.Table, when: str | None = None
    ) -> int:
        """Update rows by the table's key and return their number; see `table.merge`."""
        self.check()
        self._versions[into.uri], changed = table.merge(self.version(into), rows, when)
        return changed

    def insert_new(self, into: Table, rows: pa.RecordBatchReader | pa.Table) -> int:
        """Add rows with new keys and return their number."""
        self.check()
        self._versions[into.uri], added = table.insert_new(self.version(into), rows)
        return added

    def moved(self, of: Table, to: TableVersion) -> None:
        """Continue from a version that a task of this writer made."""
        self._versions[of.uri] = to

    def maintain(self, keep: timedelta = KEEP, at_least: int | None = None) -> dict[str, Cleaned]:
        """Compact and index every table, then remove old versions and unused files; in tasks.

        Also removes the work folders of killed runs below the store. No uncommitted fragments may
        exist, because they would be removed.

        Args:
            keep: age from which on versions without a tag are removed.
            at_least: see `maintenance.compact`.

        Returns:
            What was removed, by table.
        """
        import ray

        from visao_ray.core.resources import current_cluster

        def work(at: TableVersion, columns: Sequence[str]) -> tuple[TableVersion, Cleaned]:
            after = maintenance.index(maintenance.compact(at, at_least), columns)
            return after, maintenance.clean(after, keep)

        task = ray.remote(work).options(max_retries=0, **current_cluster().zero_cpu_options)
        cleaned = {}
        for name, found in self.store.tables().items():
            self.check()
            columns = _INDEXED.get(name, () if name == "verdicts" else _RESULTS_INDEXED)
            after, cleaned[name] = ray.get(task.remote(self.version(found), columns))
            self.moved(found, after)
        maintenance.remove_abandoned(self.store.location.join("runs"))
        return cleaned
