"""Imports run downward, Ray stays in its folder, and the public surface is what it is."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

from helpers import import_graph

import dp_ray

PACKAGE = Path(dp_ray.__file__).parent

# The subjects, and what each imports stands before it in this list.
ORDER = [
    "errors",
    "parallel",
    "normals",
    "extras",
    "keys",
    "json_text",
    "imports",
    "libraries",
    "storage",
    "document",
    "config",
    "objectives",
    "data",
    "models",
    "gradients",
    "privacy",
    "ledger",
    "performance",
    "artifacts",
    "training",
    "search",
    "reporting",
    "auditing",
    "on_ray",
    "api",
    "cli",
    "__main__",
]


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
    """(subject, file) of the whole package."""
    return [(p.relative_to(PACKAGE).parts[0].removesuffix(".py"), p) for p in PACKAGE.rglob("*.py")]


def test_imports_run_downward() -> None:
    found = [(subject, path) for subject, path in files() if subject != "__init__"]
    assert {subject for subject, _ in found} == set(ORDER)
    for subject, path in found:
        own = {name.split(".")[1] for name in imports(path) if name.startswith("dp_ray.")}
        later = set(ORDER[ORDER.index(subject) + 1 :])
        assert not own & later, f"{path}: {own & later}"


def test_the_picture_of_the_folders_is_up_to_date() -> None:
    found = import_graph.imports_of_files(import_graph.read_files(PACKAGE))
    edges, docs = import_graph.imports_of_folders(found), PACKAGE.parent / "docs"
    order = import_graph.documented_order(docs / "architecture.md")
    assert order == ["base", *(name for name in ORDER if (PACKAGE / name).is_dir())]
    picture = (docs / "architecture.svg").read_text(encoding="utf-8")
    assert picture == import_graph.draw(edges, order), "make docs writes it"


def test_ray_is_imported_in_on_ray_alone() -> None:
    importers = {
        subject for subject, path in files() if any(n.split(".")[0] == "ray" for n in imports(path))
    }
    assert importers == {"on_ray"}


def test_the_architecture_page_names_every_file() -> None:
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.partition("## Subjects")[2].partition("\n## ")[0]
    unnamed = [
        str(path.relative_to(PACKAGE))
        for _, path in files()
        if path.name not in ("__init__.py", "__main__.py")
        and path.parent.name not in ("sources", "engines")  # named by their folder
        and f"`{path.name}`" not in table
    ]
    assert not unnamed


def test_files_and_functions_are_short() -> None:
    """Files below 400 lines; functions of 60 at most, their docstrings not counted."""
    long = []
    for _, path in files():
        text = path.read_text(encoding="utf-8")
        if len(text.splitlines()) >= 400:
            long.append(f"{path}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and _lines(node) > 60:
                long.append(f"{path}: {node.name}")
    assert not long


def _lines(function: ast.FunctionDef) -> int:
    """Lines of a function without its docstring."""
    first, last = function.body[0], function.end_lineno or 0
    has_docstring = ast.get_docstring(function) is not None
    docstring = (first.end_lineno or 0) - first.lineno + 1 if has_docstring else 0
    return last - function.lineno + 1 - docstring


def test_only_the_coordinator_imports_the_noise() -> None:
    importers = {p.name for _, p in files() if "dp_ray.privacy.noise" in imports(p)}
    assert importers == {"coordinator.py"}


SURFACE = {
    "functions": {
        *("plan", "train", "evaluate", "tune", "audit", "report", "open_run"),
        *("load_config", "load_sweep", "load_model", "predict", "export", "clipped_gradient_sum"),
    },
    "takes": {
        *("Config", "SweepConfig", "Source", "DataFacts", "Objective", "LabelSpec"),
        *("Classification", "Callback"),
    },
    "returns": {
        *("Plan", "Run", "EvaluationResult", "LedgerSummary", "Report", "Result", "Statement"),
        *("SearchSummary", "AuditOutcome", "ClippedSum", "PublicValues", "PrivateValues"),
        *("LoadedModel", "Preprocess", "Prediction", "Predictions"),
    },
    "raises": {"DpRayError", "ChargesError"},
}
"""The names that ``dp_ray`` promises."""


def test_public_surface() -> None:
    assert sorted(dp_ray.__all__) == sorted(set().union(*SURFACE.values()))
    assert dp_ray.__all__ == sorted(dp_ray._HOME)
    for name in dp_ray.__all__:
        assert getattr(dp_ray, name).__doc__, name


def test_type_checkers_know_the_public_surface() -> None:
    """What is loaded lazily is imported for them, from the same places."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    found = {
        alias.asname: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert found == dp_ray._HOME


def test_functions_say_what_they_take_return_and_raise() -> None:
    for name in SURFACE["functions"]:
        function = getattr(dp_ray, name)
        text = inspect.getdoc(function) or ""
        for parameter in inspect.signature(function).parameters:
            assert f"\n    {parameter}: " in text, (name, parameter)
        assert "\nReturns:\n" in text, name
        assert "\nRaises:\n" in text, name


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
