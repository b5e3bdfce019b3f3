"""A lease that admits one writer at a time to a store or a run, on a local disk or in S3.

In S3 the lease is a small JSON object. It is written only by conditional puts and rewritten every
few seconds: each rewrite is a heartbeat. An observer may take the lease after it saw no change for
the lease's whole time to live, measured on the observer's own clock. On a local disk the lease is
a locked file; the operating system frees it when its process ends.

A lease alone cannot stop a writer that was suspended and wakes up. Therefore a new holder first
fences the tables (`visao_ray.store`).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Literal, Protocol, Self

import obstore
import tenacity
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    GenericError,
    NotSupportedError,
    PreconditionError,
)
from obstore.store import S3Store

from visao_ray.core.errors import InputError
from visao_ray.core.object_store import open_bucket
from visao_ray.core.storage import Location, reason

_REFUSED = (AlreadyExistsError, PreconditionError, FileNotFoundError)
_PROBES = 5  # attempts to test a server that fails in between
_RELEASES = 3  # attempts to release a lease
_POLLS = 20  # reads of a lease during its time to live
_DEAD_SHARE = 1 / 3  # of the time to live, if the holder is known to have lost another lease
_POLL_S = 1.0  # the longest time between two reads
_FORMAT = "%Y-%m-%d %H:%M:%S UTC"  # of times in UTC
_OUTAGE_S = 300.0  # about as long as Lance retries one request

#: Condition of a put: that the object does not exist, or that it has this ETag.
_Condition = Literal["create"] | str


class LeaseLost(RuntimeError):
    """Another process may hold the lease now: stop writing."""


@dataclass(frozen=True)
class Owner:
    """A process that holds a lease, as messages name it."""

    host: str
    pid: int
    job: str
    run: str

    @classmethod
    def here(cls, job: str, run: str) -> Self:
        """Return this process."""
        return cls(socket.gethostname(), os.getpid(), job, run)

    def is_process_of(self, other: Owner | None) -> bool:
        """Whether both are the same process; its run may have got another id in between."""
        return other is not None and (self.host, self.pid) == (other.host, other.pid)

    def __str__(self) -> str:
        return f"{self.host} pid {self.pid} (job {self.job}, run {self.run})"


@dataclass(frozen=True)
class _Record:
    """Content of a lease; `beat` changes with every rewrite, so the ETag changes too."""

    owner: Owner
    token: str
    ttl: float
    acquired: str = ""
    beat: int = 0
    released: bool = False

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, data: bytes) -> _Record:
        """Parse the content of a lease; raises ValueError, TypeError or KeyError."""
        fields = json.loads(data)
        return cls(**fields | {"owner": Owner(**fields["owner"])})


@dataclass(frozen=True)
class Holder:
    """The holder of a lease.

    Attributes:
        owner: the process.
        since: when it took the lease, in UTC.
        seen: the last heartbeat, in UTC; on a local disk, the time when it took the lease.
    """

    owner: Owner
    since: str
    seen: str

    @property
    def silence(self) -> timedelta:
        """Time since the last heartbeat, by the clock of this host."""
        return datetime.now(UTC) - datetime.strptime(self.seen, _FORMAT).replace(tzinfo=UTC)


class _Lock(Protocol):
    predecessor: Owner | None

    def acquire(self) -> None: ...
    def check(self) -> None: ...
    def release(self) -> None: ...


class Lease:
    """Context that holds the exclusive right to write to a place.

    Args:
        place: location of the lease: an object, or a file on a local disk.
        owner: the process that takes it.
        ttl: seconds without a heartbeat after which others may take it; in S3.
        heartbeat: seconds between two heartbeats; in S3.
        wait: seconds to wait for a living holder to end before giving up.
        outage: seconds to wait for a failing server after the lease has expired; in S3.
        say: function that prints one line.
        dead: a process that has another stale lease. If it holds this lease too, a third of the
            time to live without a heartbeat is enough to take it; in S3.
    """

    def __init__(
        self,
        place: Location,
        owner: Owner,
        *,
        ttl: float = 30.0,
        heartbeat: float = 5.0,
        wait: float = 0.0,
        outage: float = _OUTAGE_S,
        say: Callable[[str], None] | None = None,
        dead: Owner | None = None,
    ) -> None:
        record = _Record(owner, uuid.uuid4().hex, ttl)
        self._lock: _Lock = (
            _FileLock(place, record, wait)
            if place.is_local
            else _ObjectLock(place, record, heartbeat, wait, outage, say, dead)
        )

    @property
    def predecessor(self) -> Owner | None:
        """The owner of the stale lease that this one replaced, if any."""
        return self._lock.predecessor

    def __enter__(self) -> Self:
        """Take the lease.

        Returns:
            This lease.

        Raises:
            InputError: another process holds it, or it cannot be written.
            OSError: the object store kept failing.
        """
        self._lock.acquire()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.release()

    def check(self) -> None:
        """Return if the latest heartbeat shows that nobody else holds the lease.

        If the time to live has passed without a heartbeat, as after an outage of the server or a
        suspension of this process, a heartbeat is sent first. It is conditional on the previous
        one, so it succeeds only if nobody has taken the lease since.

        Raises:
            LeaseLost: another process has taken it, or the server kept failing.
        """
        self._lock.check()


class _ObjectLock:
    """A lease in a bucket.

    On release the object stays and is marked as released: not every server supports conditional
    deletes, and an unconditional one could delete the lease of the next holder.
    """

    def __init__(
        self,
        place: Location,
        record: _Record,
        heartbeat: float,
        wait: float,
        outage: float,
        say: Callable[[str], None] | None,
        dead: Owner | None,
    ) -> None:
        self._place, self._record = place, record
        self._heartbeat, self._wait, self._outage, self._say = heartbeat, wait, outage, say
        self._dead = dead
        self._poll = min(_POLL_S, record.ttl / _POLLS)
        self._store, self._key = open_bucket(
            place, timeout=timedelta(seconds=max(1.0, record.ttl / 3)), retries=0
        )
        self._etag = ""
        self._last = 0.0  # send time of the latest successful heartbeat, on the monotonic clock
        self._failure = ""  # reason of the last failed heartbeat
        self._lost = ""  # message, once the lease is lost
        self._over = threading.Event()
        self._beat_lock = threading.Lock()  # one thread at a time sends a heartbeat
        self._thread = threading.Thread(target=self._send_heartbeats, name="lease", daemon=True)
        self.predecessor: Owner | None = None

    def acquire(self) -> None:
        give_up = time.monotonic() + self._wait
        answered = time.monotonic()
        watched, since = "", 0.0  # the holder's latest heartbeat, and when it was first seen
        while True:
            try:
                etag, found = self._read()
                now = answered = time.monotonic()
                if found is None or found.released or found.token == self._record.token:
                    if self._take(etag):
                        break
                elif etag == watched and now - since >= self._time_to_live(found):
                    # Stays set if the response is lost: the lease then has our token.
                    self.predecessor = found.owner
                    if self._take(etag):
                        break
                elif etag != watched:
                    self.predecessor = None
                    if watched and now >= give_up:
                        raise InputError(self._held(found))
                    if not watched and self._say:
                        self._say(
                            f"waiting up to {self._time_to_live(found):g} s to see whether "
                            f"{found.owner}, which holds {self._place.uri}, is still alive"
                        )
                    watched, since = etag, now
            except GenericError as error:  # down, busy or cut off
                if time.monotonic() - answered > self._record.ttl:
                    raise OSError(f"{self._place.uri}: {reason(error)}") from error
            except BaseError as error:
                raise InputError(f"{self._place.uri}: no lease: {reason(error)}") from error
            time.sleep(self._poll)
        self._thread.start()

    def check(self) -> None:
        if self._silence() > self._record.ttl:
            self._catch_up()
        if self._lost:
            raise LeaseLost(self._lost)

    def _silence(self) -> float:
        """Return the seconds since the latest successful heartbeat was sent."""
        return time.monotonic() - self._last

    def _catch_up(self) -> None:
        """Send heartbeats until one succeeds, the lease is lost or an outage takes too long."""
        began = time.monotonic()
        waiting = False
        while not self._renew() and not self._lost:
            silence = f"the lease was not renewed for {self._silence():.0f} s: {self._failure}"
            if time.monotonic() - began >= self._outage:
                raise LeaseLost(f"{self._place.uri}: {silence}")
            if self._say and not waiting:
                self._say(f"{silence}; waiting up to {self._outage:g} s for the object store")
            waiting = True
            time.sleep(self._poll)

    def release(self) -> None:
        self._over.set()
        self._thread.join()
        self._record = replace(self._record, released=True)
        for _ in range(_RELEASES):  # if all fail, the lease expires
            if self._lost:
                return
            with contextlib.suppress(BaseError, OSError, InputError):
                return self._send_heartbeat()
            time.sleep(self._poll)

    def _time_to_live(self, found: _Record) -> float:
        """Return the seconds without a heartbeat after which the holder counts as dead."""
        return found.ttl * (_DEAD_SHARE if found.owner.is_process_of(self._dead) else 1.0)

    def _send_heartbeats(self) -> None:
        pause = self._heartbeat
        while not self._over.wait(pause) and not self._lost:
            pause = self._heartbeat if self._renew() else self._poll

    def _renew(self) -> bool:
        """Send a heartbeat and return whether it succeeded."""
        with self._beat_lock:
            try:
                self._send_heartbeat()
            except (BaseError, OSError, InputError) as error:
                self._failure = reason(error)
                return False
            return not self._lost

    def _send_heartbeat(self) -> None:
        if self._put(self._etag):
            return
        etag, found = self._read()
        if found is not None and found.token == self._record.token:
            # An earlier heartbeat was written although its response was lost. Others may have seen
            # it long ago, so it does not count; a new one is sent.
            self._etag = etag
            if self._put(etag):
                return
            etag, found = self._read()
        holder = found.owner if found else "nobody: the object was removed"
        self._lost = f"{self._place.uri}: the lease was lost; it is now held by {holder}"

    def _take(self, etag: _Condition) -> bool:
        self._record = replace(self._record, acquired=_now())
        return self._put(etag)

    def _put(self, etag: _Condition) -> bool:
        """Write the lease if it still has this ETag; return whether it had."""
        self._record = replace(self._record, beat=self._record.beat + 1)
        sent = time.monotonic()
        try:
            self._etag = _put(self._store, self._key, self._record.encode(), etag)
        except _REFUSED as error:
            if "<Code>NoSuchBucket" in str(error):
                raise InputError(f"{self._place.uri}: there is no such bucket") from error
            return False
        self._last = sent
        return True

    def _read(self) -> tuple[_Condition, _Record | None]:
        """Return ETag and content; 'create' and None if there is no object."""
        try:
            result = obstore.get(self._store, self._key)
            etag, data = result.meta["e_tag"] or "", bytes(result.bytes())
        except FileNotFoundError:
            return "create", None
        try:
            return etag, _Record.decode(data)
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{self._place.uri}: is not a lease of visao_ray; remove it if no job is running"
            ) from error

    def _held(self, found: _Record) -> str:
        return (
            f"{self._place.uri}: {found.owner} has held it since {found.acquired} and is alive; "
            f"wait for it, or stop it: it expires in {found.ttl:g} s and is taken over "
            f"{found.ttl:g} s after its last heartbeat"
        )


class _FileLock:
    """A lease on a local disk: a file that is locked while it is open, and stays after release."""

    def __init__(self, place: Location, record: _Record, wait: float) -> None:
        self._place, self._record, self._wait = place, record, wait
        self._file = -1
        self.predecessor: Owner | None = None

    def acquire(self) -> None:
        give_up = time.monotonic() + self._wait
        try:
            os.makedirs(os.path.dirname(self._place.path), exist_ok=True)
            while not self._lock():
                if time.monotonic() >= give_up:
                    raise InputError(self._held())
                time.sleep(0.05)
            before = _decode(os.pread(self._file, 65536, 0))
            if before is not None and not before.released:
                self.predecessor = before.owner
            self._record = replace(self._record, acquired=_now())
            self._write()
        except OSError as error:
            self._close()
            raise InputError(f"{self._place.uri}: no lease: {reason(error)}") from error

    def check(self) -> None:
        if not self._is_in_place():
            raise LeaseLost(f"{self._place.uri}: the lease was lost: its file was removed")

    def release(self) -> None:
        self._record = replace(self._record, released=True)
        with contextlib.suppress(OSError):
            self._write()
        self._close()

    def _lock(self) -> bool:
        self._file = os.open(self._place.path, os.O_RDWR | os.O_CREAT, 0o666)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._is_in_place():
                return True
        self._close()
        return False

    def _close(self) -> None:
        """Close the file, which unlocks it."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _is_in_place(self) -> bool:
        """Whether the path still leads to the locked file, which others would lock too."""
        try:
            current, locked = os.stat(self._place.path), os.fstat(self._file)
        except FileNotFoundError:
            return False
        return (current.st_dev, current.st_ino) == (locked.st_dev, locked.st_ino)

    def _write(self) -> None:
        data = self._record.encode()
        os.pwrite(self._file, data, 0)
        os.ftruncate(self._file, len(data))

    def _held(self) -> str:
        for _ in range(_POLLS):  # a process that has just locked the file writes its name soon
            time.sleep(_POLL_S / _POLLS)
            with open(self._place.path, "rb") as file:
                found = _decode(file.read())
            if found and not found.released:
                break
        who = (
            f"{found.owner} has held it since {found.acquired}"
            if found
            else "another process holds it"
        )
        return (
            f"{self._place.uri}: {who} and is alive; wait for it, or stop it: it expires 0 s after "
            "the end of that process"
        )


