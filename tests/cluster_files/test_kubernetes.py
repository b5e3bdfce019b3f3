"""cluster/rayjob.yaml, raycluster.yaml and network.yaml: valid, and safe in cost and access.

KubeRay's schemas are read from the folder in KUBERAY_CRDS (`crds/` of its helm chart), or from its
release; those of Kubernetes come with kubernetes-validate.
"""

import copy
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

_ROOT = Path(__file__).parents[2]
_RELEASE = (
    "https://raw.githubusercontent.com/ray-project/kuberay/v1.7.0/helm-chart/kuberay-operator/crds"
)

Manifest = dict[str, Any]


def _read(name: str) -> Manifest:
    found: Manifest = yaml.safe_load((_ROOT / "cluster" / name).read_text())
    return found


_JOB, _CLUSTER, _NETWORK = _read("rayjob.yaml"), _read("raycluster.yaml"), _read("network.yaml")
_SPEC = _CLUSTER["spec"]
_GROUPS = {group["groupName"]: group for group in _SPEC["workerGroupSpecs"]}


def _pods() -> Iterator[tuple[str, Manifest]]:
    yield "submitter", _JOB["spec"]["submitterPodTemplate"]
    yield "head", _SPEC["headGroupSpec"]["template"]
    for name, group in _GROUPS.items():
        yield name, group["template"]


_PODS = dict(_pods())
_CONTAINERS = {
    **{name: container for name, pod in _PODS.items() for container in pod["spec"]["containers"]},
    "autoscaler": _SPEC["autoscalerOptions"],
}


def _schema(plural: str) -> Manifest:
    """Return KubeRay's schema of ray.io/v1; skip the test if it cannot be read."""
    name = f"ray.io_{plural}.yaml"
    folder = os.environ.get("KUBERAY_CRDS")
    if folder:
        text = (Path(folder) / name).read_text()
    else:
        try:
            with urllib.request.urlopen(f"{_RELEASE}/{name}", timeout=10) as answer:
                text = answer.read().decode()
        except (urllib.error.URLError, OSError) as error:
            pytest.skip(f"{_RELEASE}/{name}: {error}; name a folder by KUBERAY_CRDS")
    definition = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    version = next(found for found in definition["spec"]["versions"] if found["name"] == "v1")
    return _closed(version["schema"]["openAPIV3Schema"])


