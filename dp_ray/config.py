"""The configuration: typed, strict, each field with a sentence; YAML in, YAML out.

Checks that need no facts beyond the file live here. Those that need the number of examples or the
accountant (q > 1, δ ≥ 1/N, a budget that cannot be met) live in ``dp_ray.training.plan``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from dp_ray.errors import ConfigError, DpRayError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, strict=True)


class DataConfig(_Section):
    """Which examples, and how many are expected in a step."""

    name: str = Field(
        "digits",
        description="digits, mnist, fashion_mnist, cifar10, image_folder, fake, or the import "
        "path of your own loader (my_pkg.my_module:load).",
    )
    root: str | None = Field(None, description="Folder that holds the data; digits needs none.")
    download: bool = Field(False, description="Let torchvision download the data into root.")
    expected_batch_size: Count = Field(
        ..., description="B̄: examples expected in a step. Public; q = B̄/N."
    )
    num_examples: Count | None = Field(
        None,
        description="N, the number of training examples. Public and recorded; known for the "
        "named data sets, to be given for image_folder, fake and your own.",
    )
    num_classes: Annotated[int, Field(ge=2)] | None = Field(
        None, description="Number of classes; known for the named data sets."
    )
    image_size: Count | None = Field(
        None, description="Side of the square images in pixels; known for the named data sets."
    )
    channels: Literal[1, 3] | None = Field(
        None, description="1 (grey) or 3 (RGB); known for the named data sets."
    )
    mean: list[float] | None = Field(
        None,
        description="Per-channel mean to subtract, on the 0-1 scale. Must be public knowledge: "
        "never computed from the private data. Known for the named data sets, else 0.5.",
    )
    std: list[Positive] | None = Field(
        None, description="Per-channel divisor, as public as mean. Else 0.5."
    )
    evaluation: Literal["held_out", "public"] = Field(
        "held_out",
        description="What you declare the test split to be; accuracy is computed on it and is "
        "not covered by ε.",
    )
    cache: str | None = Field(
        None,
        description="Folder for the decoded copy that all workers of a node map into memory; "
        "default ~/.cache/dp-ray. As private as the data.",
    )

    @model_validator(mode="after")
    def _channels_agree(self) -> DataConfig:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and self.channels is not None and len(values) != self.channels:
                raise ValueError(f"{name} has {len(values)} values for {self.channels} channels")
        return self


class AugmentConfig(_Section):
    """The K views of an example: random changes, drawn anew in each step."""

    views: Count = Field(
        1, description="K: augmented copies of each example; their gradients are averaged first."
    )
    shift: NonNegative = Field(
        0.0, description="Largest shift in pixels, each way; whole pixels unless subpixel."
    )
    subpixel: bool = Field(
        False, description="Draw shifts as real numbers (bilinear interpolation)."
    )
    padding: Literal["reflect", "constant"] = Field(
        "constant", description="What a shift, rotation or scaling brings in from outside."
    )
    horizontal_flip: Probability = Field(0.0, description="Probability of mirroring a view.")
    rotation: Annotated[float, Field(ge=0, le=180)] = Field(
        0.0, description="Largest rotation in degrees, each way."
    )
    scale: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Zoom factor drawn from 1 - scale to 1 + scale."
    )
    brightness: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="Brightness factor drawn from 1 ± brightness."
    )
    contrast: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="Contrast factor drawn from 1 ± contrast."
    )
    saturation: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="Saturation factor drawn from 1 ± saturation (RGB only)."
    )
    hue: Annotated[float, Field(ge=0, le=0.5)] = Field(
        0.0, description="Hue shift drawn from ± hue, as a part of the colour circle (RGB only)."
    )
    cutout: Annotated[int, Field(ge=0)] = Field(
        0, description="Side in pixels of a square set to the mean colour at a random place."
    )


class ModelConfig(_Section):
    """The network; it may hold no state that crosses examples."""

    name: str = Field(
        "gn_cnn",
        description="gn_cnn, tanh_cnn, wrn_16_4, wrn_40_4, wrn_28_10, any torchvision classifier "
        "(resnet18, …; batch norm is replaced by group norm), or the import path of your own "
        "(my_pkg.my_module:build).",
    )
    arguments: dict[str, Any] = Field(
        default_factory=dict, description="Further keyword arguments for the network's builder."
    )


class PrivacyConfig(_Section):
    """The budget. Of epsilon, noise_multiplier and steps give two; the third is solved."""

    epsilon: Positive | None = Field(None, description="ε that the whole run may spend.")
    delta: Annotated[float, Field(gt=0, lt=1)] = Field(
        ..., description="δ, below 1/N. There is no default: it is part of your promise."
    )
    noise_multiplier: NonNegative | None = Field(
        None, description="σ: noise standard deviation over max_grad_norm; 0 is no privacy."
    )
    steps: Count | None = Field(None, description="T: noised updates.")
    max_grad_norm: Annotated[float, Field(ge=1e-9, allow_inf_nan=False)] = Field(
        1.0, description="C: bound on one example's gradient norm."
    )
    accountant: Literal["prv", "rdp", "pld"] = Field(
        "prv", description="Who says what was spent: Opacus's PRV or RDP, dp-accounting's PLD."
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


class OptimizerConfig(_Section):
    """What happens to the noised gradient."""

    name: str = Field("SGD", description="Any optimizer of torch.optim.")
    lr: Positive = Field(..., description="Learning rate.")
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


class TrainConfig(_Section):
    """What a run does besides learning; nothing here changes privacy."""

    storage_path: str = Field(
        "runs",
        description="Folder of runs; a run lives in its name below. A path, or a URI that "
        "pyarrow.fs opens (s3://bucket/runs).",
    )
    microbatch_size: Count = Field(
        32, description="B: examples differentiated at a time by a worker; bounds memory."
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


class ClusterConfig(_Section):
    """Where it runs; no number here changes the mathematics."""

    num_workers: Annotated[int, Field(ge=0)] | list[Count] = Field(
        1,
        description="W: Ray Train workers; 0 runs in this process, without Ray. [min, max] goes on "
        "with fewer when some are lost, and grows back.",
    )
    address: str | None = Field(
        None, description="Address of a running Ray cluster; none starts Ray on this machine."
    )
    cpus_per_worker: Count = Field(1, description="CPUs that Ray reserves for a worker.")
    gpus_per_worker: Annotated[float, Field(ge=0)] = Field(
        0, description="GPUs that Ray reserves for a worker; 0 trains on the CPU."
    )
    threads_per_worker: Count | None = Field(
        None, description="torch threads of a worker; default its share of the node's cores."
    )
    max_failures: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="Worker failures after which Ray restarts the workers; default 0, and 100 "
        "where num_workers is [min, max].",
    )
    resize_interval_s: Positive = Field(
        60.0, description="Seconds between looks for room to grow, where num_workers is [min, max]."
    )
    timeout_s: Positive = Field(
        600.0, description="Seconds that workers wait for one another before they give up."
    )

    @model_validator(mode="after")
    def _range_of_workers(self) -> ClusterConfig:
        workers = self.num_workers
        if isinstance(workers, list) and (len(workers) != 2 or workers[0] > workers[1]):
            raise ValueError(f"{workers} is not [min, max]")
        return self

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers may change during a run."""
        return isinstance(self.num_workers, list)

    @property
    def max_workers(self) -> int:
        """The most workers there may be."""
        return self.num_workers[1] if isinstance(self.num_workers, list) else self.num_workers


