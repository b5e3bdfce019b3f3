"""The search space: drawn from a seed, checked before anything starts."""

import pytest

from visao_ray.core.errors import InputError
from visao_ray.models.head import HeadSettings
from visao_ray.tuning.objective import Criterion
from visao_ray.tuning.samplers import Tpe
from visao_ray.tuning.space import Random, propose, read_space
from visao_ray.tuning.trial_results import TrialResult

CHEST = ("NORMAL", "PNEUMONIA")
AUC = Criterion("roc_auc", 1)


def space(**given):
    return read_space(given).fitted(CHEST, "PNEUMONIA", rows=500, views=2)


def test_proposals_are_a_function_of_the_seed():
    heads = propose(space(), 60, 3)
    assert heads[:12] == propose(space(), 12, 3)
    assert heads[2:] != propose(space(), 60, 4)[2:]
    assert heads[0] == HeadSettings()
    assert heads[1].layers == 0
    assert {head.kind for head in heads} == {"dense", "logistic", "svm"}
    assert {head.views for head in heads} == {None, 0}
    factors = [head.class_weight for head in heads if isinstance(head.class_weight, dict)]
    assert all(1 <= one["PNEUMONIA"] <= 8 for one in factors)
    assert len({one["PNEUMONIA"] for one in factors}) == len(factors) > 3
    dense = [head for head in heads[2:] if head.kind == "dense"]
    assert {head.optimizer for head in dense} == {"adam", "adamw", "rmsprop", "sgd"}
    assert all(1e-4 <= head.learning_rate <= 1e-2 for head in dense)


def test_settings_that_do_not_matter_keep_their_defaults():
    default = HeadSettings()
    for head in propose(space(), 80, 0):
        if head.kind == "svm":
            assert head.class_weight == "none"
        if head.kind != "dense":
            assert (head.layers, head.learning_rate) == (default.layers, default.learning_rate)
        if head.layers == 0:
            assert (head.units, head.activation) == (default.units, default.activation)


def test_many_classes_get_no_kind_that_takes_days():
    wide = read_space({}).fitted(tuple(map(str, range(868))), None, rows=30_000, views=0)
    heads = propose(wide, 60, 0)
    assert {head.kind for head in heads} == {"dense"}
    assert {head.class_weight for head in heads} == {"none", "balanced", "effective", "root"}
    assert {head.views for head in heads} == {None}


def test_draws_follow_the_given_choices():
    given = space(
        units=[64, 128],
        l2=[0.0, {"low": 1e-6, "high": 1e-2, "log": True}],
        class_weight=["none", {"NORMAL": 3, "PNEUMONIA": {"low": 1, "high": 2}}],
        kind=["dense"],
        layers=[1],
    )
    heads = [given.draw(Random(0, number)) for number in range(60)]
    assert {head.units for head in heads} == {64, 128}
    assert 0.0 in {head.l2 for head in heads}
    assert all(head.l2 == 0 or 1e-6 <= head.l2 <= 1e-2 for head in heads)
    weighted = [head.class_weight for head in heads if head.class_weight != "none"]
    assert 10 < len(weighted) < 50
    assert all(one["NORMAL"] == 3 and 1 <= one["PNEUMONIA"] <= 2 for one in weighted)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"unit": [64]}, "'unit' is no setting of a head"),
        ({"units": [0]}, "units: 0: input should be greater"),
        ({"units": 64}, "units: give a list of values, or low and high"),
        ({"optimizer": ["lion"]}, "optimizer: lion"),
        ({"dropout": {"low": 0.5, "high": 1.5}}, "dropout: 1.5"),
        ({"learning_rate": {"low": 0.1, "high": 0.01}}, "low < high"),
        ({"learning_rate": {"low": 0, "high": 0.01, "log": True}}, "low > 0"),
        ({"class_weight": [{"zebra": 2}]}, "names 'zebra', which is no class"),
    ],
)
def test_an_invalid_space_is_refused(given, message):
    with pytest.raises(InputError, match=message):
        space(**given)


def test_tpe_proposes_the_same_when_asked_again():
    """After a kill, a new sampler is called again with the recorded results."""

    def sweep(lag):
        sampler = Tpe(space(), 5, AUC)
        heads, results = [], []
        for number in range(24):
            head = sampler(number, results[: max(0, number - lag)])
            value = -abs(head.learning_rate - 3e-3)
            heads.append(head)
            results.append(TrialResult(number, "", head.model_dump(), "ok", objective=value))
        return heads

    assert sweep(4) == sweep(4)
    assert sweep(4) != sweep(8)  # it does learn
    assert sweep(4)[0] == HeadSettings()
