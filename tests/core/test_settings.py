"""Settings from flags and TOML, and one clear line for each error in them."""

from datetime import timedelta

import pytest

from visao_ray.core.errors import InputError
from visao_ray.core.settings import parse
from visao_ray.evaluation.settings import EvaluateSettings, PredictSettings
from visao_ray.features.settings import ExtractSettings, ManifestSettings
from visao_ray.jobs.settings import PipelineSettings
from visao_ray.models.settings import TrainSettings
from visao_ray.store.settings import ExportSettings, StoreToolSettings
from visao_ray.synthetic.settings import RenderSettings
from visao_ray.tuning.settings import SweepSettings

JOBS = (
    ManifestSettings,
    ExtractSettings,
    SweepSettings,
    TrainSettings,
    EvaluateSettings,
    PredictSettings,
    ExportSettings,
    RenderSettings,
    PipelineSettings,
    StoreToolSettings,
)
SOURCE = ("--dataset", "vazios", "--data", "in", "--out", "o")


def refusal(kind, *arguments: str) -> str:
    with pytest.raises(InputError) as caught:
        parse(kind, arguments)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


def test_flags():
    how = ["--batch-size=4", "--augment", "G3", "--views", "2", "--val-share", "0.25"]
    ignored = ["--ignore", "tmp", "--ignore", "old"]
    settings = parse(ExtractSettings, [*SOURCE, *how, *ignored, "--mark-missing"])
    assert (settings.dataset, settings.data, settings.out) == ("vazios", "in", "o")
    assert (settings.batch_size, settings.augmented_views) == (4, 2)
    assert settings.ignore == ["tmp", "old"]
    assert settings.val_share == 0.25
    assert settings.mark_missing is True
    assert settings.limit is None
    assert parse(ManifestSettings, [*SOURCE, "--resume"]) == parse(ManifestSettings, SOURCE)


def test_places_of_a_store_job():
    both = parse(ExtractSettings, ["--data", "in", "--store", "s3://b/store/", "--out", "o"])
    assert (both.store_uri(), both.out_uri("2026-11-24T10:00:00")) == ("s3://b/store/", "o")
    inside = parse(ExtractSettings, SOURCE)
    assert inside.store_uri() == "o/store"
    alone = parse(ExtractSettings, ["--data", "in", "--store", "s3://b/store/"])
    run = "s3://b/store/runs/2026-11-24T10-00-00-extract"
    assert alone.out_uri("2026-11-24T10:00:00") == run
    assert "--store is missing" in refusal(ExtractSettings, "--data", "in")
    assert "--fresh" in refusal(ExtractSettings, *SOURCE, "--fresh")


def test_flags_win_over_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("SEED", "99")  # nothing comes from the environment
    monkeypatch.setenv("OUT", "elsewhere")
    file = tmp_path / "job.toml"
    file.write_text(
        'dataset = "ncm"\ndata = "in"\nout = "o"\nseed = 5\nval-share = 0.2\ntest_share = 0.3\n'
    )
    settings = parse(ExtractSettings, ["--settings", str(file), "--seed", "7", "--dataset=vazios"])
    assert (settings.dataset, settings.seed) == ("vazios", 7)
    assert (settings.val_share, settings.test_share) == (0.2, 0.3)
    same = parse(ExtractSettings, ["--seed=7", f"--settings={file}", "--dataset", "vazios"])
    assert same == settings


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("batch-sise = 4", ("unknown key 'batch_sise'", "--batch-size")),
        ("zzz = 4", ("unknown key 'zzz'", "--help")),
        ("seed = ", ("not valid TOML",)),
        ('seed = "many"', ("--seed many",)),
        ("seed = -1", ("--seed -1",)),
    ],
)
def test_a_wrong_file(tmp_path, text, says):
    file = tmp_path / "job.toml"
    file.write_text(text + "\n")
    message = refusal(ExtractSettings, *SOURCE, "--settings", str(file))
    assert all(words in message for words in says), message


def test_a_missing_file_of_settings(tmp_path):
    assert str(tmp_path / "no.toml") in refusal(
        ManifestSettings, *SOURCE, f"--settings={tmp_path}/no.toml"
    )
    assert "--settings" in refusal(ManifestSettings, *SOURCE, "--settings")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--batch-sise", "4"), ("--batch-sise", "did you mean --batch-size?")),
        (("--batchsize=4",), ("--batchsize", "did you mean --batch-size?")),
        (("--qqqqq",), ("--qqqqq", "--help")),
        (("--batch-size", "many"), ("--batch-size many", "integer")),
        (("--batch-size", "0"), ("--batch-size 0", "1")),
        (("--augment", "G9"), ("--augment G9", "G1", "G5")),
        (("--val-share", "1.5"), ("--val-share 1.5",)),
        (("--seed", "-3"), ("--seed -3",)),
        (("--views", "2"), ("--views", "--augment")),
        (("--val-share", "0.6", "--test-share", "0.4"), ("--val-share", "--test-share")),
        (("--manifest", "m"), ("unknown flag --manifest",)),
        (("--image-size", "10"), ("--image-size 10", "32")),
        (("--seed",), ("--seed",)),
        (("stray",), ("stray",)),
    ],
    ids=lambda value: " ".join(value) if value and str(value[0]).startswith("--") else "",
)
def test_a_wrong_flag(arguments, says):
    message = refusal(ExtractSettings, *SOURCE, *arguments)
    assert all(words in message for words in says), message