class Config(_Section):
    """A training configuration."""

    data: DataConfig
    augment: AugmentConfig = Field(default_factory=AugmentConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    privacy: PrivacyConfig
    optimizer: OptimizerConfig
    train: TrainConfig = Field(default_factory=TrainConfig)
    cluster: ClusterConfig = Field(default_factory=ClusterConfig)
    seed: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="Makes a run reproducible. Whoever knows it can subtract the noise: leave it "
        "out for a model that you publish.",
    )
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = Field(
        "run",
        description="Name of the run: letters, digits, . _ and -, a letter or digit first; default "
        "the name of its configuration file.",
    )

    def dump(self) -> dict[str, Any]:
        """Plain values, for YAML and for Ray."""
        return self.model_dump(mode="json")


def load_config(
    path: str | Path, overrides: Sequence[str] = (), *, name: str | None = None
) -> Config:
    """Reads a YAML file, applies ``a.b=value`` overrides, validates.

    Args:
        path: the file.
        overrides: strings ``dotted.field=value``; the value is read as YAML.
        name: the run's name; default the file's ``name``, else the file's own name.

    Raises:
        ConfigError: an unknown field (the nearest known one is named) or a bad value.
        DpRayError: the file cannot be read, or is no YAML mapping.
    """
    path = Path(path)
    try:
        values = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DpRayError(
            f"cannot read the configuration {path}: {reason}. Give a YAML file, such as "
            "configs/digits.yaml"
        ) from error
    except yaml.YAMLError as error:
        raise DpRayError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise DpRayError(f"{path} must hold sections (data:, privacy:, …), not {values!r}")
    for override in overrides:
        apply_override(values, override)
    if name is not None:
        values["name"] = name
    values.setdefault("name", path.stem)
    return parse_config(values)


