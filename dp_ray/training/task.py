"""What a worker must know to take part in a run."""

from __future__ import annotations

from dataclasses import dataclass

from dp_ray.artifacts.notes import PhaseNote
from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.config.run import Config
from dp_ray.privacy.plan import PrivacyPlan
from dp_ray.training.probe import Probe

_BLOCK_OF_OBJECTS = 16
"""Where each charge is a round trip to an object store, some are paid for together."""


@dataclass(frozen=True)
class Task:
    """What a worker must know to take part; the same for all of them.

    Attributes:
        config: the whole configuration.
        plan: the solved budget.
        run: where results go; on storage that all workers see.
        attempt: names this call of ``dp-ray train``, for the run's lock.
        profile: whether a trace of some steps is left in the run's private part.
        probe: of an audit.
        accepted: noised sums of steps on record that a resumed run may pay for again; None means
            a few.
    """

    config: Config
    plan: PrivacyPlan
    run: RunDirectory
    attempt: str
    profile: bool = False
    probe: Probe | None = None
    accepted: float | None = None

    def announce(self, phase: str) -> None:
        """Tell whoever watches what begins before the first step; on rank 0 alone."""
        PhaseNote(text=phase).write(self.run.private)

    @property
    def checkpoint_every(self) -> int:
        """Steps between checkpoints.

        Where workers come and go, what was not saved must be drawn and charged again, so each
        step is saved.
        """
        if self.config.train.checkpoint_every is not None:
            return self.config.train.checkpoint_every
        return 1 if self.config.cluster.is_elastic else max(self.plan.steps // 10, 1)

    @property
    def charge_every(self) -> int:
        """Steps that are paid for at once."""
        if self.config.train.charge_every is not None:
            return self.config.train.charge_every
        return 1 if self.run.ledger.path is not None else _BLOCK_OF_OBJECTS

    @property
    def accept_charges(self) -> float:
        """How many noised sums of steps on record may be paid for again without asking.

        By default one for each hundred steps, or a block that is paid for at once, because a crash
        may cost one.
        """
        if self.accepted is not None:
            return self.accepted
        return max(self.plan.steps // 100, self.charge_every)
