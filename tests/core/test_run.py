"""The job contract: one output folder, one run, one result, one exit status."""

import json
import os
from typing import ClassVar

import numpy as np
import pytest
from pydantic import Field

from visao_ray.core.console import main
from visao_ray.core.errors import InputError
from visao_ray.core.run import Run, duration, execute, to_json
from visao_ray.core.settings import JobSettings
from visao_ray.core.storage import Location, locate


class CountSettings(JobSettings):
    """A job that writes one small table."""

    job: ClassVar[str] = "count"
    writes: ClassVar[tuple[str, ...]] = ("table",)

    size: int = Field(3, description="what decides the result")
    speed: int = Field(1, description="how", json_schema_extra={"operational": True})


class OtherSettings(JobSettings):
    """Another job."""

    job: ClassVar[str] = "other"
    writes: ClassVar[tuple[str, ...]] = ("letters",)


def count(settings: CountSettings, run: Run) -> None:
    run.out.join("table", "part-0").write_bytes(str(settings.size).encode())
    run.once("step", lambda: run.work.join("scratch").write_bytes(b"x"))
    run.counts["images"] = np.int64(settings.size)
    run.metrics = {"val": {"auc": {"value": np.float32("nan"), "low": None, "n": 3}}}
    run.details = {"array": np.array([1.0, np.inf]), "tuple": (1, 2)}
    run.warn("mind the gap")


def never(_settings: JobSettings, _run: Run) -> None:
    pytest.fail("a finished or refused run must not work")


@pytest.fixture(params=["local", "s3"])
def out(request, tmp_path) -> Location:
    if request.param == "local":
        return locate(f"{tmp_path}/out")
    return locate(f"{request.getfixturevalue('s3').uri}/runs/{tmp_path.name}/out")


def files(location: Location) -> dict[str, bytes]:
    """Return the files that a run left, without its lease."""
    start = len(location.uri) + 1
    found = {file.uri[start:]: file.read_bytes() for file in location.files()}
    found.pop("lease", None)
    return found


def test_a_finished_run_is_not_repeated(out, capsys):
    result = execute(CountSettings(out=out.uri), count)
    assert set(files(out)) == {"run.json", "result.json", "table/part-0"}
    text = out.join("result.json").read_bytes().decode()
    written = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in the JSON"))
    assert written["metrics"]["val"]["auc"]["value"] is None
    assert written["details"] == {"array": [1.0, None], "tuple": [1, 2]}
    assert written["counts"] == {"images": 3}
    assert written["warnings"] == ["mind the gap"]
    assert written["status"] == "finished"
    assert written["settings"]["size"] == 3
    assert written["versions"]["numpy"] == np.__version__
    assert set(written["timings"]) == {"step", "total"}
    before = files(out)
    capsys.readouterr()
    again = execute(CountSettings(out=out.uri, speed=9), never)
    assert again == written
    assert again["job"] == result["job"]
    assert "already finished" in capsys.readouterr().out
    assert files(out) == before


def test_an_unfinished_run_is_resumed(out, capsys):
    def stopped(settings: CountSettings, run: Run) -> None:
        run.once("first", lambda: run.out.join("table", "one").write_bytes(b"1"))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(CountSettings(out=out.uri), stopped)
    assert not out.join("result.json").exists()

    def rest(settings: CountSettings, run: Run) -> None:
        run.once("first", lambda: pytest.fail("done before"))
        run.out.join("table", "half").write_bytes(b"of an interrupted step")
        run.once("second", lambda: run.out.join("table", "two").write_bytes(b"2"), table)

    table = out.join("table")
    assert execute(CountSettings(out=out.uri), rest)["status"] == "finished"
    assert "resuming the run" in capsys.readouterr().out
    assert set(files(table)) == {"two"}  # locations that a step rebuilds are deleted first


def test_other_settings_are_refused(out):
    execute(CountSettings(out=out.uri), count)
    before = files(out)
    with pytest.raises(InputError, match=r"--size was 3, now 4.*--fresh"):
        execute(CountSettings(out=out.uri, size=4), never)
    with pytest.raises(InputError, match="belongs to a run of count"):
        execute(OtherSettings(out=out.uri), never)
    with pytest.raises(InputError, match="belongs to a run of count"):
        execute(OtherSettings(out=out.uri, fresh=True), never)
    assert files(out) == before


def test_fresh_moves_and_deletes_nothing(out):
    execute(CountSettings(out=out.uri), count)
    out.join("notes.txt").write_bytes(b"somebody's")
    earlier = []
    for size in (4, 5, 6):  # within one second
        earlier.append(
            {name: data for name, data in files(out).items() if not name.startswith("previous/")}
        )
        execute(CountSettings(out=out.uri, size=size, fresh=True), count)
    assert out.join("table", "part-0").read_bytes() == b"6"
    assert out.join("notes.txt").read_bytes() == b"somebody's"
    moved = files(out.join("previous"))
    folders = sorted({name.split("/")[0] for name in moved})
    assert len(folders) == 3
    for run in earlier:
        ours = sorted(data for name, data in run.items() if name != "notes.txt")
        assert any(
            sorted(data for name, data in moved.items() if name.startswith(folder + "/")) == ours
            for folder in folders
        )


