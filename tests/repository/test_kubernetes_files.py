"""cluster/kubernetes/: the manifests pass the schemas, are confined, and fit one another."""

from __future__ import annotations

import re
import shlex
from difflib import ndiff
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from helpers.cluster_files import (
    MANIFESTS,
    Mutation,
    Values,
    check_kubernetes,
    check_structure,
    clusters,
    folder_of_configs,
    load,
    options,
    pinned,
    pods,
    read,
    training,
    uid,
    user,
)
from ray.scripts.scripts import start as ray_start

IMAGE = "REGISTRY/dp-ray:TAG"


def documents() -> list[Any]:
    """All Kubernetes objects, with their file for a name."""
    return [
        pytest.param(document, id=f"{path.stem}-{document['kind']}-{document['metadata']['name']}")
        for path in MANIFESTS
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
    ]


@pytest.mark.parametrize("document", documents())
def test_manifests_pass_the_schemas_of_kubernetes_and_kuberay(document: Values) -> None:
    if document["apiVersion"].startswith("ray.io/"):
        check_structure(document["kind"], document, document["kind"])
    else:
        check_kubernetes(document)


def head(job: Values) -> Any:
    """The head's pod."""
    return job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]


KUBERNETES_MISTAKES: dict[str, Mutation] = {
    "container": lambda j: head(j)["containers"][0].update(imagePullPolice="Always"),
    "context": lambda j: head(j)["containers"][0]["securityContext"].update(privilege=False),
    "pod": lambda j: head(j).update(automountServiceAccountToken="no"),
    "volume": lambda j: head(j)["volumes"].append({"name": "x", "emptyDirectory": {}}),
    "no_containers": lambda j: head(j).pop("containers"),
    "labels": lambda j: j["metadata"].update(labels=["dp-ray"]),
    "service": lambda j: j["spec"]["rayClusterSpec"]["headGroupSpec"].update(
        headService={"spec": {"portz": []}}
    ),
}


@pytest.mark.parametrize("mistake", KUBERNETES_MISTAKES)
def test_kubernetes_schema_refuses_mistakes(mistake: str) -> None:
    job = load("kubernetes/rayjob.yaml")
    KUBERNETES_MISTAKES[mistake](job)
    with pytest.raises(kubernetes_validate.ValidationError):
        check_structure("RayJob", job, "RayJob")


