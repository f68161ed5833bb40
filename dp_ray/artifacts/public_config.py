"""What config.yaml of a release holds: the configuration without what must stay secret."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from dp_ray.config.run import Config
from dp_ray.privacy.plan import PrivacyPlan, with_budget


def published_config(config: Config, plan: PrivacyPlan) -> dict[str, Any]:
    """What config.yaml of a release holds: the budget is the plan's σ and T.

    ε is in the statement alone, which has it from the ledger.
    """
    return public_config(with_budget(config, plan))


def public_config(config: Config) -> dict[str, Any]:
    """The configuration without what helps to undo the noise or to find the data."""
    return without_secrets(config.dump())


def without_secrets(values: dict[str, Any]) -> dict[str, Any]:
    """The same of plain values, of a run or of a search, that need not be complete."""
    values = copy.deepcopy(values)
    hidden = {"data": ("root", "cache"), "train": ("storage_path",), "cluster": ("address",)}
    for section, names in hidden.items():
        for name in names:
            if name in (values.get(section) or {}):
                values[section][name] = "runs" if name == "storage_path" else None
    model = values.get("model") or {}
    if model.get("pretrained") is not None:  # the file's name says enough; a name stays as it is
        model["pretrained"] = Path(model["pretrained"]).name
    return values
