"""The page of suspicious labels: fifty images decided by keys alone, in a real Chromium."""

import time

import pytest
from chromium import Browser, program
from html_page import Page

from visao_ray.datasets.registry import find_dataset
from visao_ray.quality.verdicts import read_decisions
from visao_ray.reports.clean import CleanPage, Suspect, render_clean

COUNT = 50
PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"


def suspect(number, **change):
    fields = {
        "keys": (f"/scans/{number:02}.jpg",),
        "label": "vazio",
        "split": "train",
        "probability": 0.02,
        "suggestion": "nvazio",
        "suggestion_probability": 0.98,
        "flagged": True,
        "group": "2 nvazio",
    }
    return Suspect(**fields | change)


def page_of(suspects, **change):
    fields = {
        "dataset": "vazios",
        "store": "/store",
        "run": "abc",
        "classes": ("nvazio", "vazio"),
        "images": 1010,
        "judged": 1000,
        "flagged": 50,
        "rule": "confident",
        "decided": {"unsure": 3, "keep": 7},
        "unsure": {"value": 0.3, "low": 0.108, "high": 0.603, "n": 10},
        "views": {},
        "evaluated": "val",
        "suspects": tuple(suspects),
        "command": "python jobs/clean.py --store /store",
    }
    return CleanPage(**fields | change)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if program() is None:
        pytest.skip("there is no Chromium on this machine")
    downloads = tmp_path_factory.mktemp("downloads")
    with Browser(downloads) as running:
        yield running, downloads


def saved(downloads):
    """Return the decisions of the CSV that the page saves, by key, and remove the CSV."""
    file = downloads / "decisions.csv"
    end = time.monotonic() + 20
    while not file.exists():
        assert time.monotonic() < end, "nothing was saved"
        time.sleep(0.05)
    decisions = read_decisions(str(file), find_dataset("vazios"))
    file.unlink()
    return {one.key: (one.verdict, one.label, one.note) for one in decisions}


def test_fifty_images_by_keys_alone(browser, tmp_path):
    running, downloads = browser
    suspects = [suspect(number) for number in range(COUNT)]
    suspects[3] = suspect(3, keys=("/scans/03.jpg", '/scans/a "copy", of 03.jpg'))
    suspects[9] = suspect(9, label="nvazio", suggestion="vazio")
    place = tmp_path / "clean.html"
    place.write_text(render_clean(page_of(suspects), [PIXEL] * (COUNT - 1) + [None]))
    running.open(place)
    assert "Image 1 of 50, 0 decided" in running.evaluate("document.body.innerText")

    for number in range(COUNT):
        running.press("krdu"[number % 4])
    text = running.evaluate("document.body.innerText")
    assert "Image 50 of 50, 50 decided" in text
    assert "The file cannot be read." in text
    running.press("ArrowLeft", "z", "z")  # back to the last but one, as it was before both
    assert "Image 49 of 50, 48 decided" in running.evaluate("document.body.innerText")
    running.press("k", "o", *"vazio", "Enter")  # the last one, by the name of a class
    running.press("ArrowLeft", "n", *"lead, seal", "Enter", "s")

    found = saved(downloads)
    assert len(found) == COUNT + 1  # a copy has the decision of its original
    kinds = [("keep", None), ("relabel", "nvazio"), ("drop", None), ("unsure", None)]
    expected = {one.keys[0]: (*kinds[number % 4], None) for number, one in enumerate(suspects)}
    expected['/scans/a "copy", of 03.jpg'] = expected["/scans/03.jpg"]
    expected["/scans/09.jpg"] = ("relabel", "vazio", None)
    expected["/scans/48.jpg"] = ("keep", None, "lead, seal")
    expected["/scans/49.jpg"] = ("relabel", "vazio", None)
    assert found == expected

    running.open(place)  # decisions are still there when the page is opened again
    assert "50 decided" in running.evaluate("document.body.innerText")


def test_a_name_that_is_no_class_is_refused(browser, tmp_path):
    running, downloads = browser
    place = tmp_path / "clean.html"
    place.write_text(render_clean(page_of([suspect(0)], run="other"), [PIXEL]))
    running.open(place)
    running.press("o", *"empty", "Enter")
    assert "'empty' is not a class." in running.evaluate("document.body.innerText")
    running.press("Escape", "d", "s")
    assert saved(downloads) == {"/scans/00.jpg": ("drop", None, None)}


def test_the_page_says_what_was_found_and_escapes_names():
    strange = suspect(0, keys=("/scans/</script><b>.jpg",), group="1 <i>")
    views = {
        "as they are": {"objective": {"value": 0.9, "low": 0.88, "high": 0.92, "n": 500}},
        "without flagged": {
            "objective": {"value": 0.92, "low": 0.9, "high": 0.94, "n": 500},
            "over_all": {"value": 0.02, "low": 0.01, "high": 0.03, "n": 500},
        },
    }
    html = render_clean(page_of([strange], views=views), [PIXEL])
    assert "</script><b>" not in html
    page = Page(html)
    for text in (
        "50 of 1,000 labels (5 %) are probably wrong or hard to tell",
        "of 1,010",
        "30.0 % (10.8–60.3)",
        "92.0 % (90.0–94.0)",
        "+2.0 (+1.0 to +3.0)",
    ):
        assert text in page.text, text
    nothing = Page(render_clean(page_of([], flagged=0), []))
    assert "There is nothing to decide." in nothing.text
    assert "1,000 labels were judged, and none is flagged." in nothing.text
