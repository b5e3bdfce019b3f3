import json

import numpy as np
import pytest
from sklearn import metrics as sk

from visao_ray.core.errors import InputError
from visao_ray.evaluation import bootstrap, sample
from visao_ray.evaluation.classification import PER_CLASS, classification_metrics, metrics_at
from visao_ray.evaluation.labelled_scores import LabelledScores


def softmax_predictions(rng, rows, width, skill=1.0, classes_used=None, decimals=1):
    label = rng.integers(0, classes_used or width, rows)
    logits = rng.normal(size=(rows, width))
    logits[np.arange(rows), label] += skill
    # Few decimals make scores tie.
    logits = np.round(logits, decimals)
    p = np.exp(logits)
    return label, (p / p.sum(axis=1, keepdims=True)).astype(np.float32)


def names(width):
    return [f"{index:04}" for index in range(width)]


def flat_estimates(result):
    for name, entry in result.items():
        if isinstance(entry, dict) and "value" in entry:
            yield name, entry
    for label, entries in result["per_class"].items():
        for name, entry in entries.items():
            if isinstance(entry, dict):
                yield f"{label}.{name}", entry


def test_multiclass_values_equal_scikit_learn():
    rng = np.random.default_rng(1)
    label, p = softmax_predictions(rng, 400, 7, decimals=9)
    result = classification_metrics(label, p, np.arange(400), names(7), None, replicates=20)
    predicted = p.argmax(axis=1)
    expected = {
        "accuracy": sk.accuracy_score(label, predicted),
        "top1": sk.accuracy_score(label, predicted),
        "top5": sk.top_k_accuracy_score(label, p, k=5),
        "balanced_accuracy": sk.balanced_accuracy_score(label, predicted),
        "macro_f1": sk.f1_score(label, predicted, average="macro"),
        "log_loss": sk.log_loss(label, p),
        "roc_auc": np.mean([sk.roc_auc_score(label == c, p[:, c]) for c in range(7)]),
        "average_precision": np.mean(
            [sk.average_precision_score(label == c, p[:, c]) for c in range(7)]
        ),
    }
    for name, value in expected.items():
        assert result[name]["value"] == pytest.approx(value, abs=1e-6), name
        assert result[name]["n"] == 400
    precision, recall, f1, support = sk.precision_recall_fscore_support(label, predicted)
    for c, name in enumerate(names(7)):
        entry = result["per_class"][name]
        assert entry["precision"]["value"] == pytest.approx(precision[c])
        assert entry["recall"]["value"] == pytest.approx(recall[c])
        assert entry["f1"]["value"] == pytest.approx(f1[c])
        assert entry["support"] == entry["recall"]["n"] == support[c]
        assert entry["precision"]["n"] == (predicted == c).sum()
    assert result["confusion"] == sk.confusion_matrix(label, predicted).tolist()


def plain_values(label, predicted, p, weight, positive):
    """Every metric of weighted rows by scikit-learn; NaN if undefined."""
    width = p.shape[1]
    precision, recall, f1, _ = sk.precision_recall_fscore_support(
        label, predicted, labels=range(width), sample_weight=weight, zero_division=np.nan
    )
    area, average_precision = np.full(width, np.nan), np.full(width, np.nan)
    for c in range(width):
        is_class, score = label == c, p[:, c]
        if weight[is_class].any():
            average_precision[c] = sk.average_precision_score(is_class, score, sample_weight=weight)
            if weight[~is_class].any():
                area[c] = sk.roc_auc_score(is_class, score, sample_weight=weight)
    of_true = p[np.arange(len(label)), label]
    epsilon = np.finfo(np.float32).eps
    loss = -np.log(np.clip(of_true.astype(float), epsilon, 1 - epsilon))

    def macro(values):
        return np.nan if np.isnan(values).all() else np.nanmean(values)

    both = ~np.isnan(area)
    values = {
        "accuracy": sk.accuracy_score(label, predicted, sample_weight=weight),
        "balanced_accuracy": macro(recall),
        "macro_f1": macro(f1),
        "log_loss": np.average(loss, weights=weight),
        "roc_auc": macro(area) if positive is None else area[positive],
        "average_precision": macro(np.where(both, average_precision, np.nan))
        if positive is None
        else average_precision[positive],
    }
    if width > 2:
        top5 = (p >= of_true[:, None]).sum(axis=1) <= 5
        values |= {"top1": values["accuracy"], "top5": np.average(top5, weights=weight)}
    kinds = (precision, recall, f1, area, average_precision)
    for name, kind in zip(PER_CLASS, kinds, strict=True):
        values |= {f"{c:04}.{name}": value for c, value in enumerate(kind)}
    return values


