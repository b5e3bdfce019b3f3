"""From a command line to an exit status: 0, 2 for bad input, 1 for a failure of ours."""

from __future__ import annotations

import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TypeVar

from visao_ray.core.errors import InputError, cause_of
from visao_ray.core.lease import LeaseLost
from visao_ray.core.run import Work, execute
from visao_ray.core.settings import CommandSettings, JobSettings, parse
from visao_ray.core.storage import is_outage, reason

C = TypeVar("C", bound=CommandSettings)
S = TypeVar("S", bound=JobSettings)


def print_input_error(error: InputError) -> int:
    """Print bad input in one line and return its exit status, 2."""
    print(f"error: {error}", file=sys.stderr)
    return 2


def main(kind: type[S], work: Work[S], arguments: Sequence[str], program: str | None = None) -> int:
    """Run a job from its command line; see `run_command`."""
    command = f"{program or kind.job} {shlex.join(arguments)}".strip()

    def job(settings: S) -> int:
        execute(settings, work, command)
        return 0

    return run_command(kind, job, arguments, program)


def run_command(
    kind: type[C],
    command: Callable[[C], int],
    arguments: Sequence[str],
    program: str | None = None,
) -> int:
    """Run a command with the settings of its command line, and say in one line what stopped it.

    Args:
        kind: of the settings.
        command: takes them and returns an exit status.
        arguments: of the command line.
        program: how the command line begins, for `--help`.

    Returns:
        The command's exit status; 2 for bad input, 1 for a failure of ours.
    """
    try:
        return command(parse(kind, arguments, program))
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    except SystemExit as stop:
        if stop.code != signal.SIGTERM:  # Ray's handler exits with the number of the signal
            raise
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 128 + signal.SIGTERM
    except Exception as error:
        cause = cause_of(error)
        if isinstance(cause, InputError):
            return print_input_error(cause)
        if isinstance(cause, OSError) and is_outage(cause):
            print(
                f"error: the object store keeps failing: {reason(cause)}; the same command "
                "goes on from here",
                file=sys.stderr,
            )
            return 1
        if isinstance(cause, LeaseLost):
            print(
                f"error: {cause}; another process goes on with this, or the same command does",
                file=sys.stderr,
            )
            return 1
        traceback.print_exc()
        print(
            f"error: {kind.job} failed: {reason(cause)} (this is a fault of the program or the "
            "cluster, not of the input; the same command goes on from here)",
            file=sys.stderr,
        )
        return 1
