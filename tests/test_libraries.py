"""torchvision beside another torch than its own: one line with the way out, where it is needed."""

from __future__ import annotations

import builtins
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from helpers.support import MakeConfig, what_is_raised
from packaging.requirements import Requirement

from dp_ray import imports
from dp_ray.libraries import LibraryError, import_torchvision
from dp_ray.training.preparation import make_plan

ROOT = Path(__file__).parents[1]
RESNET = {"name": "resnet18"}
RGB = {"name": "fake", "image_size": 32, "channels": 3, "num_classes": 10, "num_examples": 999}


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed torchvision 0.24.0 that cannot be imported beside the installed torch 2.11.0."""
    real = builtins.__import__

    def imported(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        return real(name, *rest, **more)

    versions = {"torchvision": "0.24.0+cu128", "torch": "2.11.0+cu130"}
    monkeypatch.setattr(builtins, "__import__", imported)
    monkeypatch.setattr(metadata, "version", versions.__getitem__)
    monkeypatch.setattr(metadata, "requires", lambda _: ["numpy", "torch==2.9.0", "pillow"])


@pytest.mark.usefixtures("broken")
def test_a_pair_that_does_not_match_is_one_line(make_config: MakeConfig) -> None:
    assert what_is_raised(lambda: make_plan(make_config(model=RESNET, data=RGB))) == (
        "LibraryError: torchvision 0.24.0+cu128 cannot be imported beside torch 2.11.0 "
        "(RuntimeError: operator torchvision::nms does not exist): it is made for torch==2.9.0. "
        "Install the torchvision of this torch: pip install torch==2.11.0 torchvision"
    )


@pytest.mark.usefixtures("broken")
def test_runs_that_do_not_need_it_do_not_import_it(make_config: MakeConfig) -> None:
    assert make_plan(make_config()).steps > 0


@pytest.mark.usefixtures("broken")
def test_none_at_all_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(LibraryError, match="not installed: pip install torchvision"):
        import_torchvision()


def test_torch_is_a_range_and_the_tested_pair_is_in_it() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    needed = {r.name: r for r in map(Requirement, tomllib.loads(text)["project"]["dependencies"])}
    exact = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if "==" in line
    )
    pairs = [("2.9.0", "0.24.0"), ("2.11.0", "0.26.0"), (exact["torch"], exact["torchvision"])]
    for versions in pairs:
        for name, version in zip(("torch", "torchvision"), versions, strict=True):
            assert needed[name].specifier.contains(version), (name, version)
    assert not needed["torch"].specifier.contains("2.8.0")
    assert not needed["torchvision"].specifier.contains("0.23.0")


def test_packages_are_libraries_wherever_they_were_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by pip's --target; a folder of the user's, which holds no such records, is the user's."""
    for folder in ("target/thing-1.0.dist-info", "target/thing", "own"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("target", "own"):
        monkeypatch.syspath_prepend(str(tmp_path / folder))
    imports._library_folders.cache_clear()
    try:
        assert not imports.is_users(str(tmp_path / "target" / "thing" / "__init__.py"))
        assert imports.is_users(str(tmp_path / "own" / "network.py"))
    finally:
        imports._library_folders.cache_clear()
