"""Plugins: Python outside the library that registers a dataset, metric, family or engine.

A job imports what `--plugin FILE.py` or `--plugin import.path` names before it checks its other
settings, so a plugin's names are valid there. A plugin imports Keras or TensorFlow inside its
functions, as the library does: jobs check settings without them.

Ray's worker processes get plugins from `ray.init(runtime_env=…)`: `py_modules` copies a file to
every node and puts it on the import path of the job's workers, and an environment variable lists
the modules, which registries import at their first look-up. Other public ways do less. The path of
a file means nothing on nodes that lack it. `worker_process_setup_hook` also runs in workers that
need no plugin, and where it raises, Ray ends the worker and the driver gets no error of ours. With
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

#: Files through which every import goes: an error's line there says nothing.
_OWN = (__file__, importlib.__file__)

#: Plugins of this process: name of the module, and its file where it was named by that.
_loaded: dict[str, Path | None] = {}


def load(plugins: Iterable[str]) -> None:
    """Import plugins, each once in a process.

    Args:
        plugins: paths of Python files, which end in `.py`, or import paths.

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
    """Import the plugins that Ray gave to this worker process; other processes have none.

    Raises:
        InputError: a plugin fails here.
    """
    for name in filter(None, os.environ.get(VARIABLE, "").split(",")):
        if name not in _loaded:
            _loaded[name] = None  # before its import, which may look something up
            with _explained(name):
                importlib.import_module(name)


def runtime_env() -> dict[str, Any]:
    """What `ray.init` takes so that workers have the plugins of this process; empty without any."""
    if not _loaded:
        return {}
    files = [str(file) for file in _loaded.values() if file is not None]
    return {"py_modules": files, "env_vars": {VARIABLE: ",".join(_loaded)}}


def _import_file(plugin: str, file: Path) -> None:
    """Import a file as the module of its stem, which is what workers call it.

    Its folder does not become part of the import path: it is not part of it on nodes either.
    """
    name = file.stem
    if not file.is_file():
        raise InputError(f"--plugin {plugin}: there is no such file")
    if not name.isidentifier():
        raise InputError(f"--plugin {plugin}: rename the file; '{name}' is no name of a module")
    other = _origin(name)
    if other is not None and Path(other).resolve() != file:
        raise InputError(f"--plugin {plugin}: rename the file; '{name}' is {other} already")
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
    """Where a top-level module comes from, whether or not it is imported; None without any."""
    if name in sys.modules:
        return getattr(sys.modules[name], "__file__", None) or "part of Python"
    spec = importlib.util.find_spec(name)
    return spec.origin if spec is not None else None


@contextlib.contextmanager
def _explained(plugin: str) -> Iterator[None]:
    """Make one line of whatever a plugin raises at its import."""
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
