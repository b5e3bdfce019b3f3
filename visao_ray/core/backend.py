"""Import of Keras: every process that needs Keras imports it through this module."""

from __future__ import annotations

import os
from typing import Any


def import_keras() -> Any:
    """Import Keras without TensorFlow's start-up messages; call it before any `import keras`."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Actors may share a GPU, so the first one must not allocate all of its memory.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    import keras

    return keras
