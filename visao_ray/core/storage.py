"""Locations on a local disk or in an S3 bucket, given by one URI.

Credentials come only from the environment (the standard AWS variables, profile or instance role),
never from a URI or a setting, so no log and no result file can contain them. `AWS_ENDPOINT_URL`
selects an S3-compatible server.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import uuid
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

import pyarrow.fs as pafs
import tenacity

from visao_ray.core.errors import InputError

#: Patterns in the errors of an object store that is down, busy or unreachable.
OUTAGES = (
    "AWS Error NETWORK_CONNECTION",
    "AWS Error SLOW_DOWN",
    "AWS Error THROTTLING",
    "AWS Error SERVICE_UNAVAILABLE",
    "AWS Error INTERNAL_FAILURE",
    "AWS Error REQUEST_TIMEOUT",
    r"HTTP status 5\d\d",
    r"Generic S3 error: .* after \d+ retries",  # of Lance and obstore
)
_ATTEMPTS = 11  # of one S3 request: 26 s in total, each wait twice as long as the one before
_CONNECT_S = 5.0
_SILENCE_S = 20.0  # the longest pause of a server within a response
#: pyarrow's error for a response to a failed request that is longer than the bytes requested: it
#: loses the response, and does not retry.
_LOST_RESPONSE = "Failed to flush response stream"

T = TypeVar("T")


class Entry(NamedTuple):
    """A file or folder directly below a location.

    Attributes:
        name: its name, without a path.
        is_folder: whether it is a folder.
    """

    name: str
    is_folder: bool


@dataclass(frozen=True)
class Location:
    """A file or folder.

    Attributes:
        uri: address for users and messages.
        filesystem: file system that holds it.
        path: path on that file system.
    """

    uri: str
    filesystem: pafs.FileSystem
    path: str

    @property
    def is_local(self) -> bool:
        """Whether it is on a local disk."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    def join(self, *parts: str) -> Location:
        """Return the location with this path below this one."""
        tail = "/".join(parts)
        return Location(
            f"{self.uri.rstrip('/')}/{tail}", self.filesystem, f"{self.path.rstrip('/')}/{tail}"
        )

    def exists(self) -> bool:
        """Whether there is such a file or folder."""
        return bool(self._info().type != pafs.FileType.NotFound)

    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return bool(self._info().type == pafs.FileType.Directory)

    def children(self) -> list[Entry]:
        """List files and folders directly below, sorted by name; none if there is no such folder.

        A broken local link is listed as a file (pyarrow would silently omit it).
        """
        if self.is_local:
            try:
                with os.scandir(self.path) as found:
                    entries = [Entry(entry.name, entry.is_dir()) for entry in found]
            except (FileNotFoundError, NotADirectoryError):
                return []
        else:
            selector = pafs.FileSelector(self.path, recursive=False, allow_not_found=True)
            entries = [
                Entry(info.base_name, info.type == pafs.FileType.Directory)
                for info in self.filesystem.get_file_info(selector)
            ]
        return sorted(entries)

    def walk(self, ignore: Collection[str] = ()) -> Iterator[str]:
        """Iterate over the relative paths of all files below, in no order.

        Links are followed once. Folders for which `is_ignored` is true are left out.
        """
        if self.is_local:
            seen = set()
            for folder, names, files in os.walk(self.path, followlinks=True):
                status = os.stat(folder)
                if (status.st_dev, status.st_ino) in seen:  # a link back to a folder above
                    names.clear()
                    continue
                seen.add((status.st_dev, status.st_ino))
                names[:] = [name for name in names if not is_ignored(name, ignore)]
                inner = os.path.relpath(folder, self.path)
                yield from (name if inner == "." else f"{inner}/{name}" for name in files)
            return
        selector = pafs.FileSelector(self.path, recursive=True, allow_not_found=True)
        for info in self.filesystem.get_file_info(selector):
            path = info.path[len(self.path.rstrip("/")) + 1 :]
            folders = path.split("/")[:-1]
            if info.type != pafs.FileType.Directory and not any(
                is_ignored(name, ignore) for name in folders
            ):
                yield path

    def files(self) -> Iterator[Location]:
        """Iterate over all files below, at any depth, including hidden folders."""
        selector = pafs.FileSelector(self.path, recursive=True, allow_not_found=True)
        for info in self.filesystem.get_file_info(selector):
            if info.type == pafs.FileType.File:
                yield self.join(info.path[len(self.path.rstrip("/")) + 1 :])

    def read_bytes(self) -> bytes:
        """Read the whole file; raises OSError with the file system's reason."""

        def read() -> bytes:
            if self.is_local:  # three times as fast as through Arrow
                return Path(self.path).read_bytes()
            # Its size is known, so that it is read by one request; a stream is read in parts.
            with self.filesystem.open_input_file(self.path) as file:
                return bytes(file.read())

        return with_retries(read)

    def write_bytes(self, data: bytes) -> None:
        """Write the whole file atomically: a reader sees either the old or the new content."""
        if self.is_local:
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            partial = f"{self.path}.{uuid.uuid4().hex}.partial"
            with open(partial, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self.path)
        else:
            with self.filesystem.open_output_stream(self.path) as stream:
                stream.write(data)

    def delete(self) -> None:
        """Remove the file or the whole folder; do nothing if it does not exist."""
        kind = self._info().type
        # An object store may report a folder for a while after its last object was deleted.
        with contextlib.suppress(FileNotFoundError):
            if kind == pafs.FileType.Directory:
                self.filesystem.delete_dir(self.path)
            elif kind != pafs.FileType.NotFound:
                self.filesystem.delete_file(self.path)

    def move(self, to: Location) -> None:
        """Move a file or folder to another path on the same file system."""
        sources = list(self.files()) if self.is_folder() else [self]
        for source in sources:
            target = to.join(source.path[len(self.path) + 1 :]) if source is not self else to
            self.filesystem.create_dir(target.path.rsplit("/", 1)[0], recursive=True)
            self.filesystem.move(source.path, target.path)
        if sources != [self]:
            self.delete()

    def _info(self) -> pafs.FileInfo:
        return self.filesystem.get_file_info(self.path)


