"""The training loop that every worker runs; with or without Ray, for any number of workers.

Each step: every worker sums its shard's clipped gradients; the sums are reduced to rank 0; the
coordinator there charges, adds noise and updates; the new parameters are broadcast. A worker whose
draw is empty takes part all the same.
"""

from __future__ import annotations

import time
from typing import Protocol

import torch
from torch import Tensor

from dp_ray.artifacts.release import publish
from dp_ray.artifacts.result import Outcome
from dp_ray.errors import DivergedError, RunError
from dp_ray.performance.memory import out_of_memory_in_one_line
from dp_ray.performance.profile import Clock, part, profiler
from dp_ray.training.agreement import stop_together
from dp_ray.training.evaluation import gives_numbers, shared_evaluation
from dp_ray.training.lead import Lead
from dp_ray.training.session import Session
from dp_ray.training.step import Assignment

ASSIGNMENT_NUMBERS = 4
"""Whole numbers of 8 bytes that rank 0 broadcasts before each step."""


class Observer(Protocol):
    """Told of progress, at the same steps on every worker."""

    def report(self, metrics: dict[str, float]) -> None:
        """Takes releases (never private numbers); rank 0's count."""
        ...


def train(session: Session, observer: Observer) -> None:
    """Takes part in a run until it is finished or stopped; rank 0 leaves the results on disk.

    Args:
        session: this worker's place in the run; closed at the end.
        observer: where progress is reported.

    Raises:
        RunError: the run's files can no longer be written, or the ledger cannot; or a GPU ran out
            of memory.
    """
    folder = session.task.run.private if session.task.profile else None
    try:
        with (
            out_of_memory_in_one_line(session.worker.microbatch_size),
            profiler(folder, session.collective.rank) as clock,
        ):
            _take_steps(session, observer, clock)
        if session.lead is not None:
            _finish(session, session.lead)
    except OSError as error:
        raise RunError(
            f"{session.task.run.root} can no longer be written: {error}. Make room or mend it, "
            "then go on with --resume; what was charged is in the ledger, and nothing was published"
        ) from error
    finally:
        if session.lead is not None:
            session.lead.close()


def _take_steps(session: Session, observer: Observer, clock: Clock) -> None:
    collective, worker, lead = session.collective, session.worker, session.lead
    config, plan = session.task.config.train, session.task.plan
    evaluate_every = config.steps_between_evaluations(plan.steps)
    checkpoint_every = session.task.checkpoint_every
    params = torch.zeros(worker.layout.size, device=worker.device)
    _broadcast(session, params, None if lead is None else lead.coordinator.params)
    handled: int | None = None  # the last step that was looked at here; the same on all workers
    while True:
        started = time.monotonic()
        assignment = _share_assignment(session)
        step = assignment.step
        # Stopped before its first step, a run has nothing to evaluate.
        evaluate = step > 0 and (assignment.done or step % evaluate_every == 0)
        save = assignment.done or step % checkpoint_every == 0
        if handled not in (None, step) or assignment.done:
            if save or evaluate:
                changed = session.untrained.changed_in(worker.model)
                _check_untrained(session, changed, "training")
            if save and lead is not None:
                lead.coordinator.save()
            if evaluate:
                _evaluate(session, step)
                observer.report({} if lead is None else lead.journal.releases())
        handled = step
        if assignment.done:
            return
        total = worker.clipped_sum(params, assignment)
        if session.sum_observer is not None:
            session.sum_observer.observe(worker, params, assignment, total.vector)
        with part("reduce"):
            collective.reduce_(total.vector)
            collective.reduce_(total.statistics)
        if lead is not None:
            with part("release"):
                released = lead.coordinator.release(assignment, total)
            if released:
                seconds = time.monotonic() - started
                with part("journal"):
                    lead.journal.stepped(step, lead.ledger.charges, total.statistics, seconds)
        with part("broadcast"):
            _broadcast(session, params, None if lead is None else lead.coordinator.params)
        clock.step()


def _share_assignment(session: Session) -> Assignment:
    message = torch.zeros(ASSIGNMENT_NUMBERS, dtype=torch.int64)
    lead = session.lead
    if lead is not None:
        assignment = lead.coordinator.assignment()
        done = assignment.done or lead.journal.stop_requested()
        if not done:
            lead.coordinator.draw_ahead(assignment)
        norm = torch.tensor(assignment.max_grad_norm, dtype=torch.float64)
        bits = int(norm.view(torch.int64))  # C to the last bit
        message = torch.tensor([assignment.step, assignment.incarnation, bits, int(done)])
    session.collective.broadcast_(message)
    step, incarnation, _, done = message.tolist()
    return Assignment(step, incarnation, float(message[2].view(torch.float64)), bool(done))


def _broadcast(session: Session, vector: Tensor, source: Tensor | None) -> None:
    """Fills ``vector`` on all workers with rank 0's ``source``."""
    if source is not None:
        vector.copy_(source)
    session.collective.broadcast_(vector)


def _evaluate(session: Session, step: int) -> None:
    worker, lead = session.worker, session.lead
    published = torch.zeros(worker.layout.size, device=worker.device)
    _broadcast(session, published, None if lead is None else lead.coordinator.published_params)
    untrained = session.untrained.copy()
    evaluation = shared_evaluation(
        worker.model,
        worker.layout,
        published,
        untrained,
        session.dataset.test,
        worker.views,
        worker.objective,
        session.collective,
        session.dataset.class_names,
    )
    _check_untrained(session, session.untrained.changed(untrained), "evaluation")
    if lead is not None:
        lead.journal.evaluated(
            step,
            lead.ledger.charges,
            evaluation,
            epsilon=lead.coordinator.epsilon,
            max_grad_norm=lead.coordinator.max_grad_norm,
        )


def _check_untrained(session: Session, changed: str | None, mode: str) -> None:
    """Stop all workers if one of them has other untrained tensors than before the first step."""
    problem = None
    if changed is not None:
        problem = RunError(
            f"{changed} is not trained, and the network changed it in {mode}: released, it would "
            "show what it saw of the data. Nothing was published, what was charged is in the "
            "ledger, and the run goes on with --resume once the network leaves it as it is"
        )
    stop_together(session.collective, problem)


def _finish(session: Session, lead: Lead) -> None:
    coordinator, journal = lead.coordinator, lead.journal
    assignment, worker = coordinator.assignment(), session.worker
    params = worker.layout.split(coordinator.published_params)
    facts = session.dataset.facts
    blank = torch.zeros(1, facts.channels, *[facts.image_size] * 2, dtype=torch.uint8)
    if assignment.done and not gives_numbers(worker.model, params, worker.views.normalize(blank)):
        raise DivergedError("the network's outputs", lead.ledger.charges)
    publish(
        session.task.run,
        session.task.config,
        session.task.plan,
        tensors=session.untrained.released(params),
        outcome=Outcome(
            finished=assignment.done,
            steps=assignment.step,
            charges=lead.ledger.charges,
            history=lead.ledger.history,
            epsilon=coordinator.epsilon,
            evaluation=journal.evaluation,
            seconds=journal.seconds,
            metric_names=tuple(worker.objective.metrics),
            engines=lead.ledger.engines,
            charged=lead.ledger.charged,
        ),
        class_names=session.dataset.class_names,
        test_digest=session.dataset.test_digest,
        charge_score=lead.ledger.charge_score,
    )
    if assignment.done:
        coordinator.keep_newest_checkpoint()
