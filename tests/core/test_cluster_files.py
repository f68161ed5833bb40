"""cluster/: every file passes the schema of whoever reads it, and says what the others say."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from difflib import ndiff
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import typer
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start as ray_start
from ray.scripts.symmetric_run import curate_and_validate_ray_start_args, symmetric_run

from dp_ray.cli import app
from dp_ray.config import Config
from dp_ray.config_file import load_config

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
RAY_UP = sorted((CLUSTER / "ray-up").glob("*.yaml"))
MANIFESTS = sorted((CLUSTER / "kubernetes").glob("*.yaml"))
KUBERNETES = "1.37"
KUBERAY: dict[str, dict[str, str]] = yaml.safe_load(
    (Path(__file__).parent / "kuberay_v1.yaml").read_text(encoding="utf-8")
)["structures"]
IMAGE = "REGISTRY/dp-ray:TAG"

Values = dict[str, Any]
Mutation = Callable[[Values], object]


def read(name: str) -> str:
    """A file of cluster/."""
    return (CLUSTER / name).read_text(encoding="utf-8")


def load(name: str) -> Values:
    """A file of cluster/ that holds one YAML document."""
    values: Values = yaml.safe_load(read(name))
    return values


def pinned(package: str) -> str:
    """The version in constraints.txt."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    found = re.search(rf"^{re.escape(package)}==(.+)$", text, re.MULTILINE)
    assert found, package
    return found[1]


def options(command: Any) -> set[str]:
    """All --options of one of Ray's commands."""
    return {name for parameter in command.params for name in parameter.opts}


def given(words: list[str]) -> set[str]:
    """The --options among a command's words."""
    return {word.split("=")[0] for word in words if word.startswith("--")}


def training(words: list[str]) -> tuple[Values, Config]:
    """The options of a dp-ray train command, by its own parser, and the configuration they make."""
    assert words[:2] == ["dp-ray", "train"]
    command: Any = typer.main.get_command(app)
    parsed: Values = command.commands["train"].make_context("train", words[2:]).params
    return parsed, load_config(ROOT / "configs" / parsed["config"].name, parsed["overrides"])


# --- ray up ---


def check_ray_up(values: Values) -> None:
    """As ray up does before it talks to a cloud."""
    validate_config(prepare_config(copy.deepcopy(values)))


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.stem)
def test_ray_up_files_pass_the_schema_that_ray_ships(path: Path) -> None:
    values = load(f"ray-up/{path.name}")
    assert values["provider"]["type"] == path.stem
    check_ray_up(values)


RAY_UP_MISTAKES: dict[str, Mutation] = {
    "unknown": lambda v: v.update(setup_command=[]),
    "no_list": lambda v: v.update(initialization_commands="export RAY_AUTH_MODE=token"),
    "no_head": lambda v: v.update(head_node_type="tail"),
    "more_than_all": lambda v: v["available_node_types"]["worker"].update(min_workers=3),
    "no_node_config": lambda v: v["available_node_types"]["worker"].pop("node_config"),
    "half_a_cpu": lambda v: v["available_node_types"]["worker"]["resources"].update(CPU=0.5),
}


@pytest.mark.parametrize("mistake", RAY_UP_MISTAKES)
def test_rays_schema_refuses_mistakes(mistake: str) -> None:
    values = load("ray-up/aws.yaml")
    RAY_UP_MISTAKES[mistake](values)
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        check_ray_up(values)


@pytest.mark.parametrize("path", RAY_UP, ids=lambda path: path.stem)
def test_ray_up_installs_what_is_pinned_and_listens_to_nobody(path: Path) -> None:
    values = load(f"ray-up/{path.name}")
    mounts = values["file_mounts"]
    for target, source in mounts.items():
        if not source.startswith("~"):
            assert (ROOT / source).exists()
            assert target == f"~/dp-ray/{source}"
    installed = [c for c in values["setup_commands"] if "pip install" in c]
    assert installed == ["~/venv/bin/pip install -q --constraint ~/dp-ray/constraints.txt ~/dp-ray"]
    for command in values["head_setup_commands"]:
        packages = [w for w in command.split("install")[1].split() if "==" in w]
        assert packages
        assert "--constraint" in command or "--no-deps" in command
    assert mounts["~/.ray/auth_token"] == "~/.ray/auth_token"
    (shell,) = values["initialization_commands"]
    assert "export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0" in shell
    assert values["provider"]["use_internal_ips"] is True
    for kind in ("head", "worker"):
        stop, start = values[f"{kind}_start_ray_commands"]
        assert stop == "ray stop"
        words = shlex.split(start.split("ray start")[1])
        assert given(words) <= options(ray_start)
        assert ("--dashboard-host=127.0.0.1" in words) == (kind == "head")