KUBERAY_MISTAKES: dict[str, Mutation] = {
    "unknown": lambda j: j["spec"].update(entryPoint="dp-ray"),
    "unknown_deep": lambda j: j["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].update(replica=2),
    "string_for_integer": lambda j: j["spec"].update(backoffLimit="0"),
    "boolean_for_integer": lambda j: j["spec"].update(backoffLimit=True),
    "number_for_string": lambda j: j["spec"]["rayClusterSpec"].update(rayVersion=2.60),
    "no_string": lambda j: j["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update(
        {"num-cpus": 0}
    ),
    "no_list": lambda j: j["spec"]["rayClusterSpec"].update(workerGroupSpecs={}),
    "word": lambda j: j["spec"]["rayClusterSpec"]["authOptions"].update(mode="Token"),
    "missing": lambda j: j["spec"]["rayClusterSpec"].pop("headGroupSpec"),
    "kind": lambda j: j.update(apiVersion="ray.io/v1alpha1"),
}


@pytest.mark.parametrize("mistake", KUBERAY_MISTAKES)
def test_kuberays_api_refuses_mistakes(mistake: str) -> None:
    job = load("kubernetes/rayjob.yaml")
    KUBERAY_MISTAKES[mistake](job)
    with pytest.raises(AssertionError):
        check_structure("RayJob", job, "RayJob")


def test_manifests_carry_the_pinned_ray_its_token_and_known_parameters() -> None:
    found = list(clusters())
    assert len(found) == len(MANIFESTS) - 1  # all but common.yaml
    for name, cluster in found:
        assert cluster["rayVersion"] == pinned("ray"), name
        assert cluster["authOptions"] == {"mode": "token"}, name
        head = cluster["headGroupSpec"]
        assert head["serviceType"] == "ClusterIP", name
        assert head["rayStartParams"]["num-cpus"] == "0", name
        for group in (head, *cluster["workerGroupSpecs"]):
            assert {f"--{key}" for key in group["rayStartParams"]} <= options(ray_start), name


@pytest.mark.parametrize(("name", "template"), [pytest.param(*p, id=p[0]) for p in pods()])
def test_pods_are_confined_and_have_what_they_write_to(name: str, template: Values) -> None:
    pod = template["spec"]
    policy = next(d for d in _common() if d["kind"] == "NetworkPolicy")
    selected = policy["spec"]["podSelector"]["matchLabels"]
    assert selected.items() <= template["metadata"]["labels"].items()
    assert pod["automountServiceAccountToken"] is False
    context = pod["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] == context["runAsGroup"] == context["fsGroup"] == uid()
    assert context["fsGroupChangePolicy"] == "OnRootMismatch"  # dp-ray needs private/ at 0700
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    (container,) = pod["containers"]
    assert container["image"] == IMAGE
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert {"cpu", "memory"} <= set(container["resources"]["limits"])
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert {mount["name"] for mount in mounts.values()} == set(volumes)
    assert not any("hostPath" in volume for volume in volumes.values())
    for path in ("/tmp", f"/home/{user()}"):
        assert "sizeLimit" in volumes[mounts[path]["name"]]["emptyDir"]
    if name.endswith("submitter"):
        return
    assert volumes[mounts["/dev/shm"]["name"]]["emptyDir"]["medium"] == "Memory"
    assert mounts["/data"]["readOnly"] is True
    claims = {d["metadata"]["name"]: d for d in _common() if d["kind"] == "PersistentVolumeClaim"}
    for volume in volumes.values():
        if "persistentVolumeClaim" in volume:
            claim = claims[volume["persistentVolumeClaim"]["claimName"]]
            assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert pod["serviceAccountName"] in {
        d["metadata"]["name"] for d in _common() if d["kind"] == "ServiceAccount"
    }


def _common() -> list[Values]:
    return list(yaml.safe_load_all(read("kubernetes/common.yaml")))


@pytest.mark.parametrize("path", [p for p in MANIFESTS if p.stem.startswith("rayjob")])
def test_jobs_fit_their_cluster(path: Path) -> None:
    spec = load(f"kubernetes/{path.name}")["spec"]
    parsed, config = training(shlex.split(spec["entrypoint"]))
    assert str(parsed["config"]) == f"{folder_of_configs()}/mnist.yaml"
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"]
    (container,) = group["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    assert config.cluster.max_workers == group["replicas"]
    assert config.cluster.cpus_per_worker == int(limits["cpu"])
    assert config.cluster.gpus_per_worker == int(limits.get("nvidia.com/gpu", 0))
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert config.data.root in mounts
    assert config.train.storage_path in mounts or path.stem == "rayjob-object-store"
    assert spec["backoffLimit"] == 0
    assert spec["shutdownAfterJobFinishes"] is True


def test_manifests_differ_where_they_should_and_nowhere_else() -> None:
    for suffix in ("", "-gpu"):
        cluster = load(f"kubernetes/raycluster{suffix}.yaml")
        job = load(f"kubernetes/rayjob{suffix}.yaml")
        assert job["spec"]["rayClusterSpec"] == cluster["spec"]
    for kind in ("raycluster", "rayjob"):
        plain, gpu = (read(f"kubernetes/{kind}{s}.yaml").splitlines() for s in ("", "-gpu"))
        changed = [line for line in ndiff(plain, gpu) if line[0] in "+-"]
        assert changed
        for line in changed:
            assert re.match(r"[+-] (#|.*(nvidia\.com/gpu|cpus_per_worker|&worker))", line), line
    store = load("kubernetes/rayjob-object-store.yaml")["spec"]["rayClusterSpec"]
    disk = load("kubernetes/rayjob.yaml")["spec"]["rayClusterSpec"]
    assert store != disk
    for pod in (store, disk):
        for group in (pod["headGroupSpec"], *pod["workerGroupSpecs"]):
            spec = group["template"]["spec"]
            (container,) = spec["containers"]
            secret = container.pop("envFrom", None)
            assert (secret is not None) == (pod is store)
            spec["volumes"] = [v for v in spec["volumes"] if v["name"] != "runs"]
            container["volumeMounts"] = [
                m for m in container["volumeMounts"] if m["name"] != "runs"
            ]
    assert store == disk
