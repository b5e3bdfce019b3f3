"""Detect crashes of Ray itself during a test; `.ci/run` repeats a test only because of these.

Ray's daemons log their own crashes. Tests kill daemons too, but with SIGKILL, which leaves no such
line. Workers are not checked: they may end in any way after a test has killed their daemon.
"""

import re
import tempfile
import time
from pathlib import Path

import pytest

_DAEMONS = ("gcs_server", "raylet")
_CRASH = re.compile(
    rb"\*\*\* SIG(?:SEGV|ABRT|BUS|ILL|FPE) received at|likely discovered a bug in Ray"
)
#: Key in pytest's cache of the failed tests and the log line of the crash.
_CACHE_KEY = "visao_ray/crashed"
#: Name of the property of a test's report that has the log line.
_PROPERTY = "ray_crash"


def find_crash(since: float, root: Path | None = None) -> str | None:
    """Return the log line of a crash of a Ray daemon, or None.

    Args:
        since: only crashes after this time count, in seconds since the epoch.
        root: folder with the sessions of Ray and of the clusters of tests; the system's temporary
            folder if None.
    """
    root = root or Path(tempfile.gettempdir())
    for folder in ("ray/session_2*/logs", "ray-*/ray/session_2*/logs", "vr-*/*/session_2*/logs"):
        for log in root.glob(f"{folder}/*"):
            if not log.name.startswith(_DAEMONS) or log.stat().st_mtime < since:
                continue
            for line in log.read_bytes().splitlines():
                if _CRASH.search(line):
                    return f"{log.name}: {line.decode(errors='replace')[:200]}"
    return None


class RayCrashes:
    """A pytest plugin that records failed tests with a crash of Ray, so that these can be repeated.

    Args:
        config: pytest's configuration.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._crashed: dict[str, str] = {}
        self._since = time.time()  # tests share clusters: one may fail long after the crash

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        """Check for a crash if a test failed."""
        report = yield
        if report.failed and (line := find_crash(self._since)):
            report.user_properties.append((_PROPERTY, line))
            report.sections.append(("Ray itself crashed", line))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record a crash; with several processes, this is called in the main one too."""
        for name, line in report.user_properties:
            if name == _PROPERTY:
                self._crashed[report.nodeid] = line

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """With --crashed-alone, select the failed tests of the last run if all met a crash of Ray.

        Raises:
            pytest.UsageError: a test failed without a crash.
        """
        if not self._config.getoption("--crashed-alone"):
            return
        assert self._config.cache is not None
        failed = self._config.cache.get("cache/lastfailed", {})
        crashed = self._config.cache.get(_CACHE_KEY, {})
        others = sorted(set(failed) - set(crashed))
        if others or not failed:
            raise pytest.UsageError(f"not for a crash of Ray, so not repeated: {', '.join(others)}")
        for name, line in crashed.items():
            print(f"repeated, because Ray itself crashed: {name} ({line})")
        items[:] = [item for item in items if item.nodeid in failed]

    def pytest_sessionfinish(self) -> None:
        """Save the tests with a crash for the next run; one of several processes saves nothing."""
        if hasattr(self._config, "workerinput") or self._config.getoption("--crashed-alone"):
            return
        if self._config.cache is not None:
            self._config.cache.set(_CACHE_KEY, self._crashed)
