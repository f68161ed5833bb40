"""Engines tried on made-up images: how long a microbatch takes, and whether its sum is right.

Nothing here sees data.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from contextlib import suppress
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dp_ray.config.run import Config
from dp_ray.data.cache import cache_path
from dp_ray.data.facts import DataFacts
from dp_ray.document import Document
from dp_ray.errors import DpRayError
from dp_ray.gradients.clipped_sum import ClippedSum, clipped_gradient_sum
from dp_ray.gradients.clipping import SMALLEST_CLIP
from dp_ray.gradients.engines.engine import Engine, EngineError, in_one_line
from dp_ray.gradients.engines.registry import build_engine, is_users_own
from dp_ray.gradients.layout import trained_parameters
from dp_ray.objectives.objective import Objective
from dp_ray.performance.machine import describe_machine
from dp_ray.performance.memory import peak_bytes, start_peak
from dp_ray.storage import Folder, LocalFolder

_ENOUGH_S = 1.0
"""Calls are timed for about so long, three at most."""

_NORMS_AGREE = {"float32": 1e-3, "tf32": 1e-2, "bfloat16": 3e-2}
_SUMS_AGREE = {"float32": 0.03, "tf32": 0.2, "bfloat16": 0.5}
"""Of plain vmap's norms (the median over examples) and sum. Rounding is 1e-6 and less, but where it
moves an activation across the kink of a ReLU, an example's gradient jumps: in WRN-16-4 one of the
millions of activations nearly always does. Networks without kinks agree to 1e-5 (tested)."""

_REFERENCE_SIZE = 32
"""Examples that plain vmap takes at a time: it may not hold what another engine can."""


class EngineTimes(Document):
    """engines.json: what engines took, remembered beside the decoded data; private.

    Attributes:
        times: by machine, network and views, and then by engine and size, in seconds.
    """

    FILE: ClassVar[str] = "engines.json"

    times: dict[str, dict[str, float]]

    @classmethod
    def upgrade(cls, values: dict[str, Any], number: int) -> dict[str, Any]:
        """See :class:`~dp_ray.document.Document`; format 0 has the times alone."""
        return values if number else {"times": values}

    @classmethod
    def known(cls, folder: Folder) -> dict[str, dict[str, float]]:
        """Return the times in a folder; none where the file is lost or damaged."""
        try:
            found = cls.find(folder)
        except DpRayError:
            return {}
        return {} if found is None else found.times


class EngineTrial:
    """Calls engines as a step does, and keeps them, because compiling one is costly.

    Args:
        config: of the run.
        facts: shape of the images.
        model: on ``device``.
        objective: of the run; the same object as in its steps, whose graphs are compiled here.
        device: where to compute.

    Attributes:
        peak: bytes that a GPU held at most during the calls that were timed last; None on a CPU.
    """

    def __init__(
        self,
        config: Config,
        facts: DataFacts,
        model: nn.Module,
        objective: Objective,
        device: torch.device,
    ) -> None:
        self._config = config
        self._objective = objective
        self._facts = facts
        self._model = model
        self._device = device
        self._params = trained_parameters(model)
        self._engines: dict[str, Engine] = {}
        self.peak: float | None = None

    def engine(self, name: str) -> Engine:
        """The one of that name; always the same."""
        if name not in self._engines:
            self._engines[name] = build_engine(name, self._config.train.precision)
        return self._engines[name]

    def seconds(self, name: str, size: int) -> float:
        """Least time of a microbatch of ``size`` examples, after a call that warms up.

        Raises:
            Exception: whatever the engine meets: it cannot be used here.
        """
        images, labels = self._images(size)
        self._sum(name, images, labels)
        start_peak(self._device)  # what an algorithm is chosen by, and compiled with, is over
        best, started = math.inf, time.perf_counter()
        for _ in range(3):
            before = time.perf_counter()
            self._sum(name, images, labels)
            best = min(best, time.perf_counter() - before)
            if time.perf_counter() - started > _ENOUGH_S:
                break
        self.peak = peak_bytes(self._device)
        return best

    def problem(self, name: str, size: int) -> str:
        """Why the engine cannot be used at this size; empty if it can.

        It must give the norms and the sum that plain vmap gives, at random images.
        """
        if name == "vmap":
            return ""
        images, labels = self._images(size)
        try:
            theirs = self._sum("vmap", images, labels, microbatch_size=_REFERENCE_SIZE)
            problem = self._difference(theirs, self._sum(name, images, labels))
            if is_users_own(name) and not problem:  # does it clip? These may be shorter than C
                bound = max(float(theirs.norms.median()) / 2, SMALLEST_CLIP)
                short = self._sum("vmap", images, labels, bound, microbatch_size=_REFERENCE_SIZE)
                problem = self._difference(short, self._sum(name, images, labels, bound))
        except Exception as error:  # of the compiler, or of a rule that does not fit the network
            return in_one_line(error)
        return problem

    def _difference(self, theirs: ClippedSum, ours: ClippedSum) -> str:
        largest = theirs.norms.abs().clamp(min=1e-20)
        off = ((ours.norms - theirs.norms).abs() / largest).median().item()
        total, other = (
            torch.cat([g.flatten() for g in s.gradients.values()]) for s in (theirs, ours)
        )
        far = ((other - total).norm() / total.norm().clamp(min=1e-20)).item()
        precision = self._config.train.precision
        if off <= _NORMS_AGREE[precision] and far <= _SUMS_AGREE[precision]:
            return ""
        return f"its norms are off by {off:.1e} and its sum by {far:.1e} of plain vmap's"

    def key(self) -> str:
        """A name for the machine, the network and the views: for what is remembered."""
        said = {
            **describe_machine(self._device),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "model": self._config.model.model_dump(mode="json"),
            "parameters": sum(p.numel() for p in self._params.values()),
            "images": [self._facts.channels, self._facts.image_size, self._facts.num_classes],
            "views": self._config.augment.views,
            "precision": self._config.train.precision,
        }
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]

    def _images(self, size: int) -> tuple[Tensor, Tensor]:
        """Random images, always the same."""
        facts, generator = self._facts, torch.Generator().manual_seed(0)
        side = facts.image_size
        shape = (size, self._config.augment.views, facts.channels, side, side)
        images = torch.randn(shape, generator=generator)
        labels = self._objective.labels.made_up(size, generator)
        return images.to(self._device), labels.to(self._device)

    def _sum(
        self,
        name: str,
        images: Tensor,
        labels: Tensor,
        max_grad_norm: float | None = None,
        *,
        microbatch_size: int | None = None,
    ) -> ClippedSum:
        """Called as in a step, so that what is compiled here is what steps need; C as there."""
        result = clipped_gradient_sum(
            self._model,
            self._params,
            images,
            labels,
            max_grad_norm=max_grad_norm or self._config.privacy.max_grad_norm,
            clipping=self._config.privacy.clipping,
            mask=torch.ones(len(labels), dtype=torch.bool, device=self._device),
            dropout_seeds=torch.zeros(len(labels), dtype=torch.int64, device=self._device),
            microbatch_size=microbatch_size,
            loss_fn=self._objective.loss,
            engine=self.engine(name),
        )
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return result


class Measurements:
    """Seconds and peak memory of a microbatch, measured where they are not remembered.

    They are remembered in engines.json, beside the decoded data (``data.cache``). Remove the file
    to have them measured again.

    Attributes:
        failures: engine → why it could not be used, at some size at least.
    """

    def __init__(self, config: Config, trial: EngineTrial) -> None:
        # The other workers wait meanwhile, and give up after timeout_s.
        self._deadline = time.monotonic() + config.cluster.timeout_s / 3
        self._trial = trial
        self._key = trial.key()
        self._folder = LocalFolder(cache_path(config.data))
        self._known = EngineTimes.known(self._folder).get(self._key, {})
        self._unusable: set[str] = set()
        self.failures: dict[str, str] = {}

    def knows(self, name: str, size: int) -> bool:
        """Whether it was measured, now or in an earlier run."""
        return f"{name}/{size}" in self._known

    def __call__(self, name: str, size: int) -> float:
        """Seconds; infinity for what cannot be used here, or is not known when time is up."""
        label = f"{name}/{size}"
        if label in self._known:
            return self._known[label]
        if name in self._unusable or label in self._unusable or time.monotonic() > self._deadline:
            return math.inf
        try:
            seconds = self._trial.seconds(name, size)
        except Exception as error:  # another engine or size will do
            self.failures[name] = in_one_line(error)
            at_any_size = isinstance(error, EngineError | NotImplementedError)
            self._unusable.add(name if at_any_size else label)
            return math.inf
        self._known[label] = seconds
        if self._trial.peak is not None:
            self._known[f"{label}/bytes"] = self._trial.peak
        # A user's own engine may be another one by the next run.
        lasting = {n: value for n, value in self._known.items() if not is_users_own(n)}
        times = {**EngineTimes.known(self._folder), self._key: lasting}
        with suppress(OSError):  # a place that cannot be written to is no reason to stop
            EngineTimes(times=times).write(self._folder)
        return self._known[label]

    def peak(self, name: str, size: int) -> float | None:
        """Bytes that a GPU held at most, if it was measured."""
        return self._known.get(f"{name}/{size}/bytes")
