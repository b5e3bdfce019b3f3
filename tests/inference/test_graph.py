"""The graph of images on unusual listings."""

from pathlib import Path

import pyarrow as pa
import pytest
from graph_runs import EXTRACTOR, check_store, run_plainly, write_images
from plain_engine import Means

from visao_ray.core.lease import Owner
from visao_ray.core.resources import current_cluster, fit_actors
from visao_ray.core.storage import locate
from visao_ray.datasets import listing
from visao_ray.inference import graph
from visao_ray.inference.committing import GraphResult
from visao_ray.inference.loading import Loading
from visao_ray.store.store import Store
from visao_ray.store.table import Table, append, write_fragments


@pytest.fixture
def folder(tmp_path: Path, ray_cluster: None) -> Path:
    """Write four images, and extract them into the folder `store` beside them."""
    folder = write_images(tmp_path / "data", 4)
    run_plainly(folder, tmp_path / "store", Means())
    return folder


def run_on(folder: Path, names: list[str], action: str) -> GraphResult:
    """Run the graph on files that are all listed with the same action."""
    place = folder.parent
    run = run_plainly(folder, place / "store", Means())  # nothing is new
    store = Store.open(str(place / "store"))
    listed = Table(locate(str(place / "listing.lance")))
    listed.create(listing.LISTING)
    rows = [{"key": str(folder / "vazio" / name), "row": action} for name in names]
    files = pa.Table.from_pylist(rows, schema=listing.LISTING)
    at = append(listed.latest(), write_fragments(listed.uri, listing.LISTING, files))
    results = store.vectors(EXTRACTOR)
    work = graph.Work("test", at, len(names), Loading(32, "stretch"), Means(), results, 8, "today")
    pool = fit_actors(1, run.settings.worker(), current_cluster())
    with store.writing(Owner.here("test", "graph")) as writer:
        return graph.run_graph(run, writer, work, pool)


def test_an_update_of_a_missing_row_is_an_error(folder: Path) -> None:
    """Rule 8: the number of rows that an update by key changes is checked."""
    with pytest.raises(RuntimeError, match="2 files changed, but 1 rows were updated"):
        run_on(folder, ["00000.png", "nowhere.png"], listing.UPDATE)


def test_a_known_file_that_cannot_be_read_keeps_its_row(folder: Path) -> None:
    """It was listed because its content has no vectors; the next run tries to read it again."""
    before = Store.open(str(folder.parent / "store")).images.latest().read(["key", "status"])
    done = run_on(folder, ["00001.png", "nowhere.png"], listing.STAY)
    assert (done.files, done.computed) == (2, 0)
    assert done.errors == {"FileNotFoundError": 1}
    after = Store.open(str(folder.parent / "store")).images.latest().read(["key", "status"])
    assert after == before
    check_store(folder.parent / "store", folder)
