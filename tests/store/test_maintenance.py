"""Compaction, indexes and clean-up do not change rows."""

import socket
from datetime import timedelta

from lance_tables import append_groups, files_of

from visao_ray.core.lease import Lease, Owner
from visao_ray.core.storage import locate
from visao_ray.store import maintenance, schemas, table
from visao_ray.store.store import create_or_open
from visao_ray.store.table import TableVersion


def fragments(at: TableVersion) -> int:
    return len(at.open().get_fragments())


def many(at: TableVersion, parts: int, rows: int = 10) -> TableVersion:
    for part in range(parts):
        at = append_groups(at, [f"{part:03}-{number}" for number in range(rows)])
    return at


def indexed(at: TableVersion) -> dict[str, set[int]]:
    return {
        found.name: {number for segment in found.segments for number in segment.fragment_ids}
        for found in at.open().describe_indices()
    }


def uses_index(at: TableVersion) -> bool:
    plan = at.open().scanner(filter="`group` = '000-1'").explain_plan()
    return "ScalarIndexQuery" in plan


def test_compaction_and_index(groups):
    at = many(groups.latest(), 16)
    before = at.read(["group", "split"])
    assert fragments(at) == 16
    assert not uses_index(at)
    at = maintenance.index(maintenance.compact(at), ["group"])
    assert fragments(at) == 1
    assert at == groups.latest()
    assert at.read(["group", "split"]) == before
    assert uses_index(at)
    assert set(indexed(at)) == {"group_idx"}

    assert maintenance.index(at, ["group"]) == at  # nothing to do
    more = append_groups(at, ["new-1", "new-2"])
    assert len(indexed(more)["group_idx"]) < fragments(more)
    more = maintenance.index(more, ["group"])
    assert len(indexed(more)["group_idx"]) == fragments(more) == 2
    assert more.count("`group` = 'new-2'") == more.count("`group` = '000-1'") == 1


def test_an_empty_table_gets_no_index(groups):
    at = groups.latest()
    assert maintenance.index(maintenance.compact(at), ["group"]) == at


def test_deleted_rows_stay_deleted(groups):
    at = many(groups.latest(), 16)
    at = table.delete(at, [0, 1, (3 << 32) + 5, *((7 << 32) + row for row in range(10))])
    assert at.count() == 147
    before = at.read(["group"])
    assert maintenance.compact(at).read(["group"]) == before


def test_clean_up_keeps_young_and_tagged_versions(groups):
    at = many(groups.latest(), 4)
    tagged, young = at, at
    groups.tag("run-1", tagged.version)
    at = maintenance.compact(at, at_least=2)
    at = append_groups(at, ["x"])
    assert maintenance.clean(at).versions == 0
    cleaned = maintenance.clean(at, timedelta(0))
    assert cleaned.versions > 0
    assert cleaned.bytes > 0
    assert tagged.count() == young.count() == 40  # the files of both versions still exist
    assert at.count() == 41
    groups.untag("run-1")
    assert maintenance.clean(at, timedelta(0)).files == 4
    assert at.count() == 41
    data = [name for name in files_of(at.uri) if name.startswith("data/")]
    assert len(data) == 2


def test_the_work_of_killed_runs_is_removed(place):
    """Of a process that has ended; on S3 of one that was silent for long. Results stay."""
    runs = locate(place).join("runs")
    dead = Owner(socket.gethostname(), 2**22 + 1, "extract", "dead")
    for name in ("killed", "alive", "finished"):
        for file in ("work/listing", "log/driver.log"):
            runs.join(name, file).write_bytes(b"x" * 100)
    alive = Lease(runs.join("alive/lease"), Owner.here("extract", "alive"))
    killed = Lease(runs.join("killed/lease"), dead)
    with alive:
        killed.__enter__()  # and never released
        count = maintenance.remove_abandoned(runs)
        assert not runs.join("finished/work").exists()
        assert runs.join("alive/work/listing").exists()
        assert runs.join("killed/log/driver.log").exists()
        if runs.is_local:
            assert count == 2
        else:
            assert count == 1
            assert runs.join("killed/work").exists()
            assert maintenance.remove_abandoned(runs, timedelta(0)) == 2
        assert not runs.join("killed/work").exists()
    killed.__exit__(None, None, None)


def test_all_tables_of_a_store(place, description, owner, ray_cluster):
    with create_or_open(place, description, owner("a")) as writer:
        store = writer.store
        writer.ensure(store.images, schemas.IMAGES)
        writer.ensure(store.groups, schemas.GROUPS)
        writer.moved(store.groups, many(writer.version(store.groups), 16))
        cleaned = writer.maintain()
        assert set(cleaned) == {"images", "groups"}
        at = writer.version(store.groups)
        assert at == store.groups.latest()
        assert fragments(at) == 1
        assert uses_index(at)
        assert writer.insert_new(store.groups, at.read(schemas.GROUPS.names)) == 0
