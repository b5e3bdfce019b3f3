import base64
import math
import re
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest
from html_page import Page as AnyPage

from visao_ray.evaluation.metrics import METRICS
from visao_ray.reports import sweep_figures
from visao_ray.reports.sweep import SweepPage, describe_head, sweep_report

EVIL = '<script>alert("x")</script>&$\\frac'
SETTINGS = {
    "kind": "dense",
    "pool": "both",
    "standardise": True,
    "layers": 1,
    "units": 256,
    "activation": "relu",
    "dropout": 0.2,
    "l1": 0.0,
    "l2": 0.0,
    "optimizer": "adam",
    "learning_rate": 1e-3,
    "schedule": "constant",
    "batch_size": 64,
    "label_smoothing": 0.0,
    "views": None,
    "class_weight": "none",
    "c": 1.0,
    "gamma": 1.0,
}


class Page(AnyPage):
    """A page that loads nothing from outside, and whose figures can be read."""

    def __init__(self, html):
        super().__init__(html)
        assert "script" not in self.tags
        assert "url(" not in html
        assert "@import" not in html
        self.figures = {}
        for tag, attributes in self.attributes:
            for name in ("src", "href", "srcset"):
                value = attributes.get(name)
                assert value is None or value.startswith(("data:image/", "#")), (tag, value)
            if tag == "img":
                svg = base64.b64decode(attributes["src"].partition("base64,")[2]).decode()
                assert attributes["alt"]
                self.figures[attributes["alt"]] = ElementTree.fromstring(svg)
        ids = [a["id"] for _, a in self.attributes if "id" in a]
        links = {a["href"][1:] for tag, a in self.attributes if tag == "a"}
        assert len(ids) == len(set(ids))
        assert links <= set(ids)

    def figure(self, start):
        """Texts in the figure whose description starts so."""
        (found,) = [svg for alt, svg in self.figures.items() if alt.startswith(start)]
        return ["".join(e.itertext()).strip() for e in found.iter() if e.tag.endswith("text")]


def trials(changes, objectives):
    """A trials table: settings that differ from the default, and objectives (None: failed)."""
    return pa.Table.from_pylist(
        [
            {
                "trial_id": f"t{number}",
                "number": number,
                **{f"setting.{k}": v for k, v in (SETTINGS | change).items()},
                "metric.roc_auc": objective,
                "metric.macro_f1": math.nan if objective is None else objective / 2,
                "objective": objective,
                "folds": None,
                "epoch": 2,
                "epochs": 3,
                "seconds": 61.0,
                "ended": "fitted" if "kind" in change else ("epochs", "halving")[number % 2],
                "status": "error" if objective is None else "ok",
                "error": "MemoryError: too large" if objective is None else None,
            }
            for number, (change, objective) in enumerate(zip(changes, objectives, strict=True))
        ]
    )


def history(numbers, epochs=3):
    rows = [
        {
            "number": number,
            "epoch": epoch,
            "train_loss": 1 / epoch,
            "val_loss": math.nan if epoch == 1 else 1.2 / epoch,
            "val_objective": None if epoch == 1 else 0.7 + epoch / 100,
        }
        for number in numbers
        for epoch in range(1, epochs + 1)
    ]
    names = ("train_loss", "val_loss", "val_objective")
    schema = pa.schema(
        [("number", pa.int32()), ("epoch", pa.int32()), *((name, pa.float64()) for name in names)]
    )
    return pa.Table.from_pylist(rows, schema=schema)


def interval(value, half):
    return {"value": value, "low": value - half, "high": value + half, "n": 836}


def finalist(trial, objective, default, median, first=0.4):
    return {
        "trial": trial,
        "settings": {},
        "n": 836,
        "objective": objective,
        "over_default": default,
        "over_median": median,
        "first": first,
    }


def page(**changes):
    given = {
        "dataset": "vazios",
        "objective": "ROC AUC",
        "objective_mode": "max",
        "trials": trials(
            [{}, {"class_weight": "nvazio=3"}, {"kind": "svm", "gamma": 2.0}, {"dropout": 0.5}],
            [0.91, 0.9612, 0.95, None],
        ),
        "history": history([0, 1]),
        "finalists": [
            finalist(1, interval(0.9612, 0.01), interval(0.0512, 0.03), interval(0.01, 0.02), 0.62),
            finalist(2, interval(0.95, 0.01), interval(0.04, 0.03), interval(0.0, 0.02), 0.38),
        ],
        "importance": {"class_weight": 0.75, "dropout": 0.25},
        "positive": "nvazio",
        "counts": {"train": 4172, "val": 836, "images": 5008},
        "seconds": 187.0,
    }
    return SweepPage(**(given | changes))


