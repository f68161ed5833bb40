"""What rank 0 writes while a run goes on: private curves, and progress for whoever watches."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from tensorboardX import SummaryWriter
from torch import Tensor

from dp_ray.artifacts.course import METRICS, Evaluated, Stepped
from dp_ray.artifacts.progress import Progress
from dp_ray.artifacts.run_directory import TENSORBOARD, RunDirectory
from dp_ray.objectives.evaluation import Evaluation
from dp_ray.privacy.plan import PrivacyPlan
from dp_ray.storage import OWNER_ONLY

_INTERVAL_S = 0.25
_INTERVAL_OF_OBJECTS_S = 2.0
"""Between writings of progress and looks for a stop request: on a disk, in an object store."""


class Journal:
    """Writes metrics.jsonl, TensorBoard files and progress.json, all in the private part.

    Args:
        run: where.
        plan: T, B̄ and K, for rates and what is left.
        metrics: names of the objective's metrics, the primary one first.
        repaired: whether charges are on record that no step in the order of the plan made.
    """

    def __init__(
        self, run: RunDirectory, plan: PrivacyPlan, *, metrics: Iterable[str], repaired: bool
    ) -> None:
        self._run = run
        self._metric_names = tuple(metrics)
        self._repaired = repaired
        self._plan = plan
        self._started = time.monotonic()
        self._interval_s = _INTERVAL_S
        self._copied: tempfile.TemporaryDirectory[str] | None = None
        folder = run.private.path
        if folder is None:  # lines cannot be appended there: kept here, copied now and then
            self._interval_s = _INTERVAL_OF_OBJECTS_S
            self._copied = tempfile.TemporaryDirectory(prefix="dp-ray-")
            folder = Path(self._copied.name)
            if run.private.exists(METRICS):
                (folder / METRICS).write_bytes(run.private.read(METRICS))
        self._folder = folder
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        self._metrics = os.fdopen(os.open(folder / METRICS, flags, OWNER_ONLY), "a")
        self._tensorboard = SummaryWriter(str(folder / TENSORBOARD))
        self._progress_written = self._stop_sought = 0.0
        self._step_seconds: list[float] = []
        self._warm = False
        self._epsilon = 0.0
        self._charges = 0
        self._step = 0
        self.evaluation: Evaluation | None = None

    @property
    def seconds(self) -> float:
        """Since this session of the run began."""
        return time.monotonic() - self._started

    def stop_requested(self) -> bool:
        """Whether the user asked the run to stop."""
        if self._copied is not None and time.monotonic() - self._stop_sought < self._interval_s:
            return False  # asking costs a round trip
        self._stop_sought = time.monotonic()
        return self._run.stop_requested()

    def stepped(self, step: int, charges: int, statistics: Tensor, seconds: float) -> None:
        """A step was released.

        Args:
            step: which.
            charges: noised sums paid for so far.
            statistics: as in :class:`~dp_ray.training.step.ShardSum`; private.
            seconds: what the step took.
        """
        examples, losses, clipped, norms, _ = statistics.tolist()
        count = max(examples, 1.0)
        stepped = Stepped(step, examples, losses / count, clipped / count, norms / count, seconds)
        self._metrics.write(stepped.line())
        for name, value in stepped.numbers.items():
            self._tensorboard.add_scalar(f"private/{name}", value, step)
        self._step, self._charges = step + 1, charges
        if self._warm:
            self._step_seconds = [*self._step_seconds[-19:], seconds]
        self._warm = True  # the first step of a session takes longer than the rest
        if time.monotonic() - self._progress_written > self._interval_s:
            self._write_progress()

    def evaluated(
        self,
        step: int,
        charges: int,
        evaluation: Evaluation | None,
        *,
        epsilon: float,
        max_grad_norm: float,
    ) -> None:
        """The parameters before ``step`` were evaluated, at ε spent so far and C as it is now."""
        self._step, self._charges = step, charges
        epsilon = max(epsilon, self._epsilon)  # an accountant's figures wobble
        self._epsilon, self.evaluation = epsilon, evaluation
        self._tensorboard.add_scalar("epsilon", epsilon, step)
        self._tensorboard.add_scalar("max_grad_norm", max_grad_norm, step)
        for name, value in self._evaluated().items():
            self._tensorboard.add_scalar(name, value, step)
        evaluated = Evaluated(step, epsilon, max_grad_norm, {**self._evaluated()})
        self._metrics.write(evaluated.line())
        self._metrics.flush()
        self._write_progress()
        self._copy()

    def releases(self) -> dict[str, float]:
        """The latest numbers that are no secret."""
        return {"step": float(self._step), "epsilon": self._epsilon, **self._evaluated()}

    def _evaluated(self) -> dict[str, float]:
        return {} if self.evaluation is None else self.evaluation.metrics

    def close(self) -> None:
        """Writes what is buffered."""
        self._metrics.close()
        self._tensorboard.close()
        self._copy()
        if self._copied is not None:
            self._copied.cleanup()

    def _copy(self) -> None:
        if self._copied is None:
            return
        self._run.private.write(METRICS, (self._folder / METRICS).read_bytes())
        for file in (self._folder / TENSORBOARD).iterdir():
            (self._run.private / TENSORBOARD).write(file.name, file.read_bytes())

    def _write_progress(self) -> None:
        per_step = sum(self._step_seconds) / max(len(self._step_seconds), 1)
        images = self._plan.expected_batch_size * self._plan.views
        progress = Progress(
            step=self._step,
            steps=self._plan.steps,
            charges=self._charges,
            repaired=self._repaired,
            metrics=dict.fromkeys(self._metric_names) | self._evaluated(),
            # From public numbers and the clock; still private, as the clock shows the batch size.
            images_per_second=images / per_step if per_step else 0.0,
            seconds_left=(self._plan.steps - self._step) * per_step or None,
            seconds=self.seconds,
        )
        progress.write(self._run.private)
        self._progress_written = time.monotonic()
