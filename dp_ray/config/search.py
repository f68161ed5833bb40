"""The configuration of a search: a training configuration and a ``tune`` section.

The training part is kept as plain values, because it is complete only with a point of the space.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dp_ray.config.files import read_values
from dp_ray.config.run import Config
from dp_ray.config.section import Count, Section
from dp_ray.config.validation import check_keys, validate
from dp_ray.errors import ConfigError, DpRayError, did_you_mean

KINDS = ("grid", "choice", "uniform", "log_uniform", "integer")

_EXAMPLES = (
    "Write {choice: [1, 2]}, {grid: [1, 2]}, {integer: [1, 8]}, {uniform: [0.5, 2]} or "
    "{log_uniform: [0.1, 10]}"
)

Range = Annotated[
    list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=2, max_length=2)
]
Whole = Annotated[int, Field(ge=-(10**12), le=10**12)]


class Domain(Section):
    """The values of one field: exactly one of these kinds."""

    grid: Annotated[list[Any], Field(min_length=1)] | None = Field(
        None, description="Values that are all tried (searcher: grid)."
    )
    choice: Annotated[list[Any], Field(min_length=1)] | None = Field(
        None, description="Values that are drawn from with equal probability."
    )
    uniform: Range | None = Field(None, description="[low, high], real numbers.")
    log_uniform: Range | None = Field(
        None, description="[low, high], real numbers whose logarithm is uniform."
    )
    integer: Annotated[list[Whole], Field(min_length=2, max_length=2)] | None = Field(
        None, description="[low, high], whole numbers, both ends included."
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Domain:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"exactly one of {', '.join(KINDS)} is given, not {given or 'none'}")
        if self.values is None:
            low, high = self.bounds
            if low >= high:
                raise ValueError(f"{low} is not below {high}")
            if self.log_uniform is not None and low <= 0:
                raise ValueError(f"{low} has no logarithm")
        return self

    @property
    def values(self) -> list[Any] | None:
        """All values of a grid or choice; None of a range."""
        return self.grid if self.grid is not None else self.choice

    @property
    def bounds(self) -> tuple[float, float]:
        """Both ends of a range."""
        low, high = self.uniform or self.log_uniform or self.integer or (0.0, 0.0)
        return low, high

    def at(self, share: float) -> Any:
        """The value below which that share of the distribution lies.

        Args:
            share: in [0, 1], both ends included, as Optuna has it; uniform numbers give values of
                this distribution.
        """
        if self.values is not None:
            return self.values[place(share, len(self.values))]
        low, high = self.bounds
        if self.integer is not None:
            return int(low) + place(share, int(high) - int(low) + 1)
        if self.log_uniform is not None and math.isfinite(high / low):
            value = low * (high / low) ** share
        elif self.log_uniform is not None:
            value = math.exp(math.log(low) * (1 - share) + math.log(high) * share)
        elif math.isfinite(high - low):
            value = low + share * (high - low)
        else:
            value = low * (1 - share) + high * share
        return min(max(float(value), low), high)  # rounding may pass an end

    def levels(self, count: int) -> list[Any]:
        """All values if they are no more than ``count`` or listed, else so many quantiles."""
        if self.values is not None:
            return list(self.values)
        if self.integer is not None:
            low, high = self.integer
            if high - low < count:
                return list(range(low, high + 1))
        return list(dict.fromkeys(self.at((i + 0.5) / count) for i in range(count)))


def place(share: float, count: int) -> int:
    """Which of ``count`` equal parts of [0, 1] a share lies in; 1 belongs to the last one."""
    return min(max(int(share * count), 0), count - 1)


class TuneConfig(Section):
    """The search: what is varied, how, and how its privacy is counted."""

    space: dict[str, Domain] = Field(
        ...,
        description="Dotted field → its values: {grid: […]}, {choice: […]}, {uniform: [a, b]}, "
        "{log_uniform: [a, b]} or {integer: [a, b]}.",
    )
    metric: str | None = Field(
        None,
        description="What the best trial is best in, a metric of the objective; default its "
        "primary one: test_accuracy for single_label, which also has test_loss.",
    )
    mode: Literal["max", "min"] | None = Field(
        None, description="Whether large or small is good; default what suits the metric."
    )
    num_samples: Annotated[int, Field(ge=1, le=100_000)] = Field(
        8,
        description="Trials; with privacy_mode private_selection the mean of their random number, "
        "with searcher grid the trials at each grid point.",
    )
    searcher: Literal["random", "grid", "optuna"] = Field(
        "random",
        description="random: independent draws; grid: all combinations of grid fields; optuna: "
        "Optuna's TPE, which learns from earlier trials.",
    )
    scheduler: Literal["none", "asha"] = Field(
        "none", description="asha: stops trials early that do worse than others at that point."
    )
    grace_evaluations: Count = Field(
        2, description="asha: evaluations before a trial may be stopped (10 in a run by default)."
    )
    reduction_factor: Annotated[int, Field(ge=2, le=10**6)] = Field(
        3, description="asha: one in so many goes on at each halt."
    )
    privacy_mode: Literal["private_selection", "compose", "public"] = Field(
        "private_selection",
        description="private_selection: a random number of independent trials, only the best is "
        "kept; compose: every trial is charged; public: you declare the data public, no charge.",
    )
    distribution: Literal["poisson", "geometric", "truncated_negative_binomial"] | None = Field(
        None,
        description="private_selection: of the number of trials; default poisson, and geometric "
        "for num_samples above 10, where it costs less (see docs/architecture.md).",
    )
    shape: Annotated[float, Field(ge=0.01, le=100)] = Field(
        0.5, description="private_selection: η of the truncated negative binomial distribution."
    )
    budget_levels: Annotated[int, Field(ge=1, le=1_000)] = Field(
        8,
        description="Values that a range of σ, T or B̄ is drawn from, evenly spaced quantiles: each "
        "budget is solved once, and the cost of the search is known before it starts.",
    )
    hold: Literal["noise_to_batch"] | None = Field(
        None,
        description="noise_to_batch: trials run at search_batch_size with the same σ/B̄ and T "
        "(TAN); best.yaml is the large-batch configuration that they predict.",
    )
    search_batch_size: Count | None = Field(
        None, description="hold: B̄ of the trials, below data.expected_batch_size."
    )
    max_concurrent_trials: Count | None = Field(
        None, description="Trials at a time; default as many as the CPUs (and GPUs) hold."
    )
    max_failures: Annotated[int, Field(ge=0, le=10**6)] = Field(
        2, description="Times a failed trial is taken up again, from where its ledger stands."
    )

    @property
    def only_best_may_be_seen(self) -> bool:
        """Whether the cost holds only while nothing is told of the other trials."""
        return self.privacy_mode == "private_selection"

    @property
    def is_adaptive(self) -> bool:
        """Whether what trials released decides which others run, or for how long."""
        return self.searcher == "optuna" or self.scheduler != "none"


@dataclass(frozen=True)
class SweepConfig:
    """A search.

    Attributes:
        name: of the search, and of its folder.
        training: plain values of the training configuration, the space's fields left open.
        tune: the search.
    """

    name: str
    training: dict[str, Any]
    tune: TuneConfig

    @property
    def storage_path(self) -> str:
        """The folder of runs, as configured."""
        train = self.training.get("train") or {}
        return str(train.get("storage_path", "runs"))

    def dump(self) -> dict[str, Any]:
        """Plain values, as in a file."""
        return {**self.training, "tune": self.tune.model_dump(mode="json", exclude_none=True)}


def load_sweep(
    path: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), *, name: str | None = None
) -> SweepConfig:
    """Read a search, apply ``a.b=value`` overrides, and validate it.

    Args:
        path: a YAML file with a tune section, the name of a built-in search, or such values; see
            :func:`dp_ray.load_config`.
        overrides: strings ``dotted.field=value``; the value is read as YAML.
        name: the search's name; default as of :func:`dp_ray.load_config`.

    Returns:
        The search; its training part is complete only with a point of the space.

    Raises:
        ConfigError: an unknown field (the nearest known one is named) or a bad value.
        DpRayError: the file cannot be read, is no YAML mapping, or has no tune section.
    """
    values = read_values(path, overrides, name)
    if "tune" not in values:
        raise DpRayError(
            f"{path} has no tune section, which says what to search: see sweeps/digits, which is "
            "built in"
        )
    return parse_sweep(values)


def parse_sweep(values: dict[str, Any]) -> SweepConfig:
    """Validates plain values.

    Raises:
        ConfigError: an unknown field, or a bad value in the tune section.
    """
    training = {key: value for key, value in values.items() if key != "tune"}
    check_keys(Config, training)
    tune = values["tune"]
    if isinstance(tune, dict) and isinstance(tune.get("space"), dict):
        tune = {**tune, "space": dict(_flatten(tune["space"]))}
    return SweepConfig(str(training["name"]), training, validate(TuneConfig, tune, "tune."))


def _flatten(space: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted fields, however they are nested: ``--set tune.space.augment.views=…`` nests them."""
    for key, value in space.items():
        field = f"{prefix}{key}"
        if isinstance(value, dict) and not set(value) & set(KINDS):
            yield from _flatten(value, f"{field}.")
        elif isinstance(value, dict):
            try:
                yield field, validate(Domain, value, f"tune.space.{field}.")
            except ConfigError as error:
                raise ConfigError(f"tune.space.{field}", value, error.problem, _EXAMPLES) from error
        elif value is not None:  # null takes a field out of the space
            remedy = did_you_mean(key, KINDS) + _EXAMPLES
            raise ConfigError(f"tune.space.{field}", value, "no values to try", remedy)