def locate(uri: str) -> Location:
    """Return the location of a URI without accessing its file system.

    Args:
        uri: local path, `file://…` or `s3://bucket/prefix`.

    Returns:
        The location.

    Raises:
        InputError: another scheme, no bucket, or credentials inside the URI.
    """
    scheme, separator, _ = uri.partition("://")
    if not uri:
        raise InputError("an empty path was given; pass a folder or s3://bucket/prefix")
    if not separator:
        path = os.path.abspath(os.path.expanduser(uri))
        return Location(path, pafs.LocalFileSystem(), path)
    if scheme == "file":
        path = os.path.abspath(unquote(urlsplit(uri).path))
        return Location(path, pafs.LocalFileSystem(), path)
    if scheme != "s3":
        raise InputError(
            f"{uri}: unknown scheme {scheme}://; use a local path or s3://bucket/prefix"
        )
    path = uri[len("s3://") :].rstrip("/")
    bucket = path.split("/", 1)[0]
    if "@" in bucket:
        raise InputError(
            "credentials in an s3:// URI would end up in logs; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY in the environment and pass s3://bucket/prefix"
        )
    if not bucket:
        raise InputError(f"{uri}: no bucket; write s3://bucket/prefix")
    return Location(f"s3://{path}", _s3(), path)


def is_ignored(name: str, ignore: Collection[str]) -> bool:
    """Whether to skip a folder: it is hidden, an artefact of macOS archives, or in `ignore`."""
    return name.startswith(".") or name == "__MACOSX" or name in ignore


def _s3() -> pafs.S3FileSystem:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    return _s3_at(endpoint, region)


@functools.cache  # the file system keeps its connections; a new one per image would reconnect
def _s3_at(endpoint: str | None, region: str | None) -> pafs.S3FileSystem:
    options: dict[str, object] = {
        # The standard strategy stops retrying early if many requests fail at once, as in an outage.
        "retry_strategy": pafs.AwsDefaultS3RetryStrategy(max_attempts=_ATTEMPTS),
        "connect_timeout": _CONNECT_S,
        "request_timeout": _SILENCE_S,
        # Write a small file with one request instead of three.
        "allow_delayed_open": True,
    }
    if endpoint:
        parts = urlsplit(endpoint)
        options |= {
            "endpoint_override": parts.netloc or endpoint,
            "scheme": parts.scheme or "https",
            "region": region or "us-east-1",
        }
    elif region:
        options["region"] = region
    return pafs.S3FileSystem(**options)


def is_outage(error: BaseException) -> bool:
    """Whether the object store failed, so that the same request may succeed later."""
    return any(re.search(words, str(error)) for words in OUTAGES)


def with_retries(read: Callable[[], T]) -> T:
    """Call a read and return its result; retry it if a busy object store refuses it.

    pyarrow itself retries a 503, unless the read requested fewer bytes than the error response has:
    the response then overflows the buffer. This happens when a column of a few short words is read.
    """

    def is_lost(error: BaseException) -> bool:
        return isinstance(error, OSError) and _LOST_RESPONSE in str(error)

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_lost),
        stop=tenacity.stop_after_attempt(_ATTEMPTS),
        wait=tenacity.wait_exponential(multiplier=0.025),  # 26 s in total, as for other requests
        reraise=True,
    )
    return retrying(read)


def reason(error: BaseException) -> str:
    """Return the first line of an error's message, shortened to 300 characters."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


def require_folder(location: Location, flag: str) -> None:
    """Check that a folder (or prefix) can be listed, before any work.

    Args:
        location: the folder.
        flag: flag that names the folder, for the error message.

    Raises:
        InputError: it is missing or cannot be read.
    """
    try:
        if location.is_folder() or location.children():
            return
    except OSError as error:
        raise InputError(f"{flag} {location.uri}: cannot be listed: {reason(error)}") from error
    what = "is a file, not a folder" if location.exists() else "does not exist"
    raise InputError(f"{flag} {location.uri}: {what}")
