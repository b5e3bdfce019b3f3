"""Submit a job to a Ray cluster, stream its logs, and exit with its status.

This does what `ray job submit` does, and three things more: settings are checked here before
anything is uploaded, a lost connection is opened again, and the exit status is the job's own.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import secrets
import shlex
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from visao_ray.core.errors import InputError
from visao_ray.core.settings import parse
from visao_ray.core.storage import reason
from visao_ray.datasets.registry import find_dataset
from visao_ray.jobs.registry import find_job

VERB = "submit"
SUMMARY = "Submit a job to a Ray cluster, stream its logs, and exit with its status."

_ROOT = Path(__file__).resolve().parents[2]
_POLL_S = 1.0
_TIMEOUT_S = 45.0
_STOPPED = 143  # the status of a process that ended on SIGTERM


def main(arguments: Sequence[str], program: str | None = None) -> int:
    """Submit a job from a command line.

    Args:
        arguments: the command line.
        program: how the command line begins, for `--help`; the name of the script if None.

    Returns:
        The job's exit status.

    Raises:
        InputError: see `submit`.
    """
    given = parser(program).parse_args(arguments)
    return submit(given.verb, given.flags, given.address, given.id, wait=not given.no_wait)


def submit(
    verb: str,
    flags: Sequence[str],
    address: str | None = None,
    name: str | None = None,
    wait: bool = True,
) -> int:
    """Run `python jobs/VERB.py FLAGS` on a cluster; its driver runs on the head node.

    Args:
        verb: name of the job.
        flags: its command line.
        address: address of the dashboard; $RAY_API_SERVER_ADDRESS, or this machine's if None.
        name: the submission id; made of verb and time if None.
        wait: stream the job's logs until it ends.

    Returns:
        The job's exit status; 143 if it was stopped; 0 immediately without `wait`.

    Raises:
        InputError: unknown verb, wrong settings, no code to upload, or no dashboard at the
            address.
    """
    _check(verb, flags)
    if not (_ROOT / "jobs").is_dir():
        raise InputError(
            f"submit uploads jobs/ of a clone, and there is none in {_ROOT}: run "
            "python jobs/submit.py in a clone of visao_ray"
        )
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import yaml
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray").setLevel(logging.ERROR)  # it logs every ignore file three times

    address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or "http://127.0.0.1:8265"
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # RAY_ADDRESS would override an argument
    environment = yaml.safe_load((_ROOT / "cluster" / "runtime_env.yaml").read_text()) or {}
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    try:
        client = JobSubmissionClient(address)
        submitted = _submit(
            client,
            entrypoint=shlex.join(["python", f"jobs/{verb}.py", *flags]),
            submission_id=name or f"{verb}-{stamp}-{secrets.token_hex(2)}",
            runtime_env={**environment, "working_dir": str(_ROOT)},
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(f"--address {address}: {reason(error)}") from error
    print(f"[submit] {submitted} at {address}", flush=True)
    print(f"[submit] ray job stop --address {address} {submitted}   stops it", flush=True)
    return _follow(client, submitted) if wait else 0


def _submit(client: Any, **job: Any) -> str:
    """Submit the job; retry while the dashboard is up but cannot accept jobs yet."""
    end = time.monotonic() + _TIMEOUT_S
    while True:
        try:
            return str(client.submit_job(**job))
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > end:
                raise
        time.sleep(_POLL_S)


def _follow(client: Any, submitted: str) -> int:
    """Stream the job's logs, across lost connections, and return its exit status."""
    from ray.job_submission import JobStatus

    shown = 0
    silent_since: float | None = None

    async def tail() -> None:
        nonlocal shown, silent_since
        seen = 0
        async for lines in client.tail_job_logs(submitted):  # always from the first line
            print(lines[max(0, shown - seen) :], end="", flush=True)
            seen += len(lines)
            shown, silent_since = max(seen, shown), None

    while True:
        try:
            asyncio.run(tail())
            info = client.get_job_info(submitted)
            silent_since = None
        except (ConnectionError, RuntimeError, OSError) as error:
            silent_since = silent_since or time.monotonic()
            if time.monotonic() > silent_since + _TIMEOUT_S:
                print(f"error: {submitted}: no answer: {reason(error)}", file=sys.stderr)
                return 1
            time.sleep(_POLL_S)
            continue
        if info.status.is_terminal():
            break
        time.sleep(_POLL_S)
    print(f"[submit] {submitted} {info.status}", flush=True)
    if info.status == JobStatus.SUCCEEDED:
        return 0
    if info.status == JobStatus.STOPPED:
        print("[submit] run the same command again to continue", flush=True)
        return _STOPPED
    if info.driver_exit_code is None:  # the driver never ran, or its node was lost
        print(f"error: {submitted}: {info.message}", file=sys.stderr)
    return int(info.driver_exit_code or 1)


def _check(verb: str, flags: Sequence[str]) -> None:
    """Check the job's settings before anything is uploaded."""
    settings = parse(find_job(verb).settings, flags, f"python jobs/{verb}.py")
    _check_plugins(getattr(settings, "plugin", ()))
    dataset = getattr(settings, "dataset", None)
    if dataset is not None and "://" not in dataset:  # only the cluster may have access to a bucket
        find_dataset(dataset)


def _check_plugins(plugins: Sequence[str]) -> None:
    """Check that plugin files are in the uploaded folder, named relative to it."""
    for plugin in plugins:
        file = _ROOT / plugin
        if plugin.endswith(".py") and (Path(plugin).is_absolute() or not file.is_file()):
            raise InputError(
                f"--plugin {plugin}: give its path relative to {_ROOT}, which is uploaded"
            )


def parser(program: str | None) -> argparse.ArgumentParser:
    """Return the parser of the command line.

    Args:
        program: how the command line begins; the name of the script if None.

    Returns:
        The parser.
    """
    found = argparse.ArgumentParser(
        prog=program,
        description=SUMMARY,
        epilog="%(prog)s extract --dataset vazios --data s3://bucket/vazios --out "
        "s3://bucket/runs/1\n\nThe nodes of the cluster take credentials from their role or "
        "environment; none are sent from here. The driver runs on the head node.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument(
        "--address",
        help="address of the cluster's dashboard (RAY_API_SERVER_ADDRESS, else "
        "http://127.0.0.1:8265); with token authentication, RAY_AUTH_MODE=token and "
        "RAY_AUTH_TOKEN_PATH are read",
    )
    found.add_argument("--id", help="id of the submission (made of the verb and the time)")
    found.add_argument("--no-wait", action="store_true", help="do not wait for the end of the job")
    found.add_argument("verb", help="which job: extract, train, sweep, pipeline, …")
    found.add_argument("flags", nargs=argparse.REMAINDER, help="the job's own flags")
    return found
