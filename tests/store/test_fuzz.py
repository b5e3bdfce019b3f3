"""After random operations of a writer, a table has the same content as a dictionary."""

import random
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from lance_tables import group_rows

from visao_ray.core.lease import LeaseLost, Owner
from visao_ray.store import maintenance, schemas, table
from visao_ray.store.store import Description, Store, create_or_open
from visao_ray.store.table import TableVersion, write_fragments

SEEDS = 20
OPERATIONS = 100
KEYS = 400
SPLITS = ("train", "val", "test")

#: Relative frequency of each operation.
WEIGHTS = {
    "append": 30,
    "insert": 12,
    "update": 16,
    "update_some": 6,
    "delete": 8,
    "orphan": 4,
    "tag": 3,
    "untag": 2,
    "compact": 5,
    "index": 5,
    "clean": 4,
    "reopen": 3,
    "stale": 4,
}


class Fuzz:
    """A table of groups with random changes, and the dictionary that it must equal."""

    def __init__(self, place: Path, description: Description, seed: int) -> None:
        self.dice = random.Random(seed)
        self.place, self.description = str(place), description
        self.expected: dict[str, str] = {}
        self.tagged: dict[str, dict[str, str]] = {}
        self.counts: dict[str, int] = {}
        self._leave: Callable[..., object] = lambda *_: None
        self.reopen()

    def reopen(self) -> None:
        """Let another writer take the store over, and continue with that writer."""
        self._leave(None, None, None)
        opened = create_or_open(self.place, self.description, Owner.here("fuzz", "run"))
        self.writer = opened.__enter__()
        self._leave = opened.__exit__
        self.groups = self.writer.store.groups
        self.writer.ensure(self.groups, schemas.GROUPS)

    @property
    def at(self) -> TableVersion:
        return self.writer.version(self.groups)

    def keys(self, count: int, known: bool | None = None) -> list[str]:
        """Draw at most `count` different keys: existing ones, new ones, or any."""
        pool = sorted(self.expected) if known else [f"g{number:03}" for number in range(KEYS)]
        if known is False:
            pool = [key for key in pool if key not in self.expected]
        return self.dice.sample(pool, min(count, len(pool)))

    def rows(self, keys: list[str]) -> tuple[pa.Table, dict[str, str]]:
        values = {key: self.dice.choice(SPLITS) for key in keys}
        parts = [group_rows([key], split) for key, split in values.items()]
        return pa.concat_tables([schemas.GROUPS.empty_table(), *parts]), values

    def fragments(self, rows: pa.Table) -> list[str]:
        return write_fragments(
            self.groups.uri, schemas.GROUPS, rows, max_rows=self.dice.choice([3, 1000])
        )

    def append(self) -> None:
        rows, values = self.rows(self.keys(self.dice.randrange(12), known=False))
        self.writer.append(self.groups, self.fragments(rows) if rows.num_rows else [])
        self.expected |= values

    def insert(self) -> None:
        rows, values = self.rows(self.keys(self.dice.randrange(12)))
        new = {key: split for key, split in values.items() if key not in self.expected}
        assert self.writer.insert_new(self.groups, rows) == len(new)
        self.expected |= new

    def update(self) -> None:
        rows, values = self.rows(self.keys(self.dice.randrange(20)))
        there = {key: split for key, split in values.items() if key in self.expected}
        rows = rows.select(["group", "split"])
        assert self.writer.merge(self.groups, rows) == len(there)
        self.expected |= there

    def update_some(self) -> None:
        rows, values = self.rows(self.keys(20))
        changed = {
            key: split for key, split in values.items() if self.expected.get(key, split) != split
        }
        rows = rows.select(["group", "split"])
        assert self.writer.merge(self.groups, rows, "target.split != source.split") == len(changed)
        self.expected |= changed

    def delete(self) -> None:
        keys = set(self.keys(self.dice.randrange(10), known=True))
        found = self.at.open().to_table(columns=["group"], with_row_id=True)
        names, numbers = found["group"].to_pylist(), found["_rowid"].to_pylist()
        rows = [row for name, row in zip(names, numbers, strict=True) if name in keys]
        self.writer.moved(self.groups, table.delete(self.at, rows))
        self.expected = {k: v for k, v in self.expected.items() if k not in keys}

    def orphan(self) -> None:
        """Write files without committing them, like a killed job."""
        rows, _ = self.rows(self.keys(3, known=False))
        if rows.num_rows:
            self.fragments(rows)

    def tag(self) -> None:
        name = f"run-{self.dice.randrange(4)}"
        if name not in self.tagged:
            self.groups.tag(name, self.at.version)
            self.tagged[name] = dict(self.expected)

    def untag(self) -> None:
        name = f"run-{self.dice.randrange(4)}"
        assert self.groups.untag(name) == (name in self.tagged)
        self.tagged.pop(name, None)

    def compact(self) -> None:
        at_least = self.dice.choice([None, 2, 4])
        self.writer.moved(self.groups, maintenance.compact(self.at, at_least))

    def index(self) -> None:
        self.writer.moved(self.groups, maintenance.index(self.at, ["group"]))

    def clean(self) -> None:
        maintenance.clean(self.at, self.dice.choice([timedelta(0), maintenance.KEEP]))

    def stale(self) -> None:
        """Let another writer take the store over; a later change of this writer is refused."""
        rows, _ = self.rows(self.keys(3, known=False) + self.keys(3, known=True))
        before, fragments = self.at, self.fragments(rows)
        self.reopen()
        if self.dice.random() < 0.5:
            maintenance.clean(self.at)
        changes: list[Callable[[], object]] = [
            lambda: table.append(before, fragments),
            lambda: table.insert_new(before, rows),
            lambda: maintenance.clean(before),
        ]
        if self.expected:
            changes.append(lambda: table.merge(before, rows))
            changes.append(lambda: table.delete(before, self._first_row(before)))
        with pytest.raises(LeaseLost):
            self.dice.choice(changes)()

    def _first_row(self, at: TableVersion) -> list[int]:
        return at.open().to_table(columns=[], with_row_id=True)["_rowid"].to_pylist()[:1]

    def check(self) -> None:
        """Check that readers see the content of the dictionary."""
        assert read(self.at) == self.expected
        assert self.groups.latest() == self.at
        for key in self.keys(5):
            assert self.at.count(f"`group` = '{key}'") == (key in self.expected)
        for name, expected in self.tagged.items():
            assert read(self.groups.at(name)) == expected

    def run(self) -> None:
        names = self.dice.choices(list(WEIGHTS), list(WEIGHTS.values()), k=OPERATIONS)
        for place, name in enumerate(names):
            getattr(self, name)()
            self.counts[name] = self.counts.get(name, 0) + 1
            assert self.at.count() == len(self.expected), (place, name)
            if place % 10 == 9:
                self.check()
        self.clean()
        self.check()
        assert Store.open(self.place).groups.latest() == self.at
        self._leave(None, None, None)


def read(at: TableVersion) -> dict[str, str]:
    rows = at.read(["group", "split"])
    found = dict(zip(rows["group"].to_pylist(), rows["split"].to_pylist(), strict=True))
    assert len(found) == rows.num_rows
    return found


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_table_equals_a_dictionary(tmp_path: Path, description: Description, seed: int) -> None:
    fuzz = Fuzz(tmp_path, description, seed)
    fuzz.run()
    assert len(fuzz.counts) >= 10
    assert len(fuzz.expected) > 20
