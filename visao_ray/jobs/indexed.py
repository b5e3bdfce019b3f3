"""Jobs that change what a search index holds: each updates the indexes of its store at its end."""

from __future__ import annotations

from typing import Any

from visao_ray.core.ray_session import start_ray
from visao_ray.core.run import Run
from visao_ray.evaluation.settings import PredictSettings
from visao_ray.features import extract, manifest
from visao_ray.features.settings import ExtractSettings, ManifestSettings
from visao_ray.jobs import predict
from visao_ray.quality import verdicts
from visao_ray.quality.settings import VerdictsSettings
from visao_ray.search.build import describe, to_counts
from visao_ray.search.index import update_indexes
from visao_ray.store.store import Store


def extract_images(settings: ExtractSettings, run: Run[Any]) -> None:
    """Run the extract job, then add the new vectors to the indexes."""
    extract.extract_images(settings, run)
    _update(settings.store_uri(), run)


def make_manifest(settings: ManifestSettings, run: Run[Any]) -> None:
    """Run the manifest job, then write new labels to the indexes."""
    manifest.make_manifest(settings, run)
    _update(settings.store_uri(), run)


def predict_images(settings: PredictSettings, run: Run[Any]) -> None:
    """Run the predict job, then add the new embeddings to the indexes."""
    predict.predict_images(settings, run)
    _update(settings.store_uri(), run)


def record_verdicts(settings: VerdictsSettings, run: Run[Any]) -> None:
    """Run the verdicts job, then write the decisions to the indexes."""
    verdicts.record_verdicts(settings, run)
    _update(settings.store_uri(), run)


def _update(uri: str, run: Run[Any]) -> None:
    store = Store.find(uri)
    if store is None or not store.indexes():
        return
    start_ray()
    with run.timed("index"), store.writing(run.owner, run.say, run.predecessor) as writer:
        updated = update_indexes(run, writer)
    run.counts["indexes"] = {name: to_counts(one) for name, one in updated.items()}
    for name, one in updated.items():
        run.say(f"index {name}: {describe(one)}")
