"""The one door to Keras: every process that needs it comes through here first."""

from __future__ import annotations

import os
from typing import Any


def import_keras() -> Any:
    """Keras, with TensorFlow's start-up chatter off. Call it before anything imports keras."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Actors may share a GPU: the first must not take all its memory.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    import keras

    return keras
