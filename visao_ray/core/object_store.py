"""The object store as pyarrow does not show it: ETags and conditional puts, and facts for Lance.

Addresses come from the same environment variables as in `visao_ray.core.storage`, and so do
credentials; none is in a setting or a message.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

import obstore
from obstore.exceptions import BaseError, InvalidPathError
from obstore.store import S3Store

from visao_ray.core.errors import InputError
from visao_ray.core.storage import Location, is_ignored, reason

if TYPE_CHECKING:  # they are there for type checkers alone
    from obstore.store import S3Config, S3Credential

_CREDENTIALS = {
    "access_key_id": "AWS_ACCESS_KEY_ID",
    "secret_access_key": "AWS_SECRET_ACCESS_KEY",
    "session_token": "AWS_SESSION_TOKEN",
}
_PAGE = 1000  # the most that S3 lists at once
_CONNECT = timedelta(seconds=5)
_REFRESH = timedelta(minutes=5)  # of credentials that may change


class Listed(NamedTuple):
    """A file of a listing.

    Attributes:
        path: relative to the folder that was listed.
        bytes: its size; 0 for a local link that leads nowhere.
        etag: changes when the file does; empty for a local link that leads nowhere.
    """

    path: str
    bytes: int
    etag: str


def storage_options() -> dict[str, str]:
    """What Lance needs to know of the object store.

    Credentials are among them where the environment names them; where it does not, Lance finds a
    profile or a role by itself. The result must not be written anywhere.
    """
    options = {
        name: os.environ[variable]
        for name, variable in _CREDENTIALS.items()
        if os.environ.get(variable)
    }
    endpoint, region = _endpoint(), _region()
    if endpoint:
        options |= {"endpoint": endpoint, "region": region or "us-east-1"}
        options["allow_http"] = str(endpoint.startswith("http://")).lower()
    elif region:
        options["region"] = region
    if style := os.environ.get("AWS_VIRTUAL_HOSTED_STYLE_REQUEST"):
        options["virtual_hosted_style_request"] = style
    return options


def open_bucket(
    location: Location,
    *,
    timeout: timedelta = timedelta(seconds=30),
    retries: int = 10,
) -> tuple[S3Store, str]:
    """The bucket of an S3 location, and the location's key in it.

    Args:
        location: in a bucket.
        timeout: of one request.
        retries: of a request that failed on the way or at the server. A conditional put that is
            tried again may find what it wrote itself: with 0 the caller knows each outcome.
    """
    bucket, _, key = location.path.partition("/")
    endpoint = _endpoint()
    config: S3Config = {"disable_bulk_delete": True}  # not all servers have it
    if endpoint:
        config["endpoint"] = endpoint
    region, provider = _region(), None
    if not os.environ.get(_CREDENTIALS["access_key_id"]):
        provider = _Chain()
        region = region or provider.region
    config["region"] = region or "us-east-1"
    store = S3Store(
        bucket,
        config=config,
        client_options={
            "allow_http": bool(endpoint and endpoint.startswith("http://")),
            "connect_timeout": min(_CONNECT, timeout),
            "timeout": timeout,
        },
        retry_config={"max_retries": retries},
        credential_provider=provider,
    )
    return store, key


def list_files(
    location: Location, ignore: Collection[str] = (), recursive: bool = True
) -> Iterator[Listed]:
    """Every file below a folder, as the server or the disk lists them.

    S3 lists in the order of keys. Folders that `is_ignored` names are left out; local links are
    followed once.

    Args:
        location: a folder or prefix.
        ignore: names of folders to leave out.
        recursive: at any depth, or directly in the folder only.

    Raises:
        InputError: a key that no client can address, or there is no such bucket.
        OSError: the listing failed.
    """
    if not location.is_local:
        return _list_objects(location, ignore, recursive)
    if not recursive:
        names = (entry.name for entry in location.children() if not entry.is_folder)
        return (_local(location, name) for name in names)
    return (_local(location, path) for path in location.walk(ignore))


def _local(location: Location, path: str) -> Listed:
    try:
        found = os.stat(f"{location.path}/{path}")
    except OSError:
        return Listed(path, 0, "")
    return Listed(path, found.st_size, f"{found.st_mtime_ns:x}-{found.st_size:x}-{found.st_ino:x}")


def _list_objects(location: Location, ignore: Collection[str], recursive: bool) -> Iterator[Listed]:
    store, key = open_bucket(location)
    start = len(key) + 1 if key else 0
    try:
        pages = (
            obstore.list(store, key or None, chunk_size=_PAGE)
            if recursive
            else [obstore.list_with_delimiter(store, key or None)["objects"]]
        )
        for page in pages:
            for found in page:
                path = found["path"][start:]
                if any(is_ignored(name, ignore) for name in path.split("/")[:-1]):
                    continue
                if not found["size"] and _is_folder_marker(store, found["path"]):
                    continue
                yield Listed(path, found["size"], (found["e_tag"] or "").strip('"'))
    except InvalidPathError as error:
        raise InputError(
            f"{location.uri}: {reason(error)}; rename that object: its key has an empty part, a "
            "dot for a part, or a control character"
        ) from error
    except BaseError as error:
        if "<Code>NoSuchBucket" in str(error):
            raise InputError(f"{location.uri}: there is no such bucket") from error
        raise OSError(f"{location.uri}: cannot be listed: {reason(error)}") from error


def _is_folder_marker(store: S3Store, path: str) -> bool:
    """Whether an empty object is called `path/`: the listing does not show the slash."""
    try:
        obstore.head(store, path)
    except FileNotFoundError:
        return True
    return False


class _Chain:
    """Credentials of a profile or role, by the chain that all AWS programs use."""

    def __init__(self) -> None:
        from botocore.session import get_session  # slow, and needed here alone

        session = get_session()
        self.region: str | None = session.get_config_variable("region")
        self._credentials = session.get_credentials()
        if self._credentials is None:
            raise InputError(
                "no credentials for S3: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
                "AWS_PROFILE, or give the machine a role"
            )

    def __call__(self) -> S3Credential:
        now = self._credentials.get_frozen_credentials()
        return {
            "access_key_id": now.access_key,
            "secret_access_key": now.secret_key,
            "token": now.token,
            "expires_at": datetime.now(UTC) + _REFRESH,
        }


def _endpoint() -> str | None:
    found = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return f"https://{found}" if found and "://" not in found else found


def _region() -> str | None:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
