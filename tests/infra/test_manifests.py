"""KubeRay's and `ray up`'s manifests: valid, of one version, and large enough for the job they run."""

from __future__ import annotations

import copy
import json
import re
import shlex
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from pipelines.runtime import config as configuration
from pipelines.runtime.capacity import check_parts
from pipelines.runtime.cluster import plan_resources

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINNED = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
OBJECT_STORE = 0.3
"""The share of a node's memory that Ray takes for its object store unless told otherwise."""


def load(path: str) -> dict[str, Any]:
    return yaml.safe_load((INFRA / path).read_text())


JOB, CLUSTER = load("kuberay/rayjob.yaml"), load("kuberay/raycluster.yaml")
SPEC = JOB["spec"]["rayClusterSpec"]
GROUPS = {group["groupName"]: group for group in SPEC["workerGroupSpecs"]}
TEMPLATES = {
    "head": SPEC["headGroupSpec"]["template"],
    "submitter": JOB["spec"]["submitterPodTemplate"],
    **{name: group["template"] for name, group in GROUPS.items()},
}


def kuberay_errors(manifest: dict[str, Any]) -> list[str]:
    schema = yaml.safe_load((ROOT / "tests/assets/kuberay.yaml").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    schema["oneOf"] = [{"$ref": f"#/definitions/{manifest['kind']}"}]
    errors = jsonschema.Draft7Validator(schema).iter_errors(manifest)
    return [detail.message for error in errors for detail in error.context or ()]


def ray_up_errors(manifest: dict[str, Any]) -> list[str]:
    """By the schema that ships with Ray."""
    text = resources.files("ray.autoscaler").joinpath("ray-schema.json").read_text()
    return [
        error.message
        for error in jsonschema.Draft7Validator(json.loads(text)).iter_errors(manifest)
    ]


@pytest.mark.parametrize("manifest", [JOB, CLUSTER], ids=["job", "cluster"])
def test_kuberay_takes_them(manifest: dict[str, Any]) -> None:
    assert kuberay_errors(manifest) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec/rayClusterSpec/workerGroupSpecs/0/minReplica", 1),
        ("spec/rayClusterSpec/workerGroupSpecs/0/maxReplicas", "8"),
        ("spec/rayClusterSpec/headGroupSpec/rayStartParams/num-cpus", 0),
        ("spec/rayClusterSpec/autoscalerOptions/version", "v3"),
        ("spec/rayClusterSpec/headGroupSpec/template/spec/containers/0/resources/limits/memory", "16 GB"),
        ("spec/rayClusterSpec/headGroupSpec/template/spec/restartPolicy", "never"),
        ("spec/submissionMode", "Job"),
        ("spec/ttlSeconds", 600),
    ],
)  # fmt: skip
def test_slips_are_caught(path: str, value: Any) -> None:
    manifest: Any = copy.deepcopy(JOB)
    *folders, last = path.split("/")
    node = manifest
    for name in folders:
        node = node[int(name) if isinstance(node, list) else name]
    node[last] = value
    assert kuberay_errors(manifest)


def test_job_and_cluster_differ_in_what_stands_by_only() -> None:
    def without_replicas(spec: dict[str, Any]) -> dict[str, Any]:
        spec = copy.deepcopy(spec)
        for group in spec["workerGroupSpecs"]:
            del group["replicas"], group["minReplicas"]
        return spec

    assert without_replicas(SPEC) == without_replicas(CLUSTER["spec"])
    assert {group["minReplicas"] for group in CLUSTER["spec"]["workerGroupSpecs"]} == {0}


