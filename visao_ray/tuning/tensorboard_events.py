"""TensorBoard event files of a trial: its curves, and its settings for the HParams page."""

from __future__ import annotations

import tempfile
from pathlib import Path

from visao_ray.core.storage import Location
from visao_ray.tuning.trial_results import TrialResult, flat


def write_events(place: Location, result: TrialResult) -> None:
    """Write the curves of a trial after its end: event files cannot grow on object storage."""
    import tensorflow as tf
    from tensorboard.plugins.hparams import api

    settings = {name: flat(value) for name, value in result.head.items() if value is not None}
    with tempfile.TemporaryDirectory() as folder:
        writer = tf.summary.create_file_writer(folder)
        with writer.as_default():
            api.hparams(settings, trial_id=f"{result.number:05d}")
            for row in result.history:
                tf.summary.scalar("train_loss", row.train_loss, step=row.epoch)
                tf.summary.scalar("val_loss", row.val_loss, step=row.epoch)
                tf.summary.scalar("val_objective", row.val_objective, step=row.epoch)
            if result.status == "ok":
                tf.summary.scalar("objective", result.objective, step=result.epoch)
        writer.close()
        for file in Path(folder).glob("events.*"):
            place.join("events.out.tfevents.sweep").write_bytes(file.read_bytes())
