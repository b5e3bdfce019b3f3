"""One store a dataset: Lance tables that grow, have versions, and are read by every job."""

from visao_ray.store.store import Store

__all__ = ["Store"]
