"""Submitted jobs: they run unchanged, exit with the right status, and can be stopped.

Submitted sweeps and trainings: test_faults.py.
"""

import contextlib
import json
import subprocess
import zipfile
from pathlib import Path

import pytest
from cluster_runs import (
    EXTRACT,
    committed,
    features,
    finish,
    result,
    same_features,
    source,
    stop,
    wait_for,
)
from job_runs import ROOT
from ray_nodes import RAY
from s3_server import SECRET


def test_extraction(calm):
    counts = result(calm)["counts"]
    assert counts["listed"] == counts["ok"] == counts["computed"] == 1024
    assert counts["errors"] == 0
    assert len(features(calm)["key"]) == 1024


def test_stopped_half_way_and_submitted_again(site, images, calm):
    out = site.place("submission/stopped")
    command = (*source(images), f"--out={out.uri}", *EXTRACT)
    run = site.nodes.begin("extract", *command)
    wait_for(lambda: committed(out) >= 256, run)
    output = stop(site.nodes, run)
    assert "stopped; run the same command again to continue" in output
    assert "SIGTERM" not in output  # Ray prints a stack trace with it
    assert not out.join("result.json").exists()
    before = committed(out)
    assert 0 < before < 1024

    finish(site.nodes.begin("extract", *command))
    assert before <= result(out)["counts"]["known"] < 1024
    same_features(out, calm)


@pytest.mark.parametrize(
    ("verb", "flags", "says"),
    [
        ("extract", "--gpus-per-worker=1", ("--gpus-per-worker 1", "0 GPUs", "leave it out")),
        ("extract", "--memory-per-worker=900", ("--memory-per-worker 900", "GiB")),
        (
            "train",
            "--worker-resources=a100=1",
            ("--worker-resources a100=1", "ray start --resources"),
        ),
    ],
)
def test_more_than_any_node_has(site, images, verb, flags, says):
    """Refused within a minute, in one line, before the dataset is listed."""
    out = site.place(f"submission/{flags.strip('-').split('=')[0]}")
    what = ["--family=simple_cnn"] if verb == "train" else []
    where = [*source(images), f"--out={out.uri}"]
    run = site.nodes.submit(verb, *what, *where, flags, timeout=60)
    assert run.returncode == 2, run.stdout
    (line,) = [line for line in run.stdout.splitlines() if line.startswith("error: ")]
    assert all(words in line for words in says), line
    assert "Traceback" not in run.stdout


def test_wrong_settings_are_not_submitted(site):
    run = site.nodes.submit("extract", "--dataset=lungs", "--data=x", "--out=y", timeout=30)
    assert run.returncode == 2
    assert run.stdout.startswith("error: --dataset lungs")


def test_the_upload_is_small(site, calm):
    """The package that Ray keeps for the nodes has code only: no data, no tests, no history."""
    packages = list(site.nodes.folder.glob("*/session_2*/runtime_resources/working_dir_files/*"))
    folders = [path for path in packages if path.is_dir()]
    assert folders
    for folder in folders:
        assert (folder / "jobs/extract.py").exists()
        names = {path.name for path in folder.iterdir()}
        assert not {".git", "tests", "benchmarks", "docs", "out"} & names
        size = sum(path.stat().st_size for path in folder.rglob("*.py"))
        assert size < 2_000_000


def test_ray_job_submit_itself(site, calm):
    """`ray job submit` runs the same job: all images are known already."""
    settings = json.loads(calm.join("result.json").read_bytes())["settings"]
    flags = [f"--data={settings['data']}", f"--store={calm.join('store').uri}", *EXTRACT]
    where = ["--address", site.nodes.address, "--working-dir", "."]
    where += ["--runtime-env", "cluster/runtime_env.yaml"]
    run = subprocess.run(
        [RAY, "job", "submit", *where, "--", "python", "jobs/extract.py", *flags],
        cwd=ROOT,
        env=site.nodes.environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "1,024 known, 0 new" in run.stdout


def test_a_token_is_needed(site):
    """Without the token, the dashboard refuses requests."""
    bare = {k: v for k, v in site.nodes.environment.items() if not k.startswith("RAY_AUTH")}
    run = subprocess.run(
        [RAY, "job", "list", "--address", site.nodes.address],
        env=bare,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode != 0
    assert "auth" in (run.stdout + run.stderr).lower()


def test_no_secret_anywhere(site, calm):
    """There is none in the files of jobs, Ray's logs, the dashboard's responses, or `ps`."""
    token = (site.nodes.folder / "token").read_text()
    for secret in (SECRET, token):
        for path in site.nodes.folder.rglob("*"):
            if path.name == "token" or not path.is_file():
                continue
            if path.suffix == ".zip":
                with zipfile.ZipFile(path) as package:
                    names = package.namelist()
                    content = b"".join(package.read(name) for name in names)
            else:
                content = path.read_bytes()
            assert secret.encode() not in content, path
        for place in (site.place("submission"), calm):
            for file in place.files():
                assert secret.encode() not in file.read_bytes(), file.uri
        for payload in (
            "/api/jobs/",
            "/nodes?view=summary",
            "/api/cluster_status",
            "/api/v0/tasks?limit=1000&detail=1",
            "/api/v0/actors?limit=1000&detail=1",
            "/api/v0/workers?limit=1000&detail=1",
            "/api/v0/runtime_envs?limit=1000&detail=1",
            "/logical/actors",
        ):
            assert secret.encode() not in site.nodes.read(payload), payload
        for path in Path("/proc").glob("[0-9]*/cmdline"):  # what `ps` shows
            with contextlib.suppress(OSError):
                assert secret.encode() not in path.read_bytes(), path
