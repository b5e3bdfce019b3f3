"""The exception for errors that the user can fix by changing input or settings."""

from __future__ import annotations

import re


class InputError(Exception):
    """Bad input or settings.

    The message is one line that names the file, flag or value and says how to fix it. Jobs print it
    and exit with status 2, without a stack trace.
    """


def cause_of(error: BaseException) -> BaseException:
    """Return the original error if Ray wrapped it on the way from a worker."""
    if type(error) is InputError:
        return error
    inner = getattr(error, "cause", None)
    if isinstance(inner, InputError):
        return inner
    # For an error in a block or in an actor's constructor, Ray keeps only the text of the trace.
    match = re.search(rf"^{InputError.__module__}\.InputError: (.+)", str(error), re.MULTILINE)
    if match:
        return InputError(match.group(1))
    return cause_of(inner) if isinstance(inner, BaseException) else error
