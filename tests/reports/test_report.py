import base64
import io
import re
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest
from html_page import Page
from job_runs import ROOT
from PIL import Image
from sklearn.metrics import brier_score_loss

from visao_ray.core import plugins
from visao_ray.evaluation.metric import Metric, of_probabilities
from visao_ray.evaluation.metrics import register
from visao_ray.evaluation.predictions import evaluate_predictions
from visao_ray.reports.report import GalleryItem, ReportInputs, write_report

EVIL = '<script>alert("x")</script>&$\\frac'


def thumbnail(kind="JPEG"):
    buffer = io.BytesIO()
    Image.new("L", (40, 20), 128).save(buffer, kind)
    return buffer.getvalue()


def evaluation(classes, positive, rows=400, splits=("val", "test")):
    rng = np.random.default_rng(len(classes))
    label = rng.integers(0, len(classes), rows)
    logits = rng.normal(size=(rows, len(classes)))
    logits[np.arange(rows), label] += 2.5
    p = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)
    table = pa.table(
        {
            "key": [f"{index}.jpg" for index in range(rows)],
            "split": [splits[index % len(splits)] for index in range(rows)],
            "label": [classes[index] for index in label],
            "probability": pa.FixedSizeListArray.from_arrays(pa.array(p.ravel()), len(classes)),
            "group": [f"g{index // 4}" for index in range(rows)],
        }
    )
    return evaluate_predictions(table, classes, positive, 0.9, replicates=60).to_json()


def trials():
    return pa.table(
        {
            "trial_id": ["a", "b", "c", "d"],
            "setting.learning_rate": [1e-4, 1e-3, 1e-2, 1e-1],
            "setting.optimizer": ["adam"] * 4,
            "metric.roc_auc": [0.91, 0.97531, None, 0.88],
            "seconds": [1.0, 2.0, 3.0, 4.0],
            "status": ["done", "done", "failed", "done"],
        }
    )


def check_self_contained(html, page):
    assert "script" not in page.tags
    for tag, attributes in page.attributes:
        for name in ("src", "href", "srcset", "data", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/", "#")), (tag, value)
    assert "url(" not in html
    assert "@import" not in html
    for tag, attributes in page.attributes:
        if tag == "img":
            assert attributes["alt"]
            kind, data = re.fullmatch(
                r"data:image/([a-z+]+);base64,(.+)", attributes["src"]
            ).groups()
            content = base64.b64decode(data)
            if kind == "svg+xml":
                root = ElementTree.fromstring(content)
                links = [v for e in root.iter() for k, v in e.attrib.items() if k.endswith("href")]
                assert all(link.startswith(("#", "data:")) for link in links)
            else:
                Image.open(io.BytesIO(content)).verify()


def test_binary_report_shows_all_values_escaped():
    evaluated = evaluation(("nvazio", "vazio"), "nvazio")
    html = write_report(
        ReportInputs(
            title=f"Title {EVIL}",
            dataset="vazios",
            command=f"python jobs/pipeline.py --data '{EVIL}'",
            settings={"seed": 7, "augmentation": None, "note": EVIL},
            counts={
                "images": 1234,
                "ok": 1200,
                "errors": 34,
                "splits": {"train": {"nvazio": 500, EVIL: 300}, "test": {"nvazio": 200}},
                "errors_by_reason": {EVIL: 34},
            },
            throughput={"images_per_second": 41.25},
            timings={"extract": 187.0},
            warnings=[f"Random weights {EVIL}"],
            evaluation=evaluated,
            trials=trials(),
            history={"loss": [0.5, 0.3], "val_loss": [0.6, 0.4]},
            gallery=[
                GalleryItem("low.jpg", "vazio", "nvazio", 0.6, thumbnail()),
                GalleryItem(EVIL, EVIL, "vazio", 0.987, thumbnail("PNG")),
            ],
            samples=[GalleryItem("s.jpg", "vazio", None, None, thumbnail())],
            vectors_note=EVIL,
            errors=[(EVIL, "decode", EVIL)],
        )
    )
    page = Page(html)
    check_self_contained(html, page)
    assert page.text.count(EVIL) >= 9

    test = evaluated["metrics"]["test_at_threshold"]
    for entry in (
        test["per_class"]["nvazio"]["recall"],
        test["per_class"]["vazio"]["recall"],
        test["accuracy"],
        evaluated["metrics"]["val"]["accuracy"],
    ):
        assert f"{100 * entry['value']:.1f}\u202f%" in html
        assert f"{100 * entry['low']:.1f}–{100 * entry['high']:.1f}" in html
    assert f"{evaluated['metrics']['test']['roc_auc']['value']:.3f}" in page.text
    assert f"{evaluated['threshold']['threshold']:.3g}" in page.text
    assert "On 200 test images that were not used for tuning" in page.text
    assert "1,234 images listed = 1,200 read + 34 that could not be read" in page.text
    for text in (
        "3 min 07 s",
        "41.25",
        "0.9753",
        "98.7",
        "1 ended without a value",
        "optimizer adam",
    ):
        assert text in page.text, text
    confusion = test["confusion"]
    assert all(f"<b>{count}</b>" in html for row in confusion for count in row)
    # The confident mistake comes first.
    assert html.index("98.7&#8239;%") < html.index("60.0&#8239;%")
    figures = [a["alt"] for tag, a in page.attributes if tag == "img" and "svg" in a["src"]]
    assert len(figures) == 7


def row_of(title, name, evaluated, *columns):
    """The text of a line: value and interval of each column."""
    entries = [evaluated["metrics"][column][name] for column in columns]
    cells = (f"{e['value']:.3f}{e['low']:.3f}–{e['high']:.3f}" for e in entries)
    return title + "".join(cells)


def test_a_metric_of_a_plugin_has_its_line(no_plugins):
    plugins.load([str(ROOT / "examples" / "add_metric.py")])
    brier = of_probabilities(lambda label, p, sample_weight: brier_score_loss(label == 1, p[:, 1]))
    register(Metric("brier", "Brier score", False, (0.0, 1.0), brier, decides=False))
    matthews = ("Matthews correlation", "matthews_correlation")
    evaluated = evaluation(("nvazio", "vazio"), "nvazio")
    text = Page(write_report(ReportInputs("t", "vazios", evaluation=evaluated))).text
    decisions, ranking = text.split("Ranking and probabilities, independent of the threshold")
    columns = ("val", "test", "val_at_threshold", "test_at_threshold")
    assert row_of(*matthews, evaluated, *columns) in decisions
    assert row_of("Brier score", "brier", evaluated, "val", "test") in ranking
    many = evaluation(("a", "b", "c"), None)
    text = Page(write_report(ReportInputs("t", "ncm", evaluation=many))).text
    assert row_of(*matthews, many, "val", "test") in text


@pytest.mark.parametrize("width", [3, 30, 150])
def test_many_classes_with_any_names(width):
    classes = (EVIL, "a\x01b", *(f"{heading:04}" for heading in range(width - 2)))
    evaluated = evaluation(classes, None, rows=900)
    html = write_report(ReportInputs(title="ncm", dataset="ncm", evaluation=evaluated))
    page = Page(html)
    check_self_contained(html, page)
    for metric in ("top1", "top5", "balanced_accuracy"):
        assert f"{100 * evaluated['metrics']['test'][metric]['value']:.1f}\u202f%" in html
    assert all(name in page.text for name in classes[2:])
    assert ("The other 120 classes" in page.text) == (width == 150)


def test_report_of_868_classes_stays_small():
    classes = tuple(f"{heading:04}" for heading in range(868))
    picture = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (120, 240), dtype=np.uint8)
    Image.fromarray(noise).save(picture, "JPEG")
    items = [GalleryItem(f"{c}.jpg", c, "0000", 0.5, picture.getvalue()) for c in classes]
    evaluated = evaluation(classes, None, rows=3000)
    counts = {"splits": {split: dict.fromkeys(classes, 3) for split in ("train", "val", "test")}}
    html = write_report(
        ReportInputs(
            "ncm", "ncm", counts=counts, evaluation=evaluated, gallery=items, samples=items
        )
    )
    assert len(html.encode()) < 5_000_000
    assert Page(html).tags.count("img") > 20


def test_missing_test_images_or_evaluation_are_named():
    only_val = evaluation(("NORMAL", "PNEUMONIA"), "PNEUMONIA", splits=("val",))
    page = Page(write_report(ReportInputs("t", "chest_xray", evaluation=only_val)))
    assert "There were no test images. On 400 val images" in page.text
    assert "No test images" in page.text
    nothing = Page(write_report(ReportInputs("t", "chest_xray")))
    assert "Nothing was evaluated in this run." in nothing.text
    one_kind = evaluation(("NORMAL", "PNEUMONIA"), "PNEUMONIA")
    one_kind["curves"] = {"val": None, "test": None}
    Page(write_report(ReportInputs("t", "chest_xray", evaluation=one_kind)))
