"""The configuration of a run: typed, strict, each field with a sentence.

Checks that need no facts beyond the file live here. Those that need the number of examples or the
accountant (q > 1, δ ≥ 1/N, a budget that cannot be met) live in ``dp_ray.privacy.plan``. How a
file is read is the business of ``dp_ray.config.files``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from dp_ray.config.weights import Norm, norm_of_weights

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=10**12)]
Colour = Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=3, max_length=3)]
Budget = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]


class Section(BaseModel):
    """A part of a configuration: no unknown field, no silent conversion, no change."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, strict=True)


class DataConfig(Section):
    """Which examples, and how many are expected in a step."""

    name: str = Field(
        "digits",
        description="A data set by its name, or the import path of your own loader or source "
        "(my_pkg.my_module:load).",
    )
    root: str | None = Field(
        None,
        description="Folder that holds the data; needed where files are read. ~ and $NAME are what "
        "they are on each node.",
    )
    download: bool = Field(False, description="Let torchvision download the data into root.")
    expected_batch_size: Count = Field(
        ..., description="B̄: examples expected in a step. Public; q = B̄/N."
    )
    num_examples: Count | None = Field(
        None,
        description="N, the number of training examples. Public and recorded; known for a "
        "public data set, given for private ones.",
    )
    num_classes: Annotated[int, Field(ge=2, le=10**6)] | None = Field(
        None, description="Number of classes; known for the named data sets."
    )
    image_size: Annotated[int, Field(ge=1, le=4096)] | None = Field(
        None, description="Side of the square images in pixels; known for the named data sets."
    )
    channels: Literal[1, 3] | None = Field(
        None, description="1 (grey) or 3 (RGB); known for the named data sets."
    )
    mean: list[Annotated[float, Field(allow_inf_nan=False)]] | None = Field(
        None,
        description="Per-channel mean to subtract, on the 0-1 scale. Must be public knowledge: "
        "never computed from the private data. Known for the named data sets, else 0.5.",
    )
    std: list[Positive] | None = Field(
        None, description="Per-channel divisor, as public as mean. Else 0.5."
    )
    background: Literal["white", "black"] | Colour = Field(
        "white",
        description="What shows through transparent parts of the images in an image_folder: white, "
        "black, or [red, green, blue], each from 0 to 255.",
    )
    evaluation: Literal["held_out", "public"] = Field(
        "held_out",
        description="What you declare the test split to be; accuracy is computed on it and is "
        "not covered by ε.",
    )
    evaluation_noise: Annotated[float, Field(ge=1e-3, allow_inf_nan=False)] | None = Field(
        None,
        description="σ: Gaussian noise on the number of test examples that the model is right on, "
        "each of which moves it by 1, in what is published (privacy.json, cards, public pages). "
        "Only with evaluation held_out; null publishes exact figures.",
    )
    cache: str | None = Field(
        None,
        description="Folder for the decoded copy that all workers of a node map into memory; "
        "default ~/.cache/dp-ray. As private as the data. ~ and $NAME likewise.",
    )

    @model_validator(mode="after")
    def _channels_agree(self) -> DataConfig:
        for name in ("mean", "std"):
            values = getattr(self, name)
            if values is not None and self.channels is not None and len(values) != self.channels:
                raise ValueError(f"{name} has {len(values)} values for {self.channels} channels")
        if self.evaluation_noise is not None and self.evaluation == "public":
            raise ValueError("evaluation_noise is for figures of held_out data: set it to null")
        return self


class AugmentConfig(Section):
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


class ModelConfig(Section):
    """The network; it may hold no state that crosses examples."""

    name: str = Field(
        "gn_cnn",
        description="gn_cnn, tanh_cnn, wrn_16_4, wrn_40_4, wrn_28_10, nf_resnet_50, any "
        "torchvision classifier (resnet18, …; batch norm is replaced by group norm, or frozen if "
        "pretrained), or the import path of your own (my_pkg.my_module:build).",
    )
    arguments: dict[str, Any] = Field(
        default_factory=dict, description="Further keyword arguments for the network's builder."
    )
    pretrained: str | None = Field(
        None,
        description="Weights to start from: the name of torchvision's for its networks (DEFAULT, "
        "IMAGENET1K_V1), or a file of the network's tensors (.safetensors, .pt, .pth). You declare "
        "that they were trained on public data: ε does not cover it. A last linear layer of "
        "another number of classes starts afresh.",
    )
    pretrained_norm: Norm | None = Field(
        None,
        description="What the weights hold where a torchvision network has batch norm: frozen "
        "(its statistics, kept as they are) or group (group norm, as released by a run from "
        "scratch). Read from the file; frozen for torchvision's weights.",
    )
    trainable: Literal["all", "head"] | Annotated[list[str], Field(min_length=1)] = Field(
        "all",
        description="all, head (the last nn.Linear), or patterns of parameters' names "
        "([layer4.*, fc.*]). All else is frozen: it gets no gradient and no noise, and counts in "
        "no norm.",
    )

    @model_validator(mode="before")
    @classmethod
    def _norm_of_file(cls, values: Any) -> Any:
        """Workers have the configuration and not the file."""
        if not isinstance(values, dict) or values.get("pretrained_norm") is not None:
            return values
        found = norm_of_weights(values.get("pretrained"))
        return values if found is None else {**values, "pretrained_norm": found}


