"""Built-in datasets, datasets from TOML files, and the error messages for wrong files."""

import json
import pickle

import pytest

from visao_ray.core.errors import InputError
from visao_ray.core.storage import locate
from visao_ray.datasets.chest_xray import CHEST_XRAY
from visao_ray.datasets.registry import DATASETS, find_dataset
from visao_ray.datasets.spec import Dataset

FRUIT = """
classes = ["apple", "pear", "quince"]
positive = "quince"
group_pattern = 'crate\\d+'
"""


def test_built_in():
    assert list(DATASETS) == ["chest_xray", "vazios", "ncm"]
    for name, dataset in DATASETS.items():
        assert find_dataset(name) == dataset
        assert dataset.name == name
        assert Dataset.from_json(json.loads(json.dumps(dataset.to_json()))) == dataset
        assert pickle.loads(pickle.dumps(dataset)) == dataset
        assert hash(dataset) == hash(Dataset.from_json(dataset.to_json()))


def test_a_file_on_disk_and_on_s3(tmp_path, s3):
    (tmp_path / "fruit.toml").write_text(FRUIT)
    expected = Dataset(
        name="fruit",
        classes=("apple", "pear", "quince"),
        positive="quince",
        group_pattern=r"crate\d+",
    )
    assert find_dataset(str(tmp_path / "fruit.toml")) == expected
    place = locate(f"{s3.uri}/datasets/other.toml")
    place.write_bytes(f"name = 'fruit'\n{FRUIT}".encode())
    assert find_dataset(place.uri) == expected
    with pytest.raises(InputError, match=r"none\.toml: cannot be read"):
        find_dataset(f"{s3.uri}/datasets/none.toml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("clases = ['a', 'b']", ("'clases'", "did you mean 'classes'?")),
        ("zzz = 1", ("'zzz'", "name, classes, class_pattern, positive")),
        ("classes = ['a', 'b', 'a']", ("'classes'", "'a'", "twice")),
        ("classes = ['a']", ("'classes'", "['a']", "at least two")),
        ("classes = []", ("'classes'", "'class_pattern'", "missing")),
        ("positive = 'a'", ("'classes'", "'class_pattern'", "missing")),
        ("classes = ['a', 'b']\nclass_pattern = 'a'", ("'classes'", "both given")),
        ("classes = 'a, b'", ("'classes'", "'a, b'", "list of strings")),
        ("classes = ['a', 2]", ("'classes'", "list of strings")),
        ("classes = ['a', 'b/c']", ("'b/c'", "folder")),
        ("classes = ['a', 'test']", ("'test'", "not train, val or test")),
        ("classes = ['a', 'b']\npositive = 'c'", ("'positive'", "'c'", "a, b")),
        ("class_pattern = '[a-z]'\npositive = 'C'", ("'positive'", "'C'", "[a-z]")),
        ("class_pattern = '(a'", ("'class_pattern'", "'(a'", "regular expression")),
        ("classes = ['a', 'b']\ngroup_pattern = '*'", ("'group_pattern'", "'*'", "expression")),
        ("classes = ['a', 'b']\ngroup_pattern = 3", ("'group_pattern'", "3", "text")),
        ("classes = ['a', 'b']\nchapter_digits = '2'", ("'chapter_digits'", "'2'", "number")),
        ("classes = ['a', 'b']\nchapter_digits = true", ("'chapter_digits'", "True", "number")),
        ("classes = ['a', 'b']\nchapter_digits = -1", ("'chapter_digits'", "-1", "from 0")),
        ("classes = ['a', 'b']\nname = 'x/y'", ("'name'", "'x/y'", "letters")),
        ("classes = ['a', 'b'", ("not valid TOML",)),
        ("classes = ['\xff', 'b']", ("not valid TOML",)),
    ],
)
def test_a_wrong_file(tmp_path, text, expected):
    file = tmp_path / "own.toml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError) as caught:
        find_dataset(str(file))
    message = str(caught.value)
    assert message.startswith(f"--dataset {file}: ")
    assert "\n" not in message
    assert all(words in message for words in expected), message


def test_an_unknown_name(tmp_path):
    with pytest.raises(InputError, match=r"lungs: .*chest_xray, vazios, ncm.*FILE\.toml"):
        find_dataset("lungs")
    with pytest.raises(InputError, match=r"none\.toml: cannot be read"):
        find_dataset(f"{tmp_path}/none.toml")


def test_a_pattern_that_matches_nothing_makes_no_group():
    """Otherwise all files without digits would be one group, and so in one split."""
    numbered = Dataset(name="own", classes=("a", "b"), group_pattern=r"\d*")
    assert numbered.group_of("s3://b/a/12-3.png") == "12"
    assert numbered.group_of("s3://b/a/x.png") == "x"


def test_the_positive_class_among_given_classes():
    assert CHEST_XRAY.positive_among(["NORMAL", "PNEUMONIA"]) == "PNEUMONIA"
    assert CHEST_XRAY.positive_among(["NORMAL"]) is None
    assert DATASETS["ncm"].positive_among(["8703", "8704"]) is None
