"""Crashes of Ray itself are detected, and `.ci/run` repeats only tests that met one."""

import time

import pytest
from ray_crashes import find_crash

pytest_plugins = ["pytester"]

CRASH = "*** SIGSEGV received at time=1795535920 on cpu 1 ***"
TESTS = """
from pathlib import Path

LOG = Path({log!r})

def test_good(): pass

def test_crashed():
    first = not LOG.exists()
    LOG.parent.mkdir(parents=True, exist_ok=True)
    LOG.write_text({crash!r})
    assert not first
"""


def write_log(root, name, text):
    log = root / "vr-1" / "head" / "session_2026" / "logs" / name
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text(text)


@pytest.mark.parametrize(
    ("name", "text", "crashed"),
    [
        ("raylet.err", f"all is well\n{CRASH}\n", True),
        ("gcs_server.out", "C You have likely discovered a bug in Ray. x.cc: Check failed", True),
        ("raylet.err", "*** SIGTERM received at time=1 on cpu 1 ***", False),
        ("worker-1.err", CRASH, False),
    ],
)
def test_what_is_a_crash(tmp_path, name, text, crashed):
    write_log(tmp_path, name, text)
    assert bool(find_crash(time.time() - 60, tmp_path)) == crashed
    assert find_crash(time.time() + 60, tmp_path) is None


@pytest.fixture
def suite(pytester, monkeypatch):
    """Tests with the plugin of this project; one test fails once, with a crash."""
    monkeypatch.setenv("TMPDIR", str(pytester.path))
    monkeypatch.setattr("tempfile.tempdir", str(pytester.path))
    log = pytester.path / "ray" / "session_2026" / "logs" / "raylet.err"
    pytester.makeconftest("""
        from ray_crashes import RayCrashes
        def pytest_addoption(parser):
            parser.addoption("--crashed-alone", action="store_true")
        def pytest_configure(config):
            config.pluginmanager.register(RayCrashes(config))
    """)
    pytester.makepyfile(TESTS.format(log=str(log), crash=CRASH))
    return pytester


def test_a_crash_alone_is_repeated(suite):
    suite.runpytest_inprocess().assert_outcomes(passed=1, failed=1)
    again = suite.runpytest_inprocess("--crashed-alone")
    again.assert_outcomes(passed=1)
    again.stdout.fnmatch_lines(["repeated, because Ray itself crashed: *test_crashed (raylet.err*"])


def test_a_failure_before_any_crash_is_not(suite):
    suite.makepyfile(test_a="def test_wrong(): assert False")
    suite.runpytest_inprocess().assert_outcomes(passed=1, failed=2)
    again = suite.runpytest_inprocess("--crashed-alone")
    assert again.ret == pytest.ExitCode.USAGE_ERROR
    again.stderr.fnmatch_lines(["*not repeated: test_a.py::test_wrong"])
