"""Jobs from the command line: help without Ray, and one line for what is wrong."""

import ast
import os
import subprocess
import sys

import pytest
from job_runs import ROOT, run_job, write_files

from visao_ray.backend import import_keras
from visao_ray.bases.manifest import make_manifest
from visao_ray.features.pipeline import extract_features
from visao_ray.runs import _main
from visao_ray.settings import ExtractSettings, ManifestSettings

HELP = """
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as stop:
    heavy = {"ray", "tensorflow", "keras", "matplotlib", "sklearn"} & set(sys.modules)
    print((stop.code, sorted(heavy)))
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
    *told, last = run.stdout.splitlines()
    assert ast.literal_eval(last) == (0, [])
    assert told[0].startswith(f"usage: {job}")
    assert ("--address" if job == "submit.py" else "--out") in run.stdout
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
        ("scanner", "--dataset ncm --out {tmp}/file/out", ("--out {tmp}/file/out", "written")),
        ("sweep", "--dataset vazios --features {tmp}/none --out {out}", ("{tmp}/none", "features")),
        (
            "evaluate",
            "--features {data} --model x --out {out}",
            ("features table",),
        ),
        ("submit", "extrac --dataset vazios", ("'extrac'", "extract")),
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
    run = run_job(verb, *arguments.format(**places).split())
    assert run.returncode == 2, run.stderr
    one_line(run.stderr, *(words.format(**places) for words in says))
    assert "hush" not in run.stdout + run.stderr


def test_a_dataset_without_images(tmp_path, capsys, ray_cluster):
    for label in ("vazio", "nvazio"):
        (tmp_path / "data" / label).mkdir(parents=True)
    told = ["--dataset", "vazios", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    capsys.readouterr()
    assert _main(ManifestSettings, make_manifest, told) == 2
    one_line(capsys.readouterr().err, "no images", str(tmp_path / "data"))


@pytest.fixture(scope="module")
def misfits(tmp_path_factory):
    """Weights that cannot be a backbone's: a classifier, and a whole other network's."""
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
def test_weights_that_do_not_fit(
    weights, says, misfits, s3, extracted, ray_cluster, tmp_path, capsys
):
    uri = weights.format(misfits=misfits, bucket=s3.bucket)
    told = ["--manifest", f"{extracted}/listing/manifest", "--out", str(tmp_path / "out")]
    told += ["--weights", uri, "--image-size", "32"]
    told += [] if uri.endswith(".keras") else ["--backbone", "mobilenetv2"]
    capsys.readouterr()
    assert _main(ExtractSettings, extract_features, told) == 2
    one_line(capsys.readouterr().err, *says)


def test_weights_that_are_not_there(extracted, tmp_path):
    """The same in a process of its own, with a Ray of its own."""
    told = ["--manifest", f"{extracted}/listing/manifest", "--out", str(tmp_path / "out")]
    run = run_job("extract", *told, "--weights", f"{tmp_path}/none.keras")
    assert run.returncode == 2, run.stderr
    one_line(run.stderr, f"--weights {tmp_path}/none.keras", "cannot be read")
    assert not (tmp_path / "out" / "result.json").exists()
