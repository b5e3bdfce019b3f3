"""A table: readable old versions, appends, updates by key, tags."""

import pyarrow as pa
import pytest
from lance_tables import append_groups, group_rows

from visao_ray.core.storage import locate
from visao_ray.store import maintenance, schemas, table
from visao_ray.store.table import Table, TableVersion, write_fragments


def names(of: TableVersion, where: str | None = None) -> list[str]:
    return of.read(["group"], where)["group"].to_pylist()


def test_created_once(place):
    made = Table(locate(f"{place}/deep/er/groups.lance"))
    assert not made.exists()
    assert made.create(schemas.GROUPS) == 1
    assert made.exists()
    append_groups(made.latest(), ["a"])
    assert made.create(schemas.GROUPS) == 2  # the existing table and its rows stay
    assert names(made.latest()) == ["a"]
    assert made.latest().schema.names == schemas.GROUPS.names
    assert made.latest().schema.field("group").metadata == schemas.KEY_MARK


def test_a_folder_without_a_version_is_no_table(tmp_path):
    """A kill between the creation of the folders and the first version leaves empty folders."""
    made = Table(locate(str(tmp_path / "groups.lance")))
    for folder in ("_versions", "_transactions", "data"):
        (tmp_path / "groups.lance" / folder).mkdir(parents=True)
    (tmp_path / "groups.lance" / "_versions" / ".tmp_1.manifest_x").write_bytes(b"half")
    assert not made.exists()
    made.create(schemas.GROUPS)
    assert made.exists()
    assert made.latest().count() == 0


def test_versions_stay(groups):
    empty = groups.latest()
    one = append_groups(empty, ["a", "b"])
    two = append_groups(one, ["c"])
    assert [each.version for each in (empty, one, two)] == [1, 2, 3]
    assert (names(empty), names(one), names(two)) == ([], ["a", "b"], ["a", "b", "c"])
    assert groups.latest() == two
    assert groups.at(2) == one
    assert two.count() == 3
    assert two.count("`group` != 'b'") == 2


def test_rows_come_in_physical_order(groups):
    at = groups.latest()
    wanted = []
    for part in range(5):
        some = [f"{part}-{number:03}" for number in reversed(range(50))]
        at = append_groups(at, some)
        wanted += some
    batches = list(at.scan(["group"], batch_rows=16))
    assert max(batch.num_rows for batch in batches) <= 16
    assert [name for batch in batches for name in batch["group"].to_pylist()] == wanted
    assert names(at, "`group` >= '4'") == wanted[-50:]


def test_an_empty_append_makes_no_version(groups):
    assert table.append(groups.latest(), []) == groups.latest()


def test_fragments_that_are_not_committed_are_no_rows(groups):
    fragments = write_fragments(groups.uri, schemas.GROUPS, group_rows(["a", "b", "c"]), max_rows=2)
    assert len(fragments) == 2
    assert groups.latest().count() == 0
    assert names(table.append(groups.latest(), fragments)) == ["a", "b", "c"]


def test_rows_of_other_columns_are_refused(groups):
    with pytest.raises((KeyError, ValueError)):
        write_fragments(groups.uri, schemas.GROUPS, group_rows(["a"]).drop_columns(["split"]))


def test_an_update_changes_only_its_columns(groups):
    before = append_groups(groups.latest(), ["a", "b", "c"])
    schema = pa.schema([schemas.GROUPS.field("group"), schemas.GROUPS.field("split")])
    changes = pa.table([["c", "x", "a"], ["test", "test", "val"]], schema=schema)
    after, changed = table.merge(before, changes)
    assert changed == 2  # x does not exist, and is not added
    rows = after.read(["group", "split"]).to_pylist()
    assert {row["group"]: row["split"] for row in rows} == {"a": "val", "b": "train", "c": "test"}
    assert before.read(["split"])["split"].to_pylist() == ["train"] * 3
    again, changed = table.merge(after, changes, "target.split != source.split")
    assert (again, changed) == (after, 0)


def test_a_conditional_update_of_an_indexed_table(groups):
    at = maintenance.index(append_groups(groups.latest(), ["a", "b"]), ["group"])
    changes = group_rows(["a", "x"], "test").select(["group", "split"])
    at, changed = table.merge(at, changes, "target.split != source.split")
    assert changed == 1
    assert at.count("split = 'test'") == 1


def test_an_update_from_a_stream(groups):
    count = 20_000
    before = append_groups(groups.latest(), [f"{number:05}" for number in range(count)])
    schema = pa.schema([schemas.GROUPS.field("group"), schemas.GROUPS.field("split")])

    def batches():
        for start in range(0, count, 5000):
            some = [f"{number:05}" for number in range(start, start + 5000)]
            yield pa.RecordBatch.from_arrays(
                [pa.array(some), pa.array(["val"] * 5000)], schema=schema
            )

    after, changed = table.merge(before, pa.RecordBatchReader.from_batches(schema, batches()))
    assert changed == count
    assert after.count("split = 'val'") == count


def test_new_keys_are_added_and_others_stay(groups):
    before = append_groups(groups.latest(), ["a", "b"])
    after, added = table.insert_new(before, group_rows(["b", "c"], "test"))
    assert added == 1
    assert {row["group"]: row["split"] for row in after.read(["group", "split"]).to_pylist()} == {
        "a": "train",
        "b": "train",
        "c": "test",
    }
    again, added = table.insert_new(after, group_rows(["a", "c"], "val"))
    assert (added, again.count(), again.count("split = 'val'")) == (0, 3, 0)


def test_tags(groups):
    one = append_groups(groups.latest(), ["a"])
    groups.tag("run-1", one.version)
    two = append_groups(one, ["b"])
    groups.tag("run-1", two.version)  # the existing tag is not moved
    groups.tag("run-2", two.version)
    assert groups.tags() == {"run-1": one.version, "run-2": two.version}
    assert groups.at("run-1") == one
    assert groups.untag("run-1")
    assert not groups.untag("run-1")
    assert groups.tags() == {"run-2": two.version}


def test_an_empty_table_is_read(groups):
    read = groups.latest().read(["split", "group"])
    assert (read.num_rows, read.column_names) == (0, ["split", "group"])
