"""Settings of families: each has its own flags, and a one-line error for flags of others."""

import contextlib
import re

import pytest

from visao_ray.core.errors import InputError
from visao_ray.core.settings import parse
from visao_ray.models.registry import FAMILIES
from visao_ray.models.settings import TrainSettings

PIXELS = ("--dataset", "vazios", "--data", "in", "--out", "o")
VECTORS = ("--store", "s", "--out", "o")

#: Flags of some families, with a value, and the families as messages list them.
FLAGS = {
    ("--architecture", "cnn_b"): "simple_cnn",
    ("--svm-c", "1"): "svm",
    ("--svm-gamma=1",): "svm",
    ("--fine-tune-from", "block5"): "transfer",
    ("--backbone", "vgg16"): "transfer",
    ("--no-standardise",): "head",
    ("--join", "concatenation"): "siamese",
    ("--inputs", "pixels"): "siamese and svm",
    ("--embedding", "9"): "siamese, projection and autoencoder",
    ("--head", "h.keras"): "transfer and head",
    ("--label-smoothing", "0.1"): "simple_cnn, transfer and head",
    ("--extractor", "e"): "head, siamese, projection and svm",
    ("--recipe", "G1@0"): "head, siamese, projection and svm",
    ("--image-size", "64"): "simple_cnn, transfer, siamese, autoencoder and svm",
    ("--augment", "G1"): "simple_cnn, transfer, siamese, autoencoder and svm",
    ("--epochs", "3"): "simple_cnn, transfer, head, siamese, projection and autoencoder",
}


def refusal(*arguments: str) -> str:
    with pytest.raises(InputError) as caught:
        parse(TrainSettings, arguments)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


def place(family: str) -> tuple[str, ...]:
    return VECTORS if family in ("head", "projection") else PIXELS


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_of_a_family(family):
    settings = parse(TrainSettings, [*place(family), "--family", family])
    assert type(settings) is FAMILIES[family].settings_type
    assert settings.family == FAMILIES[family].name == family
    assert settings == TrainSettings.of_family(family)(**settings.model_dump(exclude_unset=True))


@pytest.mark.parametrize(("flag", "families"), FLAGS.items(), ids=lambda one: str(one))
def test_a_flag_of_other_families(flag, families):
    """The families that the message names accept the flag; all others refuse it."""
    owners = families.replace(" and ", ", ").split(", ")
    assert set(owners) < set(FAMILIES)
    for family in FAMILIES:
        arguments = [*place(family), "--family", family, *flag]
        if family not in owners:
            name = flag[0].split("=")[0].replace("--no-", "--")
            assert refusal(*arguments) == f"{name} is for --family {families}, not {family}"
            continue
        with contextlib.suppress(InputError):  # the value may be refused, but not the flag
            assert parse(TrainSettings, arguments).family == family
            continue
        assert "is for --family" not in refusal(*arguments)


