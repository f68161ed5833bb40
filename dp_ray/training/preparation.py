"""The plan of a run: its budget solved, and all checked that can be checked without data."""

from __future__ import annotations

import torch
from torch import nn

from dp_ray.artifacts.score import check_noise
from dp_ray.config.run import Config
from dp_ray.data.facts import DataFacts, data_facts
from dp_ray.data.views import ViewMaker
from dp_ray.errors import ConfigError
from dp_ray.gradients.engines.registry import build_engine, plain_form
from dp_ray.gradients.engines.vmap import Vmap
from dp_ray.models.build import build_model
from dp_ray.models.pretrained import load_pretrained
from dp_ray.objectives.registry import build_objective
from dp_ray.performance.estimate import check_memory
from dp_ray.privacy.plan import PrivacyPlan, solve_budget
from dp_ray.training.optimizers import build_optimizer, rehearse_optimizer
from dp_ray.training.rebuild import check_rebuilt
from dp_ray.training.rehearsal import Rehearsal


def make_plan(config: Config) -> PrivacyPlan:
    """Solves the budget and checks everything that can be checked without data.

    Raises:
        ConfigError: q > 1, δ ≥ 1/N, a budget that cannot be met, a network or a transform that
            cannot be used, microbatches that do not fit into memory, an unknown optimizer.
    """
    model = _build_parts(config)  # what is quickly told comes before seconds of accounting
    plan = solve_budget(config)
    _check_parts(config, model, plan.steps)
    return plan


def check_feasible(config: Config, steps: int) -> None:
    """Checks all but the budget; reads no data.

    Raises:
        ConfigError: see :func:`make_plan`.
    """
    _check_parts(config, _build_parts(config), steps)


def _build_parts(config: Config) -> nn.Module:
    """The network; views are built and weights loaded too, but for their refusals alone."""
    facts = data_facts(config.data)
    if config.train.engine != "auto":
        build_engine(config.train.engine)
    _check_gpus(config)
    check_noise(config)
    build_objective(config.objective, facts.num_classes)
    ViewMaker(config.augment, facts, torch.device("cpu"))
    model = build_model(config.model, facts)
    load_pretrained(model, config.model)
    return model


def _check_parts(config: Config, model: nn.Module, steps: int) -> None:
    facts = data_facts(config.data)
    params = [p for p in model.parameters() if p.requires_grad]
    build_optimizer(config, params, steps)
    rehearse_optimizer(config, params, steps)
    check_memory(config, facts, model)
    _check_precision(config)
    _rehearse(config, model, facts)


def _check_gpus(config: Config) -> None:
    """A GPU that is not there would be waited for without end."""
    wanted = config.cluster.gpus_per_worker * max(config.cluster.max_workers, 1)
    found = torch.cuda.device_count()
    if config.cluster.address is None and wanted > found:
        raise ConfigError(
            "cluster.gpus_per_worker",
            config.cluster.gpus_per_worker,
            f"{wanted:g} GPUs are needed and this machine has {found}",
            "Set it to 0 to train on the CPU, use fewer workers, or give cluster.address",
        )


def _check_precision(config: Config) -> None:
    """A GPU without bfloat16 fails at the first product."""
    on_gpu = config.cluster.gpus_per_worker > 0 and config.cluster.address is None
    if config.train.precision == "bfloat16" and on_gpu and not torch.cuda.is_bf16_supported():
        raise ConfigError(
            "train.precision", "bfloat16", "this machine's GPU does not have it", "Use float32"
        )


def _rehearse(config: Config, model: nn.Module, facts: DataFacts) -> None:
    """Try the network on made-up images; a user's own is also checked to be a function.

    Workers do the same again where the run takes place.
    """
    wanted = config.train.engine
    name = Vmap.name if wanted == "auto" else plain_form(wanted)
    objective = build_objective(config.objective, facts.num_classes)
    engine = build_engine(name, config.train.precision)
    rehearsal = Rehearsal(config, facts, model, objective, engine)
    rehearsal.try_out()
    if config.model.is_users_own:
        rehearsal.run(2)
        check_rebuilt(config, facts, model, objective)
    elif config.objective.is_users_own:
        rehearsal.run(2)
