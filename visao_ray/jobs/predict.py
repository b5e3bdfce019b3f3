"""The predict job: predict new images, then write the page that shows them."""

from __future__ import annotations

from typing import Any

from visao_ray.core.run import Run
from visao_ray.evaluation.predict import predict_new
from visao_ray.evaluation.settings import PredictSettings
from visao_ray.reports.day import write_day


def predict_images(settings: PredictSettings, run: Run[Any]) -> None:
    """Predict new images, list them, and write `day.html`."""
    predicted = predict_new(settings, run)
    write_day(run, predicted)
    predicted.check_errors(settings.max_errors)
