"""Trials are started and halved in the order of their numbers, whatever order they end in."""

import itertools

import numpy as np
import pytest

from visao_ray.core.storage import locate
from visao_ray.models.head import HeadSettings
from visao_ray.tuning.importance import importance
from visao_ray.tuning.objective import Criterion
from visao_ray.tuning.ordered_searcher import OrderedSearcher, rung_thresholds
from visao_ray.tuning.samplers import Fixed
from visao_ray.tuning.trial_results import Epoch, TrialResult, TrialResults

AUC = Criterion("roc_auc", 1)
HEADS = [HeadSettings(units=8 * number) for number in range(1, 9)]


def result(number, values, ended="epochs", status="ok", head=None):
    history = [Epoch(place + 1, 0.0, 0.0, value) for place, value in enumerate(values)]
    head = (head or HeadSettings()).model_dump(mode="json")
    best = max(values, default=float("nan"))
    return TrialResult(
        number, "", head, status, ended, epochs=len(values), objective=best, history=history
    )


def searcher_of(folder, max_concurrent_trials=3, further=lambda found: []):
    trial_results = TrialResults(locate(str(folder)))
    return OrderedSearcher(
        len(HEADS), max_concurrent_trials, 2, 9, AUC, Fixed(HEADS), further, trial_results
    ), trial_results


def run(folder, endings, max_concurrent_trials=3):
    """Start trials and end them in an order drawn by `endings`; return configurations by number."""
    searcher, trial_results = searcher_of(
        folder, max_concurrent_trials, lambda found: [{"head": found[-1].head}]
    )
    configs, running = {}, []
    for name in itertools.count():
        while True:
            config = searcher.suggest(f"{name}.{len(configs)}")
            if not isinstance(config, dict):
                break
            configs[config["number"]] = config
            running.append((f"{name}.{len(configs) - 1}", config))
        if config == "FINISHED" and not running:
            return configs
        assert len(running) <= max_concurrent_trials
        trial_id, done = running.pop(int(endings.integers(len(running))))
        values = np.random.default_rng(done["number"]).random(8)
        rungs = sorted(done["rung_thresholds"].items())
        cut = [epoch for epoch, threshold in rungs if values[:epoch].max() < threshold]
        seen = values[: cut[0]] if cut else values
        head = HeadSettings.model_validate(done["head"])
        ended = "halving" if cut else "epochs"
        trial_results.write(result(done["number"], list(seen), ended, head=head))
        searcher.on_trial_complete(trial_id)


def test_the_order_in_which_trials_end_changes_nothing(tmp_path):
    runs = [run(tmp_path / str(seed), np.random.default_rng(seed)) for seed in range(5)]
    assert all(configs == runs[0] for configs in runs)
    assert sorted(runs[0]) == list(range(9))  # eight heads and one further trial
    assert runs[0][8]["head"] == runs[0][7]["head"]
    assert runs[0][2]["rung_thresholds"] == {}  # no result may be known yet
    assert set(runs[0][7]["rung_thresholds"]) == {2, 4, 8}


def test_trials_with_a_result_are_not_started_again(tmp_path):
    first = run(tmp_path, np.random.default_rng(0))
    further = {"further": lambda found: [{"head": found[-1].head}]}
    assert searcher_of(tmp_path, **further)[0].finished()
    gone = [2, 5, 8]
    for number in gone:
        (tmp_path / f"{number:05d}.json").unlink()
    assert not searcher_of(tmp_path, **further)[0].finished()
    again = run(tmp_path, np.random.default_rng(1))
    assert again == {number: first[number] for number in gone}


def test_a_trial_whose_process_is_lost_starts_again_a_limited_number_of_times(tmp_path):
    searcher, trial_results = searcher_of(tmp_path, max_concurrent_trials=1)
    first = searcher.suggest("a")
    assert first["number"] == 0
    assert searcher.suggest("b") is None
    for lost in "abc":
        searcher.on_trial_complete(lost, error=True)
        assert trial_results.read(0) is None or lost == "c"
        again = searcher.suggest(chr(ord(lost) + 1))
        assert again == first if lost < "c" else again["number"] == 1
    assert trial_results.read(0).error == "its process was lost 3 times"
    assert trial_results.read(0).head == first["head"]


@pytest.mark.parametrize(
    ("reduction_factor", "expected"),
    [(1, {}), (2, {2: 0.6, 4: 0.7}), (3, {3: 0.7}), (9, {})],
)
def test_thresholds_of_successive_halving(reduction_factor, expected):
    known = [
        result(0, [0.1, 0.2, 0.3, 0.4, 0.5]),
        result(1, [0.6, 0.5, 0.7, 0.8, 0.9]),
        result(2, [0.5, 0.6], "halving"),
        result(3, [0.7], "patience"),  # counts with its best value, at every rung
        result(4, [], status="error"),
        result(5, [float("nan")] * 5),  # the objective was undefined in every epoch
    ]
    assert rung_thresholds(known, reduction_factor, 5, AUC) == expected


def test_halving_by_a_loss_keeps_the_lowest():
    known = [result(number, [value] * 3) for number, value in enumerate([0.9, 0.2, 0.5, 0.7])]
    assert rung_thresholds(known, 2, 3, Criterion("log_loss", 1)) == {2: 0.5}


def test_importance_ranks_settings_by_their_effect():
    rng = np.random.default_rng(0)
    found = []
    for number in range(60):
        head = HeadSettings(
            learning_rate=float(10 ** rng.uniform(-4, -2)),
            dropout=float(rng.uniform(0, 0.6)),
            pool=str(rng.choice(["avg", "max"])),
        )
        value = 0.9 + 0.05 * (head.pool == "avg") + 0.01 * np.log10(head.learning_rate)
        found.append(result(number, [float(value)], head=head))
    shares = importance(found, AUC)
    assert set(shares) == {"pool", "learning_rate", "dropout"}
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["pool"] > shares["learning_rate"] > shares["dropout"]
    assert importance(found[:5], AUC) == {}