def test_a_key_of_other_families(tmp_path):
    file = tmp_path / "job.toml"
    file.write_text('family = "simple_cnn"\ndata = "in"\nsvm-c = [1]\n')
    message = refusal("--settings", str(file), "--out", "o")
    assert message == f"--settings {file}: --svm-c is for --family svm, not simple_cnn"
    flags = parse(TrainSettings, ["--settings", str(file), "--out", "o", "--family", "svm"])
    assert (flags.family, flags.svm_c) == ("svm", [1])
    file.write_text("family = 3\n")
    assert "--family 3" in refusal("--settings", str(file), "--out", "o")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--batch-size", "50", "--workers", "4"), ("--batch-size 50", "--workers 4")),
        (("--batch-size", "6", "--workers", "2", "--family", "siamese"), ("siamese", "even")),
        (("--family", "head"), ("--family head is trained on vectors: give --store",)),
        (("--family", "forest"), ("--family forest", "simple_cnn", "svm")),
        (("--family",), ("--family",)),
        (("--epochs", "0"), ("--epochs 0", "1")),
        (("--epochs", "0", "--family", "transfer"), ("--epochs 0", "--head")),
        (("--store", "s"), ("either --store or --data",)),
        (("--family", "svm", "--inputs", "vectors"), ("--inputs vectors: give --store",)),
        (("--family", "svm", "--recipe", "G1@0"), ("--recipe is for vectors", "pixels here")),
        (("--family", "siamese", "--units", "9"), ("--units is for vectors",)),
        (("--family", "svm", "--as-of", "1"), ("--as-of belongs to --store",)),
        (("--monitor", "auc", "--family", "autoencoder"), ("--monitor auc", "'loss'")),
        (("--learning-rate", "0"), ("--learning-rate 0",)),
        (("--architecure", "cnn_b"), ("unknown flag", "did you mean --architecture?")),
        (("--family", "svm", "--qqq", "1"), ("unknown flag --qqq", "--help")),
    ],
    ids=lambda value: " ".join(value) if value and str(value[0]).startswith("--") else "",
)
def test_a_wrong_flag(arguments, expected):
    message = refusal(*PIXELS, "--family", "simple_cnn", *arguments)
    assert all(words in message for words in expected), message


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ("--family", "head", "--views", "1"),
            "--views limits the augmented views of a --recipe",
        ),
        (("--family", "svm", "--augment", "G1"), "--augment is for pixels"),
        (("--family", "siamese", "--image-size", "64"), "--image-size is for pixels"),
        (("--family", "svm", "--inputs", "pixels", "--pool", "avg"), "--pool is for vectors"),
        (("--family", "head", "--limit", "5"), "--limit belongs to --data"),
        ((), "--family is missing: simple_cnn: "),
    ],
    ids=str,
)
def test_a_wrong_flag_with_a_store(arguments, expected):
    assert expected in refusal(*VECTORS, *arguments)


def test_inputs_of_a_family():
    def takes(*arguments: str) -> bool:
        return parse(TrainSettings, ["--out", "o", *arguments]).takes_vectors

    assert takes("--family", "head", "--store", "s")
    assert takes("--family", "svm", "--store", "s")
    assert not takes("--family", "svm", "--store", "s", "--inputs", "pixels")
    assert not takes("--family", "svm", "--data", "d")
    for family in ("simple_cnn", "transfer", "autoencoder"):
        assert not takes("--family", family, "--store", "s")
        assert "--store or --data" in refusal("--out", "o", "--family", family)
    fine = ["--out", "o", "--family", "transfer", "--data", "d", "--head", "h.keras"]
    assert parse(TrainSettings, [*fine, "--epochs", "0"]).epochs == 0


def help_text(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        parse(TrainSettings, [*arguments, "--help"])
    assert stop.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_help_names_the_families_of_each_flag(capsys):
    text = help_text(capsys)
    for family in FAMILIES.values():
        assert f"{family.name}: {family.title}" in text
        for name, field in family.settings_type.model_fields.items():
            assert f"--{name.replace('_', '-')}" in text
            assert field.description or name == "family", name
    assert "--svm-c list[float] [svm] values of C to try" in text
    assert "--epochs int [all but svm] maximum number of epochs" in text
    assert "--head str [transfer, head] head.keras" in text
    assert "--seed int the same seed" in text


@pytest.mark.parametrize("family", FAMILIES)
def test_help_of_a_family(family, capsys):
    text = help_text(capsys, "--family", family)
    kind = FAMILIES[family].settings_type
    assert f"--family {family} " in text
    shown = set(re.findall(r"--([a-z0-9-]+)[ ,]", text)) - {"settings", "help", "resume"}
    flags = {name.replace("_", "-") for name in kind.model_fields}
    assert {flag for flag in shown if not flag.startswith("no-")} == flags
    assert ("--svm-c" in text) == (family == "svm")
