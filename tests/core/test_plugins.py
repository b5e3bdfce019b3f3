"""Plugins: imported by a job before it checks its settings, and passed to Ray's workers."""

import os
import subprocess
import sys

import pytest
from job_runs import OWN_RAY, ROOT, run_job

from visao_ray.core import plugins
from visao_ray.core.errors import InputError
from visao_ray.core.settings import parse
from visao_ray.datasets.registry import DATASETS, find_dataset
from visao_ray.datasets.spec import Dataset
from visao_ray.features.settings import ExtractSettings, ManifestSettings

PLUGIN = """
from visao_ray.datasets.registry import register
from visao_ray.datasets.spec import Dataset

class Basket(list):
    pass

register(Dataset("{name}", ("apple", "pear")))
"""
SOURCE = ["--data", "in", "--store", "s"]


def write(folder, name, text):
    file = folder / f"{name}.py"
    file.write_text(text)
    return str(file)


def test_from_a_flag_from_a_file_and_by_import_path(tmp_path, monkeypatch, no_plugins):
    first = write(tmp_path, "plugin_first", PLUGIN.format(name="first"))
    second = write(tmp_path, "plugin_second", PLUGIN.format(name="second"))
    (tmp_path / "in_path").mkdir()
    write(tmp_path / "in_path", "plugin_third", PLUGIN.format(name="third"))
    monkeypatch.syspath_prepend(tmp_path / "in_path")
    settings = parse(ManifestSettings, [*SOURCE, "--plugin", first, f"--plugin={second}"])
    assert settings.plugin == [first, second]
    assert settings.identity()["plugin"] == [first, second]
    file = tmp_path / "job.toml"
    file.write_text(f'plugin = ["{first}", "plugin_third"]\n')
    assert parse(ExtractSettings, [*SOURCE, "--settings", str(file)]).plugin[1] == "plugin_third"
    for name in ("first", "second", "third"):
        assert find_dataset(name) == Dataset(name, ("apple", "pear"))
    assert DATASETS.built_in == ("chest_xray", "vazios", "ncm")
    assert plugins.runtime_env() == {
        "py_modules": [first, second],
        "env_vars": {plugins.VARIABLE: "plugin_first,plugin_second,plugin_third"},
    }


def test_an_import_path_alone_needs_no_files(tmp_path, monkeypatch, no_plugins):
    """Ray fails on an empty list of `py_modules`."""
    (tmp_path / "installed_plugin.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    plugins.load(["installed_plugin"])
    assert plugins.runtime_env() == {"env_vars": {plugins.VARIABLE: "installed_plugin"}}


def test_without_plugins_the_runtime_env_is_empty(no_plugins):
    assert parse(ManifestSettings, SOURCE).plugin == []
    assert plugins.runtime_env() == {}


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("wrong_name", "\nvalue = nothing\n", ("NameError: name 'nothing'", "py, line 2)")),
        ("wrong_text", "value = (\n", ("SyntaxError", "wrong_text.py, line 1)")),
        ("needs_more", "import no_such_thing\n", ("No module named 'no_such_thing'", "line 1)")),
        ("exits", PLUGIN.format(name="vazios"), ("dataset 'vazios' exists already",)),
        ("json", "", ("rename the file; 'json' is already", "json/__init__.py")),
        ("sys", "", ("rename the file; 'sys' is already part of Python",)),
        ("a-b", "", ("rename the file; 'a-b' is not a module name",)),
    ],
)
def test_a_wrong_plugin_is_one_line(tmp_path, name, text, says, no_plugins):
    file = write(tmp_path, name, text)
    with pytest.raises(InputError) as caught:
        parse(ManifestSettings, [*SOURCE, "--plugin", file])
    message = str(caught.value)
    assert message.startswith(f"--plugin {file}: ")
    assert "\n" not in message
    assert all(words in message for words in says), message
    assert name in ("json", "sys") or name not in sys.modules
    assert plugins.runtime_env() == {}


@pytest.mark.parametrize(
    ("verb", "flags", "line"),
    [
        ("extract", "--plugin none.py", "--plugin none.py: there is no such file"),
        (
            "manifest",
            "--plugin no_such.module",
            "--plugin no_such.module: cannot be imported: ModuleNotFoundError: "
            "No module named 'no_such'",
        ),
        (
            "submit",
            "manifest --plugin {tmp}/mine.py",
            f"--plugin {{tmp}}/mine.py: give its path relative to {ROOT}, which is uploaded",
        ),
    ],
)
def test_status_2(tmp_path, verb, flags, line):
    write(tmp_path, "mine", PLUGIN.format(name="mine"))
    run = run_job(verb, *flags.format(tmp=tmp_path).split(), *SOURCE)
    assert (run.returncode, run.stderr) == (2, f"error: {line.format(tmp=tmp_path)}\n")


WORKERS = """
import sys
from visao_ray.core import plugins
from visao_ray.core.ray_session import start_ray

plugins.load(sys.argv[1:])
start_ray()
import ray
from plugin_basket import Basket

@ray.remote
def look_up(basket):
    from visao_ray.datasets.registry import find_dataset
    return find_dataset("basket").name, type(basket).__module__

# A task's own runtime environment, as Tune sets for trials, is added to the job's.
own = look_up.options(runtime_env={"env_vars": {"OTHER": "1"}})
print(*ray.get([look_up.remote(Basket()), own.remote(Basket())]))
"""


def test_workers_of_ray_have_them(tmp_path):
    plugin = write(tmp_path, "plugin_basket", PLUGIN.format(name="basket"))
    run = subprocess.run(
        [sys.executable, "-c", WORKERS, plugin],
        cwd=ROOT,
        env=os.environ | OWN_RAY | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n")[-2] == " ".join(2 * ["('basket', 'plugin_basket')"])
