"""The configuration of a run: typed, strict, each field with a sentence.

Checks that need no facts beyond the file live here. Those that need the number of examples or the
accountant (q > 1, δ ≥ 1/N, a budget that cannot be met) live in ``dp_ray.privacy.plan``. How a
file is read is the business of ``dp_ray.config.files``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ModelWrapValidatorHandler, ValidationError, model_validator

from dp_ray.config.cluster import ClusterConfig
from dp_ray.config.data import AugmentConfig, DataConfig
from dp_ray.config.model import ModelConfig, ObjectiveConfig
from dp_ray.config.privacy import PrivacyConfig
from dp_ray.config.section import Count, Section
from dp_ray.config.validation import check_keys, first_problem


class OptimizerConfig(Section):
    """What happens to the noised gradient."""

    name: str = Field("SGD", description="Any optimizer of torch.optim.")
    lr: Annotated[float, Field(gt=0, le=1e38)] = Field(..., description="Learning rate.")
    arguments: dict[str, Any] = Field(
        default_factory=dict, description="Further arguments of the optimizer: momentum, betas, …"
    )
    scheduler: str | None = Field(
        None, description="Any scheduler of torch.optim.lr_scheduler, stepped once per step."
    )
    scheduler_arguments: dict[str, Any] = Field(
        default_factory=dict,
        description="Its arguments; T_max, total_iters and total_steps default to T.",
    )
    normalize_update: bool = Field(
        True, description="Divide updates by max_grad_norm, so lr does not depend on it."
    )
    ema_decay: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None,
        description="Decay μ of the moving average of parameters, with warm-up "
        "min(μ, (1+t)/(10+t)); the average is evaluated and released.",
    )


class TrainConfig(Section):
    """What a run does besides learning; nothing here changes privacy."""

    storage_path: str = Field(
        "runs",
        description="Folder of runs; a run lives in its name below. A path, or a URI that "
        "pyarrow.fs opens (s3://bucket/runs).",
    )
    engine: str = Field(
        "auto",
        description="How clipped sums are computed; all give the same up to rounding. per_layer "
        "has a rule of its own for convolutions. auto takes the fastest, by measurements that are "
        "remembered in data.cache; compiling is tried in runs of five minutes and more. The import "
        "path of your own (my_pkg.my_module:Class) is used where it gives what vmap gives.",
    )
    precision: Literal["float32", "tf32", "bfloat16"] = Field(
        "float32",
        description="In what the network computes; norms, sums, noise and parameters are float32 "
        "or better with each. tf32 uses the tensor cores of NVIDIA GPUs for float32 products, "
        "whose factors they round to 11 bits; on a CPU it is float32. bfloat16 is faster where the "
        "processor has it.",
    )
    microbatch_size: Count | None = Field(
        None,
        description="B: examples differentiated at a time by a worker; bounds memory. Default: 32, "
        "or fewer if memory asks for it; longer runs measure what is fastest.",
    )
    evaluate_every: Count | None = Field(
        None, description="Steps between evaluations; default a tenth of T."
    )
    checkpoint_every: Count | None = Field(
        None,
        description="Steps between checkpoints; default a tenth of T, and 1 where workers come "
        "and go.",
    )
    charge_every: Count | None = Field(
        None,
        description="Steps that the ledger pays for at once; default 1 on a disk, 16 in an object "
        "store. A crash may cost up to so many charges; with 1 on a disk it costs none.",
    )

    def steps_between_evaluations(self, steps: int) -> int:
        """As configured, or a tenth of the run."""
        return self.evaluate_every or max(steps // 10, 1)


class Config(Section):
    """A training configuration."""

    data: DataConfig
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig)
    privacy: PrivacyConfig
    optimizer: OptimizerConfig
    train: TrainConfig = Field(default_factory=TrainConfig)
    cluster: ClusterConfig = Field(default_factory=ClusterConfig)
    seed: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="Decides the initial parameters, and the trials of a random search where all "
        "may be seen. Draws and noise never follow from it: it may be published.",
    )
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(
        "run",
        description="Name of the run: letters, digits, . _ and -, a letter or digit first; default "
        "the name of its configuration file.",
    )

    @model_validator(mode="wrap")
    @classmethod
    def _in_our_words(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Raise the errors that a file's values get, however the configuration is made."""
        if not isinstance(values, cls):
            check_keys(cls, values)
        try:
            return handler(values)
        except ValidationError as error:
            raise first_problem(error, cls) from None

    def dump(self) -> dict[str, Any]:
        """Plain values, for YAML and for Ray."""
        return self.model_dump(mode="json")