def contributing_groups(label, predicted, group, name):
    """The number of groups that contribute to a metric, and whether it is a share of rows."""
    everything = len(np.unique(group))
    if "." not in name:
        return everything, name in {"accuracy", "top1", "top5"}
    c, metric = int(name[:4]), name[5:]
    of_class, guessed = set(group[label == c]), set(group[predicted == c])
    others = set(group[label != c])
    return {
        "precision": (len(guessed), True),
        "recall": (len(of_class), True),
        "f1": (len(of_class | guessed), False),
        "roc_auc": (min(len(of_class), len(others)), False),
        "average_precision": (len(of_class), False),
    }[metric]


@pytest.mark.parametrize(
    ("width", "used", "rows", "groups", "threshold"),
    [
        (2, 2, 120, 70, 0.3),
        (2, 2, 120, 70, None),
        (2, 1, 30, 20, 0.3),
        (6, 6, 90, 30, None),
        (12, 9, 150, 140, None),
        (12, 9, 60, 1, None),
    ],
)
def test_values_and_intervals_equal_a_plain_loop_with_scikit_learn(
    width, used, rows, groups, threshold
):
    rng = np.random.default_rng([width, used, rows])
    label, p = softmax_predictions(rng, rows, width, classes_used=used)
    group = rng.integers(0, groups, rows)
    positive = 0 if width == 2 else None
    result = classification_metrics(
        label,
        p,
        [f"patient {number:03}" for number in group],
        names(width),
        names(width)[0] if width == 2 else None,
        threshold=threshold,
        replicates=15,
        seed=6,
    )
    predicted = p.argmax(axis=1)
    if width == 2:
        predicted = np.where(p[:, 0] >= (threshold or 0.5), 0, 1)
    _, group = np.unique(group, return_inverse=True)
    drawn = np.random.default_rng([6, 9_301])
    count = group.max() + 1
    weights = [np.bincount(drawn.integers(0, count, count), minlength=count) for _ in range(15)]
    table = [
        plain_values(label, predicted, p, weight[group], positive)
        for weight in [np.ones(count, int), *weights]
    ]
    found = dict(flat_estimates(result))
    assert found.keys() == table[0].keys()
    for name, entry in found.items():
        value, *replicates = (row[name] for row in table)
        if np.isnan(value):
            assert entry == {"value": None, "low": None, "high": None, "n": 0}, name
            continue
        assert entry["value"] == pytest.approx(value, abs=1e-9), name
        contributing, share = contributing_groups(label, predicted, group, name)
        replicates = np.array(replicates)[~np.isnan(replicates)]
        if contributing < 2 or not len(replicates):
            assert entry["low"] is entry["high"] is None, name
            continue
        low, high = np.quantile(replicates, [0.025, 0.975]) - (replicates.mean() - value)
        low, high = min(max(low, 0), value), max(high, value)
        if name != "log_loss":
            high = max(min(high, 1), value)
        if share and value in (0, 1):
            limit = 0.025 ** (1 / contributing)
            low, high = (limit, 1) if value else (0, 1 - limit)
        assert [entry["low"], entry["high"]] == pytest.approx([low, high], abs=1e-9), name