def report(*pages, **named):
    return Page(sweep_report("Sweep", "python jobs/sweep.py", pages, **named))


def test_it_states_the_winner_and_whether_its_lead_is_luck():
    found = report(page())
    text = found.text
    assert (
        "On vazios a dense head (trial 1) won: its ROC AUC on val is 0.9612 "
        "(95 %: 0.9512–0.9712, n = 836)." in text
    )
    assert (
        "Its lead over the default head, +0.0512 (+0.0212 to +0.0812), is more than luck." in text
    )
    assert (
        "Its lead over the median trial, +0.0100 (−0.0100 to +0.0300), "
        "cannot be distinguished from luck." in text
    )
    assert "Among the 2 finalists it stays first in 62 % of the bootstrap replicates." in text
    # The best heads, each with its kind; the default is marked and has no interval.
    rows = re.findall(
        r"trial (\d) (dense head|RBF SVM)( default)?", text[text.index("The best h") :]
    )
    assert rows == [
        ("1", "dense head", ""),
        ("2", "RBF SVM", ""),
        ("0", "dense head", " default"),
    ]
    assert "class weight nvazio=3" in text
    assert "C 1 · γ 2 · both pools" in text
    assert "0.4806" in text  # macro F1 of the winner
    assert "1 failed, and why" in text
    assert "MemoryError: too large" in text
    assert "4,172" in text
    assert "3 min 07 s" in text
    assert "Class-weight curves" not in text
    starts = {alt.split()[0] for alt in found.figures}
    assert starts == {"Parallel", "Importance", "ROC", "Train"}
    assert {"75 %", "25 %", "class weight"} <= set(found.figure("Importance"))
    assert {"trial 1 (winner)", "trial 2, no epochs"} <= set(found.figure("ROC AUC on val"))
    assert {"×3", "none", "svm", "n/a", "winner", "default head"} <= set(found.figure("Parallel"))


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.001, 0.02, ", is more than luck."),
        (0.0, 0.02, ", cannot be distinguished from luck."),
        (-0.02, 0.001, ", cannot be distinguished from luck."),
        (-0.02, -0.001, ", by more than luck."),
        (None, None, "; without an interval it may be luck."),
        (math.nan, math.nan, "; without an interval it may be luck."),
    ],
)
def test_the_verdict_follows_the_interval(low, high, verdict):
    lead = {"value": 0.0, "low": low, "high": high, "n": 9}
    best = finalist(1, interval(0.9, 0.1), lead, interval(0.5, 0.1))
    text = report(page(finalists=[best], importance={}, history=history([]))).text
    sentence = re.search(r"(Its lead over|Against) the default head.*?luck\.", text)[0]
    assert sentence.endswith(verdict)
    assert sentence.startswith("Against") == verdict.startswith(", by")
    assert "Its lead over the median trial, +0.5000 (+0.4000 to +0.6000), is more than luck" in text


def test_every_metric_of_the_winner_has_a_readable_title():
    metrics = {name: interval(0.9, 0.05) for name in METRICS}
    shown = report(page(metrics=metrics))
    assert "ROC AUC" in shown.text
    assert "Log loss" in shown.text
    assert "{" not in shown.text


def test_where_lower_is_better_a_lead_is_a_lower_value():
    best = finalist(1, interval(0.3, 0.1), interval(0.2, 0.1), interval(0.05, 0.1))
    made = trials([{}, {"dropout": 0.5}, {"dropout": 0.3}], [0.5, 0.3, 0.4])
    text = report(
        page(objective="log loss", objective_mode="min", trials=made, finalists=[best])
    ).text
    assert "default head, +0.2000 (+0.1000 to +0.3000), is more than luck." in text
    assert "median trial, +0.0500 (−0.0500 to +0.1500), cannot be distinguished from luck." in text
    order = re.findall(r"trial (\d) dense head", text[text.index("The best heads") :])
    assert order == ["1", "2", "0"]


def test_the_default_may_win_and_finalists_may_be_missing():
    made = trials([{}, {"dropout": 0.5}], [0.95, 0.9])
    best = finalist(0, interval(0.95, 0.01), interval(0.0, 0.0), interval(0.01, 0.005))
    text = report(page(trials=made, finalists=[best])).text
    assert "the default head (trial 0, a dense head) won" in text
    assert "the search found nothing better" in text
    assert "lead over the default head" not in text
    text = report(page(trials=made, finalists=[], importance={})).text
    assert "won: its ROC AUC on val is 0.9500." in text
    assert "How it compares with the median trial is not known" in text
    assert "not computed: too few dense heads" in text


