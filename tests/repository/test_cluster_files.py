"""cluster/: ray up files, the image and the Slurm script, by whoever reads them."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import subprocess
from importlib import resources
from pathlib import Path

import jsonschema
import pytest
from helpers.cluster_files import (
    CLUSTER,
    MANIFESTS,
    ROOT,
    Mutation,
    Values,
    given,
    instructions,
    load,
    options,
    pinned,
    pods,
    read,
    training,
)
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start as ray_start
from ray.scripts.symmetric_run import curate_and_validate_ray_start_args, symmetric_run

RAY_UP = sorted((CLUSTER / "ray-up").glob("*.yaml"))

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
    assert installed == [
        '~/venv/bin/pip install -q --constraint ~/dp-ray/constraints.txt "$HOME/dp-ray[all]"'
    ]
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


# --- the image ---


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
