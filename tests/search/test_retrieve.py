"""Search evaluated: the figures of a plain loop over the gallery without the query's group."""

import numpy as np
import pyarrow.dataset as pads
import pytest
from conftest import join_ray
from html_page import Page
from job_runs import run_job
from sklearn.decomposition import PCA
from stores import content_id, make_store, results_table

from visao_ray.core.errors import InputError
from visao_ray.core.lease import Owner
from visao_ray.core.run import execute
from visao_ray.core.settings import from_values
from visao_ray.datasets.spec import Dataset
from visao_ray.search.job import search_store
from visao_ray.search.settings import SearchSettings
from visao_ray.search.spaces import find_space
from visao_ray.store import schemas
from visao_ray.store.store import Store
from visao_ray.store.table import write_fragments

DATASET = Dataset("boxes", ("8701", "8703", "9401"), chapter_digits=2)
MODEL = "projection-epoch-3-1a2b3c4d"
NAMES = ["avg", "max", "both", "projection", "pca3:both"]
N = 260


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store with two files of one content, an unlabelled file, and groups of up to four files."""
    rng = np.random.default_rng(7)
    labels = np.array(DATASET.classes)[rng.integers(0, 3, N)]
    groups = np.arange(N) // 4
    splits = np.array(["train", "train", "train", "val", "test"])[groups % 5]
    centre = rng.normal(0, 1, (3, 6))[np.searchsorted(DATASET.classes, labels)]
    own = rng.normal(0, 1, (N, 6))[groups]  # images of a group are alike
    vectors = {
        "avg": (centre + own + rng.normal(0, 0.3, (N, 6))).astype(np.float32),
        "max": rng.normal(0, 1, (N, 6)).astype(np.float32),
    }
    rows = [
        {"key": f"{n:03d}.png", "label": labels[n], "group": f"g{groups[n]}", "split": splits[n]}
        for n in range(N)
    ]
    rows[17] |= {"content": "016.png", "label": labels[16], "split": splits[16]}
    rows[33] |= {"label": None}
    place = tmp_path_factory.mktemp("made") / "store"
    store = make_store(place, DATASET, rows, vectors)
    embedding = (centre + rng.normal(0, 0.2, (N, 6))).astype(np.float32)
    schema = schemas.results({"embedding": 6}, {"model": "test"})
    with store.writing(Owner.here(job="test", run="embed")) as writer:
        contents = [content_id(row.get("content", row["key"])) for row in rows]
        places = [n for n in range(N) if n not in (17, 40)]  # 40 has no embedding yet
        data = results_table(
            schema, [contents[n] for n in places], 0, {"embedding": embedding}, places
        )
        table = store.predictions(MODEL)
        writer.ensure(table, schema)
        writer.append(table, write_fragments(table.uri, schema, data))
    kept = np.array([n for n in range(N) if n not in (17, 33, 40)])
    spaces = {**vectors, "both": np.concatenate(list(vectors.values()), axis=1)}
    return str(place), kept, labels, groups, splits, {**spaces, "projection": embedding}


def evaluate(place, out, **given):
    settings = from_values(
        SearchSettings,
        {"action": "evaluate", "store": place, "out": str(out), "replicates": 200, **given},
    )
    return execute(settings, search_store)


@pytest.fixture(scope="module")
def evaluated(made, tmp_path_factory):
    join_ray()
    out = tmp_path_factory.mktemp("evaluated") / "out"
    return evaluate(made[0], out, vectors=NAMES, queries="val", gallery=["train", "val"]), out


def plain(made, name, queries, gallery, leave_group=True):
    """Measures of every query by their definitions: name → values."""
    _, _, labels, groups, splits, spaces = made
    if name == "pca3:both":
        train = [n for n in gallery if splits[n] == "train"]
        points = PCA(3, whiten=True, random_state=0).fit(spaces["both"][train])
        space = points.transform(spaces["both"])
    else:
        space = spaces[name].astype(np.float64)
    found = {measure: [] for measure in ("accuracy_at_1", "map_at_5", "precision_at_10")}
    found |= {measure: [] for measure in ("precision_at_20", "recall_at_10", "chance")}
    for query in queries:
        offered = [n for n in gallery if not (leave_group and groups[n] == groups[query])]
        near = sorted(offered, key=lambda n: np.linalg.norm(space[n] - space[query]))
        hit = [labels[n] == labels[query] for n in near]
        precisions = [np.mean(hit[: r + 1]) for r in range(5) if hit[r]]
        found["accuracy_at_1"].append(hit[0])
        found["map_at_5"].append(np.mean(precisions) if precisions else 0)
        found["precision_at_10"].append(np.mean(hit[:10]))
        found["precision_at_20"].append(np.mean(hit[:20]))
        found["recall_at_10"].append(any(hit[:10]))
        found["chance"].append(np.mean(hit))
    return {measure: np.array(values, float) for measure, values in found.items()}


def rows_of(made, *splits):
    _, kept, _, _, of, _ = made
    return [n for n in kept if of[n] in splits]


def test_the_measures_are_those_of_a_plain_loop(made, evaluated):
    result, _ = evaluated
    queries, gallery = rows_of(made, "val"), rows_of(made, "train", "val")
    assert result["counts"] == {
        "queries": len(queries),
        "gallery": len(gallery),
        "classes": 3,
        "without_vectors": 1,
    }
    of_name = {one["name"]: one for one in result["details"]["vectors"]}
    assert list(of_name) == NAMES
    first = plain(made, NAMES[0], queries, gallery)
    for name in NAMES:
        expected = plain(made, name, queries, gallery)
        for measure, values in expected.items():
            found = of_name[name][measure]
            assert found["value"] == pytest.approx(values.mean(), abs=1e-9), (name, measure)
            assert found["n"] == len(queries)
            assert found["low"] <= found["value"] <= found["high"]
        if name != NAMES[0]:
            lead = of_name[name]["behind"]["precision_at_20"]
            mean = (first["precision_at_20"] - expected["precision_at_20"]).mean()
            assert lead["value"] == pytest.approx(mean)
            assert lead["low"] < lead["value"] < lead["high"]
    metrics = result["metrics"]["val"]
    assert metrics["precision_at_20"] == of_name["avg"]["precision_at_20"]
    labels = made[2][queries]
    for name, found in metrics["per_class"].items():
        chosen = first["precision_at_20"][labels == name]
        assert found["precision_at_20"]["value"] == pytest.approx(chosen.mean())
        assert found["precision_at_20"]["n"] == len(chosen)
    chapter = metrics["per_chapter"]["87"]["map_at_5"]
    chosen = first["map_at_5"][[name.startswith("87") for name in labels]]
    assert chapter["value"] == pytest.approx(chosen.mean())
    assert chapter["n"] == len(chosen)


def test_the_learned_vectors_are_better_and_groups_matter(made, evaluated):
    """Images of a group are alike: a gallery that has them makes the vectors seem good."""
    of_name = {one["name"]: one for one in evaluated[0]["details"]["vectors"]}
    assert of_name["projection"]["accuracy_at_1"]["value"] > 0.95
    assert of_name["avg"]["accuracy_at_1"]["value"] < 0.85
    queries, gallery = rows_of(made, "val"), rows_of(made, "train", "val")
    with_group = plain(made, "avg", queries, gallery, leave_group=False)
    assert with_group["map_at_5"].mean() > of_name["avg"]["map_at_5"]["value"] + 0.05


def test_the_table_and_the_page(made, evaluated):
    result, out = evaluated
    rows = pads.dataset(out / "neighbours").to_table().to_pylist()
    queries = rows_of(made, "val")
    assert len(rows) == len(queries) * len(NAMES)
    labels, groups = made[2], made[3]
    for row in rows:
        number = int(row["key"][:3])
        assert len(row["neighbours"]) == len(row["labels"]) == len(row["distances"]) == 20
        assert row["distances"] == sorted(row["distances"])
        numbers = [int(key[:3]) for key in row["neighbours"]]
        assert [labels[n] for n in numbers] == row["labels"]
        assert groups[number] not in groups[numbers]
    page = Page((out / "search.html").read_text())
    share = result["metrics"]["val"]["precision_at_20"]["value"]
    assert f"{100 * share:.1f}" in page.text
    assert "pca3:both" in page.text
    assert "9401" in page.text


def test_the_protocol_of_the_study(made, tmp_path, ray_cluster):
    """The query is its own first neighbour, so that it is always right at 1."""
    given = {"vectors": ["avg"], "queries": "train", "protocol": "study"}
    found = evaluate(made[0], tmp_path / "out", **given)["metrics"]["train"]
    assert found["accuracy_at_1"]["value"] == 1
    queries = sorted([*rows_of(made, "train"), 40])  # 40 has no embedding, but it has an avg
    expected = plain(made, "avg", queries, queries, leave_group=False)
    assert found["precision_at_20"]["value"] == pytest.approx(expected["precision_at_20"].mean())


def test_a_limit_draws_the_same_queries_again(made, tmp_path, ray_cluster):
    given = {"vectors": ["max"], "queries": "val", "gallery": ["train"], "limit": 12}
    one, other = (evaluate(made[0], tmp_path / name, **given) for name in "ab")
    assert one["counts"]["queries"] == 12
    assert one["metrics"] == other["metrics"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mean", r"mean: is not the name of one of the vectors .*avg, max, both, projection-epoch"),
        ("pca99:avg", r"pca99:avg: avg has 6 values, not 99"),
        ("pca0:avg", r"pca0:avg: avg has 6 values, not 0"),
    ],
)
def test_unknown_vectors(made, name, says):
    with pytest.raises(InputError, match=says):
        find_space(Store.open(made[0]), name)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("", "ACTION is missing: "),
        ("find --store s --out {out}", "ACTION find: "),
        ("evaluate --store s --out {out}", "--vectors is missing: "),
        ("evaluate --store {out} --vectors avg --out {out}", "--store {out}: there is no store"),
        ("evaluate --store s --vectors avg,avg --out {out}", "--vectors ['avg', 'avg']: the same"),
        ("evaluate --store s --vectors avg --gallery all --out {out}", "--gallery "),
    ],
)
def test_wrong_settings(flags, says, tmp_path):
    out = str(tmp_path / "out")
    run = run_job("search", *flags.format(out=out).split())
    assert run.returncode == 2
    assert run.stderr.startswith(f"error: {says.format(out=out)}"), run.stderr
    assert run.stderr.count("\n") == 1


def test_help():
    text = run_job("search", "--help").stdout
    assert "evaluate" in text
    assert "ACTION --help" in text
    text = run_job("search", "evaluate", "--help").stdout
    assert "--gallery" in text
    assert "left out of the gallery" in " ".join(text.split())