def test_the_head_does_no_work_and_asks_for_a_token() -> None:
    assert SPEC["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert SPEC["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert SPEC["authOptions"] == {"mode": "token"}
    assert SPEC["enableInTreeAutoscaling"]
    assert SPEC["autoscalerOptions"]["version"] == "v2"


def test_a_job_ends_and_cleans_up() -> None:
    spec = JOB["spec"]
    assert spec["activeDeadlineSeconds"] > 0
    assert spec["shutdownAfterJobFinishes"]
    assert 0 < spec["ttlSecondsAfterFinished"] <= 3600
    assert spec["backoffLimit"] > 0


@pytest.mark.parametrize("name", TEMPLATES)
def test_pods_are_confined(name: str) -> None:
    spec = TEMPLATES[name]["spec"]
    assert spec["serviceAccountName"].startswith("dri-iqa-")
    assert spec["restartPolicy"] == "Never"
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["runAsUser"] == 10001, "the image's user"
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"]["memory"]


def gibibytes(quantity: str) -> float:
    assert quantity.endswith("Gi")
    return float(quantity.removesuffix("Gi"))


@pytest.mark.parametrize("name", ["head", *GROUPS])
def test_shared_memory_holds_the_object_store(name: str) -> None:
    spec = TEMPLATES[name]["spec"]
    (volume,) = spec["volumes"]
    assert volume["emptyDir"]["medium"] == "Memory"
    (container,) = spec["containers"]
    assert {"name": volume["name"], "mountPath": "/dev/shm"} in container["volumeMounts"]
    store = OBJECT_STORE * gibibytes(container["resources"]["limits"]["memory"])
    assert store <= gibibytes(volume["emptyDir"]["sizeLimit"])


def nodes() -> list[dict[str, float]]:
    """What the job's groups offer to Ray at the size they begin with."""
    found = []
    for group in GROUPS.values():
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        custom = json.loads(json.loads(group["rayStartParams"].get("resources", '"{}"')))
        gpus = float(limits.get("nvidia.com/gpu", 0))
        found += [{"CPU": float(limits["cpu"]), "GPU": gpus, **custom}] * group["replicas"]
    return found


def test_the_job_is_one_that_the_project_takes_and_fits_its_cluster() -> None:
    words = shlex.split(JOB["spec"]["entrypoint"])
    assert words[:2] == ["python", "pipelines/full.py"]
    config = configuration.compose("full", words[2:])
    assert config.cluster.gpus_per_worker == 1
    assert config.cluster.degrade_resource > 0
    check_parts(config.cluster, nodes())
    totals = {
        name: sum(node.get(name, 0) for node in nodes()) for name in ("CPU", "GPU", "degrade")
    }
    plan_resources(config.cluster, totals, 1)


def test_spot_machines_give_notice() -> None:
    gpu = GROUPS["gpu"]["template"]["spec"]
    assert gpu["nodeSelector"] == {"karpenter.sh/capacity-type": "spot"}
    words = gpu["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1]
    notice = re.search(r"--deadline-remaining-seconds (\d+) && sleep (\d+)", words)
    assert notice
    assert notice[1] == notice[2]
    assert int(notice[1]) < gpu["terminationGracePeriodSeconds"] <= 120


def test_ray_up_takes_the_aws_cluster() -> None:
    manifest = load("ray-up/aws.yaml")
    assert ray_up_errors(manifest) == []
    assert ray_up_errors(manifest | {"worker_type": "gpu"})
    types = manifest["available_node_types"]
    assert types[manifest["head_node_type"]]["resources"] == {"CPU": 0, "GPU": 0}
    for name in ("gpu", "degrade"):
        assert types[name]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    starts = manifest["head_start_ray_commands"][1], manifest["worker_start_ray_commands"][1]
    assert all(command.startswith("RAY_AUTH_MODE=token ray start ") for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]


def test_all_versions_agree() -> None:
    ray, release = PINNED["ray"], PROJECT["version"]
    assert {SPEC["rayVersion"], CLUSTER["spec"]["rayVersion"]} == {ray}
    (wanted,) = [
        name for name in PROJECT["optional-dependencies"]["pipelines"] if name[:4] == "ray["
    ]
    assert wanted.endswith(f">={'.'.join(ray.split('.')[:2])}")
    tags = {f"dri-iqa:{release}-ray{ray}", f"dri-iqa-mlflow:{release}-mlflow{PINNED['mlflow']}"}
    texts = [path.read_text() for path in INFRA.rglob("*.yaml")]
    found = {tag for text in texts for tag in re.findall(r"image: (dri-iqa\S*)", text)}
    assert found == tags
