"""The small install: what works without the extras, and what is said where one is needed."""

from __future__ import annotations

import ast
import json
import re
import runpy
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from helpers.support import MakeConfig, start
from typer.testing import CliRunner

import dp_ray
from dp_ray import cli
from dp_ray.api.tune import run_sweep
from dp_ray.config.builtin import builtin_names
from dp_ray.config.search import load_sweep
from dp_ray.errors import MissingExtraError
from dp_ray.extras import EXTRAS, missing, require
from dp_ray.storage import open_folder

ROOT = Path(__file__).parents[2]
PACKAGE = Path(dp_ray.__file__).parent
OPTIONAL = sorted({module for modules in EXTRAS.values() for module in modules})

PLACES = {
    "matplotlib": {
        "reporting/charts.py",
        "reporting/confusion.py",
        "reporting/sheet.py",
    },
    "optuna": {"on_ray/tuner.py"},
    "pyarrow": {"storage.py"},
    "sklearn": {"data/sources/digits.py"},
}
"""Files that import an optional library; Ray has a folder."""


# What is declared


def declared(names: list[str]) -> set[str]:
    """Modules of requirements, those of dp-ray's own extras put in."""
    found = set()
    for requirement in names:
        if own := re.fullmatch(r"dp-ray\[(.*)\]", requirement):
            for extra in own[1].split(","):
                found |= declared(project()["optional-dependencies"][extra])
        else:
            name = re.split(r"[\[<>=~!;]", requirement)[0]
            found.add({"scikit-learn": "sklearn"}.get(name, name))
    return found


def project() -> dict[str, dict[str, list[str]]]:
    """The project section of pyproject.toml."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found: dict[str, dict[str, list[str]]] = tomllib.loads(text)["project"]
    return found


def test_extras_install_what_messages_say() -> None:
    extras = project()["optional-dependencies"]
    for extra, modules in EXTRAS.items():
        assert set(modules) == declared(extras[extra]), extra
    assert declared(extras["all"]) == set(OPTIONAL)
    assert not declared(list(project()["dependencies"])) & set(OPTIONAL)


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """Each imported top-level module, and when: at once, late (in a function), or for types."""

    def walk(node: ast.AST, when: str) -> Iterator[tuple[str, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name.split(".")[0], when) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                yield (child.module or "").split(".")[0], when
            elif isinstance(child, ast.FunctionDef):
                yield from walk(child, "late")
            elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                yield from walk(child, "for types")
            else:
                yield from walk(child, when)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), "at once")


def test_optional_libraries_are_imported_in_their_places_and_late() -> None:
    found: dict[str, set[str]] = {name: set() for name in PLACES}
    for path in PACKAGE.rglob("*.py"):
        file = path.relative_to(PACKAGE).as_posix()
        for name, when in imports(path):
            if name in PLACES and when != "for types":
                assert when == "late" or file.startswith("on_ray/"), f"{file} imports {name}"
                found[name].add(file)
    assert found == PLACES


# What works without them

BLOCKED = f"""
import importlib, sys
from pathlib import Path

class Absent:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in {OPTIONAL}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent)
import dp_ray
root = Path(dp_ray.__file__).parent
for file in sorted(root.rglob("*.py")):
    module = ".".join(("dp_ray", *file.relative_to(root).with_suffix("").parts))
    if module.endswith("__main__"):
        continue
    try:
        importlib.import_module(module.removesuffix(".__init__"))
    except ModuleNotFoundError as error:
        print(module, error.name)
