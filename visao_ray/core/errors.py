"""The one exception that means: the user's input or settings need a change."""


class InputError(Exception):
    """Bad input or settings.

    The message is one clear line that names the file, flag or value and how to put it right. Jobs
    print it and exit with status 2; no stack trace is shown.
    """