def test_folds_are_reported_as_folds():
    made = trials([{}, {"dropout": 0.5}], [0.9, 0.93])
    folds = pa.array([[0.88, 0.92], [0.91, 0.95]])
    made = made.set_column(made.schema.get_field_index("folds"), "folds", folds)
    best = [
        finalist(n, interval(v, 0.2), interval(0.03, 0.2), interval(0.0, 0.2), 0.5)
        for n, v in ((1, 0.93), (0, 0.9))
    ]
    text = report(page(trials=made, finalists=best)).text
    assert "Among the 2 finalists it stays first in 50 % of the folds." in text
    assert "0.9100–0.9500" in text
    assert "bootstrap replicates." not in text


def test_figures_of_a_sample_and_of_all_rows_are_distinguished():
    """Trial 1 and the default were refitted on all rows; the refit of trial 2 failed."""
    refits = trials([{}, {"class_weight": "nvazio=3"}, {"kind": "svm"}], [0.93, 0.98, None])
    refits = refits.append_column("refit_of", pa.array([0, 1, 2], pa.int32()))
    found = report(
        page(
            sample={"train": 800, "val": 160},
            refits=refits,
            finalists=[finalist(1, interval(0.98, 0.01), interval(0.05, 0.03), interval(0, 0.02))],
        )
    ).text
    assert "its ROC AUC on val is 0.9800 (95 %: 0.9700–0.9900, n = 836)" in found
    assert "800 of 4,172 train rows and 160 of 836 val rows" in found
    table = found[found.index("The best heads") :]
    rows = re.findall(r"trial (\d) .*?(all rows|sample) ?(0\.\d{4})", table)
    assert rows[:3] == [
        ("1", "all rows", "0.9800"),
        ("2", "sample", "0.9500"),
        ("0", "all rows", "0.9300"),
    ]
    assert "How they learned on the sample" in found
    assert "sample" not in report(page()).text


def test_class_weight_curves_show_the_best_three_at_one_scale():
    points = [
        {"number": n, "factor": f, "threshold": t, "recall": 1 - t / 2, "precision": p}
        for n in (0, 1, 2)
        for f in (0.5, 3.0)
        for t, p in ((0.1, 0.6), (0.5, 0.8125), (0.9, None))
    ]
    found = report(page(class_weight_curves=pa.Table.from_pylist(points)))
    assert "Class-weight curves: class weight and threshold" in found.text
    assert "a lower threshold finds more nvazio" in found.text
    assert "1dense head30.75000.8125" in found.text  # a row of the table
    for trial in ("Trial 1", "Trial 2", "Trial 0"):
        texts = found.figure(trial)
        assert {"weight 0.5", "weight 3", "threshold 0.5"} <= set(texts)
        assert {"recall of nvazio", "precision of nvazio"} <= set(texts)


@pytest.mark.parametrize("failed", [0, 5])
def test_one_success_compares_with_nothing(failed):
    made = trials([{"dropout": n / 10} for n in range(failed + 1)], [0.9] + [None] * failed)
    found = report(page(trials=made, finalists=[], importance={}, history=history([0])))
    others = "all others failed" if failed else "no other was tried"
    assert f"It is the only trial that succeeded ({others})" in found.text
    assert not any(alt.startswith("Parallel") for alt in found.figures)
    assert ("5 failed, and why" in found.text) == bool(failed)


def test_no_success_is_reported():
    made = trials([{}, {"kind": "logistic"}], [None, None])
    found = report(page(trials=made, finalists=[], importance={}, history=history([])))
    assert "On vazios none of 2 trials succeeded." in found.text
    assert found.figures == {}


def test_a_trial_without_a_finite_objective_has_failed():
    made = trials([{}, {"dropout": 0.5}, {"dropout": 0.4}], [0.9, math.nan, math.inf])
    text = report(page(trials=made, finalists=[])).text
    assert "2 failed, and why" in text
    assert "its objective was undefined on val" in text


def test_several_datasets_with_many_trials_and_classes():
    rng = np.random.default_rng(0)
    changes = [{}] + [
        {
            "learning_rate": float(10 ** rng.uniform(-5, -1)),
            "l2": float(rng.choice([0.0, 10 ** rng.uniform(-6, -2)])),
            "pool": str(rng.choice(["avg", "max", "both"])),
            "class_weight": str(rng.choice(["none", "balanced", "root"])),
            "views": [None, 1, 4][int(rng.integers(3))],
            **({"kind": "logistic"} if rng.random() < 0.2 else {}),
        }
        for _ in range(299)
    ]
    values = [0.05, *(float(v) for v in rng.uniform(0.3, 0.6, 299))]
    dense = [number for number, change in enumerate(changes) if "kind" not in change]
    ncm = page(
        dataset="ncm",
        objective="macro F1",
        trials=trials(changes, values),
        history=history(dense, 30),
        finalists=[],
        positive=None,
        classes=868,
        warnings=["12 classes have no val image"],
    )
    html = sweep_report("Sweeps", "", [page(warnings=["one"]), ncm], ["one", "one"])
    found = Page(html)
    assert len(html) < 3_000_000
    assert "2 datasets, 304 trials" in found.text
    assert found.text.count("Warning. one") == 1
    assert "Warning. 12 classes" in found.text
    assert "868" in found.text
    assert "300 trial 0 dense head default" in found.text  # the worst of all, still shown
    # Once for vazios as a further metric, and once for ncm as the objective.
    assert html.count('<th class="n" scope="col">macro F1</th>') == 2
    texts = found.figure("Parallel coordinates of 300")
    assert {"0", "1e-5", "0.001", "all", "logistic", "n/a"} <= set(texts)
    assert any(text.startswith("<") for text in texts)  # the default is far off the scale


def test_names_are_escaped():
    made = trials([{}, {"class_weight": f"{EVIL}=3"}, {"optimizer": EVIL}], [0.9, 0.95, None])
    made = made.set_column(made.schema.get_field_index("error"), "error", [[None, None, EVIL]])
    points = [
        {"number": 1, "factor": 1.0, "threshold": t, "recall": 0.9, "precision": 0.9}
        for t in (0.4, 0.5)
    ]
    found = Page(
        sweep_report(
            EVIL,
            f"python jobs/sweep.py --out '{EVIL}'",
            [
                page(
                    dataset=EVIL,
                    objective=f"recall of {EVIL}\x01",
                    trials=made,
                    finalists=[],
                    importance={EVIL: 1.0, "dropout": math.nan, "l2": None},
                    class_weight_curves=pa.Table.from_pylist(points),
                    positive=EVIL,
                    warnings=[EVIL],
                )
            ],
            [EVIL],
        )
    )
    assert found.text.count(EVIL) > 12
    assert len(found.figures) == 5


def test_the_description_of_a_head_leaves_out_what_does_not_apply():
    assert (
        describe_head(SETTINGS | {"l2": 1e-4, "schedule": "cosine", "class_weight": {"a": 3.0}})
        == "1 × 256 relu · dropout 0.2 · l2 0.0001 · adam 0.001 · cosine schedule · batch 64"
        " · both pools · standardised · class weight a=3"
    )
    assert "256" not in describe_head(SETTINGS | {"layers": 0})
    assert describe_head(SETTINGS | {"kind": "logistic", "views": 1, "class_weight": "root"}) == (
        "C 1 · both pools · standardised · 1 view · class weight root"
    )


def test_axes_place_zero_apart_and_better_upwards():
    axis = sweep_figures.axis("l2", [0.0, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 2e-2, None], log=True)
    assert axis.places[0] == 0
    assert axis.places[-1] is None
    steps = np.diff(axis.places[:6])
    assert steps[0] > 0.1
    np.testing.assert_allclose(steps[1:], steps[1])
    assert axis.places[6] == pytest.approx(1)
    assert dict(axis.ticks)[0.0] == "0"
    assert sweep_figures.axis("pool", ["avg", None, "avg"]) is None
    assert sweep_figures.axis("views", ["all", 4, 1, 2]).places == pytest.approx(
        [1, 2 / 3, 0, 1 / 3]
    )
    few = sweep_figures.axis("class weight", ["×10", "balanced", "×2", "none"])
    assert [text for _, text in few.ticks] == ["none", "balanced", "×2", "×10"]
    loss = sweep_figures.objective_axis("log loss", [0.1, 0.2, 0.3, 900.0], lower_is_better=True)
    assert loss.places[0] == 1
    assert loss.places[2] == loss.places[3] == 0
    assert loss.ticks[0] == (0.0, "> 0.3")
