"""Write warnings of Ray and Python in the driver to a file of the run, not to the terminal.

The terminal shows only the job's own lines. Everything else goes to `OUT/log/driver-TIME.log`: one
file per start of a run, and no file if there was nothing to write.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import ClassVar, TextIO

from visao_ray.core.periodic import PeriodicThread
from visao_ray.core.storage import Location

#: Loggers with their own handlers, and the lowest level that the terminal shows for each.
_LOGGERS = {"ray": logging.ERROR, "ray.data": logging.CRITICAL}
#: This logger logs failures with traces and also passes them to callbacks; jobs report them once.
_SILENT = "ray.tune"
#: The limit on writers is meant for large datasets; Ray Data warns on small ones.
_EXPECTED = "The maximum number of concurrent tasks for"
#: Harmless warnings that our own settings cause: Ray starts its processes by fork and exec, and the
#: progress bars of Ray Data and the files of Tune are switched off.
_HARMLESS = (
    "lance is not fork-safe",
    "Progress bars disabled",
    "Failed to fetch metrics for",
    _EXPECTED,
)
_WRITE_INTERVAL_S = {"disk": 1.0, "object store": 60.0}
_LAST_WRITE_S = 30.0  # so that a failing store cannot keep a job from ending
_LIMIT = 10_000  # records in the file; the rest is only counted
_SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSWORD|CREDENTIALS", re.IGNORECASE)
_SECRET_FILES = ("~/.aws/credentials", "~/.ray/auth_token")
_SECRET_TEXT = re.compile(
    r"(X-Amz-(?:Signature|Credential|Security-Token)=|\bBearer\s+)[^\s&,\"']+", re.IGNORECASE
)


class DriverLog(logging.Handler):
    """Context that writes warnings and errors of Ray's loggers and of Python to a file.

    Inside another `DriverLog` of the same process it does nothing: the outer one gets all records.

    Args:
        folder: where the file is created as soon as there is something to write.

    Attributes:
        file: the log file.
        count: number of records so far.
    """

    file: Location
    count: int
    _active: ClassVar[DriverLog | None] = None

    def __init__(self, folder: Location) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        self.file = folder.join(f"driver-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}.log")
        self.count = 0
        self._secrets: frozenset[str] = frozenset()
        self._lines: list[str] = []
        self._written = 0  # lines in the file
        interval = _WRITE_INTERVAL_S["disk" if self.file.is_local else "object store"]
        self._writer = PeriodicThread(self._write, interval, "driver-log", call_at_end=True)
        self._show: Callable[..., None] = warnings.showwarning

    def __enter__(self) -> DriverLog:
        """Start to record."""
        if DriverLog._active is None:
            DriverLog._active = self
            self._secrets = known_secrets()
            self._show, warnings.showwarning = warnings.showwarning, self._show_warning
            quiet_terminal()
            self._writer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write the remaining records and restore the previous handling of warnings."""
        if DriverLog._active is not self:
            return
        DriverLog._active = None
        warnings.showwarning = self._show
        for name in _LOGGERS:
            logging.getLogger(name).removeHandler(self)
        self._writer.stop(_LAST_WRITE_S)

    @classmethod
    def active(cls) -> DriverLog | None:
        """Return the log that records in this process."""
        return cls._active

    def emit(self, record: logging.LogRecord) -> None:
        """Store a record; `logging` calls this with the handler's lock held."""
        if any(words in record.getMessage() for words in _HARMLESS):
            return
        self.count += 1
        if self.count <= _LIMIT:
            self._lines.append(without_secrets(self.format(record), self._secrets))

    def _show_warning(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        """Record a warning of Python, then show it as without this log."""
        text = f"{filename}:{lineno}: {category.__name__}: {message}"
        self.handle(logging.LogRecord("python", logging.WARNING, filename, lineno, text, (), None))
        if not str(message).startswith(_EXPECTED):
            self._show(message, category, filename, lineno, file, line)

    def _write(self) -> None:
        """Update the file; an object store cannot append, so there the whole file is rewritten."""
        with self.lock or contextlib.nullcontext():
            lines, count = list(self._lines), self.count
        if count > _LIMIT and self._writer.stopped:
            lines.append(f"… and {count - _LIMIT} more: only the first {_LIMIT} are kept")
        if len(lines) == self._written:
            return
        with contextlib.suppress(OSError):  # writing the job's own files reports a failing store
            if self.file.is_local:
                os.makedirs(os.path.dirname(self.file.path), exist_ok=True)
                with open(self.file.path, "a", encoding="utf-8") as file:
                    file.writelines(f"{line}\n" for line in lines[self._written :])
            else:
                self.file.write_bytes("".join(f"{line}\n" for line in lines).encode())
            self._written = len(lines)


def quiet_terminal() -> None:
    """Show only records from the levels in `_LOGGERS` on the terminal; send all to the active log.

    Call it again after `ray.init` and `import ray.data`, which configure the loggers again. Without
    an active log, as in Ray's workers, the logger `ray` is not changed: it writes its own files.
    """
    log = DriverLog.active()
    for name, terminal_level in _LOGGERS.items():
        if log is None and name == "ray":
            continue
        logger = logging.getLogger(name)
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.setLevel(terminal_level)
                handler.addFilter(_not_silent)
        logger.setLevel(logging.WARNING)
        if log is not None and log not in logger.handlers:
            logger.addHandler(log)


def known_secrets() -> frozenset[str]:
    """Return the secret values of the environment and of the files that it names."""
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
            # Words of this pattern are names of settings, not secrets.
            found |= {word for word in words if not re.fullmatch("[a-z_]+", word)}
    return frozenset(secret for secret in found if len(secret) >= 12)


def without_secrets(text: str, secrets: Iterable[str]) -> str:
    """Return the text with `***` in place of each secret and of signatures in URLs."""
    for secret in secrets:
        text = text.replace(secret, "***")
    return _SECRET_TEXT.sub(r"\1***", text)


def _not_silent(record: logging.LogRecord) -> bool:
    return not record.name.startswith(_SILENT) or record.levelno >= logging.CRITICAL
