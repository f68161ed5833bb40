"""The examples of docs/extending.md: short, used by import path, and one line of a registry."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.pages import ROOT, Page
from helpers.support import MakeConfig, charged, start

from dp_ray.config.data import DataConfig
from dp_ray.data.facts import data_facts
from dp_ray.data.source import Source
from dp_ray.data.sources.registry import SOURCES
from dp_ray.data.store import open_dataset
from dp_ray.errors import ConfigError
from dp_ray.reporting.reference import configuration_page

FILES = {b.file: b.content for b in Page(ROOT / "docs/extending.md").blocks() if b.file}


def test_the_examples_are_below_40_lines() -> None:
    scripts = {name: text for name, text in FILES.items() if name.endswith(".py")}
    assert scripts
    for name, text in scripts.items():
        assert len(text.splitlines()) < 40, name


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The data section for the page's source, whose module lies in the current folder."""
    (tmp_path / "npy_data.py").write_text(FILES["npy_data.py"], encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(importlib.sys.modules, "npy_data", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    write(tmp_path / "arrays", 7)
    return {
        "name": "npy_data:NpyData",
        "root": "arrays",
        "num_examples": 40,
        "num_classes": 4,
        "image_size": 8,
        "channels": 1,
        "expected_batch_size": 10,
        "cache": str(tmp_path / "cache"),
    }


def write(root: Path, shade: int) -> None:
    for name, count in (("train", 40), ("test", 8)):
        (root / name).mkdir(parents=True, exist_ok=True)
        np.save(root / name / "images.npy", np.full((count, 1, 8, 8), shade, np.uint8))
        np.save(root / name / "labels.npy", np.arange(count) % 4)


def test_a_source_trains_by_its_import_path(
    source: dict[str, Any], make_config: MakeConfig
) -> None:
    config = make_config(data=source, privacy={"steps": 2, "delta": 1e-3})
    result = start(config)
    assert result["status"] == "finished"
    assert charged(config) == [(0, 0), (1, 0)]


def test_a_source_is_read_again_when_its_stamp_differs(
    source: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DataConfig(**source)
    first = open_dataset(config)
    module = importlib.import_module("npy_data")
    with monkeypatch.context() as patch:
        patch.setattr(module.NpyData, "splits", lambda _: pytest.fail("read again"))
        assert open_dataset(config).digest == first.digest
    write(tmp_path / "arrays", 9)
    assert open_dataset(config).train.read(np.arange(1))[0].max() == 9


def test_a_source_takes_one_line_of_the_registry(
    source: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name is then known to plans, messages and the reference, and the data is the same."""
    by_path = open_dataset(DataConfig(**source))
    module = importlib.import_module("npy_data")
    assert issubclass(module.NpyData, Source)
    monkeypatch.setitem(SOURCES, "npy", module.NpyData)
    config = DataConfig(**{**source, "name": "npy"})
    assert data_facts(config) == by_path.facts
    assert open_dataset(config).digest == by_path.digest
    with pytest.raises(ConfigError, match=r"Use digits, .*fake, npy, or my_pkg"):
        data_facts(config.model_copy(update={"name": "npi"}))
    assert "fake, npy. |" in configuration_page()
