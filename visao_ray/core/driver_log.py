"""What Ray and Python warn of in the driver: in a file of the run, not on the terminal.

Jobs keep the terminal for their own lines. What is not shown there is written to
`OUT/log/driver-TIME.log`: one file for each start of a run, none where there was nothing to write.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import ClassVar, TextIO

from visao_ray.core.storage import Location

#: Loggers with handlers of their own, and the level from which the terminal shows their records.
_LOGGERS = {"ray": logging.ERROR, "ray.data": logging.CRITICAL}
#: What it logs of a failure, with traces, it gives to callbacks too: jobs report it once.
_SILENT = "ray.tune"
#: A limit on writers is meant for large datasets; on small ones Ray Data warns it is not reached.
_EXPECTED = "The maximum number of concurrent tasks for"
#: Of our own doing, and harmless: Ray starts its processes by fork and exec, Ray Data's progress
#: bars and Tune's own files are switched off, and a limit on writers is not met by few images.
_HARMLESS = (
    "lance is not fork-safe",
    "Progress bars disabled",
    "Failed to fetch metrics for",
    "The maximum number of concurrent tasks for",
)
_EVERY_S = {"disk": 1.0, "object store": 60.0}
_LAST_S = 30.0  # for the last write: a store that fails must not keep a job from its end
_LIMIT = 10_000  # records in the file; the rest is counted
_SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSWORD|CREDENTIALS", re.IGNORECASE)
_SECRET_FILES = ("~/.aws/credentials", "~/.ray/auth_token")
_SECRET_TEXT = re.compile(
    r"(X-Amz-(?:Signature|Credential|Security-Token)=|\bBearer\s+)[^\s&,\"']+", re.IGNORECASE
)


class DriverLog(logging.Handler):
    """While the block runs, warnings and errors of Ray's loggers and of Python go to a file.

    Within another one of the same process it does nothing: the outer one has all.

    Attributes:
        file: what is written.
        count: records so far.
    """

    _active: ClassVar[DriverLog | None] = None

    def __init__(self, folder: Location) -> None:
        """`folder`: where the file is made when there is something to write."""
        super().__init__(logging.WARNING)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self.file = folder.join(f"driver-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}.log")
        self.count = 0
        self._secrets: frozenset[str] = frozenset()
        self._lines: list[str] = []
        self._written = 0  # lines in the file
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write_until_end, daemon=True)
        self._show: Callable[..., None] = warnings.showwarning

    def __enter__(self) -> DriverLog:
        """Listen."""
        if DriverLog._active is None:
            DriverLog._active = self
            self._secrets = known_secrets()
            self._show, warnings.showwarning = warnings.showwarning, self._warned
            quiet_terminal()
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write what is left; warnings then go where they went before."""
        if DriverLog._active is not self:
            return
        DriverLog._active = None
        warnings.showwarning = self._show
        for name in _LOGGERS:
            logging.getLogger(name).removeHandler(self)
        self._stop.set()
        self._thread.join(_LAST_S)

    @classmethod
    def active(cls) -> DriverLog | None:
        """The one that listens in this process."""
        return cls._active

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record; `logging` calls it with this handler's lock held."""
        if any(words in record.getMessage() for words in _HARMLESS):
            return
        self.count += 1
        if self.count <= _LIMIT:
            self._lines.append(without_secrets(self.format(record), self._secrets))

    def _warned(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        """A warning of Python: into the file, and to where it goes without us."""
        text = f"{filename}:{lineno}: {category.__name__}: {message}"
        self.handle(logging.LogRecord("python", logging.WARNING, filename, lineno, text, (), None))
        if not str(message).startswith(_EXPECTED):
            self._show(message, category, filename, lineno, file, line)

    def _write_until_end(self) -> None:
        pause = _EVERY_S["disk" if self.file.is_local else "object store"]
        ends = False
        while not ends:
            ends = self._stop.wait(pause)
            with contextlib.suppress(OSError):  # the job's own files tell of a failing store
                self._write()

    def _write(self) -> None:
        """Bring the file up to date; an object store cannot append, so there it is written anew."""
        with self.lock or contextlib.nullcontext():
            lines, count = list(self._lines), self.count
        if count > _LIMIT and self._stop.is_set():
            lines.append(f"… and {count - _LIMIT} more: only the first {_LIMIT} are kept")
        if len(lines) == self._written:
            return
        if self.file.is_local:
            os.makedirs(os.path.dirname(self.file.path), exist_ok=True)
            with open(self.file.path, "a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines[self._written :])
        else:
            self.file.write_bytes("".join(f"{line}\n" for line in lines).encode())
        self._written = len(lines)


def quiet_terminal() -> None:
    """Keep what is below the levels of `_LOGGERS` off the terminal, and hand it to the log.

    To be called again after `ray.init` and `import ray.data`, which set the loggers up anew. Where
    there is no log, as in Ray's workers, the logger `ray` keeps its own files: it is left alone.
    """
    log = DriverLog.active()
    for name, shown in _LOGGERS.items():
        if log is None and name == "ray":
            continue
        logger = logging.getLogger(name)
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setLevel(shown)
                handler.addFilter(_not_silent)
        logger.setLevel(logging.WARNING)
        if log is not None and log not in logger.handlers:
            logger.addHandler(log)


def known_secrets() -> frozenset[str]:
    """Values that must not be written: of the environment, and of the files that it names."""
    found = set()
    files = [Path(path).expanduser() for path in _SECRET_FILES]
    for name, value in os.environ.items():
        if _SECRET_NAME.search(name):
            if name.endswith(("_FILE", "_PATH")):
                files.append(Path(value))
            else:
                found.add(value)
    for file in files:
        with contextlib.suppress(OSError, ValueError):
            words = re.split(r"[\s=]+", file.read_text())
            found |= {word for word in words if not re.fullmatch("[a-z_]+", word)}  # no names
    return frozenset(secret for secret in found if len(secret) >= 12)


def without_secrets(text: str, secrets: Iterable[str]) -> str:
    """The text with `***` for each of the secrets, and for signatures in addresses."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return _SECRET_TEXT.sub(r"\1***", text)


def _not_silent(record: logging.LogRecord) -> bool:
    return not record.name.startswith(_SILENT) or record.levelno >= logging.CRITICAL
