"""What tests of cluster/ share: reading its files, and checks of Kubernetes and KubeRay objects."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import typer
import yaml

from dp_ray.cli import app
from dp_ray.config.files import load_config
from dp_ray.config.run import Config

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
MANIFESTS = sorted((CLUSTER / "kubernetes").glob("*.yaml"))
KUBERNETES = "1.37"
KUBERAY: dict[str, dict[str, str]] = yaml.safe_load(
    (Path(__file__).parent / "kuberay_v1.yaml").read_text(encoding="utf-8")
)["structures"]

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