def test_ray_up_files_differ_by_cloud_alone() -> None:
    aws, gcp, azure = (load(f"ray-up/{path.name}") for path in (RAY_UP[0], RAY_UP[2], RAY_UP[1]))
    for field in set(aws) - {"provider", "available_node_types", "head_setup_commands"}:
        assert aws[field] == gcp[field] == azure[field], field
    for values in (aws, gcp, azure):
        nodes = values["available_node_types"]
        assert nodes["head"]["resources"] == {"CPU": 0}
        assert {k: v for k, v in nodes["worker"].items() if k != "node_config"} == {
            "min_workers": 2,
            "max_workers": 2,
            "resources": {"CPU": 16},
        }


def test_azures_machines_are_described_by_parameters_of_rays_template() -> None:
    template = resources.files("ray.autoscaler._private._azure") / "azure-vm-template.json"
    known = set(json.loads(template.read_text())["parameters"])
    for node in load("ray-up/azure.yaml")["available_node_types"].values():
        assert set(node["node_config"]["azure_arm_parameters"]) <= known


# --- Kubernetes ---


def check_kubernetes(document: Values) -> None:
    """By the schema of Kubernetes, which refuses unknown fields."""
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


def check_structure(name: str, value: Any, where: str) -> None:
    """By KubeRay's API, and what of Kubernetes is in it by the schema of Kubernetes."""
    core = {"apiVersion": "v1", "metadata": {"name": "inner"}}
    if name == "PodTemplateSpec":
        check_kubernetes({**core, "kind": "PodTemplate", "template": value})
    elif name == "Service":
        check_kubernetes({**core, **value, "kind": "Service"})
    elif name == "ObjectMeta":
        check_kubernetes({**core, "kind": "ConfigMap", "metadata": value})
    else:
        fields = KUBERAY[name]
        assert isinstance(value, dict), f"{where}: {name} expected"
        assert set(value) <= set(fields), f"{where}: unknown {set(value) - set(fields)}"
        needed = {field for field, kind in fields.items() if kind.endswith("!")}
        assert needed <= set(value), f"{where}: {needed - set(value)} missing"
        for field, inner in value.items():
            check_field(fields[field].removesuffix("!"), inner, f"{where}.{field}")


JSON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
}


def check_field(kind: str, value: Any, where: str) -> None:
    """A value by its type's name in kuberay_v1.yaml."""
    if kind.startswith("="):
        assert value == kind[1:], f"{where}: {value}"
    elif "|" in kind:
        assert value in kind.split("|"), f"{where}: {value}"
    elif kind == "strings":
        assert isinstance(value, dict), f"{where}: a mapping expected"
        assert all(isinstance(s, str) for s in value.values()), f"{where}: not all are strings"
    elif kind.startswith("["):
        assert isinstance(value, list), f"{where}: a list expected"
        for index, inner in enumerate(value):
            check_structure(kind[1:-1], inner, f"{where}[{index}]")
    elif kind in JSON_TYPES:
        assert type(value) in JSON_TYPES[kind], f"{where}: {kind} expected"
    else:
        assert kind != "object", f"{where}: describe it in kuberay_v1.yaml"
        check_structure(kind, value, where)


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


def clusters() -> Iterator[tuple[str, Values]]:
    """(file, RayClusterSpec) of all manifests."""
    for path in MANIFESTS:
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            if document["kind"] == "RayCluster":
                yield path.stem, document["spec"]
            elif document["kind"] == "RayJob":
                yield path.stem, document["spec"]["rayClusterSpec"]


