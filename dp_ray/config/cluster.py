"""The section on where a run is executed."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from dp_ray.config.section import Count, NonNegative, Positive, Section

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
        0,
        description="GPUs that Ray reserves for a worker, which uses one; 0 trains on the CPU, "
        "even where there is a GPU. Without Ray, above 0 is the current CUDA device.",
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
