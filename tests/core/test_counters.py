"""The library's counters on a node's Prometheus endpoint, and the dashboard that shows them."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml
from job_runs import IMPORTS, OWN_RAY
from prometheus_client.parser import text_string_to_metric_families
from s3_server import free_ports

from visao_ray.core import plugins
from visao_ray.core.counters import COUNTERS, prometheus_name
from visao_ray.features.settings import ManifestSettings

ROOT = Path(__file__).parents[2]

# A Ray with metrics switched on, as on clusters; `start_ray` connects to it.
JOB = """
import json, sys, time, urllib.request
import ray
from visao_ray.features.extract import extract_images
from visao_ray.core.run import execute
from visao_ray.features.settings import ExtractSettings

port, settings = int(sys.argv[1]), json.loads(sys.argv[2])
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _metrics_export_port=port,
         _system_config={"metrics_report_interval_ms": 1000})
execute(ExtractSettings(**settings), extract_images)
deadline = time.monotonic() + 20
before = None
while time.monotonic() < deadline:
    found = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
    ours = [line for line in found.splitlines() if line.startswith("ray_visao_ray_")]
    if ours and ours == before:
        break
    before = ours
    time.sleep(2.5)
open(sys.argv[3], "w").write(found)
"""


@dataclass(frozen=True)
class Metered:
    """An extraction with an image that cannot be read.

    Attributes:
        samples: samples by name of the metric.
        lines: JSON lines from the logs of its actors.
    """

    result: dict
    samples: dict[str, list]
    lines: list[dict]


@pytest.fixture(scope="module")
def run(scans, tmp_path_factory) -> Metered:
    folder = tmp_path_factory.mktemp("metered")
    shutil.copytree(scans, folder / "scans")
    (folder / "scans" / "vazio" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 but no more")
    settings = {"dataset": "vazios", "data": str(folder / "scans"), "out": str(folder / "out")}
    settings |= {"engine": "cells", "rows_per_block": 9}
    environment = OWN_RAY | IMPORTS | {plugins.VARIABLE: "numpy_engine"}
    port = str(free_ports(1)[0])
    found = folder / "metrics.txt"
    # A short path: paths of sockets below it may have at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as session:
        process = subprocess.run(
            [sys.executable, "-c", JOB, port, json.dumps(settings), str(found)],
            env=os.environ | environment | {"RAY_TMPDIR": session},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert process.returncode == 0, process.stderr
        logs = Path(session).glob("ray/session_2*/logs/worker-*.err")
        lines = [line for log in logs for line in log.read_text().splitlines()]
    samples = defaultdict(list)
    for family in text_string_to_metric_families(found.read_text()):
        for sample in family.samples:
            samples[sample.name].append(sample)
    return Metered(
        json.loads((folder / "out" / "result.json").read_text()),
        samples,
        [json.loads(line) for line in lines if line.startswith('{"images"')],
    )


def sums(samples: dict[str, list], counter: str, label: str) -> dict[str, float]:
    found: dict[str, float] = defaultdict(float)
    for sample in samples[prometheus_name(counter)]:
        assert {name: sample.labels[name] for name in ("verb", "step", "dataset")} == {
            "verb": "extract",
            "step": "extract",
            "dataset": "vazios",
        }
        found[sample.labels.get(label, "")] += sample.value
    return dict(found)


def test_the_counters_agree_with_the_result(run):
    result, samples = run.result, run.samples
    stages = result["details"]["stages"]["extract"]
    assert sums(samples, "visao_ray_images", "status") == {"ok": 40, "error": 1}
    assert result["counts"]["errors"] == stages["errors"] == 1
    seconds = sums(samples, "visao_ray_stage_seconds", "stage")
    assert set(seconds) == {"read", "decode", "wait", "extract", "write"}
    for stage, value in seconds.items():
        assert value == pytest.approx(stages[stage], rel=1e-3), stage
    assert sums(samples, "visao_ray_read_bytes", "") == {"": stages["read_bytes"]}


def test_the_log_has_every_block_and_the_run(run):
    assert sum(line["images"] for line in run.lines) == 40
    stages = run.result["details"]["stages"]["extract"]
    assert len(run.lines) == 5  # units of 9 images
    assert sum(line["seconds"] for line in run.lines) == pytest.approx(stages["extract"], abs=0.01)
    for line in run.lines:
        names = {
            "run": run.result["run"],
            "verb": "extract",
            "step": "extract",
            "dataset": "vazios",
        }
        assert {name: line[name] for name in names} == names


#: Steps of `graph.Work` and `vectors.VectorWork`.
STEPS = ("extract", "augment", "read", "predict")


def test_ray_shows_readable_names_of_the_data_set_and_its_operators(run):
    named = f"extract-vazios-{run.result['run']}"
    operators = {
        sample.labels["operator"].rsplit("_", 1)[0]
        for sample in run.samples["ray_data_output_rows"]
        if sample.labels["dataset"].startswith(named)
    }
    for name in ("load_unit", "ModelActor", "write_rows"):
        assert f"MapBatches({name})" in operators


def expressions() -> list[str]:
    dashboard = json.loads((ROOT / "cluster" / "grafana.json").read_text())
    queries = [one["definition"] for one in dashboard["templating"]["list"] if "definition" in one]
    drawn = [one["expr"] for panel in dashboard["panels"] for one in panel.get("targets", [])]
    return [*queries, *drawn]


def names(expression: str) -> set[str]:
    """Return the metrics of an expression: the words left after all other syntax is removed."""
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^]]*\]', "", expression.replace('\\"', ""))
    bare = re.sub(r"\b(by|on|group_left)\s*\([^)]*\)|\b(offset|or|unless)\b", "", bare)
    bare = re.sub(r"^label_values\((.*),.*\)$", r"\1", bare)
    return set(re.findall(r"\b[a-zA-Z_]\w*\b(?!\s*\()", bare))


def names_of_ray() -> set[str]:
    definitions = Path(ray.__file__).parent / "dashboard/modules/metrics/dashboards"
    rays = set()
    for name in ("default", "data"):
        rays |= set(
            re.findall(r"\bray_\w+", (definitions / f"{name}_dashboard_panels.py").read_text())
        )
    assert len(rays) > 50
    return rays


def test_the_dashboard_queries_existing_metrics():
    rays = names_of_ray()
    ours = {prometheus_name(counter) for counter in COUNTERS}
    queried = set()
    for expression in expressions():
        found = names(expression)
        assert found, expression
        assert found <= rays | ours, expression
        queried |= found
    assert ours <= queried
    assert len(queried & rays) > 10


def test_the_dashboard_can_be_imported():
    dashboard = json.loads((ROOT / "cluster" / "grafana.json").read_text())
    assert dashboard["schemaVersion"] >= 39  # Grafana 11
    variables = {one["name"] for one in dashboard["templating"]["list"]}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids)) > 10
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        if panel["type"] == "row":
            continue
        assert panel["datasource"]["uid"] == "${datasource}"
        letters = [target["refId"] for target in panel["targets"]]
        assert len(letters) == len(set(letters)) > 0
        for target in panel["targets"]:
            used = set(re.findall(r"\$(\w+)", target["expr"]))
            assert used - {"__rate_interval"} <= variables


def test_dashboard_and_alerts_use_labels_that_the_counters_have():
    tags = {prometheus_name(name): set(tags) for name, (_, tags) in COUNTERS.items()}
    for expression in [*expressions(), *(rule["expr"] for rule in alerts())]:
        for metric, labels in re.findall(r"(ray_visao_ray_\w+)\{([^}]*)\}", expression):
            assert set(re.findall(r"(\w+)=", labels)) <= tags[metric], expression


def alerts() -> list[dict]:
    (group,) = yaml.safe_load((ROOT / "cluster" / "alerts.yaml").read_text())["groups"]
    return group["rules"]


#: Schema of https://prometheus.io/docs/prometheus/latest/configuration/alerting_rules/
RULES = {
    "type": "object",
    "additionalProperties": False,
    "required": ["groups"],
    "properties": {
        "groups": {
            "type": "array",
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["name", "rules"],
                "properties": {
                    "name": {"type": "string"},
                    "interval": {"$ref": "#/$defs/duration"},
                    "rules": {"type": "array", "items": {"$ref": "#/$defs/rule"}},
                },
            },
        }
    },
    "$defs": {
        "duration": {"type": "string", "pattern": "^([0-9]+(ms|[smhdwy]))+$"},
        "texts": {"type": "object", "additionalProperties": {"type": "string"}},
        "rule": {
            "type": "object",
            "additionalProperties": False,
            "required": ["alert", "expr", "labels", "annotations"],
            "properties": {
                "alert": {"type": "string", "pattern": "^[A-Z][A-Za-z]+$"},
                "expr": {"type": "string", "minLength": 1},
                "for": {"$ref": "#/$defs/duration"},
                "keep_firing_for": {"$ref": "#/$defs/duration"},
                "labels": {"$ref": "#/$defs/texts"},
                "annotations": {"$ref": "#/$defs/texts"},
            },
        },
    },
}


def test_alerts_are_valid_prometheus_rules_over_existing_metrics():
    jsonschema.validate(yaml.safe_load((ROOT / "cluster" / "alerts.yaml").read_text()), RULES)
    rays, ours = names_of_ray(), {prometheus_name(counter) for counter in COUNTERS}
    queried = {rule["alert"]: names(rule["expr"]) for rule in alerts()}
    assert list(queried) == [
        *("VisaoRayStalled", "VisaoRayErrors", "VisaoRayRetries", "VisaoRayLeaseLost")
    ]
    for alert, found in queried.items():
        assert found & ours, alert
        assert found <= rays | ours, alert
    for rule in alerts():
        for opened, closed in ("()", "{}", "[]"):
            assert rule["expr"].count(opened) == rule["expr"].count(closed), rule["alert"]
        grouped = re.search(r"sum by \(([^)]*)\)", rule["expr"])
        given = set(grouped.group(1).split(", ")) if grouped else set()
        for text in rule["annotations"].values():
            assert set(re.findall(r"\$labels\.(\w+)", text)) <= given, rule["alert"]


def test_the_alert_of_stalled_jobs_knows_the_data_sets_of_jobs_that_read_images(run):
    (rule,) = [rule for rule in alerts() if rule["alert"] == "VisaoRayStalled"]
    queried = re.findall(r'(\w+)\{dataset=~"([^"]*)"\}', rule["expr"])
    assert len(queried) == 2
    for metric, pattern in queried:
        named = [sample.labels["dataset"] for sample in run.samples[metric]]
        assert any(re.fullmatch(pattern, name) for name in named), metric
        for step in STEPS:
            assert re.fullmatch(pattern, f"{step}-vazios-af4d3ccf"), step


def test_the_alert_of_errors_has_the_limit_that_jobs_have():
    (rule,) = [rule for rule in alerts() if rule["alert"] == "VisaoRayErrors"]
    limit = ManifestSettings.model_fields["max_errors"].default
    assert rule["expr"].endswith(f"> {limit}")
    assert str(limit) in rule["annotations"]["description"]


# A driver that counts and exits at once because the table that it writes to is fenced.
EXIT = """
import logging, sys
import pyarrow as pa
import ray
from visao_ray.core.lease import Owner
from visao_ray.core.counters import count_retries
from visao_ray.core.console import main
from visao_ray.features.settings import ExtractSettings
from visao_ray.store import schemas
from visao_ray.store.store import Description, create_or_open
from visao_ray.store.table import fence, write_fragments

ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.ERROR)

