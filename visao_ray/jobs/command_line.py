"""Run jobs from a command line: `visao-ray VERB FLAGS`, and `python jobs/VERB.py FLAGS`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from visao_ray import __version__
from visao_ray.core.console import main, print_input_error, run_command
from visao_ray.core.errors import InputError
from visao_ray.core.settings import JobSettings
from visao_ray.jobs import submission
from visao_ray.jobs.registry import JOBS, find_job


def console() -> NoReturn:
    """Run `visao-ray VERB FLAGS` and exit with the job's status."""
    verb, *flags = sys.argv[1:] or ["--help"]
    if verb in ("--help", "-h", "help"):
        print(_help())
        sys.exit(0)
    if verb == "--version":
        print(f"visao-ray {__version__}")
        sys.exit(0)
    sys.exit(_run(verb, flags, f"visao-ray {verb}"))


def script(verb: str, flags: Sequence[str]) -> NoReturn:
    """Run `python jobs/VERB.py FLAGS` and exit with the job's status."""
    sys.exit(_run(verb, flags, f"python jobs/{verb}.py"))


def _run(verb: str, flags: Sequence[str], program: str) -> int:
    """Run a job and return its exit status.

    Args:
        verb: name of the job.
        flags: its command line.
        program: how the command begins, for `--help` and reports.
    """
    try:
        if verb == submission.VERB:
            return submission.main(flags, program)
        job = find_job(verb)
    except InputError as error:
        return print_input_error(error)
    if issubclass(job.settings, JobSettings):
        return main(job.settings, job.work, flags, program)
    return run_command(job.settings, job.work, flags, program)


def _help() -> str:
    summaries = {verb: job.summary for verb, job in JOBS.items()}
    summaries[submission.VERB] = submission.SUMMARY
    width = max(map(len, summaries))
    verbs = "\n".join(f"  {verb:{width}}  {summary}" for verb, summary in summaries.items())
    return (
        "usage: visao-ray VERB FLAGS\n\n"
        "X-ray images on Ray: extract feature vectors once, then train and evaluate from them.\n"
        f"\nverbs:\n{verbs}\n\n"
        "visao-ray VERB --help   flags of a verb\n"
        "visao-ray --version     this release"
    )
