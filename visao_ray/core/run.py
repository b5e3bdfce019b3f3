"""What all jobs share: the output folder, resuming, progress lines, counts and result.json.

`OUT/run.json` is written first and holds the settings of the run. `OUT/result.json` is written last
and atomically: without it, a run is not finished. The same command again resumes the run. Other
settings with the same folder are an error unless `--fresh` is given; then the earlier files are
moved to `OUT/previous/`, and nothing is deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from visao_ray.core.driver_log import DriverLog
from visao_ray.core.errors import InputError
from visao_ray.core.lease import Lease, LeaseLost, Owner
from visao_ray.core.settings import JobSettings, StoreJobSettings
from visao_ray.core.storage import Location, is_outage, locate, reason

#: Status of a finished run whose result is not good enough; see `Run.failure`.
FAILED = "failed"

S = TypeVar("S", bound=JobSettings)
Work = Callable[[S, "Run[S]"], None]

_PACKAGES = (
    "visao-ray",
    "ray",
    "tensorflow",
    "keras",
    "numpy",
    "pyarrow",
    "pillow",
    "scikit-learn",
)


@dataclass
class Run(Generic[S]):
    """One run of a job: its settings, its output folder, and the content of its result.json.

    Attributes:
        settings: settings of the job.
        out: output folder.
        id: id in logs and results; it stays the same when the run is resumed.
        command: command line that started the run.
        step: the latest step, set by `labels`.
        dataset: name of the dataset of that step.
        predecessor: the process that died while it held the folder, if any.
        counts: counts, for result.json; so are the following.
        metrics: metrics.
        timings: seconds by name.
        throughput: rates per second by name.
        inputs: store, table versions and digests that were read.
        details: further facts.
        warnings: lines that users must see.
        failure: why the result is not good enough, in one line: the run is finished, but its status
            is `failed` and the exit status 1. Empty if it is good enough.
    """

    settings: S
    out: Location
    id: str = ""
    command: str = ""
    step: str = ""
    dataset: str = ""
    predecessor: Owner | None = None
    counts: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    throughput: dict[str, float] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    failure: str = ""

    @property
    def owner(self) -> Owner:
        """This process, as leases and messages name it."""
        return Owner.here(job=self.settings.job, run=self.id)

    @property
    def work(self) -> Location:
        """Scratch folder of an unfinished run: marks of finished steps, checkpoints."""
        return self.out.join("work")

    def labels(self, step: str, dataset: str) -> dict[str, str]:
        """Set the current step and return its labels for logs and metrics."""
        self.step, self.dataset = step, dataset
        return {"run": self.id, "verb": self.settings.job, "step": step, "dataset": dataset}

    def name(self, step: str, dataset: str) -> str:
        """Return the name of a step of this run in Ray's dashboard."""
        return f"{step}-{dataset}-{self.id}"

    def say(self, message: str) -> None:
        """Print one line of progress."""
        print(f"[{self.settings.job}] {message}", flush=True)

    def warn(self, message: str) -> None:
        """Print a line that users must see; it is also in result.json and in the report."""
        self.warnings.append(message)
        print(f"[{self.settings.job}] WARNING: {message}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the wall seconds of a block to `timings`."""
        start = time.perf_counter()
        yield
        self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - start

    def once(self, step: str, work: Callable[[], None], *rebuilds: Location) -> None:
        """Do a step unless an earlier start finished it; delete the `rebuilds` locations first."""
        mark = self.work.join(f"{step}.done")
        if mark.exists():
            return
        for location in rebuilds:
            location.delete()
        with self.timed(step):
            work()
        mark.write_bytes(b"")


def execute(settings: S, work: Work[S], command: str = "") -> dict[str, Any]:
    """Run a job unless it is already finished.

    Args:
        settings: settings of the job.
        work: function that does the job.
        command: command line that started it, for reports.

    Returns:
        The content of its result.json.

    Raises:
        InputError: `--out` holds another run or files of another origin.
    """
    if isinstance(settings, StoreJobSettings):
        return _execute_store_job(settings, work, command)
    out = locate(settings.out)
    run = Run(settings=settings, out=out, id=_run_id(out, _now()), command=command)
    with _writable(out):
        finished = _finished_result(run)
        if finished is not None:
            return finished
    with _leased(run):
        with _writable(out):
            previous = _read_previous(out, settings)
            if settings.fresh and previous is not None:
                _move_previous(out, settings)
                previous = None
            if previous is None:
                run.id = _claim(out, settings)
            else:
                run.id = _run_id(out, previous["started"])
                run.say(f"resuming the run of {previous['started']} in {out.uri}")
        return _perform(settings, run, work)


def _finished_result(run: Run[S]) -> dict[str, Any] | None:
    """Return the content of result.json if the run is finished and `--fresh` is not given.

    Raises:
        InputError: `--out` holds another run or files of another origin.
    """
    out, settings = run.out, run.settings
    previous = _read_previous(out, settings)
    if previous is None:
        _check_free(out, settings)
        return None
    if settings.fresh:
        return None
    if previous["settings"] != settings.identity():
        raise InputError(_difference(out, previous, settings))
    result = out.join("result.json")
    if not result.exists():
        return None
    run.work.delete()  # it still exists if the job was killed right after it wrote the result
    run.say(f"already finished: {result.uri} (--fresh to do it again)")
    return dict(_read_json(result) or {})


def _read_previous(out: Location, settings: JobSettings) -> dict[str, Any] | None:
    """Return the content of run.json from an earlier start; None if there is none.

    Raises:
        InputError: the folder belongs to another job.
    """
    previous = _read_json(out.join("run.json"))
    if previous is not None:
        _check_job(out, previous, settings)
    return previous


def _execute_store_job(settings: Any, work: Work[Any], command: str) -> dict[str, Any]:
    """Run a job that processes what is new for a store; it never resumes an earlier run."""
    started = _now()
    out = locate(settings.out_uri(started))
    identity = _run_id(out, f"{started} {os.getpid()}")
    run = Run(settings=settings, out=out, id=identity, command=command)
    with _writable(out):
        previous = _read_json(out.join("result.json"))
        if previous is not None:
            _check_job(out, previous, settings)
    with _leased(run):
        run.work.delete()  # left by a killed start; the store knows what is done
        return _perform(settings, run, work)


@contextlib.contextmanager
def _leased(run: Run[Any]) -> Iterator[None]:
    """Hold the lease of the run's folder, so that no second process works in it.

    Raises:
        InputError: another process holds it; the message names it.
    """
    out = run.out
    with _writable(out):
        if out.is_local:
            os.makedirs(out.path, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            lease = stack.enter_context(Lease(out.join("lease"), run.owner, say=run.say))
        except InputError as error:
            raise InputError(f"--out {out.uri}: {error}") from error
        run.predecessor = lease.predecessor
        yield


@contextlib.contextmanager
def _writable(out: Location) -> Iterator[None]:
    """Turn an OSError into an InputError for --out, unless it is an outage of the object store."""
    try:
        yield
    except OSError as error:
        if is_outage(error):
            raise
        raise InputError(f"--out {out.uri}: cannot be written: {reason(error)}") from error


def _perform(settings: S, run: Run[S], work: Work[S]) -> dict[str, Any]:
    """Do the work, write result.json and return its content."""
    result = run.out.join("result.json")
    started, clock = _now(), time.perf_counter()
    with _logged(run):
        try:
            work(settings, run)
        except LeaseLost:
            from visao_ray.core import counters  # it imports pyarrow and pandas: --help is quick

            counters.count_lease_lost(run.labels(run.step, run.dataset))
            raise
    run.timings["total"] = time.perf_counter() - clock
    content: dict[str, Any] = {
        "job": settings.job,
        "run": run.id,
        "status": FAILED if run.failure else "finished",
        "settings": settings.model_dump(mode="json"),
        "counts": run.counts,
        "metrics": run.metrics,
        "timings": {name: round(seconds, 3) for name, seconds in run.timings.items()},
        "throughput": {name: round(value, 3) for name, value in run.throughput.items()},
        "versions": _versions(),
        "inputs": run.inputs,
        "details": run.details,
        "warnings": run.warnings,
        "started": started,
        "finished": _now(),
    }
    if run.failure:
        content["failure"] = run.failure
    content = _plain(content)  # as in the file: infinities are null
    result.write_bytes(to_json(content))
    run.work.delete()
    run.say(f"finished in {duration(run.timings['total'])}: {result.uri}")
    return content


@contextlib.contextmanager
def _logged(run: Run[Any]) -> Iterator[None]:
    """Write warnings of Ray and Python to a log file, and print their number at the end."""
    log = DriverLog(run.out.join("log"))
    try:
        with log:
            yield
    finally:
        if log.count:
            plural = "" if log.count == 1 else "s"
            run.say(f"{log.count} warning{plural} of Ray and Python in {log.file.uri}")


def duration(seconds: float) -> str:
    """Format seconds as `8.3 s`, `4 min 10 s` or `2 h 05 min`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def to_json(content: Any) -> bytes:
    """Encode as indented JSON, with NaN and infinity as null."""
    return (json.dumps(_plain(content), indent=2, ensure_ascii=False) + "\n").encode()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:
        value = value.item()
    elif hasattr(value, "tolist"):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _check_free(out: Location, settings: JobSettings) -> None:
    """Check that a folder holds no outputs of another origin.

    Raises:
        InputError: it holds some.
    """
    for name in ("result.json", "work", *settings.writes):
        if out.join(name).exists():
            raise InputError(
                f"--out {out.uri} already holds '{name}', which no run of {settings.job} wrote; "
                "choose another --out"
            )


def _claim(out: Location, settings: JobSettings) -> str:
    """Write run.json to claim an output folder; return the run's id."""
    _check_free(out, settings)
    started = _now()
    run = _run_id(out, started)
    content = {
        "job": settings.job,
        "run": run,
        "settings": settings.identity(),
        "started": started,
    }
    out.join("run.json").write_bytes(to_json(content))
    return run


def _run_id(out: Location, started: str) -> str:
    """Return eight hexadecimal digits that identify a run in logs, metrics and results."""
    return hashlib.sha256(f"{out.uri} {started}".encode()).hexdigest()[:8]


def _move_previous(out: Location, settings: JobSettings) -> None:
    stamp = _now().replace(":", "-")
    names = (f"{stamp}.{number}" if number else stamp for number in itertools.count())
    place = next(place for name in names if not (place := out.join("previous", name)).exists())
    for name in ("result.json", *settings.writes, "log", "work", "run.json"):
        if out.join(name).exists():
            out.join(name).move(place.join(name))


def _check_job(out: Location, previous: dict[str, Any], settings: JobSettings) -> None:
    """Refuse the folder of another job, even with --fresh, so that its files are not moved."""
    if previous["job"] != settings.job:
        raise InputError(
            f"--out {out.uri} belongs to a run of {previous['job']}; choose another --out"
        )


def _difference(out: Location, previous: dict[str, Any], settings: JobSettings) -> str:
    old, new = previous["settings"], settings.identity()
    changed = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    changes = ", ".join(
        f"--{name.replace('_', '-')} was {old.get(name)}, now {new.get(name)}" for name in changed
    )
    return f"--out {out.uri} belongs to a run with other settings ({changes}); --fresh starts again"


def _read_json(location: Location) -> dict[str, Any] | None:
    if not location.exists():
        return None
    try:
        content = json.loads(location.read_bytes())
    except ValueError:
        content = None
    if not isinstance(content, dict) or not {"job", "settings", "started"} <= content.keys():
        raise InputError(f"{location.uri} was not written by visao_ray; choose another --out")
    return content


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found
