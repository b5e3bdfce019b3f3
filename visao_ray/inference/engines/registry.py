"""The registry of engine kinds."""

from __future__ import annotations

from visao_ray.core.errors import InputError
from visao_ray.core.registry import Registry
from visao_ray.inference.engines.base import EngineKind
from visao_ray.inference.engines.keras import KerasBackbones
from visao_ray.inference.settings import ExtractOptions
from visao_ray.models.settings import BackboneOptions

#: Engine kinds that `--engine` accepts.
ENGINES: Registry[EngineKind] = Registry("engine", (KerasBackbones(),))

#: Adds an engine kind; a plugin calls it when it is imported.
register = ENGINES.register


def find_engine(options: ExtractOptions) -> EngineKind:
    """Find the kind that `--engine` names, and check that it supports the other settings.

    Args:
        options: settings of the extraction.

    Returns:
        The engine kind.

    Raises:
        InputError: there is no such kind, or it does not support a setting.
    """
    kind = ENGINES.find(options.engine, "--engine")
    for name, field in BackboneOptions.model_fields.items():
        if name not in kind.options and getattr(options, name) != field.default:
            flag = "--" + name.replace("_", "-")
            raise InputError(f"{flag} is not supported by --engine {kind.name}; remove it")
    return kind
