"""What rank 0 has and the other workers do not: the coordinator, and the run's files."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from torch import nn

from dp_ray.artifacts.checkpoint import Checkpoints
from dp_ray.artifacts.journal import Journal
from dp_ray.artifacts.notes import StartNote
from dp_ray.artifacts.run_directory import deciding_fields
from dp_ray.keys import LATEST, SamplingKeys
from dp_ray.ledger.execution import Execution
from dp_ray.ledger.ledger import Ledger
from dp_ray.ledger.lock import OWNER_ENDS_S
from dp_ray.models.pretrained import digest_of_tensors
from dp_ray.training.execution import with_normals
from dp_ray.training.probe import ReleaseObserver
from dp_ray.training.setup import Setup
from dp_ray.training.task import Task

if TYPE_CHECKING:
    from dp_ray.training.coordinator import Coordinator


@dataclass(frozen=True)
class Lead:
    """What rank 0 has and the others do not.

    Attributes:
        coordinator: charges, adds noise, updates.
        ledger: what was charged; the coordinator's own.
        journal: what is written while the run goes on.
        sampling_keys: what the followers are given.
    """

    coordinator: Coordinator
    ledger: Ledger
    journal: Journal
    sampling_keys: SamplingKeys

    def close(self) -> None:
        """Write what is buffered, end the coordinator's thread and release the ledger's lock."""
        with ExitStack() as last:
            last.callback(self.ledger.close)
            last.callback(self.journal.close)
            self.coordinator.close()


def open_lead(
    task: Task, setup: Setup, execution: Execution, observer: ReleaseObserver | None
) -> Lead:
    """Open the ledger, the coordinator and the journal of a run; on rank 0 alone.

    Args:
        task: what is trained.
        setup: data and network.
        execution: how the run is executed.
        observer: in an audit, sees every release.

    Raises:
        DpRayError: the run's files or its ledger cannot be used.
    """
    # Here, so that followers do not even load the code that draws noise.
    from dp_ray.training.coordinator import Coordinator, Origin

    model, dataset, notes = setup.model, setup.dataset, task.run.private
    # The configuration that the run was started with: one that allows more steps draws the same.
    decided = [deciding_fields(task.run.config()), dataset.digest, setup.weights_digest]
    ledger = task.run.write_ledger(task.attempt, wait_s=OWNER_ENDS_S, block=task.charge_every)
    try:
        binding = _binding(ledger, decided, model)
        context = json.dumps(decided, sort_keys=True) if binding is None else binding
        run_key = task.run.key().bind(context)
        origin = Origin(
            data=dataset.digest,
            weights=setup.weights_digest,
            untrained=setup.untrained.digest(),
            binding=binding,
        )
        coordinator = Coordinator(
            task.config,
            task.plan,
            run_key=run_key,
            ledger=ledger,
            checkpoints=Checkpoints(task.run.checkpoints, ledger, run_key.derive("checkpoint")),
            initial_params=setup.layout.join(dict(model.named_parameters())),
            layout=setup.layout,
            origin=origin,
            execution=with_normals(execution, ledger.version),
            # Workers that are started again within one call go on by themselves.
            accept_charges=math.inf if notes.exists(StartNote.FILE) else task.accept_charges,
            observer=observer,
        )
        task.announce("taking the first step")
        StartNote(line=coordinator.started.line).write(notes)
        journal = Journal(
            task.run, task.plan, metrics=setup.objective.metrics, repaired=ledger.repairs > 0
        )
        return Lead(coordinator, ledger, journal, run_key.sampling_keys())
    except BaseException:
        ledger.close()
        raise


def _binding(ledger: Ledger, decided: Sequence[object], model: nn.Module) -> str | None:
    """Return what the run's key is bound to: that of its first session, if there was one.

    Args:
        ledger: of the run.
        decided: configuration and digests of the data and of pretrained weights.
        model: as it is before the first step of a new run.

    Returns:
        A digest; None for a run of an earlier version, which bound its key to ``decided`` alone.
    """
    if ledger.sessions:
        return ledger.sessions[0].binding
    start = digest_of_tensors(dict(chain(model.named_parameters(), model.named_buffers())))
    # The version too: version 1 gives noise of the same words, on other draws.
    bound = [*decided, start, LATEST]
    return hashlib.sha256(json.dumps(bound, sort_keys=True).encode()).hexdigest()
