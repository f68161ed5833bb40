"""Gaussian noise on the clipped sum: Opacus's optimizer, fed from the run's keyed streams.

Only the coordinator imports this module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from opacus.optimizers import DPOptimizerFastGradientClipping
from torch import Tensor
from torch.optim import Optimizer

from dp_ray.keys import KeyedStream
from dp_ray.privacy.mechanism import Mechanism


class NoiseSource(Protocol):
    """The noise of one step, in units of its standard deviation; a keyed stream is one."""

    def normal(self, count: int) -> NDArray[np.float64]:
        """Return ``count`` numbers, the same each time; they must not be changed in place."""
        ...


NoiseStreams = Callable[[int], NoiseSource]
"""Independent noise of each step, for one incarnation."""


class NoiseAhead:
    """The noise of the next sum, drawn by a thread while the workers compute the sum.

    Noise is drawn for one address, an incarnation and a step, and given to that address alone.
    What is drawn for another one is dropped. The numbers are those that the stream gives when they
    are needed, so a draw ahead, or none, changes no release.

    Args:
        stream: makes the stream of an incarnation and a step.
    """

    def __init__(self, stream: Callable[[int, int], KeyedStream]) -> None:
        self._stream = stream
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dp-ray-noise")
        self._drawn: _Drawn | None = None

    def start(self, incarnation: int, step: int, count: int) -> None:
        """Start drawing ``count`` numbers (8 bytes each); drop what was drawn before."""
        self._drawn = None
        stream = self._stream(incarnation, step)
        numbers = self._thread.submit(stream.normal, count)
        self._drawn = _Drawn((incarnation, step), stream, count, numbers)

    def of(self, incarnation: int) -> NoiseStreams:
        """Return the streams of an incarnation; the numbers drawn ahead are given out once."""
        return lambda step: self._take(incarnation, step)

    def close(self) -> None:
        """Drop what was drawn, and wait for the thread."""
        self._drawn = None
        self._thread.shutdown(cancel_futures=True)

    def _take(self, incarnation: int, step: int) -> NoiseSource:
        drawn = self._drawn
        if drawn is None or drawn.address != (incarnation, step):
            return self._stream(incarnation, step)
        self._drawn = None
        return drawn


@dataclass(frozen=True)
class _Drawn:
    """Numbers of one address, and the stream that gives them."""

    address: tuple[int, int]
    stream: KeyedStream
    count: int
    numbers: Future[NDArray[np.float64]]

    def normal(self, count: int) -> NDArray[np.float64]:
        return self.numbers.result() if count == self.count else self.stream.normal(count)


class StepNoises:
    """The noise of each step, as a mechanism describes it.

    Correlated noise needs the noises of the steps before: the latest are kept, and after a restart
    all are drawn again from their streams.

    Args:
        mechanism: describes the noise.
    """

    def __init__(self, mechanism: Mechanism) -> None:
        self._mechanism = mechanism
        self._kept: dict[int, NDArray[np.float64]] = {}

    def of(self, step: int, streams: NoiseStreams) -> NoiseSource:
        """Return the noise of a step.

        Args:
            step: which one.
            streams: streams of this purpose, by step.

        Raises:
            ValueError: the noise is correlated between steps that may be drawn again.
        """
        if not self._mechanism.noise_at(step).feedback:
            return streams(step)
        if self._mechanism.may_redraw:
            raise ValueError("noise that is correlated between steps must not be drawn again")
        return _Correlated(self, step, streams)

    def draw(self, step: int, streams: NoiseStreams, count: int) -> NDArray[np.float64]:
        """Return [count] numbers, the noise of a step that depends on those before."""
        newest = max(self._kept, default=-1)
        if newest > step:
            self._kept, newest = {}, -1
        for now in range(newest + 1, step + 1):
            noise, feedback = streams(now).normal(count), self._mechanism.noise_at(now).feedback
            for weight, before in zip(feedback, range(now - 1, -1, -1), strict=False):
                noise = noise + weight * self._kept[before]
            self._kept[now] = noise
            self._kept.pop(now - len(feedback), None)
        return self._kept[step]


class _Correlated:
    def __init__(self, noises: StepNoises, step: int, streams: NoiseStreams) -> None:
        self._noises, self._step, self._streams = noises, step, streams

    def normal(self, count: int) -> NDArray[np.float64]:
        return self._noises.draw(self._step, self._streams, count)


class KeyedNoiseOptimizer(DPOptimizerFastGradientClipping):  # type: ignore[misc]
    """Opacus's optimizer for gradients that are clipped and summed already ("no_op" mode).

    Opacus keeps the order of events (noise, scaling, the wrapped optimizer's step) and the scaling
    by the expected batch size. Replaced is the source of the normal numbers: torch's generators
    are not made to resist prediction, and they cannot be addressed by step.

    Args:
        optimizer: any ``torch.optim`` optimizer over the P parameters.
        expected_batch_size: B̄, the public denominator.
        normalize_update: divide the update by the sensitivity too, so that the learning rate does
            not depend on it (De et al. 2022, arXiv 2204.13650, section 3).
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        expected_batch_size: int,
        normalize_update: bool = False,
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=float("nan"),  # both are said with each sum
            max_grad_norm=float("nan"),
            expected_batch_size=expected_batch_size,
        )
        self.normalize_update = normalize_update
        self._stream: NoiseSource | None = None

    def release(
        self,
        gradients: Mapping[str, Tensor],
        *,
        noise_multiplier: float,
        sensitivity: float,
        stream: NoiseSource,
    ) -> None:
        """Adds noise to a sum once and steps the wrapped optimizer.

        The sum stays in float64 until the noise is added: rounded to float32 before, it would move
        by more than the sensitivity (by n · 2⁻²³ of it, for n examples with equal gradients).

        Args:
            gradients: the float64 sum over all examples of the step, in the order of the
                optimizer's parameters.
            noise_multiplier: σ; the noise has standard deviation σ times the sensitivity.
            sensitivity: what the clipping says one example can move the sum by.
            stream: the noise of this step and incarnation, and of no other sum.
        """
        self.noise_multiplier, self.max_grad_norm = noise_multiplier, sensitivity
        self._stream = stream
        for parameter, gradient in zip(self.params, gradients.values(), strict=True):
            # Not by way of ``grad``, which a float32 parameter cannot have in float64.
            parameter.summed_grad = gradient.view_as(parameter)
        self.step()
        self._stream = None
        self.zero_grad(set_to_none=True)

    def accumulate(self) -> None:
        """Opacus's hook: ``summed_grad`` is whole already, and ``grad`` has nothing to add."""

    def add_noise(self) -> None:
        """Opacus's hook: ``summed_grad`` plus noise becomes ``grad``."""
        assert self._stream is not None, "noise is drawn by release() only"
        std = self.noise_multiplier * self.max_grad_norm
        noise = torch.from_numpy(self._stream.normal(sum(p.numel() for p in self.params)))
        start = 0
        for p in self.params:
            part = noise[start : start + p.numel()].view_as(p).to(p.device)
            start += p.numel()
            # Sum and noise are float64. The one rounding to float32 is of what was noised: it
            # costs no privacy, and hides low bits of the noise (Mironov 2012; arXiv 2107.10138).
            p.grad = (std * part).add_(p.summed_grad).to(p.dtype)

    def scale_grad(self) -> None:
        """Opacus's hook: divides by B̄ and, if asked to, by the sensitivity."""
        super().scale_grad()
        if self.normalize_update:
            for p in self.params:
                p.grad /= self.max_grad_norm

    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's state (the noise has none)."""
        return dict(self.original_optimizer.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the wrapped optimizer's state."""
        self.original_optimizer.load_state_dict(state_dict)


def noised_count(count: float, *, std: float, stream: KeyedStream) -> float:
    """A count with Gaussian noise, added in float64 and rounded to float32 as the sum is.

    Args:
        count: a number that an example moves by a known amount.
        std: standard deviation of the noise.
        stream: the noise of this count and of no other number.
    """
    return float(np.float32(count + std * float(stream.normal(1)[0])))
