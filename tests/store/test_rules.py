"""The store's rules of DESIGN.md: each test fails if its rule is removed from the code.

Rules 2 to 4 of the graph of images are in tests/inference/test_rules.py; the number of updated rows
(rule 8) is checked in tests/inference/test_graph.py; rule 10, the fuzz, is test_fuzz.py.
"""

import contextlib
import os
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from lance_tables import append_groups, files_of, group_rows
from ray import cloudpickle
from s3_proxy import Faults, proxy
from s3_server import S3, SECRET, free_ports
from stores import content_id, results_table

from visao_ray.core.errors import InputError
from visao_ray.core.lease import LeaseLost
from visao_ray.core.storage import locate
from visao_ray.datasets.listing import ListingSpec
from visao_ray.datasets.registry import find_dataset
from visao_ray.inference.loading import Loading, Unit
from visao_ray.inference.writing import Target
from visao_ray.store import join, maintenance, proof, schemas, table
from visao_ray.store.store import Store, create_or_open
from visao_ray.store.table import Table, TableVersion, write_fragments

MANIFESTS = "/_versions/"
VECTORS = schemas.results({"avg": 8}, {"backbone": "tiny"})


@pytest.fixture
def faults(s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """The S3 server behind a proxy, for this process."""
    (port,) = free_ports(1)
    with proxy(port, s3.port, tmp_path) as found:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        yield found


@pytest.fixture
def remote_groups(s3: S3, faults: Faults, tmp_path: Path) -> Table:
    """Return a table of groups with one row, behind the proxy."""
    found = Table(locate(f"{s3.uri}/rules/{tmp_path.name}/groups.lance"))
    found.create(schemas.GROUPS)
    append_groups(found.latest(), ["first"])
    return found


def names(of: TableVersion) -> list[str]:
    return sorted(of.read(["group"])["group"].to_pylist())


def vectors(*numbers: int) -> pa.Table:
    """Return rows of `VECTORS` with contents made from numbers."""
    import numpy as np

    values = {"avg": np.array([[number] * 8 for number in numbers], np.float32)}
    contents = [content_id(str(number)) for number in numbers]
    return results_table(VECTORS, contents, 0, values, range(len(numbers)))


# 1. A commit is a transaction with its own id, which is searched before the commit is retried.


@pytest.mark.parametrize("change", ["append", "insert", "update", "fence"])
def test_1_a_commit_with_a_lost_response_takes_effect_once(
    remote_groups, faults, monkeypatch, change
):
    """The manifest is written, but all responses to its writes and reads are lost for seconds."""
    monkeypatch.setattr(table, "_RETRIES", 1)
    at = remote_groups.latest()
    fragments = write_fragments(at.uri, schemas.GROUPS, group_rows(["new"]))
    last = at.version + (2 if change == "insert" else 1)  # an insert is a fence first
    written = f"{MANIFESTS}{2**64 - 1 - last}"  # as Lance names that version
    for method in ("PUT", "GET", "HEAD"):
        faults.lose_responses(method, written, 40)
    if change == "append":
        after, changed = table.append(at, fragments), 1
    elif change == "insert":
        after, changed = table.insert_new(at, group_rows(["new", "first"]))
    elif change == "update":
        after, changed = table.merge(at, group_rows(["new", "first"], "test"))
    else:
        after, changed = table.fence(at), 1
    assert faults.count()["lost_response"] > 20  # Lance itself gave the commit up
    assert changed == 1
    assert after == remote_groups.latest() == TableVersion(at.uri, last)
    assert names(after) == ["first", "new"] if change in ("append", "insert") else ["first"]


# 5. The lease has a fence: a new holder makes commits of the previous one fail.


def stale_changes(at: TableVersion, fragments: list[str]) -> dict[str, object]:
    """Return the changes that a suspended writer may try when it wakes up."""
    update = group_rows(["kept-0"], "test")
    return {
        "append": lambda: table.append(at, fragments),
        "update": lambda: table.merge(at, update),
        "insert": lambda: table.insert_new(at, group_rows(["stale"])),
        "compact": lambda: maintenance.compact(at, at_least=2),
        "delete": lambda: table.delete(at, [0]),
    }


@pytest.mark.parametrize("change", ["append", "update", "insert", "compact", "delete"])
@pytest.mark.parametrize("cleaned", [False, True])
def test_5_a_stale_writer_is_refused(groups, change, cleaned):
    at = groups.latest()
    for number in range(3):
        at = append_groups(at, [f"kept-{number}"])
    fragments = write_fragments(at.uri, schemas.GROUPS, group_rows(["stale"]))
    stale = stale_changes(at, fragments)[change]

    now = table.fence(at)  # another writer has the lease by now
    if cleaned:  # … and has removed what the stale one wrote
        assert maintenance.clean(now).files == 1
    with pytest.raises(LeaseLost, match="another writer changed the table"):
        stale()
    assert names(groups.latest()) == ["kept-0", "kept-1", "kept-2"]
    assert names(append_groups(now, ["new"])) == ["kept-0", "kept-1", "kept-2", "new"]
    assert set(now.read(["split"])["split"].to_pylist()) == {"train"}


def test_5_every_table_is_fenced_when_a_store_is_opened(place, description, owner):
    with create_or_open(place, description, owner("first")) as writer:
        for one, schema in (
            (writer.store.groups, schemas.GROUPS),
            (writer.store.images, schemas.IMAGES),
        ):
            writer.ensure(one, schema)
        store = writer.store
        stale = {name: found.latest() for name, found in store.tables().items()}
        fragments = write_fragments(store.groups.uri, schemas.GROUPS, group_rows(["stale"]))
    with store.writing(owner("second")) as writer:
        assert set(stale) == {"groups", "images"}
        for name, at in stale.items():
            assert writer.version(store.tables()[name]).version > at.version
        with pytest.raises(LeaseLost):
            table.append(stale["groups"], fragments)
        assert writer.version(store.groups).count() == 0


def test_5_a_table_that_a_stale_writer_creates_is_fenced(place, description, owner):
    with create_or_open(place, description, owner("second")) as writer:
        groups = writer.store.groups
        groups.create(schemas.GROUPS)  # a stale writer, after this one began
        stale = groups.latest()
        fragments = write_fragments(groups.uri, schemas.GROUPS, group_rows(["stale"]))
        writer.ensure(groups, schemas.GROUPS)
        with pytest.raises(LeaseLost):
            table.append(stale, fragments)


def test_5_a_server_that_ignores_conditions_is_refused(s3, faults, tmp_path, description, owner):
    uri = f"{s3.uri}/rules/{tmp_path.name}/store"
    said = "ignores If-None-Match and If-Match, so two writers could overwrite"
    with create_or_open(uri, description, owner("first")) as writer:
        store = writer.store
    with faults.ignored_conditions():
        with pytest.raises(InputError, match=said), store.writing(owner("second")):
            pytest.fail("opened")
        with (
            pytest.raises(InputError, match=said),
            create_or_open(f"{uri}-2", description, owner("second")),
        ):
            pytest.fail("opened")
    assert Store.find(f"{uri}-2") is None


# 6. Clean-up after the fence, in a task; compaction merges only small fragments.


def test_6_clean_up_removes_what_was_never_committed(groups):
    at = append_groups(groups.latest(), ["a"])
    before = files_of(at.uri)
    write_fragments(at.uri, schemas.GROUPS, group_rows(["orphan"]))
    assert len(files_of(at.uri)) > len(before)
    assert maintenance.clean(at).files == 1
    assert files_of(at.uri) == before
    assert names(groups.latest()) == ["a"]


def test_6_clean_up_by_a_stale_writer_is_refused(groups):
    """It would remove files that the current writer has written and not committed yet."""
    at = append_groups(groups.latest(), ["a"])
    now = table.fence(at)
    fragments = write_fragments(at.uri, schemas.GROUPS, group_rows(["b"]))
    with pytest.raises(LeaseLost):
        maintenance.clean(at)
    assert names(table.append(now, fragments)) == ["a", "b"]


def test_6_clean_up_runs_in_a_task(place, description, owner, ray_cluster, monkeypatch):
    with create_or_open(place, description, owner("first")) as writer:
        writer.ensure(writer.store.groups, schemas.GROUPS)
        for name in ("compact", "index", "clean"):  # only in this process, not in tasks
            monkeypatch.setattr(maintenance, name, lambda *_: pytest.fail("in the driver"))
        cleaned = writer.maintain()
    assert list(cleaned) == ["groups"]


@pytest.mark.parametrize("rows", [70_000, 200_000])
def test_6_a_little_more_rewrites_little(tmp_path, rows):
    at = _large_and(tmp_path, rows, small=20)
    before = files_of(at.uri)
    after = maintenance.compact(at)
    written = {name: size for name, size in files_of(at.uri).items() if name not in before}
    assert len(after.open().get_fragments()) < len(at.open().get_fragments())
    assert after.count() == at.count() == rows + 20 * 10
    assert sum(written.values()) < 0.15 * sum(before.values())
    old = {each.metadata.to_json()["files"][0]["path"] for each in at.open().get_fragments()}
    made = [
        each.count_rows()
        for each in after.open().get_fragments()
        if each.metadata.to_json()["files"][0]["path"] not in old
    ]
    assert made == [rows % 65_536 + 200]  # only the small ones


def test_6_few_small_fragments_stay(tmp_path):
    at = _large_and(tmp_path, 70_000, small=12)
    assert maintenance.compact(at) == at
    assert maintenance.compact(at, at_least=2) != at


def _large_and(folder: Path, rows: int, small: int) -> TableVersion:
    found = Table(locate(str(folder / "groups.lance")))
    found.create(schemas.GROUPS)
    large = group_rows([f"{number:08}" for number in range(rows)])
    at = table.append(
        found.latest(), write_fragments(found.uri, schemas.GROUPS, large, max_rows=65_536)
    )
    for part in range(small):
        at = append_groups(at, [f"x{part}-{number}" for number in range(10)])
    return at


# 7. Runs tag the versions they read; forgetting a run removes its tags.


def test_7_tagged_versions_survive_clean_up(store_with_images, owner, ray_cluster):
    store = store_with_images
    snapshot = join.pin(store, "reader", None)
    before = snapshot.images.read(["key", "label"]).to_pylist()
    with store.writing(owner("writer")) as writer:
        _relabel(writer, before)
        writer.maintain(keep=timedelta(0))
        assert snapshot.images.read(["key", "label"]).to_pylist() == before
        again = join.pin(store, "reader", None)
        assert again == snapshot
        # As in jobs/store.py forget.
        assert store.images.untag("run-reader")
        _relabel(writer, before)
        writer.maintain(keep=timedelta(0))
    with pytest.raises((ValueError, OSError)):
        snapshot.images.read(["key", "label"])


@pytest.fixture
def store_with_images(tmp_path: Path) -> Store:
    from stores import make_store

    rows = [{"key": f"k{number}", "label": "vazio"} for number in range(40)]
    return make_store(tmp_path / "store", find_dataset("vazios"), rows, fragment_rows=20)


def _relabel(writer, rows) -> None:
    """Replace each label, so that the next version shares no file with the previous one."""
    schema = pa.schema([schemas.IMAGES.field("key"), schemas.IMAGES.field("label")])
    changes = pa.table([[row["key"] for row in rows], ["nvazio"] * len(rows)], schema=schema)
    assert writer.merge(writer.store.images, changes) == len(rows)
    # A rewrite: after it, the two versions share no files.
    writer.moved(
        writer.store.images, maintenance.compact(writer.version(writer.store.images), at_least=1)
    )


# 8. Updates by key: the key is declared, the source has no duplicates, the number is checked.


def test_8_four_upserts_at_once_add_each_key_once(groups):
    at = append_groups(groups.latest(), ["there"])
    wanted = [f"new-{number:03}" for number in range(100)]
    errors = []

    def upsert() -> None:
        for _ in range(20):
            with contextlib.suppress(LeaseLost):  # another was first and has added its rows
                try:
                    table.insert_new(groups.latest(), group_rows(["there", *wanted]))
                except LeaseLost:
                    raise
                except Exception as error:
                    errors.append(error)
                return

    barrier = threading.Barrier(4)

    def start() -> None:
        barrier.wait()
        upsert()

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert names(groups.latest()) == sorted(["there", *wanted])
    assert at.count() == 1


def test_8_a_source_with_a_key_twice_is_refused(groups):
    at = append_groups(groups.latest(), ["a", "b"])
    doubled = pa.concat_tables([group_rows(["a"], "val"), group_rows(["a"], "test")])
    with pytest.raises(Exception, match=r"[Aa]mbiguous|[Dd]uplicate|multiple"):
        table.merge(at, doubled)
    assert names(groups.latest()) == ["a", "b"]


# 9. Workers get a URI and a version: nothing that is sent to them contains a secret.


def test_9_pickled_arguments_contain_no_secret(remote_groups, s3):
    at = remote_groups.latest()
    assert os.environ["AWS_SECRET_ACCESS_KEY"] == SECRET
    place = remote_groups.location
    fragments = write_fragments(at.uri, schemas.GROUPS, group_rows(["b"]))
    travels = [
        at,
        remote_groups,
        place,
        Unit(at, 64, Loading(32, "stretch"), (), "today", 0),
        Target(at.uri, at.uri, VECTORS, place),
        ListingSpec(place, find_dataset("vazios"), (), at, None, at.uri, None, place),
        join.Snapshot(s3.uri, at, at, at, at),
        fragments,
        (proof.contents_without, at, at),
    ]
    for each in travels:
        assert SECRET.encode() not in cloudpickle.dumps(each), each
    # Control: an open dataset, which must not be sent, does contain the secret.
    assert SECRET.encode() in cloudpickle.dumps(at.open())
    assert cloudpickle.loads(cloudpickle.dumps(at)) == at
    assert names(cloudpickle.loads(cloudpickle.dumps(at))) == ["first"]


def test_9_caches_are_bounded(tmp_path, monkeypatch):
    """A 10 MB index is read with a cache of 1 MB; Lance's default would keep all of it."""
    assert table.INDEX_CACHE <= 64 * 1024**2
    assert table.LOOKUP_INDEX_CACHE <= 512 * 1024**2
    small = 1024**2
    monkeypatch.setattr(table, "_METADATA_CACHE", small)
    found = Table(locate(str(tmp_path / "vectors.lance")))
    found.create(VECTORS)
    rows = vectors(*range(200_000))
    at = table.append(found.latest(), write_fragments(found.uri, VECTORS, rows))
    at = maintenance.index(at, ["content_id"])
    ids = sorted(rows["content_id"].to_pylist())[::97]

    def read(cache: int) -> int:
        dataset = at.open(cache)
        for start in range(0, len(ids), 100):
            wanted = ",".join(f"X'{content.hex()}'" for content in ids[start : start + 100])
            assert dataset.count_rows(f"content_id IN ({wanted})") == len(ids[start : start + 100])
        return dataset.session().size_bytes()

    assert read(small) <= 2.2 * small
    assert read(1024**3) > 4 * small
