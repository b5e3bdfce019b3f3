"""Settings: flags and TOML, and one clear line for whatever is wrong with them."""

import pytest

from visao_ray.errors import InputError
from visao_ray.settings import (
    EvaluateSettings,
    ExtractSettings,
    ManifestSettings,
    PipelineSettings,
    ScannerSettings,
    SweepSettings,
    TrainSettings,
    parse,
)

JOBS = (
    ManifestSettings,
    ExtractSettings,
    SweepSettings,
    TrainSettings,
    EvaluateSettings,
    ScannerSettings,
    PipelineSettings,
)
MANIFEST = ("--dataset", "vazios", "--data", "in", "--out", "o")


def refusal(kind, *arguments: str) -> str:
    with pytest.raises(InputError) as caught:
        parse(kind, arguments)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


def test_flags():
    how = ["--batch-size=4", "--augment", "G3", "--views", "2", "--fresh", "--val-share", "0.25"]
    ignored = ["--ignore", "tmp", "--ignore", "old"]
    settings = parse(ExtractSettings, [*MANIFEST, *how, *ignored])
    assert (settings.dataset, settings.data, settings.out) == ("vazios", "in", "o")
    assert (settings.batch_size, settings.augmented_views) == (4, 2)
    assert settings.ignore == ["tmp", "old"]
    assert settings.val_share == 0.25
    assert settings.fresh is True
    assert settings.limit is None
    assert parse(ManifestSettings, [*MANIFEST, "--resume"]) == parse(ManifestSettings, MANIFEST)


def test_flags_win_over_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("SEED", "99")  # nothing comes from the environment
    monkeypatch.setenv("OUT", "elsewhere")
    file = tmp_path / "job.toml"
    file.write_text(
        'dataset = "ncm"\ndata = "in"\nout = "o"\nseed = 5\nval-share = 0.2\ntest_share = 0.3\n'
    )
    told = parse(ManifestSettings, ["--settings", str(file), "--seed", "7", "--dataset=vazios"])
    assert (told.dataset, told.seed, told.val_share, told.test_share) == ("vazios", 7, 0.2, 0.3)
    same = parse(ManifestSettings, ["--seed=7", f"--settings={file}", "--dataset", "vazios"])
    assert same == told


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
    message = refusal(ExtractSettings, *MANIFEST, "--settings", str(file))
    assert all(words in message for words in says), message


def test_a_missing_file_of_settings(tmp_path):
    assert str(tmp_path / "no.toml") in refusal(
        ManifestSettings, *MANIFEST, f"--settings={tmp_path}/no.toml"
    )
    assert "--settings" in refusal(ManifestSettings, *MANIFEST, "--settings")


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
        (("--manifest", "m"), ("--data", "--manifest")),
        (("--image-size", "10"), ("--image-size 10", "32")),
        (("--seed",), ("--seed",)),
        (("stray",), ("stray",)),
    ],
    ids=lambda value: " ".join(value) if value and str(value[0]).startswith("--") else "",
)
def test_a_wrong_flag(arguments, says):
    message = refusal(ExtractSettings, *MANIFEST, *arguments)
    assert all(words in message for words in says), message


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--batch-size", "50", "--workers", "4"), ("--batch-size 50", "--workers 4")),
        (("--batch-size", "6", "--workers", "2", "--family", "siamese"), ("siamese", "even")),
        (("--family", "head"), ("--family head", "--features")),
        (("--family", "forest"), ("--family forest", "simple_cnn", "svm")),
        (("--epochs", "0"), ("--epochs 0", "--head")),
        (("--features", "f"), ("one of --data, --manifest and --features",)),
        (("--manifest", "m"), ("one of --data, --manifest and --features",)),
        (("--head", "h.keras"), ("--head", "transfer", "simple_cnn")),
        (("--fine-tune-from", "block5"), ("--fine-tune-from", "--family transfer")),
        (("--monitor", "auc", "--family", "autoencoder"), ("--monitor auc", "autoencoder")),
        (("--learning-rate", "0"), ("--learning-rate 0",)),
    ],
    ids=lambda value: " ".join(value) if value and str(value[0]).startswith("--") else "",
)
def test_a_wrong_flag_of_training(arguments, says):
    message = refusal(TrainSettings, *MANIFEST, "--family", "simple_cnn", *arguments)
    assert all(words in message for words in says), message


