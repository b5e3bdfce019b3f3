"""Whether Ray itself crashed while a test ran: `.ci/run` repeats a test for that and nothing else.

Ray's daemons write it down when they end by a fault of their own. Tests kill them too, but by
SIGKILL, which leaves no such line; workers are not looked at, for they may end in any way when a
test has killed what they talk to.
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
#: Failed tests and the line that their Ray crashed with, in pytest's cache.
_KEPT = "visao_ray/crashed"


def find_crash(since: float, root: Path | None = None) -> str | None:
    """The line with which a daemon of Ray crashed after a moment, if one did.

    Args:
        since: seconds since the epoch.
        root: has the sessions of Ray and of the clusters of tests; the system's temporary folder.
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
    """A plugin that keeps which failed tests met a crash of Ray, and lets those alone be repeated.

    Args:
        config: pytest's.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._crashed: dict[str, str] = {}
        self._since = time.time()  # tests share clusters: one may fail long after the crash

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        """Look for a crash where a test failed."""
        report = yield
        if report.failed and (line := find_crash(self._since)):
            self._crashed[item.nodeid] = line
            report.sections.append(("Ray itself crashed", line))
        return report

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """With --crashed-alone: what failed in the run before, if Ray's crash explains all of it.

        Raises:
            pytest.UsageError: a test failed without one.
        """
        if not self._config.getoption("--crashed-alone"):
            return
        assert self._config.cache is not None
        failed = self._config.cache.get("cache/lastfailed", {})
        crashed = self._config.cache.get(_KEPT, {})
        others = sorted(set(failed) - set(crashed))
        if others or not failed:
            raise pytest.UsageError(f"not for a crash of Ray, so not repeated: {', '.join(others)}")
        for name, line in crashed.items():
            print(f"repeated, because Ray itself crashed: {name} ({line})")
        items[:] = [item for item in items if item.nodeid in failed]

    def pytest_sessionfinish(self) -> None:
        """Keep what crashed, for the next run."""
        if self._config.cache is not None and not self._config.getoption("--crashed-alone"):
            self._config.cache.set(_KEPT, self._crashed)