def test_missing_and_contradicting_settings():
    message = refusal(SweepSettings, "--trials", "3")
    assert "--out is missing" in message
    assert "--store is missing" in message
    assert "--data is missing" in refusal(ManifestSettings, "--store", "s")
    assert "--data is missing" in refusal(ExtractSettings, "--store", "s")
    model = ("--model", "m", "--out", "o")
    assert "either --store or --data" in refusal(EvaluateSettings, *model)
    assert "--labels belongs to --data" in refusal(
        EvaluateSettings, *model, "--store", "s", "--labels", "l.csv"
    )
    stores = ("--store", "a", "--store", "b", "--out", "o", "--as-of", "1")
    assert "one --store" in refusal(SweepSettings, *stores)
    assert "rendered" in refusal(PipelineSettings, "--dataset", "mine.toml", "--out", "o")
    for flag, value in (("--batch", "b"), ("--max-errors", "0.5"), ("--val-share", "0.2")):
        assert f"{flag} belongs to jobs/extract.py" in refusal(
            ManifestSettings, *SOURCE, flag, value
        )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), ("ACTION is missing", "status", "forget")),
        (("clear",), ("ACTION clear", "'status'", "'forget'")),
        (("forget",), ("RUN is missing",)),
        (("status", "1a2b"), ("RUN is for forget, not status",)),
        (("verify", "--json"), ("--json is for status",)),
        (("compact", "--older-than", "3d"), ("--older-than is for clean",)),
        (("clean", "--older-than", "long"), ("--older-than long",)),
        (("clean", "--older-than=-3d"), ("--older-than -3 days", "greater")),
        (("status", "--jsn"), ("--jsn", "did you mean --json?")),
        (("status", "a", "b"), ("unexpected word b",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_wrong_arguments_of_the_store_tool(arguments, says):
    message = refusal(StoreToolSettings, *arguments, "--store", "s")
    assert all(words in message for words in says), message


def test_arguments_of_the_store_tool():
    assert "--store is missing" in refusal(StoreToolSettings, "status")
    forget = parse(StoreToolSettings, ["forget", "1a2b", "--store", "s"])
    assert (forget.action, forget.run, forget.older_than) == ("forget", "1a2b", None)
    assert parse(StoreToolSettings, ["status", "--json", "--store", "s"]).as_json
    older = parse(StoreToolSettings, ["clean", "--older-than", "3d", "--store", "s"]).older_than
    assert older == timedelta(days=3)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--table", "films"), ("--table films", "'images'", "'predictions'")),
        (("--table", "images", "--join"), ("--join is for vectors",)),
        (("--table", "groups", "--extractor", "e"), ("--extractor is for --table vectors",)),
        (("--table", "vectors", "--model", "m"), ("--model is for --table predictions",)),
        (("--table", "predictions", "--recipe", "G1@0"), ("--recipe is for --table vectors",)),
        (("--table", "vectors", "--split", "val"), ("--split", "--join")),
        (("--table", "images", "--split", "all"), ("--split", "'train'")),
    ],
    ids=lambda value: " ".join(value) if value and str(value[0]).startswith("--") else "",
)
def test_a_wrong_flag_of_export(arguments, says):
    message = refusal(ExportSettings, "--store", "s", "--out", "o", *arguments)
    assert all(words in message for words in says), message


def test_a_condition_keeps_its_commas():
    where = "label IN ('vazio', 'nvazio')"
    rest = ["--store", "s", "--out", "o", "--table", "images", "--split", "val", "--split", "test"]
    settings = parse(ExportSettings, [*rest, "--where", where])
    assert (settings.where, settings.split) == (where, ["val", "test"])


def test_identity_is_what_decides_the_result():
    training = ["--family", "simple_cnn", *SOURCE]
    plain = parse(TrainSettings, training)
    how = ["--fresh", "--workers", "2", "--gpus-per-worker", "0.5", "--max-errors", "0.9"]
    elsewhere = ["--family", "simple_cnn", "--dataset", "vazios", "--data", "in", "--out", "x"]
    assert parse(TrainSettings, elsewhere + how).identity() == plain.identity()
    for what in (["--seed", "1"], ["--limit", "9"], ["--resize", "letterbox"], ["--labels", "l"]):
        assert parse(TrainSettings, [*training, *what]).identity() != plain.identity()


def test_a_part_copies_the_settings_that_it_shares():
    more = ["--seed", "4", "--trials", "3", "--views", "1", "--augment", "G1"]
    whole = parse(PipelineSettings, [*SOURCE, *more])
    extract = whole.part(ExtractSettings, out="x")
    assert (extract.seed, extract.views, extract.augment, extract.out) == (4, 1, "G1", "x")
    sweep = whole.part(SweepSettings, out="y", store=["s"])
    assert (sweep.seed, sweep.trials, sweep.store) == (4, 3, ["s"])


@pytest.mark.parametrize("kind", JOBS, ids=lambda kind: kind.job)
def test_help_lists_every_setting(kind, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(kind, ["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for name, field in kind.model_fields.items():
        flag = "--" + (field.alias or name).replace("_", "-")
        assert flag in text or f" {name.upper()} " in text, name
        assert field.description, name
    assert "--settings" in text


def test_a_search_space_from_toml_and_from_a_flag(tmp_path):
    file = tmp_path / "sweep.toml"
    file.write_text(
        """store = ["a", "b"]
[space]
units = [64, 128]
learning_rate = { low = 1e-4, high = 1e-2, log = true }
class_weight = ["none", { nvazio = 3, vazio = 1 }]
"""
    )
    settings = parse(SweepSettings, ["--settings", str(file), "--out", "x"])
    assert settings.store == ["a", "b"]
    assert settings.space["learning_rate"] == {"low": 1e-4, "high": 1e-2, "log": True}
    assert settings.space["class_weight"][1] == {"nvazio": 3, "vazio": 1}
    flags = ["--store", "a", "--store", "b", "--out", "x", "--space", '{"units": [64]}']
    assert parse(SweepSettings, flags).space == {"units": [64]}