def pods() -> Iterator[tuple[str, Values]]:
    """(what, pod template) of all manifests."""
    for name, cluster in clusters():
        yield f"{name} head", cluster["headGroupSpec"]["template"]
        for group in cluster["workerGroupSpecs"]:
            yield f"{name} {group['groupName']}", group["template"]
    for path in MANIFESTS:
        if path.stem.startswith("rayjob"):
            yield (
                f"{path.stem} submitter",
                load(f"kubernetes/{path.name}")["spec"]["submitterPodTemplate"],
            )


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


# --- the image ---


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [
        (words[0], words[-1]) for line in joined.splitlines() if (words := line.split(" ", 1))[0]
    ]


def uid() -> int:
    """The image's user, by number."""
    found = re.search(r"^USER (\d+):\1$", read("Dockerfile"), re.MULTILINE)
    assert found
    return int(found[1])


def user() -> str:
    """The image's user, by name."""
    found = re.search(r"useradd --uid (\d+) --create-home (\S+)", read("Dockerfile"))
    assert found
    assert int(found[1]) == uid()
    return found[2]


def folder_of_configs() -> str:
    """Where the image has configs/."""
    folders = []
    for name, words in instructions(read("Dockerfile")):
        if name == "WORKDIR":
            folders.append(words)
        elif words == "configs configs":
            return f"{folders[-1]}/configs"
    raise AssertionError("no configs")


def check_dockerfile(text: str) -> None:
    """What is pinned, who runs it, and what is in it."""
    steps = instructions(text)
    (base,) = [words for name, words in steps if name == "FROM"]
    assert re.fullmatch(r"python:3\.1[123]\.\d+-slim-[a-z]+", base)
    assert [words for name, words in steps if name == "USER"] == ["1000:1000"]
    last = max(i for i, (name, _) in enumerate(steps) if name in ("RUN", "COPY"))
    assert last < [name for name, _ in steps].index("USER")
    assert {name for name, _ in steps} <= {"FROM", "ENV", "RUN", "COPY", "USER", "WORKDIR", "CMD"}
    runs = [words for name, words in steps if name == "RUN"]
    installs = [words for words in runs if "pip install" in words]
    assert "--constraint constraints.txt" in installs[0]
    assert all("--no-deps" in words for words in installs[1:])
    assert all("--no-cache-dir" in words for words in installs)
    assert all("rm -rf /var/lib/apt/lists" in words for words in runs if "apt-get" in words)
    assert any(name == "ENV" and "RAY_USAGE_STATS_ENABLED=0" in words for name, words in steps)
    copied = {w for name, words in steps if name == "COPY" for w in words.split()[:-1]}
    allowed = [line for line in read("Dockerfile.dockerignore").splitlines() if line[:1] != "#"]
    assert allowed[0] == "*"
    assert copied == {line[1:] for line in allowed if line.startswith("!")}
    assert all((ROOT / source).exists() for source in copied)


def test_image_is_pinned_small_and_not_roots() -> None:
    check_dockerfile(read("Dockerfile"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (r"python:\S+", "python:slim"),
        (r"USER 1000:1000", ""),
        (r"(USER 1000:1000)", r"\1\nRUN id"),
        (r"--constraint constraints.txt", ""),
        (r"--no-deps ", ""),
        (r" --no-cache-dir", ""),
        (r"&& rm -rf /var/lib/apt/lists/\*", "&& true"),
        (r"COPY configs configs", "COPY configs private configs/"),
        (r"COPY configs configs", "ADD configs configs"),
    ],
)
def test_mistakes_in_the_image_are_found(old: str, new: str) -> None:
    text = read("Dockerfile")
    changed = re.sub(old, new, text)
    assert changed != text
    with pytest.raises(AssertionError):
        check_dockerfile(changed)


# --- Slurm ---