def test_binary_threshold_moves_decisions_and_not_rankings():
    rng = np.random.default_rng(2)
    label, p = softmax_predictions(rng, 300, 2)
    classes = ["nvazio", "vazio"]
    half = classification_metrics(label, p, np.arange(300), classes, "nvazio", replicates=50)
    low = classification_metrics(
        label, p, np.arange(300), classes, "nvazio", threshold=0.2, replicates=50
    )
    chosen = p[:, 0] >= np.float32(0.2)
    assert low["per_class"]["nvazio"]["recall"]["value"] == chosen[label == 0].mean()
    assert low["confusion"][1] == [
        int((chosen & (label == 1)).sum()),
        int((~chosen & (label == 1)).sum()),
    ]
    assert low["confusion"] != half["confusion"]
    assert low["roc_auc"] == half["roc_auc"]
    assert half["roc_auc"]["value"] == pytest.approx(sk.roc_auc_score(label == 0, p[:, 0]))
    assert half["average_precision"] == half["per_class"]["nvazio"]["average_precision"]
    # Labels by name give the same result.
    named = [classes[index] for index in label]
    assert (
        classification_metrics(named, p, np.arange(300), classes, "nvazio", replicates=50) == half
    )


def test_multiple_thresholds_share_draws_and_rankings(monkeypatch):
    rng = np.random.default_rng(12)
    label, p = softmax_predictions(rng, 300, 2)
    classes, group = ["nvazio", "vazio"], np.arange(300) // 2
    alone = [
        classification_metrics(label, p, group, classes, "vazio", threshold, 50, 3)
        for threshold in (None, 0.2, 0.9)
    ]
    calls = []
    ranked = sample.ranking_areas
    monkeypatch.setattr(sample, "ranking_areas", lambda *given: calls.append(1) or ranked(*given))
    scores = LabelledScores.of(label, p, group, classes)
    assert metrics_at([None, 0.2, 0.9], scores, classes, "vazio", 50, 3) == alone
    assert len(calls) == 1


def test_every_interval_holds_its_value_and_seeds_repeat():
    rng = np.random.default_rng(4)
    # Forty classes with three images each: macro averages are biased in this case.
    label = np.repeat(np.arange(40), 3)
    logits = rng.normal(size=(120, 40))
    logits[np.arange(120), label] += 2
    p = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)
    arguments = (label, p, np.arange(120), names(40), None)
    first = classification_metrics(*arguments, replicates=200, seed=5)
    checked = 0
    for name, entry in flat_estimates(first):
        if entry["low"] is not None:
            assert 0 <= entry["low"] <= entry["value"] <= entry["high"], name
            checked += 1
    assert checked > 100
    assert 0 < first["macro_f1"]["high"] - first["macro_f1"]["low"] < 0.5
    assert classification_metrics(*arguments, replicates=200, seed=5) == first
    assert classification_metrics(*arguments, replicates=200, seed=6) != first


def test_interval_of_a_share_is_the_textbook_one_and_chunks_change_nothing(monkeypatch):
    rng = np.random.default_rng(7)
    label = np.zeros(400, dtype=int)
    right = rng.random(400) < 0.8
    p = np.stack([right, ~right], axis=1).astype(np.float32)
    arguments = (label, p, np.arange(400), ["a", "b"], None)
    whole = classification_metrics(*arguments, replicates=2000)
    share = whole["accuracy"]["value"]
    half_width = 1.96 * np.sqrt(share * (1 - share) / 400)
    assert whole["accuracy"]["low"] == pytest.approx(share - half_width, abs=0.006)
    assert whole["accuracy"]["high"] == pytest.approx(share + half_width, abs=0.006)
    monkeypatch.setattr(bootstrap, "_CHUNK_ELEMENTS", 400 * 33)
    assert classification_metrics(*arguments, replicates=2000) == whole


