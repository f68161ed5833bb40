"""The section on the privacy budget, clipping and noise."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dp_ray.config.section import Budget, Positive, Section


class NoiseScheduleConfig(Section):
    """σ falls during a run, in equal parts of T; each step is charged with the σ that it had."""

    final: Annotated[float, Field(gt=0, lt=1)] = Field(
        ..., description="σ of the last part over σ of the first, noise_multiplier; below 1."
    )
    shape: Literal["linear", "exponential"] = Field(
        "linear", description="By equal differences or by equal ratios."
    )
    parts: Annotated[int, Field(ge=2, le=16)] = Field(
        4, description="Parts of the run; accountants take time for each."
    )

    @property
    def factors(self) -> tuple[float, ...]:
        """σ of each part over σ of the first."""
        places = [part / (self.parts - 1) for part in range(self.parts)]
        if self.shape == "linear":
            return tuple((1 - place) + place * self.final for place in places)
        return tuple(self.final**place for place in places)


class AdaptiveClippingConfig(Section):
    """max_grad_norm is where C begins, and a quantile of the norms is where it goes."""

    quantile: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.5, description="Share of the gradients that are to be within C."
    )
    learning_rate: Annotated[float, Field(gt=0, le=10)] = Field(
        0.2, description="η: C moves by a factor of exp(±η) at most."
    )
    count_noise: Positive | None = Field(
        None,
        description="σ_b: noise on the number of examples within C; default B̄/20. The sum gets as "
        "much more noise as that release costs, so that each step costs what σ says.",
    )


class PrivacyConfig(Section):
    """The budget. Of epsilon, noise_multiplier and steps give two; the third is solved."""

    epsilon: Budget | None = Field(None, description="ε that the whole run may spend.")
    delta: Annotated[float, Field(gt=0, lt=1)] = Field(
        ..., description="δ, below 1/N. There is no default: it is part of your promise."
    )
    noise_multiplier: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] | None = Field(
        None, description="σ: noise standard deviation over max_grad_norm; 0 is no privacy."
    )
    steps: Annotated[int, Field(ge=1, le=10_000_000)] | None = Field(
        None, description="T: noised updates."
    )
    max_grad_norm: Annotated[float, Field(ge=1e-9, allow_inf_nan=False)] = Field(
        1.0, description="C: bound on one example's gradient norm."
    )
    clipping: Literal["flat", "automatic", "per_layer"] = Field(
        "flat",
        description="flat: g·min(1, C/‖g‖). automatic: g·C/(‖g‖ + 0.01). per_layer: each of L "
        "layers to C/√L. An example moves the sum by C at most with all of them.",
    )
    adaptive_clipping: AdaptiveClippingConfig | None = Field(
        None, description="Let C follow a quantile of the gradients' norms; null keeps it."
    )
    noise_schedule: NoiseScheduleConfig | None = Field(
        None, description="Let σ fall during the run; null keeps it."
    )
    mechanism: str = Field(
        "gaussian",
        description="How units are drawn and noise is added: gaussian, or the import path of a "
        "mechanism of your own (my_pkg:Class), whose accounting you answer for.",
    )
    mechanism_arguments: dict[str, bool | int | float | str] = Field(
        default_factory=dict, description="Options of a mechanism that has its own."
    )
    accountant: Literal["prv", "rdp", "pld"] = Field(
        "prv", description="Who says what was spent: Opacus's PRV or RDP, dp-accounting's PLD."
    )
    search_epsilon: Budget | None = Field(
        None,
        description="ε, at the same delta, that a search on the same data spent to find this "
        "configuration; best.yaml of dp-ray tune gives it, and the model's statement adds it.",
    )

    @model_validator(mode="after")
    def _two_of_three(self) -> PrivacyConfig:
        values = {n: getattr(self, n) for n in ("epsilon", "noise_multiplier", "steps")}
        given = [name for name, value in values.items() if value is not None]
        if len(given) != 2:
            raise ValueError(
                f"of epsilon, noise_multiplier and steps exactly two are given and the third, set "
                f"to null, is solved; found {', '.join(given) or 'none'}"
            )
        if self.noise_multiplier == 0 and self.epsilon is not None:
            raise ValueError("noise_multiplier = 0 has no finite epsilon; give steps instead")
        return self

    @model_validator(mode="after")
    def _norm_to_adapt(self) -> PrivacyConfig:
        if self.adaptive_clipping is not None and self.clipping != "flat":
            raise ValueError(
                f"adaptive_clipping moves the norm of flat clipping, and clipping is "
                f"{self.clipping}: set it to flat, or adaptive_clipping to null"
            )
        return self