def submit(folder: Path, *arguments: str, **variables: str) -> list[str]:
    """The words that slurm.sh gives to srun, with Slurm and Ray played by scripts."""
    venv = folder / "venv" / "bin"
    venv.mkdir(parents=True, exist_ok=True)
    scripts = {
        "srun": 'printf "%s\\n" "$@" > words',
        "hostname": 'echo "${ADDRESS:-fe80::1 10.1.2.3}"',
        "ray": '[[ "$*" == "get-auth-token --generate" ]]',
    }
    for name, body in scripts.items():
        (venv / name).write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
        (venv / name).chmod(0o755)
    environment = {
        "PATH": os.pathsep.join([str(venv), os.environ["PATH"]]),
        "DP_RAY_VENV": str(venv.parent),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_PER_TASK": "8",
        **variables,
    }
    subprocess.run(
        ["bash", str(CLUSTER / "slurm.sh"), *arguments],
        cwd=folder,
        env=environment,
        check=True,
        capture_output=True,
    )
    return (folder / "words").read_text(encoding="utf-8").splitlines()


def test_slurm_script_is_bash() -> None:
    subprocess.run(["bash", "-n", str(CLUSTER / "slurm.sh")], check=True)


def test_slurm_script_starts_ray_on_all_nodes_and_the_run_on_one(tmp_path: Path) -> None:
    words = submit(tmp_path, "configs/mnist.yaml", "--set", "data.root=/images")
    started, run = words[: words.index("--")], words[words.index("--") + 1 :]
    ray = started.index("ray")
    assert started[:ray] == ["--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=8"]
    assert started[ray + 1] == "symmetric-run"
    rays = started[ray + 2 :]
    assert rays[:4] == ["--address", "10.1.2.3:6379", "--min-nodes", "2"]
    assert given(rays) <= options(ray_start) | options(symmetric_run)
    passed_on = curate_and_validate_ray_start_args(rays)
    assert passed_on == ["--num-cpus=8", "--num-gpus=0"]
    parsed, config = training(run)
    assert parsed["name"] == "mnist"
    assert not parsed["resume"]
    assert config.data.root == "/images"
    assert config.cluster.address == "auto"
    assert config.cluster.num_workers == 2
    assert config.cluster.cpus_per_worker == 8
    assert config.cluster.gpus_per_worker == 0
    assert config.train.storage_path == str(tmp_path / "runs")


def test_slurm_script_goes_on_with_a_run_and_takes_every_gpu(tmp_path: Path) -> None:
    (tmp_path / "runs" / "mnist" / "private").mkdir(parents=True)
    words = submit(tmp_path, "configs/mnist.yaml", SLURM_GPUS_ON_NODE="4")
    assert "--num-gpus=4" in words
    parsed, config = training(words[words.index("--") + 1 :])
    assert parsed["resume"]
    assert config.cluster.num_workers == 8
    assert config.cluster.cpus_per_worker == 2
    assert config.cluster.gpus_per_worker == 1


def test_slurm_script_refuses_an_address_that_other_nodes_cannot_reach(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError, match="exit status 2"):
        submit(tmp_path, "configs/mnist.yaml", ADDRESS="127.0.1.1")


# --- all of them ---

SECRETS = re.compile(
    r"AKIA[0-9A-Z]{16}|-----BEGIN|"
    r"(?i:password|passwd|secret|token|api_?key|access_?key)['\"]?\s*[:=]\s*['\"]?[A-Za-z0-9+/_-]{8,}"
)


def files() -> list[Path]:
    """All files of cluster/."""
    return sorted(path for path in CLUSTER.rglob("*") if path.is_file())


def test_no_secret_is_in_any_file() -> None:
    for example in (
        "AWS_SECRET_ACCESS_KEY=abcdefghij",
        "auth_token: 'c2VjcmV0cw'",
        "-----BEGIN RSA",
    ):
        assert SECRETS.search(example)
    for path in files():
        assert not SECRETS.search(path.read_text(encoding="utf-8")), path
    for name, template in pods():
        for container in template["spec"]["containers"]:
            for variable in container.get("env", []):
                assert not re.search(r"KEY|TOKEN|SECRET|PASS", variable["name"]), name
    for path in MANIFESTS:
        assert "kind: Secret" not in path.read_text(encoding="utf-8")


def test_readme_names_every_file_and_the_pinned_ray() -> None:
    text = read("README.md")
    assert re.findall(r"ray\[default\]==([\d.]+)", text) == [pinned("ray")]
    for path in files():
        assert str(path.relative_to(CLUSTER)) in text or path.name == "README.md", path