def _closed(schema: Any) -> Any:
    """Return the schema as the API server uses it in strict mode: unknown fields are errors."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: _closed(part) for name, part in schema.items()}
    preserving = found.get("x-kubernetes-preserve-unknown-fields")
    if isinstance(found.get("properties"), dict) and "type" in found and not preserving:
        found.setdefault("additionalProperties", False)
    return found


@pytest.mark.parametrize(
    ("plural", "manifest"), [("rayjobs", _JOB), ("rayclusters", _CLUSTER)], ids=["job", "cluster"]
)
def test_kuberay_takes_it(plural: str, manifest: Manifest) -> None:
    validator = jsonschema.Draft202012Validator(_schema(plural))
    validator.validate(manifest)
    wrong = copy.deepcopy(manifest)
    spec = wrong["spec"].get("rayClusterSpec", wrong["spec"])
    spec["headGroupSpec"]["template"]["spec"]["containers"][0]["imagePolicy"] = "Always"
    with pytest.raises(jsonschema.ValidationError, match="imagePolicy"):
        validator.validate(wrong)


@pytest.mark.parametrize("name", _PODS)
def test_kubernetes_takes_the_pod(name: str) -> None:
    template = _PODS[name]
    metadata = {"name": name, **template["metadata"]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
    kubernetes_validate.validate(pod, kubernetes_validate.latest_version(), strict=True)


def test_kubernetes_takes_the_network_policy() -> None:
    kubernetes_validate.validate(_NETWORK, kubernetes_validate.latest_version(), strict=True)
    chosen = _NETWORK["spec"]["podSelector"]["matchLabels"].items()
    for name, pod in _PODS.items():
        assert chosen <= pod["metadata"]["labels"].items(), name
    assert all(
        rule["from"] for rule in _NETWORK["spec"]["ingress"]
    )  # an empty list would allow everybody


def test_the_jobs_cluster_is_the_standing_one() -> None:
    assert _JOB["spec"]["rayClusterSpec"] == _SPEC


def test_a_job_is_tried_again_and_cleaned_up() -> None:
    spec = _JOB["spec"]
    assert spec["backoffLimit"] >= 1
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0
    assert spec["activeDeadlineSeconds"] > 0
    # KubeRay refuses retries in other modes.
    assert spec["submissionMode"] == "K8sJobMode"
    assert "clusterSelector" not in spec


def test_tokens_are_on() -> None:
    import ray

    assert _SPEC["authOptions"]["mode"] == "token"
    # KubeRay turns them on only if the version of Ray is given.
    assert _SPEC["rayVersion"] == ray.__version__


def test_the_head_takes_no_work() -> None:
    started = _SPEC["headGroupSpec"]["rayStartParams"]
    assert (started["num-cpus"], started["num-gpus"]) == ("0", "0")


def test_workers_grow_from_none_to_a_limit() -> None:
    assert _SPEC["enableInTreeAutoscaling"] is True
    assert 0 < _SPEC["autoscalerOptions"]["idleTimeoutSeconds"] <= 900
    assert set(_GROUPS) == {"cpu", "gpu"}
    for group in _GROUPS.values():
        assert group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"]
    gpus = {name: "nvidia.com/gpu" in _CONTAINERS[name]["resources"]["limits"] for name in _GROUPS}
    assert gpus == {"cpu": False, "gpu": True}


@pytest.mark.parametrize("name", _CONTAINERS)
def test_every_container_has_limits_and_no_rights(name: str) -> None:
    container = _CONTAINERS[name]
    resources = container["resources"]
    assert {"cpu", "memory"} <= resources["limits"].keys()
    assert resources["requests"] == resources["limits"]  # no pod is evicted because of another
    rights = container["securityContext"]
    assert rights["runAsNonRoot"] is True
    assert rights["allowPrivilegeEscalation"] is False
    assert rights["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize("name", _PODS)
def test_no_pod_runs_as_root(name: str) -> None:
    spec = _PODS[name]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 1000  # of cluster/Containerfile
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    assert not any("hostPath" in volume for volume in spec.get("volumes", []))
    # Only the autoscaler, in the pod of the head, calls Kubernetes.
    assert spec.get("automountServiceAccountToken", True) is (name == "head")


@pytest.mark.parametrize("name", _CONTAINERS)
def test_secrets_are_referenced_by_name(name: str) -> None:
    container = _CONTAINERS[name]
    assert not any("value" in variable for variable in container.get("env", []))
    for source in container.get("envFrom", []):
        assert source.keys() == {"secretRef"}


@pytest.mark.parametrize("name", ["head", "cpu", "gpu"])
def test_probes_need_no_token(name: str) -> None:
    container = _CONTAINERS[name]
    assert container["workingDir"] == "/app"  # of cluster/Containerfile: where jobs/ is
    for probe in (container["livenessProbe"], container["readinessProbe"]):
        assert probe["httpGet"] == {"path": "/api/healthz", "port": 52365}


@pytest.mark.parametrize("name", ["head", "cpu", "gpu"])
def test_objects_have_room(name: str) -> None:
    volumes = {volume["name"]: volume["emptyDir"] for volume in _PODS[name]["spec"]["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in _CONTAINERS[name]["volumeMounts"]}
    limits = _CONTAINERS[name]["resources"]["limits"]
    shared = volumes[mounts["/dev/shm"]]
    assert shared["medium"] == "Memory"
    # With less than Ray's default share, Ray would put objects on the disk.
    assert _gib(shared["sizeLimit"]) >= 0.3 * _gib(limits["memory"])
    if name in _GROUPS:
        spill = _GROUPS[name]["rayStartParams"]["object-spilling-directory"]
        assert _gib(volumes[mounts[spill]]["sizeLimit"]) < _gib(limits["ephemeral-storage"])


def _gib(quantity: str) -> float:
    assert quantity.endswith("Gi")
    return float(quantity.removesuffix("Gi"))
