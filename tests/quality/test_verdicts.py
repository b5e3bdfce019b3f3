"""Decisions of people: from a CSV into the store, into what jobs read, and back into a CSV."""

import pytest
from job_runs import run_job
from stores import make_store

from visao_ray.core.errors import InputError
from visao_ray.core.run import execute
from visao_ray.datasets.registry import find_dataset
from visao_ray.quality.settings import VerdictsSettings
from visao_ray.quality.verdicts import Decision, read_decisions, record_verdicts
from visao_ray.store.join import pin, read_examples
from visao_ray.store.store import Store

VAZIOS = find_dataset("vazios")
ROWS = [
    {"key": f"/scans/{name}.jpg", "label": "vazio", "split": "train"} for name in "abcdef"
]  # fmt: skip


@pytest.fixture
def store(tmp_path) -> Store:
    return make_store(tmp_path / "store", VAZIOS, ROWS)


@pytest.fixture
def record(tmp_path, store, ray_cluster):
    """Record a CSV, and return the result."""

    def run(lines: str, **options):
        file = tmp_path / "decisions.csv"
        file.write_text("key,verdict,label,note\n" + lines)
        settings = VerdictsSettings(store=store.uri, file=str(file), **options)
        return execute(settings, record_verdicts)

    return run


def labels(store: Store, run: str) -> dict[str, str]:
    examples = read_examples(pin(store, run, None))
    names = examples.labels.dictionary_decode().to_pylist()
    return dict(zip(examples.keys.to_pylist(), names, strict=True))


def test_decisions_change_what_jobs_read_and_keep_undoes_them(store, record):
    before = labels(store, "before")
    result = record(
        "/scans/a.jpg,relabel,nvazio,cargo at the door\n/scans/b.jpg,drop,,\n/scans/c.jpg,keep,,\n"
        "/scans/d.jpg,unsure,,\n/scans/gone.jpg,drop,,\n"
    )
    assert result["counts"] == {"listed": 5, "new": 4, "known": 0, "unknown": 1}
    assert "1 of 5 keys name no file" in result["warnings"][0]
    after = labels(store, "after")
    assert after.pop("/scans/a.jpg") == "nvazio"
    assert after == {key: label for key, label in before.items() if key[-5] in "cdef"}

    result = record("/scans/a.jpg,keep,,\n/scans/b.jpg,keep,,\n")
    assert result["counts"] == {"listed": 2, "new": 2, "known": 0, "unknown": 0}
    assert labels(store, "undone") == before
    assert labels(store, "after") != before  # a run that is repeated reads what it read


def test_the_same_decisions_again_add_nothing(store, record):
    lines = "/scans/a.jpg,relabel,nvazio,\n/scans/b.jpg,drop,,no picture\n"
    record(lines)
    result = record(lines, source="another person")
    assert result["counts"] == {"listed": 2, "new": 0, "known": 2, "unknown": 0}
    rows = store.verdicts.latest().read(["key", "source"]).to_pylist()
    assert rows == [
        {"key": "/scans/a.jpg", "source": "decisions.csv"},
        {"key": "/scans/b.jpg", "source": "decisions.csv"},
    ]


def test_a_saved_file_is_read_again(store, record, tmp_path):
    record("/scans/b.jpg,drop,,\n/scans/a.jpg,relabel,nvazio,\n")
    record('/scans/a.jpg,unsure,,"a line, with a comma"\n')
    saved = tmp_path / "saved.csv"
    settings = VerdictsSettings(store=store.uri, save=str(saved))
    assert execute(settings, record_verdicts)["counts"] == {"saved": 2}
    assert read_decisions(str(saved), VAZIOS) == [
        Decision("/scans/a.jpg", "unsure", None, "a line, with a comma"),
        Decision("/scans/b.jpg", "drop"),
    ]
    again = VerdictsSettings(store=store.uri, file=str(saved))
    assert execute(again, record_verdicts)["counts"]["new"] == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("key,verdict\n/a,remove\n", "line 2: column 'verdict', value 'remove' is no verdict"),
        ("key,verdict\n/a,\n", "line 2: column 'verdict', value '' is no verdict; write keep"),
        ("key,verdict\n,keep\n", "line 2: column 'key' is empty"),
        ("key,verdict,label\n/a,keep,\n/b,relabel,\n", "line 3: column 'label', value '' is not"),
        ("key,verdict,label\n/b,relabel,full\n", "'full' is not a class of dataset vazios; choose"),
        ("key,verdict\n/a,keep\n/a,drop\n", "line 3: key '/a' appears twice"),
        ("key,decision\n/a,keep\n", "unknown column 'decision'; the columns are key, verdict"),
        ("verdict\nkeep\n", "column 'key' is missing"),
        ("", "column 'key' is missing"),
    ],
)
def test_a_wrong_file_is_one_clear_line(tmp_path, text, message):
    file = tmp_path / "wrong.csv"
    file.write_text(text)
    with pytest.raises(InputError) as error:
        read_decisions(str(file), VAZIOS)
    assert str(error.value).startswith(f"--file {file}: ")
    assert message in str(error.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_decisions(str(tmp_path / "none.csv"), VAZIOS)
    file = tmp_path / "latin.csv"
    file.write_bytes("key,verdict\n/contêiner,keep\n".encode("latin-1"))
    with pytest.raises(InputError, match="not a UTF-8 text"):
        read_decisions(str(file), VAZIOS)
    file.write_bytes("key,verdict\n/contêiner,keep\n".encode("utf-8-sig"))  # as spreadsheets do
    assert read_decisions(str(file), VAZIOS) == [Decision("/contêiner", "keep")]


def test_the_command_needs_something_to_do(store):
    run = run_job("verdicts", f"--store={store.uri}")
    assert run.returncode == 2
    assert run.stderr == "error: --file is missing: a CSV of decisions (or --save, to write one)\n"
