"""The search job: one verb, with an action for each thing to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from visao_ray.core.run import Run
from visao_ray.search.build import build_index
from visao_ray.search.query import query_index
from visao_ray.search.retrieve import evaluate_search
from visao_ray.search.settings import SearchSettings


def search_store(settings: SearchSettings, run: Run[Any]) -> None:
    """Run one action of the search job.

    Args:
        settings: settings of the action, of the class that belongs to it.
        run: the run.
    """
    _ACTIONS[settings.action](settings, run)


_ACTIONS: dict[str, Callable[[Any, Run[Any]], None]] = {
    "build": build_index,
    "query": query_index,
    "evaluate": evaluate_search,
}
