"""Rules 2 to 4 of DESIGN.md for the graph of images; each test fails without its rule."""

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

import pyarrow as pa
import pytest
import ray.data
from graph_runs import (
    EXTRACTOR,
    check_store,
    kill_worker,
    run_plainly,
    versions,
    write_images,
)
from plain_engine import Means

from visao_ray.core.storage import locate
from visao_ray.datasets import listing
from visao_ray.inference import committing, graph
from visao_ray.inference.loading import Loading, Unit, load_unit
from visao_ray.inference.lookup import FIRST, REPEATED, ContentLookup
from visao_ray.store import proof
from visao_ray.store.store import Store
from visao_ray.store.table import Table, append, write_fragments

STAGES = ("MapBatches(load_unit)", "ModelActor", "MapBatches(write_rows)")


@pytest.fixture
def small_fragments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write fragments of 40 rows, and commit each one as soon as it is written."""
    monkeypatch.setattr(graph, "_FRAGMENT_ROWS", {"CPU": 40, "GPU": 40})
    monkeypatch.setattr(committing, "COMMIT_S", 0.0)


# 2. A stage emits its rows in input order, so a task that is retried yields the same rows.


@pytest.mark.faults
def test_2_workers_killed_in_their_tasks_lose_and_double_nothing(
    tmp_path: Path, ray_cluster: None, small_fragments: None
) -> None:
    """Blocks are small, so a task has already emitted some of them when its worker is killed."""
    folder = write_images(tmp_path / "data", 600)
    context = ray.data.DataContext.get_current()
    size, context.target_max_block_size = context.target_max_block_size, 4096
    killed: list[str] = []

    def kill() -> None:
        with contextlib.suppress(TimeoutError):
            for stage in (*STAGES, *STAGES):
                kill_worker(stage)
                killed.append(stage)
                time.sleep(0.5)

    killer = threading.Thread(target=kill)
    try:
        killer.start()
        run = run_plainly(folder, tmp_path / "store", Means(slow=0.15), unit=20)
    finally:
        context.target_max_block_size = size
        killer.join()
    assert set(killed) == set(STAGES)
    check_store(tmp_path / "store", folder)
    assert run.counts["listed"] == run.counts["ok"] == run.counts["computed"] == 600
    assert not run.warnings  # nothing had to be removed at the end


# 3. Small units: finished work is committed soon and does not wait in a buffer.


def test_3_a_failure_loses_little(
    tmp_path: Path, ray_cluster: None, small_fragments: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last image fails the job; all earlier work is in the store."""
    folder = write_images(tmp_path / "data", 200, bright=1)
    with pytest.raises(Exception, match="fails on purpose"):
        run_plainly(folder, tmp_path / "store", Means(above=200, action="fail"), unit=5)
    store = Store.open(str(tmp_path / "store"))
    done = store.vectors(EXTRACTOR).latest().count()
    # Lost are the image's unit, the actor's other units, a fragment that is not full, and on a busy
    # machine the fragments of the two writers.
    assert 200 - 3 * 5 - 3 * 40 <= done < 200
    assert store.images.latest().count() == done

    run = run_plainly(folder, tmp_path / "store", Means(), unit=5)
    assert run.counts["computed"] == 200 - done
    check_store(tmp_path / "store", folder)


def test_3_fragments_hold_some_seconds_of_work() -> None:
    assert all(256 <= rows <= 8192 for rows in graph._FRAGMENT_ROWS.values())
    assert committing.COMMIT_S <= 10
    assert committing.COMMIT_FRAGMENTS <= 64


# 4. Of files with the same content in a run, one is computed; the others wait for its vectors.


def test_3_an_outage_while_the_network_is_read_is_tried_again(
    tmp_path: Path, ray_cluster: None
) -> None:
    folder = write_images(tmp_path / "images", 12)
    mark = tmp_path / "failed"
    run_plainly(folder, tmp_path / "store", Means(action="outage", mark=str(mark)))
    assert mark.exists()
    check_store(tmp_path / "store", folder)