class ObjectiveConfig(Section):
    """What is learned: the labels, the loss and the metrics."""

    name: str = Field(
        "single_label",
        description="single_label (one class an example: cross-entropy, test_accuracy, test_loss), "
        "or the import path of your own (my_pkg.my_module:make).",
    )
    arguments: dict[str, Any] = Field(
        default_factory=dict, description="Further keyword arguments of make."
    )


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
    engine: Literal["auto", "vmap", "per_layer", "vmap_compiled", "per_layer_compiled"] = Field(
        "auto",
        description="How clipped sums are computed; all give the same up to rounding. per_layer "
        "has a rule of its own for convolutions. auto takes the fastest, by measurements that are "
        "remembered in data.cache; compiling is tried in runs of five minutes and more.",
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


FIELDS_OF_RESOURCES = {"CPU": "cpus_per_worker", "GPU": "gpus_per_worker"}
"""Resources, by Ray's names, that have a field of their own."""


class ClusterConfig(Section):
    """Where it runs; no number here changes the mathematics."""

    num_workers: Annotated[int, Field(ge=0, le=10**6)] | list[Count] = Field(
        1,
        description="W: Ray Train workers; 0 runs in this process, without Ray. [min, max] goes on "
        "with fewer when some are lost, and grows back.",
    )
    address: str | None = Field(
        None,
        description="A running Ray cluster: host:port, or auto for this machine's; default that of "
        "RAY_ADDRESS, as in a submitted job, else a Ray of our own, as with local.",
    )
    namespace: Annotated[str, Field(min_length=1)] | None = Field(
        None, description="Ray namespace of the run's actors; default one of its own."
    )
    cpus_per_worker: Count = Field(1, description="CPUs that Ray reserves for a worker.")
    gpus_per_worker: NonNegative = Field(
        0, description="GPUs that Ray reserves for a worker; 0 trains on the CPU."
    )
    resources_per_worker: dict[str, Positive] = Field(
        default_factory=dict,
        description="What else Ray reserves for a worker, by the names that the cluster's nodes "
        "give it: {fast_disk: 1, memory: 4e9}.",
    )
    accelerator_type: Annotated[str, Field(min_length=1)] | None = Field(
        None,
        description="Workers run only where Ray finds this accelerator, by Ray's name for it "
        "(A100, H100, L4, …).",
    )
    placement_strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = Field(
        "PACK",
        description="Workers on few nodes (PACK) or on many (SPREAD) where possible; STRICT_PACK: "
        "all on one, STRICT_SPREAD: each on another, or not at all.",
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
        600.0,
        description="Seconds that workers wait for one another before they give up; a third is "
        "what the choice of an engine may take.",
    )

    @model_validator(mode="after")
    def _range_of_workers(self) -> ClusterConfig:
        workers = self.num_workers
        if isinstance(workers, list) and (len(workers) != 2 or workers[0] > workers[1]):
            raise ValueError(f"{workers} is not [min, max]")
        return self

    @field_validator("resources_per_worker")
    @classmethod
    def _names_and_amounts(cls, resources: dict[str, float]) -> dict[str, float]:
        for name, amount in resources.items():
            if name in FIELDS_OF_RESOURCES:
                raise ValueError(f"{name} has a field of its own, {FIELDS_OF_RESOURCES[name]}")
            if amount > 1 and amount % 1:
                raise ValueError(f"of {name} Ray gives no {amount:g}: above 1 whole numbers only")
        return resources

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers may change during a run."""
        return isinstance(self.num_workers, list)

    @property
    def max_workers(self) -> int:
        """The most workers there may be."""
        return self.num_workers[1] if isinstance(self.num_workers, list) else self.num_workers

    @property
    def fewest_workers(self) -> int:
        """The fewest workers that a run goes on with."""
        return self.num_workers[0] if isinstance(self.num_workers, list) else self.num_workers

    @property
    def worker_resources(self) -> dict[str, float]:
        """What Ray reserves for a worker, by Ray's names."""
        resources = {
            "CPU": float(self.cpus_per_worker),
            "GPU": float(self.gpus_per_worker),
            **self.resources_per_worker,
        }
        if self.accelerator_type is not None:
            # Ray marks a node by one of these; so many workers share it.
            resources[f"accelerator_type:{self.accelerator_type}"] = 0.001
        return {name: amount for name, amount in resources.items() if amount}


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

    def dump(self) -> dict[str, Any]:
        """Plain values, for YAML and for Ray."""
        return self.model_dump(mode="json")
