"""The kinds of engines by name."""

from __future__ import annotations

from visao_ray.core.errors import InputError
from visao_ray.core.registry import Registry
from visao_ray.inference.engines.base import EngineKind
from visao_ray.inference.engines.keras import KerasBackbones
from visao_ray.inference.settings import ExtractOptions
from visao_ray.models.settings import BackboneOptions

#: What `--engine` offers.
ENGINES: Registry[EngineKind] = Registry("engine", (KerasBackbones(),))

#: Adds a kind of engine; a plugin calls it when it is imported.
register = ENGINES.register


def find_engine(options: ExtractOptions) -> EngineKind:
    """The kind that `--engine` names, which takes the other settings too.

    Raises:
        InputError: no such kind, or a setting that is not for it.
    """
    kind = ENGINES.find(options.engine, "--engine")
    for name, field in BackboneOptions.model_fields.items():
        if name not in kind.options and getattr(options, name) != field.default:
            raise InputError(f"--{name.replace('_', '-')} is not for --engine {kind.name}")
    return kind
