"""The store of a dataset: versioned Lance tables that grow and that all jobs read."""

from visao_ray.store.store import Store

__all__ = ["Store"]
