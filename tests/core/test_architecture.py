"""Imports run downward, Ray stays in its folder, and the public surface is what it is."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import dp_ray

PACKAGE = Path(dp_ray.__file__).parent

# Each layer and the layers that it may import, besides itself.
BASE = {
    "errors",
    "keys",
    "imports",
    "yaml_text",
    "json_text",
    "current_layer",
    "weights",
    "config",
    "config_file",
    "sweep_config",
    "storage",
}
LAYERS: dict[str, set[str]] = {
    "errors": set(),
    "keys": set(),
    "imports": {"errors"},
    "json_text": set(),
    "current_layer": set(),
    "weights": set(),
    "config": {"weights"},
    "yaml_text": set(),
    "config_file": {"errors", "config", "yaml_text"},
    "sweep_config": {"errors", "config", "config_file"},
    "storage": {"errors"},
    "privacy": {"errors", "keys", "storage", "current_layer"},
    "data": BASE,
    "models": BASE | {"data"},
    "training": BASE | {"privacy", "data", "models"},
    "tuning": BASE | {"privacy", "data", "models", "training"},
    "report": BASE | {"privacy", "data", "models", "training", "tuning"},
    "cluster": BASE | {"privacy", "data", "models", "training", "tuning", "report"},
    "cli": BASE | {"training", "tuning", "report", "cluster"},
    "__main__": {"cli", "imports"},
    "__init__": BASE | {"privacy"},
}


def imports(path: Path) -> set[str]:
    """Dotted names of all modules that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
    return names


def files() -> list[tuple[str, Path]]:
    """(layer, file) of the whole package."""
    return [(p.relative_to(PACKAGE).parts[0].removesuffix(".py"), p) for p in PACKAGE.rglob("*.py")]


def test_imports_run_downward() -> None:
    found = files()
    assert {layer for layer, _ in found} == set(LAYERS)
    for layer, path in found:
        own = {name.split(".")[1] for name in imports(path) if name.startswith("dp_ray.")}
        assert own <= LAYERS[layer] | {layer}, f"{path}: {own - LAYERS[layer] - {layer}}"


def test_only_the_cluster_layer_imports_ray() -> None:
    importers = {
        layer for layer, path in files() if any(n.split(".")[0] == "ray" for n in imports(path))
    }
    assert importers == {"cluster"}


def test_only_the_coordinator_imports_the_noise() -> None:
    importers = {p.name for _, p in files() if "dp_ray.privacy.noise" in imports(p)}
    assert importers == {"coordinator.py"}


def test_importing_dp_ray_and_its_core_does_not_import_ray() -> None:
    code = (
        "import dp_ray, sys; dp_ray.clipped_gradient_sum; "
        "import dp_ray.cluster.local, dp_ray.cluster.run, dp_ray.cli; "
        "sys.exit(any(m == 'ray' or m.startswith('ray.') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_surface() -> None:
    assert sorted(dp_ray.__all__) == [
        "ClippedSum",
        "Config",
        "DpRayError",
        "clipped_gradient_sum",
        "load_config",
    ]
    for name in dp_ray.__all__:
        assert getattr(dp_ray, name).__doc__


def test_every_public_function_has_a_docstring() -> None:
    missing = [
        f"{path.name}: {node.name}"
        for _, path in files()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
        and not _is_inner(path, node)
    ]
    assert not missing


def _is_inner(path: Path, node: ast.FunctionDef | ast.ClassDef) -> bool:
    """Functions inside functions, and methods of private classes."""
    for outer in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        private = isinstance(outer, ast.ClassDef) and outer.name.startswith("_")
        if isinstance(outer, ast.FunctionDef) or private:
            inside = (n for child in outer.body for n in ast.walk(child))
            if any(getattr(n, "lineno", 0) == node.lineno for n in inside):
                return True
    return False


def test_followers_do_not_load_the_code_that_draws_noise() -> None:
    """The training loop imports the coordinator, and with it Opacus's noise, on rank 0 only."""
    code = (
        "import dp_ray.training.loop, sys; "
        "sys.exit(any(m in sys.modules for m in ('dp_ray.privacy.noise', 'opacus')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
