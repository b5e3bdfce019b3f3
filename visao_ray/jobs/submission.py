"""Jobs on a cluster: hand one in, show its lines, and end as it ends.

What `ray job submit` does, and three things it does not: settings are checked here before anything
travels, a lost connection is taken up again, and the exit status is the job's own.
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
_LOOK_S = 1.0
_PATIENCE_S = 45.0
_STOPPED = 143  # as a process that ended on SIGTERM


def main(arguments: Sequence[str], program: str | None = None) -> int:
    """Submit from a command line; returns the job's status, or 2 for what is wrong here.

    Args:
        arguments: of the command line.
        program: how the command line begins, for `--help`.
    """
    given = parser(program).parse_args(arguments)
    try:
        return submit(given.verb, given.flags, given.address, given.id, wait=not given.no_wait)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def submit(
    verb: str,
    flags: Sequence[str],
    address: str | None = None,
    name: str | None = None,
    wait: bool = True,
) -> int:
    """Run `python jobs/VERB.py FLAGS` on a cluster; its driver runs on the head.

    Args:
        verb: of the job.
        flags: of its command line.
        address: of the dashboard; $RAY_API_SERVER_ADDRESS or this machine's if None.
        name: the submission id; made of verb and time if None.
        wait: show the job's lines until it ends.

    Returns:
        The job's exit status; 143 if it was stopped; 0 at once without `wait`.

    Raises:
        InputError: no such verb, settings that do not fit, no code to bring along, or no dashboard
            there.
    """
    _check(verb, flags)
    if not (_ROOT / "jobs").is_dir():
        raise InputError(
            f"submit brings jobs/ of a checkout along, and there is none beside {_ROOT}: run "
            "python jobs/submit.py in a clone of visao_ray"
        )
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import yaml
    from ray.job_submission import JobSubmissionClient

    logging.getLogger("ray").setLevel(logging.ERROR)  # it names every ignore file, three times

    address = address or os.environ.get("RAY_API_SERVER_ADDRESS") or "http://127.0.0.1:8265"
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # RAY_ADDRESS would win over an argument
    environment = yaml.safe_load((_ROOT / "cluster" / "runtime_env.yaml").read_text()) or {}
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    try:
        client = JobSubmissionClient(address)
        submitted = _hand_in(
            client,
            entrypoint=shlex.join(["python", f"jobs/{verb}.py", *flags]),
            submission_id=name or f"{verb}-{stamp}-{secrets.token_hex(2)}",
            runtime_env={**environment, "working_dir": str(_ROOT)},
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(f"--address {address}: {reason(error)}") from error
    print(f"[submit] {submitted} at {address}", flush=True)
    print(f"[submit] ray job stop --address {address} {submitted}   ends it", flush=True)
    return _follow(client, submitted) if wait else 0


def _hand_in(client: Any, **job: Any) -> str:
    """Submit, also to a head whose dashboard answers before it can take jobs."""
    end = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return str(client.submit_job(**job))
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > end:
                raise
        time.sleep(_LOOK_S)


def _follow(client: Any, submitted: str) -> int:
    """Show the job's lines from first to last, over lost connections; returns its status."""
    from ray.job_submission import JobStatus

    shown = 0
    silent_since: float | None = None

    async def tail() -> None:
        nonlocal shown, silent_since
        seen = 0
        async for lines in client.tail_job_logs(submitted):  # from the first, every time
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
            if time.monotonic() > silent_since + _PATIENCE_S:
                print(f"error: {submitted}: no answer: {reason(error)}", file=sys.stderr)
                return 1
            time.sleep(_LOOK_S)
            continue
        if info.status.is_terminal():
            break
        time.sleep(_LOOK_S)
    print(f"[submit] {submitted} {info.status}", flush=True)
    if info.status == JobStatus.SUCCEEDED:
        return 0
    if info.status == JobStatus.STOPPED:
        print("[submit] the same command goes on from here", flush=True)
        return _STOPPED
    if info.driver_exit_code is None:  # the driver never ran, or its node was lost
        print(f"error: {submitted}: {info.message}", file=sys.stderr)
    return int(info.driver_exit_code or 1)


def _check(verb: str, flags: Sequence[str]) -> None:
    """What the job would say of its settings, before it travels."""
    settings = parse(find_job(verb).settings, flags, f"python jobs/{verb}.py")
    _check_plugins(getattr(settings, "plugin", ()))
    dataset = getattr(settings, "dataset", None)
    if dataset is not None and "://" not in dataset:  # a bucket may be open to the cluster alone
        find_dataset(dataset)


def _check_plugins(plugins: Sequence[str]) -> None:
    """The job looks for a plugin's file where it is below the uploaded folder."""
    for plugin in plugins:
        there = _ROOT / plugin
        if plugin.endswith(".py") and (Path(plugin).is_absolute() or not there.is_file()):
            raise InputError(
                f"--plugin {plugin}: write its path from {_ROOT} on, which is what travels"
            )


def parser(program: str | None) -> argparse.ArgumentParser:
    """Of the command line; `program` is how it begins, the name of the script if None."""
    found = argparse.ArgumentParser(
        prog=program,
        description=SUMMARY,
        epilog="%(prog)s extract --dataset vazios --data s3://bucket/vazios --out "
        "s3://bucket/runs/1\n\nThe cluster's nodes have their credentials from their role or "
        "environment: none are taken from here. The driver runs on the head.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument(
        "--address",
        help="of the cluster's dashboard (RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265); "
        "with token authentication, RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH are read",
    )
    found.add_argument("--id", help="to call the submission by (made of the verb and the time)")
    found.add_argument("--no-wait", action="store_true", help="do not wait for its end")
    found.add_argument("verb", help="which job: extract, train, sweep, pipeline, …")
    found.add_argument("flags", nargs=argparse.REMAINDER, help="the job's own flags")
    return found
