"""cluster/kuberay: what can be checked without a Kubernetes.

Ray's wheel has no schema of KubeRay's resources, and no package that this project may use brings one. So the fields are
checked by hand, against the reference of KubeRay 1.6 and what the files' comments promise; a field that KubeRay does
not know is found by the lists below, a wrong value of a pod's own fields is not. ``serveConfigV2`` is parsed by Ray.
"""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve import haproxy

FOLDER = Path(__file__).resolve().parents[1] / "cluster/kuberay"
Node = dict[str, Any]
JOB = {"entrypoint", "submissionMode", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished",
       "rayClusterSpec"}  # fmt: skip
SERVICE = {"serviceUnhealthySecondThreshold", "deploymentUnhealthySecondThreshold", "serveConfigV2", "rayClusterConfig"}
CLUSTER = {
    "rayVersion",
    "authOptions",
    "enableInTreeAutoscaling",
    "autoscalerOptions",
    "headGroupSpec",
    "workerGroupSpecs",
}
HEAD = {"rayStartParams", "template"}
GROUP = {"groupName", "minReplicas", "replicas", "maxReplicas", "rayStartParams", "template"}
POD = {"serviceAccountName", "restartPolicy", "containers", "volumes", "tolerations", "nodeSelector"}
CONTAINER = {"name", "image", "ports", "resources", "volumeMounts"}


def read(name: str) -> Node:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


@pytest.fixture(params=["run.yaml", "serve.yaml"])
def cluster(request: pytest.FixtureRequest) -> Node:
    spec = read(request.param)["spec"]
    return spec.get("rayClusterSpec") or spec["rayClusterConfig"]


def pods(cluster: Node) -> list[Node]:
    return [g["template"]["spec"] for g in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def test_kinds() -> None:
    for name, kind, fields in (("run.yaml", "RayJob", JOB), ("serve.yaml", "RayService", SERVICE)):
        file = read(name)
        assert (file["apiVersion"], file["kind"]) == ("ray.io/v1", kind)
        assert file.keys() == {"apiVersion", "kind", "metadata", "spec"}
        assert file["spec"].keys() == fields
        # KubeRay makes names of services and pods from it, 63 characters at most.
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,30}[a-z0-9])?", file["metadata"]["name"])


def test_fields_are_known(cluster: Node) -> None:
    assert cluster.keys() == CLUSTER
    assert cluster["headGroupSpec"].keys() == HEAD
    for group in cluster["workerGroupSpecs"]:
        assert group.keys() == GROUP
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert group["minReplicas"] < group["maxReplicas"], "the group cannot grow"
    for pod in pods(cluster):
        assert pod.keys() <= POD
        (container,) = pod["containers"]
        assert container.keys() <= CONTAINER
        assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert all(isinstance(v, str) for v in container["resources"]["limits"].values())
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert all(isinstance(v, str) for v in group["rayStartParams"].values()), "KubeRay takes strings only"


def test_what_is_to_be_uncommented_is_a_field() -> None:
    text = (FOLDER / "serve.yaml").read_text(encoding="utf-8")
    whole = re.sub(r"^( *)# (gcsFault.*|  redis.*)$", r"\1\2", text, flags=re.MULTILINE)
    spec = yaml.safe_load(whole)["spec"]["rayClusterConfig"]
    assert spec.keys() == CLUSTER | {"gcsFaultToleranceOptions"}
    options = spec["gcsFaultToleranceOptions"]
    assert options.keys() == {"redisAddress", "redisPassword"}
    assert options["redisPassword"]["valueFrom"]["secretKeyRef"] == {"name": "redis", "key": "password"}


def test_authentication_is_on_and_versions_are_ours(cluster: Node) -> None:
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == version("ray")
    assert len({pod["containers"][0]["image"] for pod in pods(cluster)}) == 1


def test_head_takes_no_work(cluster: Node) -> None:
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_autoscaling(cluster: Node) -> None:
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert {pod["restartPolicy"] for pod in pods(cluster)} == {"Never"}, "which the autoscaler's v2 asks for"


def test_shared_memory_is_larger_than_what_kubernetes_gives(cluster: Node) -> None:
    for pod in pods(cluster):
        (shm,) = [v for v in pod["volumes"] if v["name"] == "shm"]
        assert shm["emptyDir"]["medium"] == "Memory"
        (mount,) = pod["containers"][0]["volumeMounts"]
        assert mount["mountPath"] == "/dev/shm"


def test_a_group_of_gpus_for_training() -> None:
    groups = {
        g["groupName"]: g["template"]["spec"] for g in read("run.yaml")["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    }
    assert groups["gpu"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert groups["gpu"]["tolerations"][0]["key"] == "nvidia.com/gpu"
    assert "nvidia.com/gpu" not in groups["cpu"]["containers"][0]["resources"]["limits"]


def test_the_jobs_command_is_one_of_ours() -> None:
    import shlex

    import broadsheet

    program, verb, *arguments = shlex.split(read("run.yaml")["spec"]["entrypoint"])
    assert program == "broadsheet"
    options = broadsheet.cli.commands[verb].make_context(verb, arguments).params
    assert options["storage"].startswith("s3://")
    assert options["host"] == "0.0.0.0", "the head has no CPUs: replicas must be reachable elsewhere"


def test_ray_serve_understands_the_application() -> None:
    from ray.serve.schema import ServeDeploySchema

    from serve import app, declared

    wanted = yaml.safe_load(read("serve.yaml")["spec"]["serveConfigV2"])
    (application,) = ServeDeploySchema.model_validate(wanted).applications
    assert application.import_path == f"{declared.__name__}:{declared.endpoint.__name__}"
    assert application.name == app.NAME, "--status and --update look for it"
    arguments = declared.Arguments.model_validate(application.args)
    assert (arguments.serve.host, arguments.serve.port) == (
        wanted["http_options"]["host"],
        wanted["http_options"]["port"],
    )
    assert arguments.serve.keys


def test_the_image_has_all_of_the_project() -> None:
    lines = (FOLDER / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = {word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]}
    root = FOLDER.parents[1]
    packages = {p.parent.name for p in root.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert packages | {"pyproject.toml", "constraints.txt", "broadsheet.py"} <= copied
    assert all((root / name).exists() for name in copied)


def test_the_image_sets_serve_up_as_every_node() -> None:
    text = (FOLDER / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "")
    pairs = dict(
        word.split("=", 1) for line in text.splitlines() if line.startswith("ENV ") for word in line.split()[1:]
    )
    assert pairs.pop(haproxy.BINARY_PATH).endswith(f"/{haproxy.SCRIPT}")
    assert {name: value for name, value in pairs.items() if name.startswith("RAY_SERVE_")} == haproxy.SETTINGS
