"""Import of Keras: every process that needs Keras imports it through this module."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

#: Packages that Keras imports if they are there, for its scikit-learn wrappers and its plots, which
#: we do not use. They are more than a quarter of the five seconds that importing Keras takes.
_OPTIONAL = ("sklearn", "matplotlib")


def import_keras() -> Any:
    """Import Keras without TensorFlow's start-up messages; call it before any `import keras`."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Actors may share a GPU, so the first one must not allocate all of its memory.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    with _hidden(_OPTIONAL) if "keras" not in sys.modules else contextlib.nullcontext():
        import keras

    return keras


@contextlib.contextmanager
def _hidden(packages: tuple[str, ...]) -> Iterator[None]:
    """Let packages that are not imported yet appear as not installed while the block runs.

    Python documents this use of None in `sys.modules`.
    """
    hidden = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
