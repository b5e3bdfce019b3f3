"""Export of the winner: `head.keras`, and its settings for jobs/train.py as `head.toml`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tomli_w

from visao_ray.core.errors import InputError
from visao_ray.core.run import Run
from visao_ray.tuning.loaded_sweep import LoadedSweep
from visao_ray.tuning.trial_results import TrialResult


def export_head(
    run: Run[Any], sweep: LoadedSweep, winner: TrialResult, refits: Mapping[int, TrialResult]
) -> None:
    """Write `head.keras` and `head.toml`.

    Args:
        run: of the job.
        sweep: that was searched.
        winner: result of the best head.
        refits: results on all train rows, by number of the trial of the search.

    Raises:
        InputError: the winner was evaluated on folds, and could not be refitted on train.
    """
    fitted = refits.get(winner.number, winner)
    head = sweep.trial_results.head(fitted.number)
    if sweep.settings.folds > 1 and not head.exists():
        raise InputError("the winner could not be trained on train alone; see the warnings above")
    run.out.join("head.keras").write_bytes(head.read_bytes())
    run.out.join("head.toml").write_bytes(_train_settings(sweep, winner).encode())


def _train_settings(sweep: LoadedSweep, winner: TrialResult) -> str:
    """Settings of jobs/train.py that fit the winner's head again, as TOML."""
    head, settings = winner.head, sweep.settings
    values: dict[str, Any] = {
        "store": settings.store[0],
        "extractor": sweep.extractor,
        "seed": settings.seed,
        "pool": head["pool"],
    }
    values |= {} if settings.recipe is None else {"recipe": settings.recipe}
    values |= {} if head["views"] is None else {"views": head["views"]}
    if head["kind"] == "svm":
        values |= {"family": "svm", "svm_c": [head["c"]], "svm_gamma": [head["gamma"]]}
    else:
        names = ["standardise", "layers", "units", "activation", "dropout", "l1", "l2"]
        names += ["optimizer", "learning_rate", "schedule", "batch_size", "label_smoothing"]
        names += ["class_weight"]
        values |= {"family": "head", "epochs": settings.epochs, "patience": settings.patience}
        values |= {name: head[name] for name in names}
        if values["schedule"] == "constant":
            values["reduce_patience"] = settings.epochs
        if head["kind"] == "logistic":  # scikit-learn penalises the sum of losses, Keras the mean
            rows = sweep.summary.rows["train"]
            values |= {"standardise": True, "layers": 0, "dropout": 0.0, "l1": 0.0}
            values["l2"] = float(f"{1 / (2 * head['c'] * rows):.4g}")
    command = f"# python jobs/train.py --settings head.toml --out …   (trial {winner.number})"
    return f"{command}\n{tomli_w.dumps(values)}"
