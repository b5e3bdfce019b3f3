"""Warnings of Ray and Python are in OUT/log and not on the terminal; secrets are in neither."""

import logging
import time
import warnings
from typing import ClassVar

import pytest
import ray.data
from s3_server import SECRET

from visao_ray.core import driver_log
from visao_ray.core.console import main
from visao_ray.core.driver_log import DriverLog, known_secrets, without_secrets
from visao_ray.core.errors import InputError
from visao_ray.core.ray_session import start_ray
from visao_ray.core.run import Run, execute
from visao_ray.core.settings import JobSettings
from visao_ray.core.storage import Location, locate

pytestmark = pytest.mark.filterwarnings("default")  # these tests warn on purpose


class WarnSettings(JobSettings):
    """A job that warns."""

    job: ClassVar[str] = "warn"


@pytest.fixture(params=["local", "s3"])
def out(request, tmp_path) -> Location:
    if request.param == "local":
        return locate(f"{tmp_path}/out")
    return locate(f"{request.getfixturevalue('s3').uri}/driver-log/{tmp_path.name}/out")


def logs(out: Location) -> list[str]:
    return [file.read_bytes().decode() for file in sorted(out.join("log").files(), key=str)]


def warn(settings: WarnSettings, run: Run) -> None:
    start_ray()
    for name in ("ray", "ray.data", "ray.tune", "ray.train"):
        logging.getLogger(f"{name}.part").warning("%s warns of %s", name, SECRET)
        logging.getLogger(f"{name}.part").info("%s has news", name)
    logging.getLogger("ray.tune.part").error("a trial failed")
    warnings.warn(f"python warns of {SECRET} by 100 %", UserWarning, stacklevel=1)
    warnings.warn("The maximum number of concurrent tasks for X is 8", UserWarning, stacklevel=1)


def test_warnings_are_in_the_log_and_not_on_the_terminal(out, ray_cluster, monkeypatch, capfd):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    shown: list[str] = []
    monkeypatch.setattr(warnings, "showwarning", lambda *given: shown.append(str(given[0])))
    before = warnings.showwarning
    execute(WarnSettings(out=out.uri), warn)
    (text,) = logs(out)
    lines = text.splitlines()
    assert len(lines) == 6  # not what is expected and harmless
    for name, line in zip(("ray", "ray.data", "ray.tune", "ray.train"), lines, strict=False):
        assert line.endswith(f"WARNING {name}.part: {name} warns of ***")
    assert lines[4].endswith("ERROR ray.tune.part: a trial failed")
    assert lines[5].endswith("UserWarning: python warns of *** by 100 %")
    assert "concurrent tasks for X" not in text
    assert SECRET not in text
    printed = capfd.readouterr()
    assert printed.err == ""
    (place,) = out.join("log").files()
    assert f"6 warnings of Ray and Python in {out.uri}/log/driver-" in printed.out
    assert place.uri.startswith(f"{out.uri}/log/driver-")
    assert shown == [f"python warns of {SECRET} by 100 %"]  # as without a log
    assert warnings.showwarning is before
    logging.getLogger("ray.data.part").warning("later")
    assert logs(out) == [text]


def test_no_file_without_warnings(out, ray_cluster, capsys):
    execute(WarnSettings(out=out.uri), lambda settings, run: start_ray())
    assert not out.join("log").exists()
    assert "of Ray and Python" not in capsys.readouterr().out


def test_every_start_of_a_run_has_a_file_and_fresh_moves_them(out, ray_cluster):
    def broken(settings: WarnSettings, run: Run) -> None:
        warn(settings, run)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(WarnSettings(out=out.uri), broken)
    assert len(logs(out)) == 1
    execute(WarnSettings(out=out.uri), warn)
    assert len(logs(out)) == 2
    execute(WarnSettings(out=out.uri, fresh=True), lambda settings, run: None)
    assert not out.join("log").exists()
    moved = [file.uri for file in out.join("previous").files() if "/log/" in file.uri]
    assert len(moved) == 2


def test_parts_of_a_job_write_into_the_log_of_the_whole(tmp_path, ray_cluster, capsys):
    def whole(settings: WarnSettings, run: Run) -> None:
        execute(WarnSettings(out=f"{tmp_path}/out/part"), warn)

    execute(WarnSettings(out=f"{tmp_path}/out"), whole)
    (text,) = logs(locate(f"{tmp_path}/out"))
    assert len(text.splitlines()) == 6
    assert not (tmp_path / "out" / "part" / "log").exists()
    assert capsys.readouterr().out.count("6 warnings") == 1


def in_a_block(settings: WarnSettings, run: Run) -> None:
    def fail(batch):
        raise InputError("bad rows")

    start_ray()
    ray.data.range(2).map_batches(fail).materialize()


def test_the_log_has_what_ray_data_reports_of_a_failure(tmp_path, ray_cluster, capsys):
    assert main(WarnSettings, in_a_block, ["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "error: bad rows\n"
    (text,) = logs(locate(str(tmp_path)))
    assert "ERROR ray.data." in text
    assert "InputError: bad rows" in text


def test_lines_are_written_while_the_job_runs_and_not_without_end(tmp_path, monkeypatch, s3):
    monkeypatch.setattr(driver_log, "_WRITE_INTERVAL_S", {"disk": 0.1, "object store": 0.1})
    monkeypatch.setattr(driver_log, "_LIMIT", 5)
    for folder in (locate(f"{tmp_path}/log"), locate(f"{s3.uri}/driver-log/{tmp_path.name}/log")):
        with DriverLog(folder) as log:
            for number in range(9):
                logging.getLogger("ray").warning("number %d", number)
            time.sleep(1)
            during = log.file.read_bytes().decode().splitlines()
            logging.getLogger("ray").warning("the last")
        assert [line.split("number ")[1] for line in during[:5]] == list("01234")
        after = log.file.read_bytes().decode().splitlines()
        assert log.count == 10
        assert after[5:] == ["… and 5 more: only the first 5 are kept"]


def test_secrets_of_the_environment_and_of_files(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text(
        "[default]\naws_access_key_id = AKIAIOSFODNN7EXAMPLE\n"
        "aws_secret_access_key=wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY\n"
    )
    (tmp_path / "token").write_text("0123456789abcdef0123\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_SESSION_TOKEN", "session-token-of-mine")
    found = known_secrets()
    text = (
        "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY, 0123456789abcdef0123, session-token-of-mine, "
        "Authorization: Bearer abcdefgh, https://x/y?X-Amz-Signature=12ab&z=1, "
        "aws_secret_access_key is not set"
    )
    assert without_secrets(text, found) == (
        "***, ***, ***, Authorization: Bearer ***, https://x/y?X-Amz-Signature=***&z=1, "
        "aws_secret_access_key is not set"
    )
