"""The checks of an audit, in the order of the report."""

from __future__ import annotations

from visao_ray.core.registry import Registry
from visao_ray.quality.check import Check
from visao_ray.quality.checks.conflict import CONFLICT
from visao_ray.quality.checks.duplicates import DUPLICATES
from visao_ray.quality.checks.errors import ERRORS
from visao_ray.quality.checks.exposure import EXPOSURE
from visao_ray.quality.checks.imbalance import IMBALANCE
from visao_ray.quality.checks.leak import LEAK
from visao_ray.quality.checks.near_duplicates import NEAR_DUPLICATES
from visao_ray.quality.checks.outliers import OUTLIERS
from visao_ray.quality.checks.sharpness import SHARPNESS
from visao_ray.quality.checks.shift import SHIFT
from visao_ray.quality.checks.size import SIZE

CHECKS: Registry[Check] = Registry(
    "check",
    (
        LEAK,
        CONFLICT,
        ERRORS,
        DUPLICATES,
        NEAR_DUPLICATES,
        IMBALANCE,
        SIZE,
        EXPOSURE,
        SHARPNESS,
        OUTLIERS,
        SHIFT,
    ),
)

#: Add a check; a plugin calls this when it is imported.
register = CHECKS.register
