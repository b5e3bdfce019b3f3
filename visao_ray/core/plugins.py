"""Plugins: code outside the library that registers a dataset, metric, family, recipe or engine.

A job imports the plugins of `--plugin FILE.py` or `--plugin import.path` before it checks its other
settings, so these may use names that a plugin registers. A plugin must import Keras and TensorFlow
inside its functions, as the library does: jobs check settings without them.

Ray's worker processes get plugins from `ray.init(runtime_env=…)`. `py_modules` copies a file to
every node and adds it to the import path of the job's workers. An environment variable lists the
modules, and registries import them at their first look-up. Other public ways do less: a file's path
is useless on nodes that do not have the file; `worker_process_setup_hook` also runs in workers that
need no plugin, and if it raises, Ray ends the worker and the driver does not get our error. With
`py_modules` a module has one name everywhere, so objects of its classes can be pickled. A program
that starts Ray itself passes `runtime_env()` to `ray.init`.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from visao_ray.core.errors import InputError

#: Lists the modules that registries import in a worker process.
VARIABLE = "VISAO_RAY_PLUGINS"

#: Files that take part in every import; their lines in a traceback do not help the user.
_OWN = (__file__, importlib.__file__)

#: Plugins of this process: name of the module, and its file if it was given as a file.
_loaded: dict[str, Path | None] = {}


def load(plugins: Iterable[str]) -> None:
    """Import plugins, each once per process.

    Args:
        plugins: paths of Python files that end in `.py`, or import paths.

    Raises:
        InputError: a plugin is missing, fails, or is a file with the name of another module.
    """
    for plugin in plugins:
        if plugin.endswith(".py"):
            file = Path(plugin).resolve()
            _import_file(plugin, file)
            _loaded[file.stem] = file
        else:
            with _explained(plugin):
                importlib.import_module(plugin)
            _loaded.setdefault(plugin, None)


def load_listed() -> None:
    """Import the plugins that Ray passed to this worker process; other processes have none.

    Raises:
        InputError: a plugin fails in this process.
    """
    for name in filter(None, os.environ.get(VARIABLE, "").split(",")):
        if name not in _loaded:
            _loaded[name] = None  # before the import, which may itself use a registry
            with _explained(name):
                importlib.import_module(name)


def runtime_env() -> dict[str, Any]:
    """Return the `runtime_env` that gives workers this process's plugins; empty without plugins."""
    if not _loaded:
        return {}
    found: dict[str, Any] = {"env_vars": {VARIABLE: ",".join(_loaded)}}
    files = [str(file) for file in _loaded.values() if file is not None]
    if files:  # Ray fails on an empty list
        found["py_modules"] = files
    return found


def _import_file(plugin: str, file: Path) -> None:
    """Import a file as a module named after its stem, the name that workers use too.

    Its folder is not added to the import path, because on other nodes it is not there either.
    """
    name = file.stem
    if not file.is_file():
        raise InputError(f"--plugin {plugin}: there is no such file")
    if not name.isidentifier():
        raise InputError(f"--plugin {plugin}: rename the file; '{name}' is not a module name")
    other = _origin(name)
    if other is not None and Path(other).resolve() != file:
        raise InputError(f"--plugin {plugin}: rename the file; '{name}' is already {other}")
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        with _explained(plugin):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _origin(name: str) -> str | None:
    """Return the file of a top-level module, imported or not; None if there is no such module."""
    if name in sys.modules:
        return getattr(sys.modules[name], "__file__", None) or "part of Python"
    spec = importlib.util.find_spec(name)
    return spec.origin if spec is not None else None


@contextlib.contextmanager
def _explained(plugin: str) -> Iterator[None]:
    """Turn any exception of a plugin's import into an `InputError` of one line."""
    try:
        yield
    except InputError as error:
        raise InputError(f"--plugin {plugin}: {error}") from error
    except Exception as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        frames = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename not in _OWN and not frame.filename.startswith("<")
        ]
        where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
        raise InputError(f"--plugin {plugin}: cannot be imported: {what}{where}") from error
