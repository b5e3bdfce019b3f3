"""Sweeps of several datasets side by side on one cluster, under one report."""

from __future__ import annotations

import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from visao_ray.core import plugins
from visao_ray.core.errors import InputError
from visao_ray.core.ray_session import start_ray
from visao_ray.core.run import Run, execute
from visao_ray.core.storage import locate
from visao_ray.datasets.spec import Dataset
from visao_ray.reports.sweep import read_sweep_page, write_sweep_report
from visao_ray.tuning.settings import SweepSettings
from visao_ray.tuning.space import read_space
from visao_ray.tuning.sweep import make_sweep, open_store


def sweep_all(settings: SweepSettings, run: Run[Any]) -> None:
    """Run the sweep job on one dataset, or on several, each in its own folder below `--out`.

    Args:
        settings: of the job.
        run: of the job.

    Raises:
        InputError: as `make_sweep`; two stores of datasets with the same name.
    """
    read_space(settings.space)  # before Ray starts: typing errors are common
    if len(settings.store) == 1:
        make_sweep(settings, run)
        return
    sources: dict[str, str] = {}
    datasets: dict[str, Dataset] = {}
    for uri in settings.store:
        _, dataset = open_store(uri)
        name = dataset.name
        if name in sources:
            raise InputError(f"--store {sources[name]} and {uri} are both of dataset {name}")
        sources[name], datasets[name] = uri, dataset
    import ray

    start_ray()
    address = ray.get_runtime_context().gcs_address
    # Each in its own process: Tune runs one experiment per process, and they share the cluster.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(sources), spawn) as processes:
        begun = {
            name: processes.submit(
                _sweep_one,
                settings.part(
                    SweepSettings,
                    store=[uri],
                    out=run.out.join(name).uri,
                    fresh=False,
                ),
                address,
                run.command,
            )
            for name, uri in sources.items()
        }
        results = {name: future.result() for name, future in begun.items()}
    run.counts |= {"datasets": {name: result["counts"] for name, result in results.items()}}
    for name in ("images", "ok", "errors", "trials", "failed"):
        run.counts[name] = sum(result["counts"][name] for result in results.values())
    run.inputs |= {name: result["inputs"] for name, result in results.items()}
    run.details |= {name: result["details"] for name, result in results.items()}
    run.metrics |= {name: result["metrics"] for name, result in results.items()}
    pages = [
        read_sweep_page(run.out.join(name), dataset, results[name])
        for name, dataset in datasets.items()
    ]
    write_sweep_report(run, f"Sweeps of {', '.join(results)}", pages)


def _sweep_one(settings: SweepSettings, address: str, command: str) -> dict[str, Any]:
    os.environ["RAY_ADDRESS"] = address
    plugins.load(settings.plugin)
    execute(settings, make_sweep, command)
    result: dict[str, Any] = json.loads(locate(settings.out).join("result.json").read_bytes())
    return result