"""


@pytest.mark.slow
def test_all_but_what_runs_on_ray_can_be_imported_without_the_extras() -> None:
    command = [sys.executable, "-c", BLOCKED]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    failed = dict(line.split() for line in result.stdout.splitlines())
    assert set(failed.values()) == {"ray"}
    assert all(module.startswith("dp_ray.on_ray.") for module in failed)
    assert not {f"dp_ray.on_ray.{name}" for name in ("environment", "job", "early")} & set(failed)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """No optional library can be imported."""
    for name in list(sys.modules):
        if name.split(".")[0] in OPTIONAL:
            monkeypatch.setitem(sys.modules, name, None)
    for name in OPTIONAL:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def fake_file(make_config: MakeConfig, tmp_path: Path) -> Path:
    """A configuration of a run in this process, on data that needs no library."""
    facts = {"num_examples": 100, "num_classes": 10, "image_size": 8, "channels": 1}
    values = make_config(data={"name": "fake", **facts}).dump()
    path = tmp_path / "small.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in values.items() if k != "name"}))
    return path


def run(*arguments: str | Path) -> str:
    result = CliRunner().invoke(cli.app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.usefixtures("bare")
def test_a_run_in_one_process_needs_no_extra(fake_file: Path) -> None:
    result = json.loads(run("train", fake_file, "--json").splitlines()[-1])
    assert result["status"] == "finished"
    assert "verifies" in run("ledger", result["path"])
    assert "pip install 'dp-ray[report]'" in run("evaluate", result["path"])
    for extra, arguments in (
        ("report", ["report", result["path"]]),
        ("report", ["evaluate", result["path"], "--picture", "matrix.svg"]),
        ("report", ["data", fake_file]),
        ("ray", ["train", fake_file, "--name", "on-ray", "--set", "cluster.num_workers=1"]),
    ):
        with pytest.raises(MissingExtraError, match=re.escape(f"pip install 'dp-ray[{extra}]'")):
            run(*arguments)


@pytest.mark.usefixtures("bare")
def test_the_other_extras_are_named_before_anything_is_written(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    with pytest.raises(MissingExtraError, match=r"needs scikit-learn, .*dp-ray\[digits\]"):
        start(make_config())
    with pytest.raises(MissingExtraError, match=r"needs PyArrow, .*dp-ray\[storage\]"):
        open_folder("s3://bucket/runs")
    sweep = load_sweep("sweeps/digits", [f"train.storage_path={tmp_path / 'runs'}"])
    with pytest.raises(
        MissingExtraError, match=r"needs Ray and Optuna and matplotlib, .*dp-ray\[tune\]"
    ):
        run_sweep(sweep)
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("bare")
def test_missing_libraries_are_named() -> None:
    assert missing("digits") == ["scikit-learn"]
    assert missing("tune") == ["Ray", "Optuna", "matplotlib"]
    with pytest.raises(MissingExtraError, match=r"^x: needs PyArrow, .* or do without\.$"):
        require("storage", "x", "do without")


def test_what_is_installed_is_required_in_silence() -> None:
    for extra in EXTRAS:
        require(extra, "this test")


# What is imported when

UNIMPORTABLE = """
import sys
for name in ("torch", "numpy", "ray", "scipy", "pydantic"):
    sys.modules[name] = None
import dp_ray
"""


def test_importing_dp_ray_imports_no_library() -> None:
    subprocess.run([sys.executable, "-c", UNIMPORTABLE], check=True)


MISTAKES = {
    ("plan", "typo.yaml"): "there is no such file",
    ("train", "digits", "--set", "privacy.epsilno=1"): "Did you mean privacy.epsilon?",
    ("train", "mnist", "--set", "data.root=nowhere"): "no such folder",
    ("tune", "sweeps/mnist", "--set", "data.root=nowhere"): "no such folder",
    ("audit", "mnist", "--set", "data.root=nowhere"): "no such folder",
    ("data", "mnist", "--set", "data.root=nowhere"): "no such folder",
    ("train", "digits", "--set", "cluster.address=nowhere"): "is not host:port",
    ("evaluate", "nowhere"): "there is no run",
    ("report", "nowhere"): "there is no run",
    ("ledger", "nowhere"): "there is no run",
}

REPORT = """
import json, sys
from typer.testing import CliRunner
from dp_ray import cli
from dp_ray.errors import DpRayError
for arguments in json.load(sys.stdin):
    try:
        CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    except DpRayError as error:
        print(error)
print({"torch", "ray", "scipy", "opacus"} & set(sys.modules) or "")
"""


def test_mistakes_in_files_and_folders_are_reported_before_torch_is_imported(
    tmp_path: Path,
) -> None:
    *found, imported = subprocess.run(
        [sys.executable, "-c", REPORT],
        input=json.dumps(list(MISTAKES)),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert len(found) == len(MISTAKES)
    for line, (arguments, expected) in zip(found, MISTAKES.items(), strict=True):
        assert expected in line, arguments
    assert not imported


# The package as others see it


def test_the_type_checked_example_runs() -> None:
    runpy.run_path(str(Path(__file__).parent / "typed_use.py"), run_name="__main__")


def test_the_wheel_has_all_that_is_no_code(tmp_path: Path) -> None:
    code = (
        "import sys; from setuptools import build_meta; "
        "sys.argv[2:] = []; print(build_meta.build_wheel(sys.argv[1]))"
    )
    source = tmp_path / "source"
    for name in ("dp_ray", "configs", "pyproject.toml", "README.md", "LICENSE"):
        (source / name).parent.mkdir(exist_ok=True)
        subprocess.run(["cp", "-R", str(ROOT / name), str(source / name)], check=True)
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=source, check=True, capture_output=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    files = set(zipfile.ZipFile(wheel).namelist())
    assert {f"dp_ray/configs/{name}.yaml" for name in builtin_names()} <= files
    assert {"dp_ray/py.typed", "dp_ray/reporting/templates/card.md"} <= files
    code_files = {path.relative_to(PACKAGE.parent).as_posix() for path in PACKAGE.rglob("*.py")}
    assert code_files == {name for name in files if name.endswith(".py")}
    assert not {name.split("/")[0] for name in files} - {
        "dp_ray",
        wheel.name.split("-py3")[0] + ".dist-info",
    }
