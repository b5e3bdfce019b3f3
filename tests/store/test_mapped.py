"""One copy of the vectors per node: written once and atomically, shared, and later removed."""

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from stores import content_id, make_store

from visao_ray.core.errors import InputError
from visao_ray.datasets.vazios import VAZIOS
from visao_ray.store import mapped
from visao_ray.store.join import pin, plain_vectors, read_examples
from visao_ray.store.mapped import TableRows, VectorFile

COUNT, WIDTH = 300, 4
EXTRACTOR = "tiny-00000000"
ROOT = Path(__file__).parents[2]


def vectors():
    rng = np.random.default_rng(0)
    return {pool: rng.normal(size=(COUNT, WIDTH)).astype(np.float32) for pool in ("avg", "max")}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Return the folder of this node's copies."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(mapped.tempfile, "tempdir", None)
    return tmp_path / f"visao_ray-{os.getuid()}"


@pytest.fixture
def file(tmp_path):
    """Return all images of a small store, in the order of contents."""
    rows = [{"key": f"{number}.jpg", "label": "vazio", "split": "train"} for number in range(COUNT)]
    store = make_store(tmp_path / "store", VAZIOS, rows, vectors(), EXTRACTOR, fragment_rows=70)
    snapshot = pin(store, "a", plain_vectors(EXTRACTOR))
    contents = read_examples(snapshot).contents
    part = TableRows(snapshot.results, contents, 0, np.arange(COUNT)[:, None])
    return VectorFile(snapshot.images, ("avg", "max"), (part,), COUNT)


def in_order(pool):
    order = sorted(range(COUNT), key=lambda number: content_id(f"{number}.jpg"))
    return vectors()[pool][order]


def test_rows_are_in_their_places_and_read_only(file, place):
    found = file.open().vectors
    for pool in ("avg", "max"):
        np.testing.assert_array_equal(found[pool], in_order(pool))
        assert isinstance(found[pool], np.memmap)
        with pytest.raises(ValueError, match="read-only"):
            found[pool][0] = 0


def test_some_rows_in_another_order(file, place):
    rows = np.random.default_rng(1).permutation(COUNT)[:50]
    np.testing.assert_array_equal(file.take(rows).open().vectors["max"], in_order("max")[rows])
    assert len(list(place.iterdir())) == 1


def test_each_selection_is_written_once(file, place):
    first = file.open()
    (folder,) = place.iterdir()
    written = (folder / "avg.npy").stat()
    again = file.open()
    assert (folder / "avg.npy").stat().st_ino == written.st_ino
    np.testing.assert_array_equal(first.vectors["avg"], again.vectors["avg"])
    file.take(np.arange(10)).open()
    assert len(list(place.iterdir())) == 2


def open_elsewhere(file, place, before):
    """Open the file in a separate process, after some lines of Python."""
    pickled = place.parent / "file.pickle"
    pickled.write_bytes(pickle.dumps(file))
    script = f"""
import os, pickle, signal, time
import numpy as np
from visao_ray.store.mapped import VectorFile
{before}
with open({str(pickled)!r}, "rb") as stream:
    file = pickle.load(stream).open()
print(file.vectors["avg"].shape)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True
    )


SLOWLY = """
write = VectorFile._write

def slowly(self, folder):
    print("writes")
    time.sleep(2)
    write(self, folder)

VectorFile._write = slowly
"""


def test_one_process_writes_and_the_others_wait(file, place):
    processes = [open_elsewhere(file, place, SLOWLY) for _ in range(4)]
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert all(f"({COUNT}, {WIDTH})" in words for words in said)
    assert sum("writes" in words for words in said) == 1


def test_files_of_a_killed_process_are_written_again(file, place):
    die = "np.memmap.flush = lambda self: os.kill(os.getpid(), signal.SIGKILL)"
    process = open_elsewhere(file, place, die)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    (folder,) = place.iterdir()
    assert not list(folder.glob("*.npy"))
    np.testing.assert_array_equal(file.open().vectors["avg"], in_order("avg"))


def test_unused_files_are_removed_unless_a_process_reads_them(file, place):
    old, used = file.take(np.arange(10)), file.take(np.arange(20))
    old.open()
    kept = used.open()
    two_days_ago = time.time() - 2 * 24 * 3600
    for lock in place.glob("*/lock"):
        os.utime(lock, (two_days_ago, two_days_ago))
    file.open()
    rows = {np.load(array, mmap_mode="r").shape[0] for array in place.glob("*/avg.npy")}
    assert rows == {20, COUNT}
    np.testing.assert_array_equal(kept.vectors["avg"], in_order("avg")[:20])


def test_a_vector_that_is_not_finite_is_named(tmp_path, place):
    strange = vectors()
    strange["max"][7, 2] = np.nan
    rows = [{"key": f"{number}.jpg", "label": "vazio", "split": "train"} for number in range(COUNT)]
    store = make_store(tmp_path / "strange", VAZIOS, rows, strange, EXTRACTOR)
    snapshot = pin(store, "a", plain_vectors(EXTRACTOR))
    contents = read_examples(snapshot).contents
    part = TableRows(snapshot.results, contents, 0, np.arange(COUNT)[:, None])
    file = VectorFile(snapshot.images, ("avg", "max"), (part,), COUNT)
    with pytest.raises(InputError, match=r"the max vector of '7\.jpg' holds NaN or infinity"):
        file.open()
    where = int(np.flatnonzero(contents == content_id("7.jpg"))[0])
    file.take(np.delete(np.arange(COUNT), where)).open()  # works without this row


def test_a_full_disk_is_an_input_error(file, place, monkeypatch):
    monkeypatch.setattr(mapped.shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    with pytest.raises(InputError, match=r"need 0\.0 GB there, 0\.0 GB are free; set TMPDIR"):
        file.open()
    assert not list(Path(place).glob("*/*.npy"))
