"""The one exception that means: the user's input or settings need a change."""

from __future__ import annotations

import re


class InputError(Exception):
    """Bad input or settings.

    The message is one clear line that names the file, flag or value and how to put it right. Jobs
    print it and exit with status 2; no stack trace is shown.
    """


def cause_of(error: BaseException) -> BaseException:
    """The error itself, where Ray has wrapped it on its way from a worker."""
    if type(error) is InputError:
        return error
    inner = getattr(error, "cause", None)
    if isinstance(inner, InputError):
        return inner
    # Of an error in a block or in an actor's constructor, Ray keeps the trace's text alone.
    told = re.search(rf"^{InputError.__module__}\.InputError: (.+)", str(error), re.MULTILINE)
    if told:
        return InputError(told.group(1))
    return cause_of(inner) if isinstance(inner, BaseException) else error
