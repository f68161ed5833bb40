"""The examples of docs/extending.md: short, used by import path, and one line of a registry."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.pages import ROOT, Page, example
from helpers.support import MakeConfig, charged, folder, released, start

from dp_ray.artifacts.claim import OWN_ENGINE
from dp_ray.artifacts.notes import EngineNote
from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.config.data import DataConfig
from dp_ray.config.run import Config
from dp_ray.data.facts import data_facts
from dp_ray.data.source import Source
from dp_ray.data.sources.registry import SOURCES
from dp_ray.data.store import open_dataset
from dp_ray.errors import ConfigError
from dp_ray.reporting.reference import configuration_page
from dp_ray.training.preparation import make_plan

PAGE = Page(ROOT / "docs/extending.md")


def test_each_seam_has_an_example_below_40_lines() -> None:
    seams = {"a-source", "an-objective", "an-engine", "a-mechanism"}
    assert PAGE.anchors() == {"extend-dp-ray", *seams}
    scripts = [block for block in PAGE.blocks() if block.file and block.file.endswith(".py")]
    assert len(scripts) == len(seams)
    for block in scripts:
        assert len(block.content.splitlines()) < 40, block.file


def module(name: str, text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a module into the current folder."""
    (folder / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.chdir(folder)
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(folder)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The data section for the page's source, whose module lies in the current folder."""
    module("npy_data", example("npy_data.py"), tmp_path, monkeypatch)
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


LOOP = "loop_engine:Loop"


def trained_with(make_config: MakeConfig, engine: str) -> Config:
    """A finished run of an engine; clipping leaves gradients on made-up images as they are."""
    config = make_config(
        name=engine.partition(":")[0],
        data={"expected_batch_size": 16},
        model={"arguments": {"widths": [4]}},
        privacy={"steps": 1, "max_grad_norm": 1e3},
        train={"engine": engine, "microbatch_size": 8},
    )
    start(config)
    return config


def assumes_own_engine(config: Config) -> bool:
    statement = json.loads((folder(config) / "release/privacy.json").read_text())
    return OWN_ENGINE in statement["assumptions"]


def test_an_engine_trains_by_its_import_path(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module("loop_engine", example("loop_engine.py"), tmp_path, monkeypatch)
    looped, plain = (trained_with(make_config, engine) for engine in (LOOP, "vmap"))
    assert RunDirectory.of(looped).read_ledger().engines == (LOOP,)
    assert (assumes_own_engine(looped), assumes_own_engine(plain)) == (True, False)
    others = released(plain)
    for name, tensor in released(looped).items():
        torch.testing.assert_close(tensor, others[name], rtol=1e-4, atol=1e-5)


def test_an_engine_that_does_not_clip_is_not_used(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients of made-up images are shorter than C: only a smaller C shows it."""
    right = "max_grad_norm, clipping)"
    wrong = example("loop_engine.py").replace(right, "max_grad_norm + 1e3, clipping)")
    module("loop_engine", wrong, tmp_path, monkeypatch)
    config = trained_with(make_config, LOOP)
    note = EngineNote.read(RunDirectory.of(config).private)
    assert note.engine == "vmap"
    assert f"{LOOP} cannot be used: its norms are off by" in note.note
    assert not assumes_own_engine(config)


def test_an_engine_that_adds_up_in_float32_is_refused(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = example("loop_engine.py").replace("+ part for", "+ part.float() for")
    module("loop_engine", wrong, tmp_path, monkeypatch)
    problem = rf"train\.engine = '{LOOP}': fails where vmap does not: .*sums are not float64"
    with pytest.raises(ConfigError, match=problem):
        make_plan(make_config(train={"engine": LOOP}))
