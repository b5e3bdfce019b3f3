"""Sweeps of several bases side by side on one cluster, under one report."""

from __future__ import annotations

import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from visao_ray.errors import InputError
from visao_ray.runs import Run, execute, start_ray
from visao_ray.settings import SweepSettings
from visao_ray.storage import locate
from visao_ray.tuning.space import read_space
from visao_ray.tuning.sweep import make_sweep, sweep_page, told_base, write_report


def sweep_all(settings: SweepSettings, run: Run[Any]) -> None:
    """The sweep job: of one base, or of several, each in a folder of its own below `--out`.

    Raises:
        InputError: as `make_sweep`; two tables of the same base.
    """
    read_space(settings.space)  # before Ray: it is often mistyped
    if len(settings.features) == 1:
        make_sweep(settings, run)
        return
    sources: dict[str, str] = {}
    for uri in settings.features:
        base = told_base(uri)
        if base in sources:
            raise InputError(f"--features {sources[base]} and {uri} are both of base {base}")
        sources[base] = uri
    import ray

    start_ray()
    address = ray.get_runtime_context().gcs_address
    # Each in a process: Tune keeps one experiment a process, and they share the cluster anyway.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(sources), spawn) as processes:
        begun = {
            base: processes.submit(
                _sweep_one,
                settings.part(
                    SweepSettings,
                    base=base,
                    features=[uri],
                    out=run.out.join(base).uri,
                    fresh=False,
                ),
                address,
            )
            for base, uri in sources.items()
        }
        results = {base: future.result() for base, future in begun.items()}
    run.counts |= {"bases": {base: result["counts"] for base, result in results.items()}}
    for name in ("images", "ok", "errors", "trials", "failed"):
        run.counts[name] = sum(result["counts"][name] for result in results.values())
    run.inputs |= {base: result["inputs"] for base, result in results.items()}
    run.details |= {base: result["details"] for base, result in results.items()}
    run.metrics |= {base: result["metrics"] for base, result in results.items()}
    pages = [sweep_page(run.out.join(base), base, result) for base, result in results.items()]
    write_report(run, f"Sweeps of {', '.join(results)}", pages)


def _sweep_one(settings: SweepSettings, address: str) -> dict[str, Any]:
    os.environ["RAY_ADDRESS"] = address
    execute(settings, make_sweep)
    told: dict[str, Any] = json.loads(locate(settings.out).join("result.json").read_bytes())
    return told
