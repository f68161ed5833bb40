"""``dp_ray.plan``: what ``dp-ray plan`` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dp_ray.api.objects import AnyObjective, Data, Model, Objects
from dp_ray.config.run import Config
from dp_ray.errors import RunError
from dp_ray.on_ray.environment import located
from dp_ray.reporting.plan import describe_plan, plan_facts
from dp_ray.reporting.scaling import describe_scaling, scaling_facts


@dataclass(frozen=True)
class Plan:
    """The plan of a run. Printed, it is what ``dp-ray plan`` shows.

    Attributes:
        epsilon: ε of T steps; None without noise.
        delta: δ.
        noise_multiplier: σ.
        steps: T.
        sample_rate: q.
        epsilon_curve: (step, ε) at tenths of the run.
        parameters: P, those that are trained.
        seconds: expected time on a machine like this one, from the least to the most; None if it
            was not timed.
        memory_gib_per_worker: expected memory of a worker, in GiB.
        facts: all figures by name, as ``dp-ray plan --json`` has them.
    """

    epsilon: float | None
    delta: float
    noise_multiplier: float
    steps: int
    sample_rate: float
    epsilon_curve: tuple[tuple[int, float | None], ...]
    parameters: int
    seconds: tuple[float, float] | None
    memory_gib_per_worker: float
    facts: dict[str, Any]

    def __str__(self) -> str:
        text = describe_plan(self.facts)
        scaling = self.facts.get("scaling")
        return text if scaling is None else f"{text}\n\n{describe_scaling(scaling)}"


def plan(
    config: Config,
    *,
    model: Model | None = None,
    data: Data | None = None,
    objective: AnyObjective | None = None,
    quick: bool = False,
    workers: Sequence[int] = (),
    latency_us: float = 50.0,
    bandwidth_gbit: float = 10.0,
) -> Plan:
    """Solve the privacy budget and estimate time and memory; read no data.

    Of ``privacy.epsilon``, ``privacy.noise_multiplier`` and ``privacy.steps`` the configuration
    gives two, and the plan has the third.

    Args:
        config: what would be trained.
        model: see :func:`dp_ray.train`, as for ``data`` and ``objective``.
        data: only its configured facts are used.
        objective: likewise.
        quick: leave out what has to be timed: no ``seconds``, and memory is an estimate.
        workers: numbers of workers W, ascending, to predict the time of a step for.
        latency_us: of a message in their network, in microseconds.
        bandwidth_gbit: of a worker's link, in Gbit/s.

    Returns:
        The plan.

    Raises:
        DpRayError: the run cannot be carried out; the message names the field.

    Example:
        >>> config = dp_ray.load_config("digits.yaml", ["privacy.epsilon=1"])
        >>> print(dp_ray.plan(config))
    """
    config = Objects(model, data, objective).put_into(config)
    if quick and workers:
        raise RunError("quick leaves out the timing that a prediction for workers is made of")
    facts = plan_facts(config.model_copy(update={"cluster": located(config.cluster)}), quick=quick)
    if workers:
        facts["scaling"] = scaling_facts(
            facts, list(workers), latency_us=latency_us, bandwidth_gbit=bandwidth_gbit
        )
    return Plan(
        epsilon=facts["epsilon"],
        delta=facts["delta"],
        noise_multiplier=facts["noise_multiplier"],
        steps=facts["steps"],
        sample_rate=facts["sample_rate"],
        epsilon_curve=tuple((step, epsilon) for step, epsilon in facts["epsilon_curve"]),
        parameters=facts["parameters"],
        seconds=None if facts["seconds"] is None else tuple(facts["seconds"]),
        memory_gib_per_worker=facts["memory_gib_per_worker"],
        facts=facts,
    )
