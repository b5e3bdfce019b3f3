"""The page of the day: its text, its order, and its rendering in a browser."""

import io
import re
import shutil
import subprocess
from collections import Counter

import numpy as np
import pytest
from html_page import Page
from PIL import Image

from visao_ray.core.storage import locate
from visao_ray.datasets.ncm import NCM
from visao_ray.datasets.vazios import VAZIOS
from visao_ray.evaluation.curves import histograms
from visao_ray.evaluation.predict import PredictionResult
from visao_ray.evaluation.worklist import FIRST, DecisionRule, Worklist
from visao_ray.inference.engines.keras import KerasModel
from visao_ray.models.artifact import ModelMetadata
from visao_ray.reports.day import render_day

EVIL = '<script>alert("x")</script>&$\\frac'
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)


def picture(value):
    buffer = io.BytesIO()
    Image.new("L", (40, 20), value).save(buffer, "JPEG")
    return buffer.getvalue()


def entries(count, predicted, states, low, high):
    scores = np.linspace(high, low, count)
    return [
        {
            "key": f"/scans/{number:03}{EVIL}.jpg",
            "first_seen": "2026-11-24T08:00:00Z",
            "batch": "night" if number % 2 else None,
            "label": "vazio" if number == 3 else None,
            "rank": number + 1,
            "predicted": predicted,
            "probability": float(score),
            "state": states(score),
        }
        for number, score in enumerate(scores)
    ]


def predicted(dataset, decision, worklist, **chosen):
    metadata = ModelMetadata(dataset, "head", decision.classes, "features", {}, trial=3)
    model = KerasModel(locate("/models/head.keras"), metadata, "ab12" * 16, 32)
    choice = {"since": None, "batch": None} | chosen
    return PredictionResult(dataset.name, model, decision=decision, worklist=worklist, **choice)


def counts(**more):
    names = ("listed", "known", "new", "predicted", "errors", "without_vectors")
    return {**dict.fromkeys(names, 0), "errors_by_reason": {}, **more}


@pytest.fixture
def binary():
    def state(score):
        return "positive" if score >= 0.4 else "near" if score >= 0.2 else "other"

    first = entries(FIRST, "nvazio", state, 0.1, 0.987)
    scores = np.array([row["probability"] for row in first])
    states = Counter(row["state"] for row in first) + Counter(other=440, error=7, no_vectors=2)
    recall = {"value": 0.961, "low": 0.93, "high": 0.982, "n": 212}
    return predicted(
        VAZIOS,
        DecisionRule(
            ("nvazio", "vazio"), "nvazio", 0.4, 0.95, {"recall of nvazio": recall}, f"/e{EVIL}.json"
        ),
        Worklist(
            counts(
                listed=1234,
                known=725,
                new=509,
                predicted=500,
                errors=7,
                without_vectors=2,
                errors_by_reason={EVIL: 7},
            ),
            states,
            Counter(nvazio=120, vazio=380),
            histograms(scores, {"images": np.ones(len(scores), bool)}),
            first,
        ),
    )


def test_the_page_shows_all_values_escaped(binary):
    pictures = [picture(number) for number in range(FIRST)]
    pictures[5] = None
    html = render_day(binary, pictures, [f"Warned {EVIL}"])
    page = Page(html)
    assert "script" not in page.tags
    for tag, attributes in page.attributes:
        for name in ("src", "href", "srcset", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/", "#")), (tag, value)
    assert "url(" not in html
    positive = binary.worklist.states["positive"]
    for text in (
        f"{positive} of 500 images that were new to the model have a probability of nvazio of at "
        "least 0.4.",
        "The threshold 0.4 was chosen on val, where it finds at least 95 % of nvazio.",
        "1,234 images in the store = 509 new to the model + 725 known",
        "509 new = 500 predicted + 7 that could not be predicted + 2 without vectors",
        "recall of nvazio, test96.1",
        "(93.0–98.2), n = 212",
        "modelhead trial 3, sha256 ab12ab12ab12ab12…",
        "The first 60 of 500; predictions.csv lists all",
        "The file cannot be read any more.",
        "labelled vazio",
        f"Warned {EVIL}",
    ):
        assert text in page.text, text
    assert page.text.count(EVIL) == FIRST + 3  # cards, the warning, the reason, the evaluation
    shown = [int(number) for number in re.findall(r"/scans/(\d{3})&lt;script&gt;.*?</span>", html)]
    assert shown == list(range(FIRST))
    states = re.findall(r'<div class="card (\w+)">', html)
    assert states == [row["state"] for row in binary.worklist.first]
    assert len(html.encode()) < 1_000_000


def test_without_an_evaluation_the_page_names_the_default(binary):
    decision = DecisionRule(("nvazio", "vazio"), "nvazio")
    page = Page(render_day(predicted(VAZIOS, decision, binary.worklist), [None] * FIRST))
    assert (
        "The threshold is the default, 0.5, because no evaluation of the model was given"
        in page.text
    )
    assert "this page has no metrics of the model" in page.text
    chosen = DecisionRule(("nvazio", "vazio"), "nvazio", evaluation="/e.json", figures={})
    page = Page(render_day(predicted(VAZIOS, chosen, binary.worklist), [None] * FIRST))
    assert "because the evaluation has no threshold" in page.text


def test_many_classes_nothing_at_all_and_a_model_without_classes():
    classes = tuple(f"{heading:04}" for heading in range(868))
    first = entries(30, "0101", lambda score: "other", 0.9, 0.01)
    scores = np.array([row["probability"] for row in first])
    histogram = histograms(scores, {"images": np.ones(30, bool)})
    many = Worklist(counts(), Counter(other=30), Counter(classes[:20]), histogram, first)
    decision = DecisionRule(classes, None)
    page = Page(render_day(predicted(NCM, decision, many, since="today"), [picture(9)] * 30))
    assert "30 images first seen on or after today, the least certain first." in page.text
    assert "the lowest first" in page.text
    assert "And 8 more classes." in page.text
    assert "threshold" not in page.text
    none = Worklist(counts(listed=5, known=5))
    page = Page(render_day(predicted(VAZIOS, DecisionRule(("a", "b"), "a"), none, batch=EVIL), []))
    assert f"No images of batch {EVIL}." in page.text
    embeds = Worklist(counts(listed=5, new=5, predicted=5), Counter(other=5))
    page = Page(render_day(predicted(VAZIOS, DecisionRule((), None), embeds), []))
    assert "5 images that were new to the model. The model only embeds images" in page.text


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_a_browser_shows_it(binary, tmp_path):
    file = tmp_path / "day.html"
    file.write_text(render_day(binary, [picture(4 * number) for number in range(FIRST)]))
    shown = tmp_path / "day.png"
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1280,1600"]
    command += [f"--screenshot={shown}", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert shown.exists(), done.stderr
    pixels = np.asarray(Image.open(shown).convert("RGB")).astype(int)
    assert pixels.shape == (1600, 1280, 3)
    assert tuple(pixels[10, 10]) == (20, 39, 61)  # the blue of the header
    assert (np.abs(pixels - [161, 29, 29]).sum(axis=2) < 12).sum() > 500  # red tops of cards
