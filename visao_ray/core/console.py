"""Run a command line and return its exit status: 0, 2 for bad input, 1 for any other failure."""

from __future__ import annotations

import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TypeVar

from visao_ray.core.errors import InputError, cause_of
from visao_ray.core.lease import LeaseLost
from visao_ray.core.run import FAILED, Work, execute
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
        result = execute(settings, work, command)
        if result["status"] != FAILED:
            return 0
        print(f"error: {result['failure']}", file=sys.stderr)
        return 1

    return run_command(kind, job, arguments, program)


def run_command(
    kind: type[C],
    command: Callable[[C], int],
    arguments: Sequence[str],
    program: str | None = None,
) -> int:
    """Parse the settings of a command line, run the command, and print an error as one line.

    Args:
        kind: class of the settings.
        command: function that takes the settings and returns an exit status.
        arguments: arguments of the command line.
        program: first words of the command line, for `--help`.

    Returns:
        The exit status of the command; 2 for bad input, 1 for any other failure.
    """
    try:
        return command(parse(kind, arguments, program))
    except KeyboardInterrupt:
        print("interrupted; run the same command again to continue", file=sys.stderr)
        return 130
    except SystemExit as stop:
        if stop.code != signal.SIGTERM:  # Ray's handler exits with the signal's number
            raise
        print("stopped; run the same command again to continue", file=sys.stderr)
        return 128 + signal.SIGTERM
    except Exception as error:
        cause = cause_of(error)
        if isinstance(cause, InputError):
            return print_input_error(cause)
        if isinstance(cause, OSError) and is_outage(cause):
            print(
                f"error: the object store keeps failing: {reason(cause)}; run the same command "
                "again to continue",
                file=sys.stderr,
            )
            return 1
        if isinstance(cause, LeaseLost):
            print(
                f"error: {cause}; another process continues this work, or run the same command "
                "again to continue",
                file=sys.stderr,
            )
            return 1
        traceback.print_exc()
        print(
            f"error: {kind.job} failed: {reason(cause)} (this is a fault of the program or the "
            "cluster, not of the input; run the same command again to continue)",
            file=sys.stderr,
        )
        return 1
