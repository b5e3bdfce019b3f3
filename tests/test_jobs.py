"""Jobs from the command line: help without Ray, and errors in one line."""

import ast
import os
import subprocess
import sys

import pytest
from job_runs import ROOT, run_job, write_files

from visao_ray.core.backend import import_keras
from visao_ray.core.console import main
from visao_ray.features.extract import extract_images
from visao_ray.features.manifest import make_manifest
from visao_ray.features.settings import ExtractSettings, ManifestSettings

HELP_S = 2.0  # CPU time, so other work on this machine does not matter
HELP = """
import runpy, sys, time
sys.argv = [sys.argv[1], "--help"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as stop:
    heavy = {"ray", "tensorflow", "keras", "matplotlib", "sklearn"} & set(sys.modules)
    print((stop.code, sorted(heavy), time.process_time()))
"""


@pytest.mark.parametrize("job", sorted(path.name for path in (ROOT / "jobs").glob("*.py")))
def test_help_is_light(job):
    run = subprocess.run(
        [sys.executable, "-c", HELP, f"jobs/{job}"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    *lines, last = run.stdout.splitlines()
    code, heavy, seconds = ast.literal_eval(last)
    assert (code, heavy) == (0, [])
    assert seconds < HELP_S
    assert lines[0].startswith(f"usage: python jobs/{job} ")
    flag = {"submit.py": "--address", "store.py": "--store"}.get(job, "--out")
    assert flag in run.stdout
    assert run.stderr == ""


def one_line(stderr: str, *says: str) -> None:
    assert stderr.endswith("\n")
    assert stderr.count("\n") == 1, stderr
    assert stderr.startswith("error: ")
    assert all(words in stderr for words in says), stderr


@pytest.mark.parametrize(
    ("verb", "arguments", "says"),
    [
        ("extract", "--dataset lungs --data {data} --out {out}", ("--dataset lungs", "vazios")),
        (
            "train",
            "--family simple_cnn --dataset ncm --monitor auc --data {data} --out {out}",
            ("--monitor auc", "two classes", "ncm"),
        ),
        ("pipeline", "--dataset lungs.toml --out {out}", ("lungs.toml", "rendered", "--data")),
        ("submit", "extract --dataset lungs --data {data} --out {out}", ("--dataset lungs",)),
        ("manifest", "--dataset vazios --data {data} --uot {out}", ("--uot", "--out")),
        (
            "manifest",
            "--dataset vazios --data {tmp}/none --out {out}",
            ("--data {tmp}/none", "exist"),
        ),
        ("manifest", "--data {data} --store {tmp}/none", ("{tmp}/none", "--dataset is needed")),
        (
            "pipeline",
            "--dataset vazios --data {tmp}/one --out {out}",
            ("--data {tmp}/one", "no folder of nvazio", "--labels"),
        ),
        (
            "train",
            "--family simple_cnn --dataset vazios --data {tmp}/one --out {out}",
            ("--data {tmp}/one", "no folder of nvazio", "--labels"),
        ),
        ("pipeline", "--dataset vazios --data s3://k:hush@b/x --out {out}", ("AWS_ACCESS_KEY_ID",)),
        (
            "manifest",
            "--dataset vazios --data s3://no-such-bucket/x --out {out}",
            ("no-such-bucket",),
        ),
        (
            "extract",
            "--dataset vazios --data {data} --out s3://no-such-bucket/x",
            ("no-such-bucket",),
        ),
        ("extract", "--data {data} --store {tmp}/none", ("{tmp}/none", "--dataset is needed")),
        ("render", "--dataset ncm --out {tmp}/file/out", ("--out {tmp}/file/out", "written")),
        ("sweep", "--store {tmp}/none --out {out}", ("--store {tmp}/none", "jobs/extract.py")),
        (
            "evaluate",
            "--store {tmp}/none --model {tmp}/x.keras --out {out}",
            ("{tmp}/",),
        ),
        (
            "train",
            "--family head --store {tmp}/none --out {out}",
            ("--store {tmp}/none", "jobs/extract.py"),
        ),
        (
            "export",
            "--store {tmp}/none --table images --out {out}",
            ("--store {tmp}/none", "jobs/extract.py"),
        ),
        ("store", "verify --store {tmp}/none", ("--store {tmp}/none", "jobs/extract.py")),
        ("store", "--store {tmp}/none", ("ACTION is missing",)),
        ("submit", "extrac --dataset vazios", ("'extrac'", "extract", "store")),
        ("submit", "store forget --store {data}", ("RUN is missing",)),
        ("submit", "extract --dataset vazios --dat {data} --out {out}", ("--dat", "--data")),
        (
            "submit",
            "--address http://127.0.0.1:9 extract --dataset vazios --data {data} --out {out}",
            ("--address http://127.0.0.1:9",),
        ),
        (
            "extract",
            "--dataset vazios --data {data} --out {out} --gpus-per-worker 64",
            ("--gpus-per-worker 64", "leave it out"),
        ),
    ],
    ids=lambda value: "" if isinstance(value, tuple) else value,
)
def test_wrong_settings(verb, arguments, says, tmp_path, s3):
    (tmp_path / "file").write_text("x")
    places = {"tmp": tmp_path, "out": tmp_path / "out", "data": tmp_path / "data"}
    write_files(tmp_path / "data", {"vazio/1.jpg": b"x", "nvazio/1.jpg": b"y"})
    write_files(tmp_path / "one", {"vazio/1.jpg": b"x"})
    run = run_job(verb, *arguments.format(**places).split())
    assert run.returncode == 2, run.stderr
    one_line(run.stderr, *(words.format(**places) for words in says))
    assert "hush" not in run.stdout + run.stderr


def test_a_dataset_without_images(tmp_path, capsys, ray_cluster):
    for label in ("vazio", "nvazio"):
        (tmp_path / "data" / label).mkdir(parents=True)
    flags = [
        "--dataset",
        "vazios",
        "--data",
        str(tmp_path / "data"),
        "--out",
        str(tmp_path / "out"),
    ]
    capsys.readouterr()
    assert main(ManifestSettings, make_manifest, flags) == 2
    one_line(capsys.readouterr().err, "no files", str(tmp_path / "data"))


@pytest.fixture(scope="module")
def misfits(tmp_path_factory):
    """Weights that do not fit a backbone: of a classifier, and of another network."""
    keras = import_keras()
    folder = tmp_path_factory.mktemp("misfits")
    flat = [keras.Input((32, 32, 3)), keras.layers.Flatten(), keras.layers.Dense(2)]
    model = keras.Sequential(flat)
    model.save(folder / "classifier.keras")
    model.save_weights(folder / "other.weights.h5")
    return folder


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ("{misfits}/classifier.keras", ("classifier.keras", "feature map")),
        ("{misfits}/other.weights.h5", ("other.weights.h5 do not fit --backbone mobilenetv2",)),
        ("s3://{bucket}/none.keras", ("none.keras: cannot be read",)),
    ],
)
def test_weights_that_do_not_fit(weights, says, misfits, s3, scans, ray_cluster, tmp_path, capsys):
    uri = weights.format(misfits=misfits, bucket=s3.bucket)
    flags = ["--dataset", "vazios", "--data", str(scans), "--store", str(tmp_path / "store")]
    flags += ["--weights", uri, "--image-size", "32"]
    flags += [] if uri.endswith(".keras") else ["--backbone", "mobilenetv2"]
    capsys.readouterr()
    assert main(ExtractSettings, extract_images, flags) == 2
    one_line(capsys.readouterr().err, *says)
    assert not (tmp_path / "store" / "store.json").exists()


def test_weights_that_are_not_there(scans, tmp_path, same_ray):
    """The same in a separate process."""
    flags = ["--dataset", "vazios", "--data", str(scans), "--out", str(tmp_path / "out")]
    run = run_job("extract", *flags, "--weights", f"{tmp_path}/none.keras", environment=same_ray)
    assert run.returncode == 2, run.stderr
    one_line(run.stderr, f"--weights {tmp_path}/none.keras", "cannot be read")
    assert not (tmp_path / "out" / "result.json").exists()