@pytest.mark.parametrize("name", ["table/x.parquet", "result.json", "work/x"])
def test_files_of_others_are_refused(out, name):
    out.join(name).write_bytes(b"precious")
    for fresh in (False, True):
        with pytest.raises(InputError, match=name.split("/")[0]):
            execute(CountSettings(out=out.uri, fresh=fresh), never)
    assert files(out) == {name: b"precious"}


@pytest.mark.parametrize("content", [b"{", b"[1]", b'{"scripts": {}}', b"\xff\xfe"])
def test_a_run_json_of_others_is_refused(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content)
    for fresh in (False, True):
        with pytest.raises(InputError, match=r"run\.json"):
            execute(CountSettings(out=str(tmp_path), fresh=fresh), never)
    assert (tmp_path / "run.json").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_unrelated_files_stay(tmp_path):
    (tmp_path / "README").write_text("mine")
    execute(CountSettings(out=str(tmp_path)), count)
    assert (tmp_path / "README").read_text() == "mine"


def test_an_out_that_cannot_be_written(tmp_path, s3):
    (tmp_path / "file").write_text("x")
    reasons = dict.fromkeys((f"{tmp_path}/file/out", f"{tmp_path}/file", "/proc/out"), "cannot be")
    reasons["s3://no-such-bucket/x"] = ".* there is no such bucket"
    for out, why in reasons.items():
        with pytest.raises(InputError, match=f"--out {out}: {why}"):
            execute(CountSettings(out=out), never)


def test_two_at_once(tmp_path):
    """A second process must not work in the same folder at the same time."""

    def inside(_settings: JobSettings, _run: Run) -> None:
        with pytest.raises(InputError, match=f"--out {tmp_path}.*pid {os.getpid()}"):
            execute(CountSettings(out=str(tmp_path)), never)

    execute(CountSettings(out=str(tmp_path)), inside)


def test_result_json_comes_last_and_whole(tmp_path, monkeypatch):
    def broken(_content: object) -> bytes:
        raise OSError("disk full")

    monkeypatch.setattr("visao_ray.core.run.to_json", broken)
    with pytest.raises((OSError, InputError)):
        execute(CountSettings(out=str(tmp_path)), count)
    assert not (tmp_path / "result.json").exists()


def raises(error: Exception):
    raise error


def in_a_task(settings, run):
    import ray

    ray.get(ray.remote(raises).remote(InputError(f"{settings.out}: bad")))


def in_a_block(settings, run):
    import ray.data

    def fail(batch):
        raise InputError(f"{settings.out}: bad")

    ray.data.range(2).map_batches(fail).materialize()


class Refusing:
    def __init__(self, where: str) -> None:
        raise InputError(f"{where}: bad")

    def __call__(self, batch):
        return batch


def in_an_actor(settings, run):
    import ray.data

    pool = ray.data.ActorPoolStrategy(size=1)
    ray.data.range(2).map_batches(
        Refusing, fn_constructor_args=(settings.out,), compute=pool, num_cpus=0
    ).materialize()


def in_the_driver(settings, run):
    raise InputError(f"{settings.out}: bad")


@pytest.mark.parametrize("work", [in_the_driver, in_a_task, in_a_block, in_an_actor])
def test_bad_input_is_status_2_and_one_line(work, ray_cluster, tmp_path, capsys):
    capsys.readouterr()
    assert main(CountSettings, work, ["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}: bad\n"
    assert not (tmp_path / "result.json").exists()


def a_bug_in_a_task(settings, run):
    import ray

    ray.get(ray.remote(raises).remote(ZeroDivisionError("boom")))


def a_bug(settings, run):
    raise ZeroDivisionError("boom")


@pytest.mark.parametrize("work", [a_bug, a_bug_in_a_task])
def test_a_bug_is_status_1_and_a_trace(work, tmp_path, capsys, ray_cluster):
    assert main(CountSettings, work, ["--out", str(tmp_path)]) == 1
    printed = capsys.readouterr().err
    assert "Traceback" in printed
    assert printed.splitlines()[-1].startswith("error: count failed: ")
    assert "boom" in printed.splitlines()[-1]


def test_an_interrupt_is_status_130(tmp_path, capsys):
    def interrupt(settings, run):
        raise KeyboardInterrupt

    assert main(CountSettings, interrupt, ["--out", str(tmp_path)]) == 130
    assert "again to continue" in capsys.readouterr().err
    assert main(CountSettings, count, ["--out", str(tmp_path)]) == 0


def test_a_run_knows_its_command(tmp_path):
    found = []

    def work(settings, run):
        found.append(run.command)

    arguments = ["--out", f"{tmp_path}/a b"]
    assert main(CountSettings, work, arguments, "visao-ray count") == 0
    execute(CountSettings(out=f"{tmp_path}/c"), work, "visao_ray.count(out='c')")
    assert found == [f"visao-ray count --out '{tmp_path}/a b'", "visao_ray.count(out='c')"]


def test_json_without_nan():
    content = {"a": float("nan"), 1: [np.float64("-inf"), np.bool_(True)], "é": np.zeros((1, 2))}
    assert json.loads(to_json(content)) == {"a": None, "1": [None, True], "é": [[0.0, 0.0]]}
    assert "é" in to_json(content).decode()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(59.5, "59.5 s"), (250, "4 min 10 s"), (3599.7, "1 h 00 min"), (7500, "2 h 05 min")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text
