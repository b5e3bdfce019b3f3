"""The store job: show the status of a store, verify it, and keep it small."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from visao_ray.core.errors import InputError
from visao_ray.core.lease import Owner
from visao_ray.core.ray_session import start_ray
from visao_ray.core.resources import remotely
from visao_ray.core.run import to_json
from visao_ray.store.join import RUN_TAG
from visao_ray.store.maintenance import KEEP, Cleaned
from visao_ray.store.settings import StoreToolSettings
from visao_ray.store.status import read_status, render_status, size
from visao_ray.store.store import Store, Writer
from visao_ray.store.verification import find_problems


def operate_store(settings: StoreToolSettings) -> int:
    """Run one action on a store.

    Args:
        settings: settings of the job.

    Returns:
        Exit status: 1 if `verify` found a problem, else 0.

    Raises:
        InputError: no such store, another process writes to it, or no such run to forget.
    """
    store = Store.open(settings.store)
    start_ray()
    return _ACTIONS[settings.action](store, settings)


def _status(store: Store, settings: StoreToolSettings) -> int:
    status = remotely(read_status, store.uri)
    print(to_json(status).decode().rstrip() if settings.as_json else render_status(status))
    return 0


def _verify(store: Store, settings: StoreToolSettings) -> int:
    problems = remotely(find_problems, store.uri)
    for problem in problems:
        print(f"problem: {problem}")
    if not problems:
        _say(f"{store.uri}: nothing is missing or duplicated, every file can be opened")
    return 1 if problems else 0


def _compact(store: Store, settings: StoreToolSettings) -> int:
    with _writing(store, settings) as writer:
        before = _fragments(writer)
        cleaned = writer.maintain(at_least=2)
        after = _fragments(writer)
    for name, count in after.items():
        _say(f"{name}: {before[name]:,} fragments before, {count:,} now")
    _say_cleaned(cleaned)
    return 0


def _clean(store: Store, settings: StoreToolSettings) -> int:
    keep = KEEP if settings.older_than is None else settings.older_than
    with _writing(store, settings) as writer:
        _say_cleaned(writer.maintain(keep))
    return 0


def _forget(store: Store, settings: StoreToolSettings) -> int:
    """Remove the tags of a run; then clean-up may remove the versions that only it has tagged."""
    tag = f"{RUN_TAG}{settings.run}"
    with _writing(store, settings) as writer:
        forgotten = [name for name, table in store.tables().items() if table.untag(tag)]
        if not forgotten:
            raise InputError(
                f"forget {settings.run}: no run of that id has read {store.uri}; status lists "
                "the runs"
            )
        _say(f"run {settings.run} is forgotten: {', '.join(forgotten)}")
        _say_cleaned(writer.maintain())
    return 0


_ACTIONS = {
    "status": _status,
    "verify": _verify,
    "compact": _compact,
    "clean": _clean,
    "forget": _forget,
}


@contextmanager
def _writing(store: Store, settings: StoreToolSettings) -> Iterator[Writer]:
    owner = Owner.here(job=f"store {settings.action}", run="none")
    with store.writing(owner, _say) as writer:
        yield writer


def _fragments(writer: Writer) -> dict[str, int]:
    tables = writer.store.tables()
    return {
        name: len(writer.version(table).open().get_fragments()) for name, table in tables.items()
    }


def _say_cleaned(cleaned: dict[str, Cleaned]) -> None:
    for name, found in cleaned.items():
        if found.versions or found.files:
            _say(
                f"{name}: removed {found.versions:,} old versions and {found.files:,} data files, "
                f"{size(found.bytes)}"
            )
    _say(f"{size(sum(found.bytes for found in cleaned.values()))} freed")


def _say(message: str) -> None:
    print(f"[store] {message}", flush=True)