def test_sources_of_training():
    rest = ("--dataset", "vazios", "--out", "o", "--family")
    assert parse(TrainSettings, [*rest, "head", "--features", "f"]).features == "f"
    assert parse(TrainSettings, [*rest, "svm", "--features", "f"]).data is None
    for family in ("simple_cnn", "transfer", "autoencoder"):
        assert "--data" in refusal(TrainSettings, *rest, family, "--features", "f")
    assert "--data" in refusal(TrainSettings, *rest, "svm")
    assert "--limit" in refusal(TrainSettings, *rest, "svm", "--features", "f", "--limit", "9")
    fine = ["transfer", "--data", "d", "--head", "h.keras", "--epochs", "0"]
    assert parse(TrainSettings, [*rest, *fine]).epochs == 0


def test_missing_and_contradicting_settings():
    message = refusal(ManifestSettings, "--dataset", "vazios")
    assert "--data is missing" in message
    assert "--out is missing" in message
    assert "--manifest" in refusal(ExtractSettings, "--out", "o")
    assert "--dataset" in refusal(ExtractSettings, "--out", "o", "--data", "in")
    assert parse(ExtractSettings, ["--out", "o", "--manifest", "m"]).dataset is None


def test_identity_is_what_decides_the_result():
    plain = parse(ExtractSettings, MANIFEST)
    how = ["--fresh", "--batch-size", "3", "--rows-per-block", "5", "--workers", "2"]
    how += ["--gpus-per-worker", "0.5", "--max-errors", "0.9"]
    other_place = ["--dataset", "vazios", "--data", "in", "--out", "elsewhere"]
    assert parse(ExtractSettings, other_place + how).identity() == plain.identity()
    for what in (["--seed", "1"], ["--limit", "9"], ["--resize", "letterbox"], ["--groups", "g"]):
        assert parse(ExtractSettings, [*MANIFEST, *what]).identity() != plain.identity()


def test_a_part_takes_over_what_it_shares():
    more = ["--seed", "4", "--trials", "3", "--views", "1", "--augment", "G1"]
    whole = parse(PipelineSettings, [*MANIFEST, *more])
    extract = whole.part(ExtractSettings, out="x")
    assert (extract.seed, extract.views, extract.augment, extract.out) == (4, 1, "G1", "x")
    sweep = whole.part(SweepSettings, out="y", features=["f"])
    assert (sweep.seed, sweep.trials, sweep.features) == (4, 3, ["f"])


@pytest.mark.parametrize("kind", JOBS, ids=lambda kind: kind.job)
def test_help_tells_every_setting(kind, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(kind, ["--help"])
    assert stop.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    for name, field in kind.model_fields.items():
        assert "--" + name.replace("_", "-") in told
        assert field.description, name
    assert "--settings" in told


def test_a_search_space_from_toml_and_from_a_flag(tmp_path):
    file = tmp_path / "sweep.toml"
    file.write_text(
        """features = ["a", "b"]
[space]
units = [64, 128]
learning_rate = { low = 1e-4, high = 1e-2, log = true }
class_weight = ["none", { nvazio = 3, vazio = 1 }]
"""
    )
    told = parse(SweepSettings, ["--settings", str(file), "--out", "x"])
    assert told.features == ["a", "b"]
    assert told.space["learning_rate"] == {"low": 1e-4, "high": 1e-2, "log": True}
    assert told.space["class_weight"][1] == {"nvazio": 3, "vazio": 1}
    flags = ["--features", "a", "--features", "b", "--out", "x", "--space", '{"units": [64]}']
    assert parse(SweepSettings, flags).space == {"units": [64]}
    with pytest.raises(InputError, match="--dataset is for one --features"):
        parse(SweepSettings, [*flags, "--dataset", "ncm"])
