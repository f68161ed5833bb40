"""From a configuration to a plan: σ, q, T and ε solved and checked; reads no data.

What changes privacy is a :class:`PrivacyPlan`; what only changes speed and memory is not in it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from dp_ray.config import Config
from dp_ray.data.catalog import DataFacts, data_facts
from dp_ray.data.views import ViewMaker
from dp_ray.errors import ConfigError, ModelError
from dp_ray.models.build import build_model
from dp_ray.models.pretrained import load_pretrained
from dp_ray.privacy.accounting import (
    AccountantName,
    BudgetError,
    epsilon,
    solve_noise_multiplier,
    solve_steps,
)
from dp_ray.privacy.gradients import clipped_gradient_sum
from dp_ray.training.estimate import check_memory
from dp_ray.training.layout import trained_parameters
from dp_ray.training.optimizers import build_optimizer


@dataclass(frozen=True)
class PrivacyPlan:
    """Everything that a privacy statement depends on; all of it public.

    Attributes:
        num_examples: N.
        expected_batch_size: B̄, the denominator of every update.
        views: K; needs no budget, recorded because results depend on it.
        noise_multiplier: σ.
        max_grad_norm: C.
        steps: T, the most noised sums that may be released.
        delta: δ.
        accountant: which accountant states ε.
        epsilon: ε of T steps: the budget that is never passed.
    """

    num_examples: int
    expected_batch_size: int
    views: int
    noise_multiplier: float
    max_grad_norm: float
    steps: int
    delta: float
    accountant: AccountantName
    epsilon: float

    @property
    def sample_rate(self) -> float:
        """q = B̄/N."""
        return self.expected_batch_size / self.num_examples

    @property
    def run(self) -> tuple[float, float, int]:
        """(σ, q, T), all that an accountant needs."""
        return self.noise_multiplier, self.sample_rate, self.steps

    def epsilon_after(self, releases: int) -> float:
        """ε of that many releases, as the accountant has it."""
        return epsilon(
            self.accountant,
            noise_multiplier=self.noise_multiplier,
            sample_rate=self.sample_rate,
            steps=releases,
            delta=self.delta,
        )

    def dump(self) -> dict[str, Any]:
        """Plain values, q included."""
        return {**asdict(self), "sample_rate": self.sample_rate}

    @classmethod
    def from_dump(cls, values: dict[str, Any]) -> PrivacyPlan:
        """The inverse of :meth:`dump`."""
        return cls(**{name: value for name, value in values.items() if name != "sample_rate"})


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


def with_budget(config: Config, plan: PrivacyPlan) -> Config:
    """The configuration with σ and T as solved; ε follows from them."""
    budget = {
        "epsilon": None,
        "noise_multiplier": plan.noise_multiplier,
        "steps": plan.steps,
        "accountant": plan.accountant,
    }
    return config.model_copy(update={"privacy": config.privacy.model_copy(update=budget)})


def check_feasible(config: Config, steps: int) -> None:
    """Checks all but the budget; reads no data.

    Raises:
        ConfigError: see :func:`make_plan`.
    """
    _check_parts(config, _build_parts(config), steps)


def _build_parts(config: Config) -> nn.Module:
    """The network; views are built and weights loaded too, but for their refusals alone."""
    facts = data_facts(config.data)
    _check_gpus(config)
    ViewMaker(config.augment, facts, torch.device("cpu"))
    model = build_model(config.model, facts)
    load_pretrained(model, config.model)
    return model


def _check_parts(config: Config, model: nn.Module, steps: int) -> None:
    facts = data_facts(config.data)
    build_optimizer(config, [p for p in model.parameters() if p.requires_grad], steps)
    check_memory(config, facts, model)
    _check_precision(config)
    _try_step(config, model, facts)


def solve_budget(config: Config, *, near: float | None = None) -> PrivacyPlan:
    """Of ε, σ and T the one that is open.

    Args:
        config: the budget, and what q depends on.
        near: a σ that is known to be close, where σ is solved.

    Raises:
        ConfigError: q > 1, δ ≥ 1/N, or a budget that cannot be met.
    """
    privacy, n = config.privacy, data_facts(config.data).num_examples
    batch = config.data.expected_batch_size
    if batch > n:
        raise ConfigError(
            "data.expected_batch_size",
            batch,
            f"q = {batch}/{n} is above 1",
            f"Use at most {n}, the number of examples",
        )
    if privacy.delta >= 1 / n:
        raise ConfigError(
            "privacy.delta",
            privacy.delta,
            f"δ must be below 1/N = 1/{n} = {1 / n:.3g}: a larger one allows to publish an example",
            f"Use {_round_down(0.1 / n):g}, say",
        )
    common = {"sample_rate": batch / n, "delta": privacy.delta}
    sigma, steps = privacy.noise_multiplier, privacy.steps
    try:
        if sigma is None:
            assert privacy.epsilon is not None
            assert steps is not None
            sigma = solve_noise_multiplier(
                privacy.accountant, target=privacy.epsilon, steps=steps, near=near, **common
            )
        elif steps is None:
            assert privacy.epsilon is not None
            steps = solve_steps(
                privacy.accountant, target=privacy.epsilon, noise_multiplier=sigma, **common
            )
    except BudgetError as error:
        raise ConfigError(
            "privacy.epsilon",
            privacy.epsilon,
            f"the budget cannot be met: {error}",
            "Change privacy.epsilon, privacy.noise_multiplier, privacy.steps or "
            "data.expected_batch_size",
        ) from error
    spent = epsilon(privacy.accountant, noise_multiplier=sigma, steps=steps, **common)
    return PrivacyPlan(
        num_examples=n,
        expected_batch_size=batch,
        views=config.augment.views,
        noise_multiplier=sigma,
        max_grad_norm=privacy.max_grad_norm,
        steps=steps,
        delta=privacy.delta,
        accountant=privacy.accountant,
        epsilon=spent,
    )


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


def _try_step(config: Config, model: nn.Module, facts: DataFacts) -> None:
    """Differentiates one blank example: what vmap cannot do shows before any data is read."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    shape = (1, config.augment.views, facts.channels, facts.image_size, facts.image_size)
    try:
        clipped_gradient_sum(
            model,
            trained_parameters(model),
            torch.zeros(shape),
            torch.zeros(1, dtype=torch.int64),
            max_grad_norm=1.0,
            dropout_seeds=torch.zeros(1, dtype=torch.int64),
        )
    except Exception as error:  # the network may be the user's own, and raise anything
        raise ModelError(
            f"model.name = {config.model.name!r}: no per-example gradient can be taken by "
            f"torch.func: {error}. Random layers other than dropout, in-place changes of buffers "
            "and control flow that depends on values are not supported"
        ) from error
    for name, buffer in model.named_buffers():
        if not torch.equal(before[name], buffer):
            raise ModelError(
                f"model.name = {config.model.name!r}: buffer {name} changes in training, by as "
                "much as there are microbatches, which is private: freeze it, or use another layer"
            )


def _round_down(value: float) -> float:
    """To one significant digit."""
    return float(f"{value:.0e}")