def read_holder(place: Location) -> Holder | None:
    """Return the holder of a lease without taking it.

    On a local disk, a lease is free if its process ran on this host and has ended.

    Args:
        place: location of the lease.

    Returns:
        The process that holds the lease, or was killed while it held it; None if it is free.

    Raises:
        InputError: it cannot be read.
    """
    try:
        if place.is_local:
            changed = datetime.fromtimestamp(os.stat(place.path).st_mtime, UTC)
            with open(place.path, "rb") as file:
                data = file.read()
        else:
            store, key = open_bucket(place)
            result = obstore.get(store, key)
            data, changed = bytes(result.bytes()), result.meta["last_modified"]
    except FileNotFoundError:
        return None
    except (BaseError, OSError) as error:
        raise InputError(f"{place.uri}: cannot be read: {reason(error)}") from error
    found = _decode(data)
    if found is None or found.released or (place.is_local and _has_ended(found.owner)):
        return None
    return Holder(found.owner, found.acquired, _text(changed))


def _has_ended(owner: Owner) -> bool:
    """Whether a process of this host has ended; False for processes of other hosts."""
    if owner.host != socket.gethostname():
        return False
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it runs, as another user
        return False
    return False


def require_conditional_puts(place: Location) -> None:
    """Check that a server refuses a put if its condition does not hold.

    A server that ignores conditions would lose commits.

    Args:
        place: a folder that will be written to; on a local disk there is nothing to check.

    Raises:
        InputError: it ignores a condition, or the folder cannot be written to.
        OSError: the object store kept failing.
    """
    if place.is_local:
        return
    retrying = tenacity.Retrying(  # with a new object: a put may succeed and lose its response
        retry=tenacity.retry_if_exception_type(
            (GenericError, AlreadyExistsError, PreconditionError)
        ),
        stop=tenacity.stop_after_attempt(_PROBES),
        wait=tenacity.wait_exponential(multiplier=0.25),
        reraise=True,
    )
    server = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "AWS"
    try:
        ignored = retrying(_ignored_conditions, place)
    except GenericError as error:
        raise OSError(f"{place.uri}: {reason(error)}") from error
    except (BaseError, FileNotFoundError) as error:
        raise InputError(f"{place.uri}: cannot be written to: {reason(error)}") from error
    if ignored:
        raise InputError(
            f"{place.uri}: the server {server} ignores {' and '.join(ignored)}, so two writers "
            "could overwrite each other's commits; use a server with conditional puts"
        )


def _ignored_conditions(place: Location) -> list[str]:
    """Return the names of the headers that have no effect; tested by four puts of one object."""
    store, key = open_bucket(place.join(f"probe-{uuid.uuid4().hex}"), retries=0)
    ignored = []
    try:
        current = _put(store, key, b"1", "create")
        with contextlib.suppress(AlreadyExistsError):
            current = _put(store, key, b"2", "create")
            ignored.append("If-None-Match")
        stale, current = current, _put(store, key, b"3", current)
        with contextlib.suppress(PreconditionError):
            _put(store, key, b"4", stale)
            ignored.append("If-Match")
    except NotSupportedError:
        return ["conditional puts"]
    finally:
        with contextlib.suppress(BaseError, OSError):
            obstore.delete(store, key)
    return ignored


def _put(store: S3Store, key: str, data: bytes, condition: _Condition) -> str:
    """Put an object if the condition holds, and return its ETag."""
    if condition == "create":
        return obstore.put(store, key, data, mode="create")["e_tag"] or ""
    return obstore.put(store, key, data, mode={"e_tag": condition})["e_tag"] or ""


def _decode(data: bytes) -> _Record | None:
    try:
        return _Record.decode(data)
    except (ValueError, TypeError, KeyError):
        return None


def _now() -> str:
    return _text(datetime.now(UTC))


def _text(moment: datetime) -> str:
    return moment.strftime(_FORMAT)
