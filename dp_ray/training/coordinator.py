"""The coordinator: the one place that charges, adds noise and changes the parameters.

It exists on rank 0 only. Between a sum and a release stand, in this order: the digest of the sum,
the ledger's verdict (durable), the noise, the update. The numbers of the noise are drawn while the
sum is computed, and meet it after the verdict.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dp_ray.artifacts.checkpoint import Checkpoint, Checkpoints
from dp_ray.config.run import Config
from dp_ray.errors import ChargesError, DivergedError, RunError
from dp_ray.gradients.layout import ParameterLayout
from dp_ray.keys import KeyedStream, RunKey
from dp_ray.ledger.balance import Charge
from dp_ray.ledger.execution import Execution
from dp_ray.ledger.ledger import Ledger, Verdict
from dp_ray.privacy.accounting import epsilon_of
from dp_ray.privacy.mechanism import DEFAULT, mechanism_of
from dp_ray.privacy.noise import KeyedNoiseOptimizer, NoiseAhead, StepNoises, noised_count
from dp_ray.privacy.plan import PrivacyPlan
from dp_ray.training.execution import NORMALS
from dp_ray.training.optimizers import build_optimizer
from dp_ray.training.probe import Observation, ReleaseObserver
from dp_ray.training.start import Start
from dp_ray.training.step import Assignment, ShardSum
from dp_ray.training.sum_digest import digest_of_sum


@dataclass(frozen=True)
class Origin:
    """Digests of what a run starts from.

    Attributes:
        data: of the training data.
        weights: of the pretrained weights, from which frozen parameters are read in each session,
            and of what was passed as an object.
        untrained: of frozen parameters and buffers, which no checkpoint holds.
        binding: what the run key is bound to; None in runs of earlier versions.
    """

    data: str
    weights: str | None
    untrained: str
    binding: str | None


class Coordinator:
    """Holds parameters, optimizer, moving average, noise key and ledger.

    Args:
        config: optimizer and seed.
        plan: noise and budget.
        run_key: the run's secret, bound to its configuration and data.
        ledger: what was charged so far.
        checkpoints: where to go on from, if anywhere.
        initial_params: [P] on the device of training; copied.
        layout: the order of the vector.
        origin: what the run starts from; a run is not resumed with another one.
        execution: how this run is executed: what decides whether sums repeat bit for bit.
        accept_charges: noised sums of steps on record that may be paid for again.
        observer: in an audit, sees every release.

    Attributes:
        started: what this session started from, for the user.

    Raises:
        ChargesError: more steps on record would be paid for again than are accepted; nothing was
            charged.
        RunError: the run was started with another network or other data, or its checkpoints are
            lost.
        LedgerError: the ledger is older than a checkpoint, or cannot be written.
    """

    def __init__(
        self,
        config: Config,
        plan: PrivacyPlan,
        *,
        run_key: RunKey,
        ledger: Ledger,
        checkpoints: Checkpoints,
        initial_params: Tensor,
        layout: ParameterLayout,
        origin: Origin,
        execution: Execution,
        accept_charges: float = math.inf,
        observer: ReleaseObserver | None = None,
    ) -> None:
        self._plan = plan
        self._accept_charges = accept_charges
        self._execution = execution
        self._mechanism = mechanism_of(plan)
        self._noises = StepNoises(self._mechanism)
        self._observer = observer
        self._layout = layout
        self._checkpoints = checkpoints
        self._version = ledger.version
        self._noise_ahead = NoiseAhead(self._streams(run_key.derive("noise")))
        self._count_streams = self._streams(run_key.derive("noise of the count"))
        self._digest_key = run_key.derive("digest")
        self._normals = str(execution.machine.get(NORMALS, ""))
        self._ledger = ledger
        self._ema_decay = config.optimizer.ema_decay

        self._vector = initial_params.clone()
        self._average = self._vector.clone() if self._ema_decay is not None else None
        params = [nn.Parameter(p) for p in layout.split(self._vector).values()]
        optimizer, self._scheduler = build_optimizer(config, params, plan.steps)
        self._optimizer = KeyedNoiseOptimizer(
            optimizer,
            expected_batch_size=plan.expected_batch_size,
            normalize_update=config.optimizer.normalize_update,
        )
        if observer is not None:
            self._optimizer.attach_step_hook(self._keep_noised)
        self._noised = torch.empty(0)  # the latest update, kept for the observer
        self._max_grad_norm = plan.max_grad_norm
        self._step = 0
        self._diverged = False  # from the run that the ledger's later records are of
        parameters = _parameters_digest(layout, origin.weights)
        self._check_origin(origin.data, parameters, origin.untrained)
        if (checkpoint := checkpoints.newest()) is not None:
            self._restore(checkpoint)
        self.started = self._start(checkpoints.lost)
        self._check_accepted(self.started)
        ledger.open_session(
            execution,
            first_step=self._step,
            data=origin.data,
            parameters=parameters,
            untrained=origin.untrained,
            binding=origin.binding,
        )

    def _start(self, lost: int) -> Start:
        """Return what the session starts from, ``lost`` checkpoints before the newest."""
        before = self._ledger.sessions[-1:]
        return Start(
            step=self._step,
            steps=self._plan.steps,
            repeats=self._ledger.repeats(self._step, self._execution),
            changes="".join(self._execution.changes_from(s.execution) for s in before),
            lost=lost,
        )

    @property
    def params(self) -> Tensor:
        """[P] parameters after the last release."""
        return self._vector

    @property
    def published_params(self) -> Tensor:
        """[P] what is evaluated and released: the moving average, if there is one."""
        return self._vector if self._average is None else self._average

    @property
    def max_grad_norm(self) -> float:
        """C of the next step; a function of releases."""
        return self._max_grad_norm

    @property
    def epsilon(self) -> float:
        """ε spent, as the accountant says of the ledger."""
        return epsilon_of(self._plan.accountant, self._ledger.history, self._plan.delta)

    def assignment(self) -> Assignment:
        """What is to be summed up next."""
        incarnation = self._ledger.incarnation_for(self._step, diverged=self._diverged)
        paid = self._ledger.is_paid(self._step, incarnation)
        cost = self._mechanism.cost_at(self._step)
        spent = not paid and not self._ledger.affords(cost)
        done = self._step >= self._plan.steps or spent
        return Assignment(self._step, incarnation, self._max_grad_norm, done)

    def draw_ahead(self, assignment: Assignment) -> None:
        """Start to draw the noise of an assignment, in a thread; nothing is charged or released."""
        count = self._layout.size
        self._noise_ahead.start(assignment.incarnation, assignment.step, count)

    def close(self) -> None:
        """Drop noise that was drawn and not used."""
        self._noise_ahead.close()

    def release(self, assignment: Assignment, total: ShardSum) -> bool:
        """Charges for a sum, adds noise to it and takes the step.

        Args:
            assignment: the step and incarnation that the workers summed up.
            total: the sum over all shards; one example moves it by the assignment's C at most.

        Returns:
            False if another sum is on record for that incarnation: nothing was released, and the
            next assignment asks for the step again with fresh randomness.
        """
        verdict = self._charge(assignment, total)
        if verdict is Verdict.CONFLICT:
            self._diverged = True
            return False
        # Later steps on record started from other parameters, once a step was drawn afresh.
        self._diverged |= verdict is Verdict.CHARGED and assignment.incarnation > 0
        step, noise = assignment.step, self._mechanism.noise_at(assignment.step)
        self._optimizer.release(
            self._layout.split(total.vector),
            noise_multiplier=noise.on_sum,
            sensitivity=assignment.max_grad_norm,
            stream=self._noises.of(step, self._noise_ahead.of(assignment.incarnation)),
        )
        if noise.on_count is not None:
            stream = self._count_streams(assignment.incarnation, step)
            count = noised_count(total.within, std=noise.on_count, stream=stream)
            self._max_grad_norm = self._mechanism.next_max_grad_norm(self._max_grad_norm, count)
        if self._scheduler is not None:
            self._scheduler.step()
        if self._average is not None:
            self._average.lerp_(self._vector, 1 - self._warm_decay())
        if not bool(self.published_params.isfinite().all() & self._vector.isfinite().all()):
            raise DivergedError(f"the parameters after step {self._step}", self._ledger.charges)
        if self._observer is not None:
            noised = self._noised * self._plan.expected_batch_size
            if not self._optimizer.normalize_update:
                noised /= assignment.max_grad_norm
            self._observer.observe(
                Observation(assignment.step, assignment.incarnation, noised, self.published_params)
            )
        self._step += 1
        return True

    def _streams(self, key: bytes) -> Callable[[int, int], KeyedStream]:
        """Streams of an incarnation and a step, in the run's version."""
        version = self._version
        return lambda incarnation, step: KeyedStream(
            key, incarnation=incarnation, step=step, version=version
        )

    def _keep_noised(self, optimizer: KeyedNoiseOptimizer) -> None:
        self._noised = torch.cat([p.grad.reshape(-1) for p in optimizer.params])

    def _charge(self, assignment: Assignment, total: ShardSum) -> Verdict:
        cost = self._mechanism.cost_at(assignment.step)
        noise = self._mechanism.noise_at(assignment.step)
        # Of all that noise is added to, and how much where the charge does not say it.
        rest = struct.pack("<dd", total.within, noise.on_count or 0.0)
        if self._plan.mechanism != DEFAULT:  # whose charge says the rest, in every ledger
            rest += struct.pack(f"<{1 + len(noise.feedback)}d", noise.on_sum, *noise.feedback)
        rest += self._normals.encode()  # rounded otherwise, they would be other noise
        verdict = self._ledger.charge(
            Charge(
                step=assignment.step,
                incarnation=assignment.incarnation,
                digest=digest_of_sum(
                    self._digest_key,
                    total.vector,
                    rest,
                    incarnation=assignment.incarnation,
                    step=assignment.step,
                    version=self._version,
                ),
                noise_multiplier=cost.noise_multiplier,
                max_grad_norm=assignment.max_grad_norm,
                sample_rate=cost.sample_rate,
            )
        )
        if verdict is Verdict.CONFLICT:  # seen only now: the execution is that on record
            repeats = self._ledger.repeats(self._step, self._execution, diverged=True)
            self._check_accepted(replace(self.started, step=self._step, repeats=repeats))
        return verdict

    def save(self) -> None:
        """Writes a checkpoint of the state before the next step.

        Raises:
            OSError: it cannot be written; the ones before are intact.
        """
        self._checkpoints.save(
            Checkpoint(
                step=self._step,
                params=self._vector.to("cpu", copy=True),
                average=None if self._average is None else self._average.to("cpu", copy=True),
                optimizer=copy.deepcopy(self._optimizer.state_dict()),
                scheduler=None if self._scheduler is None else dict(self._scheduler.state_dict()),
                max_grad_norm=self._max_grad_norm,
                ledger_position=self._ledger.position,
            )
        )

    def keep_newest_checkpoint(self) -> None:
        """Remove the older checkpoints of a run whose release is published."""
        self._checkpoints.keep_newest()

    def _warm_decay(self) -> float:
        """min(μ, (1+t)/(10+t)): De et al. 2022, arXiv 2204.13650, appendix."""
        assert self._ema_decay is not None
        return min(self._ema_decay, (1 + self._step) / (10 + self._step))

    def _check_accepted(self, start: Start) -> None:
        """Refuse to pay again for more than was accepted.

        A mechanism that may not draw a step again pays for none, and refuses by itself.
        """
        again = start.repeats.charged
        if again > self._accept_charges and self._mechanism.may_redraw:
            raise ChargesError(start.refusal, again)

    def _check_origin(self, data_digest: str, parameters: str, untrained: str) -> None:
        if not self._ledger.sessions:
            return
        session = self._ledger.sessions[-1]
        if session.data != data_digest:
            raise RunError(
                "the training data is not what the run was started with: its digest differs. "
                "Restore the data, or start a new run with another --name"
            )
        if session.parameters != parameters:
            raise RunError(
                "the network's parameters are not those that the run was started with: their names "
                "or shapes differ, or what model.pretrained holds, or an object that was passed "
                "(network, objective or test data). Resume with the same, or start a new run with "
                "another --name"
            )
        if session.untrained not in (None, untrained):
            raise RunError(
                "model.name: the network's frozen parameters or buffers are not those that the run "
                "was started with: they are drawn anew, or read from what has changed. Nothing "
                "was charged. Resume with the same network, or start a new run with another --name"
            )

    def _restore(self, checkpoint: Checkpoint) -> None:
        self._vector.copy_(checkpoint.params)
        if self._average is not None and checkpoint.average is not None:
            self._average.copy_(checkpoint.average)
        self._optimizer.load_state_dict(checkpoint.optimizer)
        if self._scheduler is not None and checkpoint.scheduler is not None:
            self._scheduler.load_state_dict(checkpoint.scheduler)
        self._max_grad_norm = checkpoint.max_grad_norm
        self._step = checkpoint.step


def _parameters_digest(layout: ParameterLayout, weights_digest: str | None) -> str:
    names = [[name, list(shape)] for name, shape in layout.shapes.items()]
    return hashlib.sha256(json.dumps([names, weights_digest]).encode()).hexdigest()
