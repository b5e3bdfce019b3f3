"""Features of the object store that pyarrow lacks: ETags, conditional puts, options for Lance.

Addresses and credentials come from the same environment variables as in `visao_ray.core.storage`.
No setting and no message contains credentials.
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

if TYPE_CHECKING:  # these names exist for type checkers only
    from obstore.store import S3Config, S3Credential

_CREDENTIALS = {
    "access_key_id": "AWS_ACCESS_KEY_ID",
    "secret_access_key": "AWS_SECRET_ACCESS_KEY",
    "session_token": "AWS_SESSION_TOKEN",
}
_PAGE = 1000  # the most that S3 lists at once
_CONNECT = timedelta(seconds=5)
_REFRESH = timedelta(minutes=5)  # after which credentials are read again; they may change


class Listed(NamedTuple):
    """A file of a listing.

    Attributes:
        path: path relative to the listed folder.
        bytes: size; 0 for a broken local link.
        etag: changes when the file changes; empty for a broken local link.
    """

    path: str
    bytes: int
    etag: str


def storage_options() -> dict[str, str]:
    """Return the options that Lance needs for the object store.

    They include credentials if the environment has them; otherwise Lance finds a profile or a role
    by itself. Never write the result to a file or a log.
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
    """Open the bucket of an S3 location.

    Args:
        location: location in a bucket.
        timeout: timeout of one request.
        retries: retries of a request that failed on the network or at the server. The retry of a
            conditional put may find the object that the first attempt wrote; with 0 the caller
            sees the result of each attempt.

    Returns:
        The bucket, and the key of the location in it.
    """
    bucket, _, key = location.path.partition("/")
    endpoint = _endpoint()
    config: S3Config = {"disable_bulk_delete": True}  # not all servers support it
    if endpoint:
        config["endpoint"] = endpoint
    region, provider = _region(), None
    if not os.environ.get(_CREDENTIALS["access_key_id"]):
        provider = _CredentialChain()
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
    """List every file below a folder, in the order of the server or the disk.

    S3 lists in the order of keys. Folders for which `is_ignored` is true are left out; local links
    are followed once.

    Args:
        location: a folder or prefix.
        ignore: names of folders to leave out.
        recursive: list files at any depth; otherwise only those directly in the folder.

    Returns:
        Iterator over the files.

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
    """Whether an empty object is named `path/`: the listing does not show the slash."""
    try:
        obstore.head(store, path)
    except FileNotFoundError:
        return True
    return False


class _CredentialChain:
    """Credentials of a profile or role, found by the credential chain of all AWS programs."""

    def __init__(self) -> None:
        from botocore.session import get_session  # slow to import, and needed only here

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
