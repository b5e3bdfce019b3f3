"""Registry of model families by name."""

from __future__ import annotations

from typing import Any

from visao_ray.core.registry import Registry
from visao_ray.models.autoencoder import Autoencoder
from visao_ray.models.family import Family
from visao_ray.models.head import Head
from visao_ray.models.projection import Projection
from visao_ray.models.siamese import Siamese
from visao_ray.models.simple_cnn import SimpleCnn
from visao_ray.models.svm import Svm
from visao_ray.models.transfer import Transfer

#: The values of `--family`.
FAMILIES: Registry[type[Family[Any]]] = Registry(
    "family", (SimpleCnn, Transfer, Head, Siamese, Projection, Autoencoder, Svm)
)

#: Add a family; a plugin calls this when it is imported.
register = FAMILIES.register
