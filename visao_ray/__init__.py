"""X-ray images on Ray: extract feature vectors once, then train and evaluate from them.

`__all__` is the public Python interface. Each name is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from visao_ray.core.errors import InputError
    from visao_ray.datasets.spec import Dataset
    from visao_ray.evaluation.metric import Metric
    from visao_ray.inference.engines.base import Engine
    from visao_ray.jobs.functions import (
        audit,
        augment,
        clean,
        compare,
        evaluate,
        export,
        extract,
        manifest,
        pipeline,
        predict,
        render,
        sweep,
        train,
        verdicts,
    )
    from visao_ray.jobs.submission import submit
    from visao_ray.store.store import Store

__version__ = "0.2.0"

__all__ = [
    "Dataset",
    "Engine",
    "InputError",
    "Metric",
    "Store",
    "audit",
    "augment",
    "clean",
    "compare",
    "evaluate",
    "export",
    "extract",
    "manifest",
    "pipeline",
    "predict",
    "render",
    "submit",
    "sweep",
    "train",
    "verdicts",
]

_MODULES = {
    "Dataset": "visao_ray.datasets.spec",
    "Engine": "visao_ray.inference.engines.base",
    "InputError": "visao_ray.core.errors",
    "Metric": "visao_ray.evaluation.metric",
    "Store": "visao_ray.store.store",
    "submit": "visao_ray.jobs.submission",
}


if not TYPE_CHECKING:  # with `__getattr__`, a type checker would accept every name

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = importlib.import_module(_MODULES.get(name, "visao_ray.jobs.functions"))
        return getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
