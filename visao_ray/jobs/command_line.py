"""Jobs from a command line: `visao-ray VERB FLAGS`, and `python jobs/VERB.py FLAGS`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from visao_ray import __version__
from visao_ray.core.console import main, run_command
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


def script(verb: str) -> NoReturn:
    """Run `python jobs/VERB.py FLAGS` and exit with the job's status."""
    sys.exit(_run(verb, sys.argv[1:], f"python jobs/{verb}.py"))


def _run(verb: str, flags: Sequence[str], program: str) -> int:
    """The exit status of a job.

    Args:
        verb: names the job.
        flags: of its command line.
        program: how this command begins, for help and reports.
    """
    if verb == submission.VERB:
        return submission.main(flags, program)
    try:
        job = find_job(verb)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
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
        "X-ray images on Ray: pixels are read once, everything afterwards reads feature vectors.\n"
        f"\nverbs:\n{verbs}\n\n"
        "visao-ray VERB --help   flags of a verb\n"
        "visao-ray --version     this release"
    )
