"""Which engine and which microbatch size a run uses: about time alone, as sums are the same.

``engine_trial.py`` measures; ``training/engine_agreement.py`` chooses for all workers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from dp_ray.config.run import Config
from dp_ray.data.facts import DataFacts
from dp_ray.gradients.engines.registry import COMPILED, plain_form
from dp_ray.gradients.engines.vmap import Vmap
from dp_ray.performance.estimate import (
    GIB,
    available_memory,
    memory_estimate,
    microbatches_of_a_step,
    planned_microbatch_size,
)

_SEARCH_PAYS_S, _SEARCH_PAYS_MICROBATCHES = 20.0, 40
"""A shorter run is over before looking for better than the default has paid for itself: some four
engines and sizes are tried, each of which takes two to four microbatches."""

_COMPILE_PAYS_S, _COMPILE_BOTH_PAYS_S = 300.0, 1800.0
"""Compiling takes up to a minute for each engine."""

Measure = Callable[[str, int], float]
"""Seconds of one microbatch by an engine at size B; infinity if the engine cannot be used."""

Peak = Callable[[str, int], float | None]
"""Bytes that a GPU holds at most during such a microbatch; None where that was not measured."""

_SPARE = 0.9
"""Of a GPU's memory: blocks of other sizes are left over in pieces."""


@dataclass(frozen=True)
class Choice:
    """How microbatches are computed.

    Attributes:
        engine: see :class:`~dp_ray.gradients.engines.engine.Engine`.
        microbatch_size: B.
        seconds: measured time of one microbatch; None if it was not measured.
        note: why it is not what one would expect; empty if it is.
        peak_bytes: measured peak of a GPU's memory; None on a CPU.
    """

    engine: str
    microbatch_size: int
    seconds: float | None = None
    note: str = ""
    peak_bytes: float | None = None

    @property
    def line(self) -> str:
        """All of it in words."""
        line = f"engine {self.engine}, {self.microbatch_size} examples a microbatch"
        if self.seconds is not None:
            line += f" of {self.seconds:.2g} s"
        if self.peak_bytes is not None:
            line += f", {self.peak_bytes / GIB:.3g} GiB of the GPU's memory at its peak"
        return f"{line}; {self.note}" if self.note else line


def choose(
    config: Config,
    facts: DataFacts,
    model: nn.Module,
    *,
    steps: int,
    measure: Measure,
    peak: Peak = lambda _name, _size: None,
) -> Choice:
    """The fastest engine and microbatch size of those worth trying, as measured.

    A draw of n examples takes about n/B + 1/2 microbatches, because the last one is padded.
    """
    share = config.data.expected_batch_size / max(config.cluster.max_workers, 1)
    wanted, given = config.train.engine, config.train.microbatch_size
    start = planned_microbatch_size(config, facts, model)
    default = Choice(Vmap.name if wanted == "auto" else wanted, start)
    if wanted != "auto" and given is not None:
        return default
    few = steps * microbatches_of_a_step(share, start) < _SEARCH_PAYS_MICROBATCHES
    if few and not config.cluster.gpus_per_worker:  # whose memory nothing else measures
        return default

    def step_seconds(name: str, size: int) -> float:
        return measure(name, size) * microbatches_of_a_step(share, size)

    # Sizes are compared uncompiled: each would have to be compiled anew.
    plain = Vmap.name if wanted == "auto" else plain_form(wanted)
    run_seconds = steps * step_seconds(plain, start)
    if run_seconds < _SEARCH_PAYS_S:
        return default
    if wanted == "auto":
        plain = min(COMPILED, key=lambda name: measure(name, start))
    size = given or _best_size(
        start,
        lambda size: step_seconds(plain, size),
        lambda size: (
            size <= 2 * share and _fits(config, facts, model, size, peak(plain, size // 2))
        ),
    )
    if run_seconds == math.inf:  # the first size could not be used
        run_seconds = steps * step_seconds(plain, size)
    candidates: set[str] = {wanted} if wanted != "auto" else {plain}
    if wanted == "auto" and run_seconds > _COMPILE_PAYS_S:
        candidates.add(COMPILED[plain])
    if wanted == "auto" and run_seconds > _COMPILE_BOTH_PAYS_S:
        candidates.update(COMPILED.values())
    best = min(sorted(candidates), key=lambda name: measure(name, size))
    seconds = measure(best, size)
    return Choice(best, size, seconds if seconds < math.inf else None)


def _fits(
    config: Config, facts: DataFacts, model: nn.Module, size: int, half: float | None
) -> bool:
    """Whether B examples fit: by the measured peak of B/2, which B at most doubles.

    Without one, by the estimate, which is good within a factor of two.
    """
    if half is not None:
        return 2 * half <= _SPARE * available_memory(config)
    return memory_estimate(config, facts, model, size) <= available_memory(config) / 2


def _best_size(start: int, seconds: Callable[[int], float], fits: Callable[[int], bool]) -> int:
    """Double B, or else halve it, as long as steps get faster by more than noise.

    A size that cannot be used is halved until one can; if none can, it is ``start``.
    """
    best = start
    while fits(2 * best) and seconds(2 * best) < 0.97 * seconds(best):
        best *= 2
    if best == start:
        while best > 1 and (seconds(best) == math.inf or seconds(best // 2) < 0.97 * seconds(best)):
            best //= 2
    return best if seconds(best) < math.inf else start
