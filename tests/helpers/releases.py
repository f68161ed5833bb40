"""Releases that nobody trained: a network's initial tensors, published as a run would."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save

from dp_ray.artifacts.claim import privacy_statement
from dp_ray.artifacts.public_config import published_config
from dp_ray.artifacts.release import release_files
from dp_ray.artifacts.result import Outcome
from dp_ray.config.run import Config
from dp_ray.data.facts import data_facts
from dp_ray.models.build import build_model
from dp_ray.objectives.evaluation import Evaluation
from dp_ray.privacy.plan import solve_budget


def write_release(folder: Path, config: Config, class_names: Sequence[str] = ()) -> Path:
    """Publish a network with random tensors, buffers included, and return the folder."""
    generator = torch.Generator().manual_seed(0)
    tensors = build_model(config.model, data_facts(config.data)).state_dict()
    for tensor in tensors.values():
        tensor.add_(0.1 * torch.rand(tensor.shape, generator=generator))
    plan = solve_budget(config)
    outcome = Outcome(
        finished=True,
        steps=plan.steps,
        charges=plan.steps,
        history=plan.releases,
        epsilon=plan.epsilon,
        evaluation=Evaluation({"test_accuracy": 0.5, "test_loss": 1.0}, 10),
        seconds=1.0,
    )
    statement = privacy_statement(config, plan, outcome, replay=False)
    files = release_files(save(tensors), published_config(config, plan), statement, class_names)
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder
