"""Trials are handed out and halved in the order of their numbers, whatever order they end in."""

import itertools

import numpy as np
import pytest

from visao_ray.core.storage import locate
from visao_ray.models.head import HeadSettings
from visao_ray.tuning.importance import importance
from visao_ray.tuning.objective import Criterion
from visao_ray.tuning.order import OrderedSearcher, rungs
from visao_ray.tuning.samplers import Fixed
from visao_ray.tuning.trial_results import Epoch, TrialResult, TrialResults

AUC = Criterion("roc_auc", 1)
HEADS = [HeadSettings(units=8 * number) for number in range(1, 9)]


def outcome(number, values, ended="epochs", status="ok", head=None):
    history = [Epoch(place + 1, 0.0, 0.0, value) for place, value in enumerate(values)]
    head = (head or HeadSettings()).model_dump(mode="json")
    best = max(values, default=float("nan"))
    return TrialResult(
        number, "", head, status, ended, epochs=len(values), objective=best, history=history
    )


def in_order(folder, at_once=3, more=lambda found: []):
    outcomes = TrialResults(locate(str(folder)))
    return OrderedSearcher(len(HEADS), at_once, 2, 9, AUC, Fixed(HEADS), more, outcomes), outcomes


def run(folder, endings, at_once=3):
    """Hand out and end trials in an order drawn by `endings`; the configurations, by number."""
    order, outcomes = in_order(folder, at_once, lambda found: [{"head": found[-1].head}])
    configs, running = {}, []
    for name in itertools.count():
        while True:
            config = order.suggest(f"{name}.{len(configs)}")
            if not isinstance(config, dict):
                break
            configs[config["number"]] = config
            running.append((f"{name}.{len(configs) - 1}", config))
        if config == "FINISHED" and not running:
            return configs
        assert len(running) <= at_once
        trial_id, done = running.pop(int(endings.integers(len(running))))
        values = np.random.default_rng(done["number"]).random(8)
        cut = [e for e, bar in sorted(done["bars"].items()) if values[:e].max() < bar]
        kept = values[: cut[0]] if cut else values
        head = HeadSettings.model_validate(done["head"])
        ended = "halving" if cut else "epochs"
        outcomes.write(outcome(done["number"], list(kept), ended, head=head))
        order.on_trial_complete(trial_id)


def test_the_order_in_which_trials_end_changes_nothing(tmp_path):
    runs = [run(tmp_path / str(seed), np.random.default_rng(seed)) for seed in range(5)]
    assert all(configs == runs[0] for configs in runs)
    assert sorted(runs[0]) == list(range(9))  # eight heads and one that the finalists asked for
    assert runs[0][8]["head"] == runs[0][7]["head"]
    assert runs[0][2]["bars"] == {}  # nobody's outcome may be known yet
    assert set(runs[0][7]["bars"]) == {2, 4, 8}


def test_trials_with_an_outcome_are_not_handed_out(tmp_path):
    first = run(tmp_path, np.random.default_rng(0))
    more = {"more": lambda found: [{"head": found[-1].head}]}
    assert in_order(tmp_path, **more)[0].finished()
    gone = [2, 5, 8]
    for number in gone:
        (tmp_path / f"{number:05d}.json").unlink()
    assert not in_order(tmp_path, **more)[0].finished()
    again = run(tmp_path, np.random.default_rng(1))
    assert again == {number: first[number] for number in gone}


def test_a_trial_whose_process_is_lost_begins_anew_and_ends_at_last(tmp_path):
    order, outcomes = in_order(tmp_path, at_once=1)
    first = order.suggest("a")
    assert first["number"] == 0
    assert order.suggest("b") is None
    for lost in "abc":
        order.on_trial_complete(lost, error=True)
        assert outcomes.read(0) is None or lost == "c"
        again = order.suggest(chr(ord(lost) + 1))
        assert again == first if lost < "c" else again["number"] == 1
    assert outcomes.read(0).error == "its process was lost 3 times"
    assert outcomes.read(0).head == first["head"]


@pytest.mark.parametrize(
    ("halving", "expected"),
    [(1, {}), (2, {2: 0.6, 4: 0.7}), (3, {3: 0.7}), (9, {})],
)
def test_rungs(halving, expected):
    known = [
        outcome(0, [0.1, 0.2, 0.3, 0.4, 0.5]),
        outcome(1, [0.6, 0.5, 0.7, 0.8, 0.9]),
        outcome(2, [0.5, 0.6], "halving"),
        outcome(3, [0.7], "patience"),  # counts with the best it had, at every rung
        outcome(4, [], status="error"),
    ]
    assert rungs(known, halving, 5, AUC) == expected


def test_rungs_of_a_loss_point_down():
    known = [outcome(number, [value] * 3) for number, value in enumerate([0.9, 0.2, 0.5, 0.7])]
    assert rungs(known, 2, 3, Criterion("log_loss", 1)) == {2: 0.5}


def test_importance_finds_what_mattered():
    rng = np.random.default_rng(0)
    found = []
    for number in range(60):
        head = HeadSettings(
            learning_rate=float(10 ** rng.uniform(-4, -2)),
            dropout=float(rng.uniform(0, 0.6)),
            pool=str(rng.choice(["avg", "max"])),
        )
        value = 0.9 + 0.05 * (head.pool == "avg") + 0.01 * np.log10(head.learning_rate)
        found.append(outcome(number, [float(value)], head=head))
    shares = importance(found, AUC)
    assert set(shares) == {"pool", "learning_rate", "dropout"}
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["pool"] > shares["learning_rate"] > shares["dropout"]
    assert importance(found[:5], AUC) == {}