def parse_config(values: dict[str, Any]) -> Config:
    """Validates plain values; see :func:`load_config` for the errors."""
    _refuse_unknown_keys(Config, values, "")
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise _first_problem(error) from None


def describe_fields(
    section: type[BaseModel] = Config, prefix: str = ""
) -> Iterator[tuple[str, FieldInfo]]:
    """Every field as (dotted path, description and default), sections in order."""
    for name, field in section.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from describe_fields(annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


def apply_override(values: dict[str, Any], override: str) -> None:
    """Sets ``a.b=value`` in plain values; the value is read as YAML."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(
            "--set",
            override,
            "not of the form section.field=value",
            "Write --set privacy.delta=1e-5",
        )
    try:
        value = read_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(path, text, "not a YAML value", "Quote it") from error
    for key in keys[:-1]:
        inner = values.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfigError(path, value, f"{key} is no section", "See dp-ray config")
        values = inner
    values[keys[-1]] = value


def _refuse_unknown_keys(section: type[BaseModel], values: dict[str, Any], prefix: str) -> None:
    known = section.model_fields
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
            hints = [path for path, _ in describe_fields() if path.endswith(f".{key}")]
            hints += [prefix + name for name in near]
            raise ConfigError(
                f"{prefix}{key}",
                value,
                "no such field",
                f"Did you mean {hints[0]}? There are {', '.join(known)}; see dp-ray config",
            )
        annotation = known[key].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            if not isinstance(value, dict):
                fields = ", ".join(annotation.model_fields)
                raise ConfigError(
                    f"{prefix}{key}", value, "a section of fields is expected", f"Give {fields}"
                )
            _refuse_unknown_keys(annotation, value, f"{prefix}{key}.")


def _first_problem(error: ValidationError) -> ConfigError:
    problem = error.errors(include_url=False)[0]
    location = [str(part) for part in problem["loc"]]
    # Branches of a union (int | None) add parts that are no field; keep what names a field.
    paths = {path for path, _ in describe_fields()}
    while len(location) > 2 and ".".join(location) not in paths:
        location.pop()
    field = ".".join(location) or "configuration"
    remedy = next((f.description for p, f in describe_fields() if p == field), None)
    message = problem["msg"].removeprefix("Value error, ").replace("Input should", "it should")
    if problem["type"] == "string_pattern_mismatch":
        message = "it has a character that is not allowed there"
    if problem["type"] == "missing":
        return ConfigError(field, None, "must be given", remedy or "See dp-ray config")
    value = problem.get("input")
    if isinstance(value, BaseModel) or (isinstance(value, dict) and len(location) == 1):
        value = {k: v for k, v in dict(value).items() if v is not None}
    return ConfigError(field, value, message, (remedy or "See dp-ray config"))


def read_yaml(text: str) -> Any:
    """Plain values from YAML in which 1e-5 is a number, as people expect, and not a string.

    Raises:
        yaml.YAMLError: it is no YAML.
    """
    return yaml.load(text, Loader=_Loader)


def write_yaml(values: Any, *, one_line: bool = False) -> str:
    """The inverse of :func:`read_yaml`, fields in their order."""
    text: str = yaml.dump(
        values,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=one_line,
        width=2**16 if one_line else None,
    )
    return text


class _Loader(yaml.SafeLoader):
    """See :func:`read_yaml`."""


class _Dumper(yaml.SafeDumper):
    """Quotes strings that :class:`_Loader` would take for numbers."""


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"),
        list("-+0123456789"),
    )