def work(settings, run):
    labels = run.labels("extract", "vazios")
    count_retries("commit", labels, 3)
    count_retries("commit", labels, 0)
    owner = Owner.here(job="extract", run=run.id)
    vazios = Description({"name": "vazios"}, 0, 0.1, 0.1)
    with create_or_open(settings.store, vazios, owner) as writer:
        groups = writer.store.groups
        fence(writer.ensure(groups, schemas.GROUPS))
        rows = pa.Table.from_pylist([{"group": "1"}], schema=schemas.GROUPS)
        writer.append(groups, write_fragments(groups.uri, schemas.GROUPS, rows))

sys.exit(main(ExtractSettings, work, ["--data", sys.argv[2], "--store", sys.argv[2]]))
"""
HEAD = """
import subprocess, sys, urllib.request
import ray

port, driver, store = int(sys.argv[1]), *sys.argv[2:]
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, _metrics_export_port=port)
address = ray.get_runtime_context().gcs_address
assert subprocess.run([sys.executable, "-c", driver, address, store]).returncode == 1
print(urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode())
"""


def test_a_driver_that_loses_its_lease_has_reported_its_counts(tmp_path):
    process = subprocess.run(
        [sys.executable, "-c", HEAD, str(free_ports(1)[0]), EXIT, str(tmp_path / "store")],
        env=os.environ | OWN_RAY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    found = {
        sample.name: (sample.value, sample.labels)
        for family in text_string_to_metric_families(process.stdout)
        for sample in family.samples
    }
    for counter, value in (("visao_ray_retries", 3), ("visao_ray_lease_lost", 1)):
        counted, labels = found[prometheus_name(counter)]
        assert counted == value
        assert {name: labels[name] for name in ("verb", "step", "dataset")} == {
            "verb": "extract",
            "step": "extract",
            "dataset": "vazios",
        }
    assert found[prometheus_name("visao_ray_retries")][1]["what"] == "commit"
