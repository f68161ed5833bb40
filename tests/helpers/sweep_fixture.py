"""The fixture ``make_sweep``: a search to start from."""

from __future__ import annotations

from typing import Any

import pytest

from dp_ray.config.search import SweepConfig, parse_sweep
from helpers.searches import MakeSweep
from helpers.support import MakeConfig


@pytest.fixture
def make_sweep(make_config: MakeConfig) -> MakeSweep:
    """Builds a small search; keyword arguments replace fields of its tune section."""

    def make(training: dict[str, Any] | None = None, **tune: Any) -> SweepConfig:
        values = make_config().dump()
        values["name"] = "search"
        values["data"]["evaluation"] = "public"
        values["privacy"].update(epsilon=3.0, noise_multiplier=None, steps=None, accountant="rdp")
        for section, fields in (training or {}).items():
            if isinstance(fields, dict):
                values[section].update(fields)
            else:
                values[section] = fields
        space = {
            "augment.views": {"choice": [1, 2]},
            "privacy.steps": {"choice": [4, 8]},
            "privacy.max_grad_norm": {"log_uniform": [0.5, 2]},
        }
        return parse_sweep({**values, "tune": {"space": space, "num_samples": 3, **tune}})

    return make