def test_five_of_five_gives_an_interval_below_one():
    p = np.tile(np.array([0.9, 0.1], dtype=np.float32), (10, 1))
    groups = np.repeat(np.arange(5), 2)
    recall = classification_metrics([0] * 10, p, groups, ["a", "b"], None)["per_class"]["a"][
        "recall"
    ]
    # Five groups, all found: 0.025 = low ** 5.
    assert recall == {"value": 1.0, "low": pytest.approx(0.478, abs=1e-3), "high": 1.0, "n": 10}
    missed = classification_metrics([1] * 10, p, groups, ["a", "b"], None)["per_class"]["b"][
        "recall"
    ]
    assert missed == {"value": 0.0, "low": 0.0, "high": pytest.approx(0.522, abs=1e-3), "n": 10}


def test_images_of_one_patient_are_drawn_together():
    rng = np.random.default_rng(8)
    # Sixty patients with ten films each, which are all right or all wrong.
    right = np.repeat(rng.random(60) < 0.7, 10)
    label = np.zeros(600, dtype=int)
    p = np.stack([right, ~right], axis=1).astype(np.float32)
    width = {}
    for kind, group in (("patient", np.repeat(np.arange(60), 10)), ("film", np.arange(600))):
        entry = classification_metrics(label, p, group, ["a", "b"], None)["accuracy"]
        width[kind] = entry["high"] - entry["low"]
    # Perfectly correlated films: wider by the square root of ten.
    assert 2.5 < width["patient"] / width["film"] < 4


def test_absent_classes_and_single_groups_are_null_and_never_nan():
    rng = np.random.default_rng(9)
    label, p = softmax_predictions(rng, 60, 5, classes_used=3)
    p[:, 4] = 0
    result = classification_metrics(label, p, np.arange(60), names(5), None, replicates=50)
    json.dumps(result, allow_nan=False)
    undefined = {"value": None, "low": None, "high": None, "n": 0}
    absent = result["per_class"]["0004"]
    assert absent["support"] == 0
    assert absent["recall"] == absent["precision"] == absent["f1"] == undefined
    assert absent["roc_auc"] == absent["average_precision"] == undefined
    present = [sk.roc_auc_score(label == c, p[:, c]) for c in range(3)]
    assert result["roc_auc"]["value"] == pytest.approx(np.mean(present))

    one_group = classification_metrics(label, p, ["same"] * 60, names(5), None, replicates=50)
    assert one_group["accuracy"]["value"] == result["accuracy"]["value"]
    assert all(entry["low"] is None for _, entry in flat_estimates(one_group))

    only_positives = classification_metrics(
        ["vazio"] * 4, p[:4, :2], list("abcd"), ["nvazio", "vazio"], "nvazio", replicates=50
    )
    assert only_positives["roc_auc"] == undefined
    assert only_positives["per_class"]["nvazio"]["recall"] == undefined
    json.dumps(only_positives, allow_nan=False)

    empty = classification_metrics([], np.zeros((0, 5)), [], names(5), None)
    assert {name for name, _ in flat_estimates(empty)} == {
        name for name, _ in flat_estimates(result)
    }
    assert all(entry == undefined for _, entry in flat_estimates(empty))


def test_constant_predictions_earn_no_top5():
    p = np.full((30, 10), 0.1, dtype=np.float32)
    result = classification_metrics(np.arange(30) % 10, p, np.arange(30), names(10), None)
    assert result["top5"]["value"] == 0
    assert result["roc_auc"]["value"] == 0.5


@pytest.mark.parametrize(
    ("label", "p", "message"),
    [
        (["a", "dog"], np.full((2, 2), 0.5), "'dog' is not one of the 2 classes"),
        (["a", "b"], np.full((2, 3), 0.3), "shape"),
        (["a", "b"], np.array([[0.5, 0.5], [np.nan, 1.0]]), "1 of 2 predictions hold NaN"),
    ],
)
def test_bad_input_is_named(label, p, message):
    with pytest.raises(InputError, match=message):
        classification_metrics(label, p, ["g", "h"], ["a", "b"], None)