def test_4_one_of_equal_files_is_first_also_on_a_retry() -> None:
    lookup = ContentLookup(None, 1)
    assert [answer.state for answer in lookup.look_up([b"a", b"a", b"b"], [7, 3, 9])] == [
        FIRST,
        REPEATED,
        FIRST,
    ]
    for _ in range(2):
        assert lookup.look_up([b"a"], [3])[0].state == REPEATED
        assert lookup.look_up([b"a"], [7])[0].state == FIRST
    assert lookup.look_up([b"b"], [1])[0].state == REPEATED


def test_4_no_image_is_in_the_store_before_its_vectors(
    tmp_path: Path, ray_cluster: None, small_fragments: None
) -> None:
    """The first file is in the engine for two seconds; its copies are written long before."""
    folder = write_images(tmp_path / "data", 1, bright=1)
    data = (folder / "vazio" / "00000.png").read_bytes()
    write_images(folder, 160, first=1)
    for number in range(20, 160, 20):
        (folder / "vazio" / f"{number:05}-copy.png").write_bytes(data)
    engine = Means(above=200, action="wait")
    run = run_plainly(folder, tmp_path / "store", engine, unit=10, workers=2)
    assert run.counts["computed"] == 161
    assert run.counts["listed"] == run.counts["ok"] == 168
    check_store(tmp_path / "store", folder)

    store = Store.open(str(tmp_path / "store"))
    vectors = list(versions(store.vectors(EXTRACTOR).latest()))
    seen = 0
    for made, images in versions(store.images.latest()):
        earlier = [at for when, at in vectors if when <= made]
        lacking = proof.contents_without(images, earlier[-1] if earlier else None, 1)
        assert not len(lacking), images
        seen += images.count() > 0
    assert seen >= 4


def test_4_a_lost_lookup_doubles_nothing(tmp_path: Path, ray_cluster: None) -> None:
    """A restarted look-up actor forgets which file computes a content; it is then done twice."""
    folder = write_images(tmp_path / "data", 8)
    run_plainly(write_images(tmp_path / "other", 1, first=100), tmp_path / "store", Means())
    results = Store.open(str(tmp_path / "store")).vectors(EXTRACTOR)
    listed = Table(locate(str(tmp_path / "listing.lance")))
    listed.create(listing.LISTING)
    rows = [
        {"key": str(folder / "vazio" / f"{number:05}.png"), "row": listing.APPEND}
        for number in range(8)
    ]
    files = pa.Table.from_pylist([*rows, *rows], schema=listing.LISTING)
    at = append(listed.latest(), write_fragments(listed.uri, listing.LISTING, files))
    loading = Loading(32, "stretch")
    work = graph.Work("test", at, 16, loading, Means(), results, 8, "today")
    (lookup,) = graph._lookups(results.latest(), work)
    unit = Unit(at, 8, loading, (lookup,), "today", 0)

    def first(number: int) -> list[bool]:
        return load_unit(pa.table({"unit": [number]}), unit)["result"].to_pylist()

    assert first(0) == [True] * 8
    assert first(1) == [False] * 8
    assert first(0) == [True] * 8  # a task that is retried
    os.kill(ray.get(lookup.__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)
    assert first(1) == [True] * 8  # the actor has forgotten: the same contents are done twice


def test_4_duplicate_rows_are_removed(tmp_path: Path, ray_cluster: None) -> None:
    folder = write_images(tmp_path / "data", 8)
    run_plainly(folder, tmp_path / "store", Means())
    results = Store.open(str(tmp_path / "store")).vectors(EXTRACTOR)
    at = results.latest()
    again = at.read(at.schema.names).slice(2, 3)
    append(at, write_fragments(at.uri, at.schema, again))
    run = run_plainly(write_images(folder, 2, first=8), tmp_path / "store", Means())
    assert run.counts["computed"] == 2
    assert run.warnings == [f"3 duplicate rows of {results.uri} were removed"]
    check_store(tmp_path / "store", folder)
