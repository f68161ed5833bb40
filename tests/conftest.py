"""Shared by all tests: a configuration to start from, and where real data may lie."""

from __future__ import annotations

import os

# One thread a process: small tensors gain nothing from more, and tests run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path
from typing import Any

import pytest
from support import MakeConfig

from dp_ray.config import Config
from dp_ray.config_file import parse_config


@pytest.fixture
def make_config(tmp_path: Path) -> MakeConfig:
    """Builds a small configuration; keyword arguments replace fields: ``data={"name": …}``."""

    def make(**sections: Any) -> Config:
        values: dict[str, Any] = {
            "data": {"name": "digits", "expected_batch_size": 64, "cache": str(tmp_path / "cache")},
            "augment": {"views": 2, "rotation": 8.0, "shift": 0.3, "subpixel": True},
            "privacy": {"noise_multiplier": 1.0, "steps": 4, "delta": 1e-4},
            "optimizer": {"lr": 0.5},
            "train": {"storage_path": str(tmp_path / "runs")},
            "cluster": {"num_workers": 0, "threads_per_worker": 1},
            "seed": 1,
        }
        for name, section in sections.items():
            if isinstance(section, dict) and isinstance(values.get(name), dict):
                values[name] = {**values[name], **section}
            else:
                values[name] = section
        return parse_config(values)

    return make


@pytest.fixture
def real_data() -> Path:
    """The folder with MNIST that ``DP_RAY_TEST_DATA`` names; the test is skipped without it."""
    root = os.environ.get("DP_RAY_TEST_DATA")
    if root is None:
        pytest.skip("DP_RAY_TEST_DATA names no folder with real data")
    return Path(root)
