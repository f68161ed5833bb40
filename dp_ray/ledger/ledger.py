"""The ledger: what was charged, written before anything is released.

A write-ahead log over a :class:`~dp_ray.ledger.chain.Chain`. A charge is durable before
:meth:`Ledger.charge` returns, and the noise is added after that: a crash can leave a charge without
a release, never a release without a charge.

A charge may pay for a block of steps at once, which saves waiting for the disk or the object store.
The digests of their sums follow: written at once on a disk, with the next durable record elsewhere.
A step that was paid for, and whose digest a crash took, is charged again when it is repeated,
because nobody knows which sum its noise was added to.
"""

from __future__ import annotations

import secrets
from collections import Counter
from dataclasses import asdict
from enum import Enum
from typing import Any

from dp_ray.errors import LedgerError
from dp_ray.keys import LATEST, VERSIONS
from dp_ray.ledger.balance import UNKNOWN, Balance, Charge, Repeats, Session
from dp_ray.ledger.chain import Chain, Record, Totals
from dp_ray.ledger.execution import Execution
from dp_ray.ledger.lock import WriterLock
from dp_ray.privacy.history import History
from dp_ray.privacy.mechanism import Cost, Mechanism, mechanism_of
from dp_ray.privacy.plan import PrivacyPlan
from dp_ray.storage import Folder


class Verdict(Enum):
    """What may be done with a sum."""

    CHARGED = "paid for: the first and only sum of this incarnation"
    REPLAYED = "the very release that is on record: same sum, same noise, no charge"
    CONFLICT = "another sum is, or may be, on record: this one must not get the same noise"


class Ledger:
    """Charges of one run; one writer at a time.

    Args:
        folder: where :meth:`create` began it.
        key: 32 bytes that authenticate the records.
        lock: the right to write, released by :meth:`close`; None opens it for reading.
        block: steps that are paid for at once; 1 charges each by itself.
        repair: go on without records that a power cut took from the end. What the head knows that
            they paid for is charged, and no incarnation that they may have used is used again.

    Raises:
        LedgerError: it is missing, or a record is torn, altered or out of order.
    """

    def __init__(
        self,
        folder: Folder,
        key: bytes,
        *,
        lock: WriterLock | None = None,
        block: int = 1,
        repair: bool = False,
    ) -> None:
        self._lock = lock
        self._block = block
        self._balance = Balance()
        self._chain = Chain(folder, key, guard=None if lock is None else lock.check, mend=repair)
        try:
            for record in self._chain.records:
                self._balance.take(record, writing=False)
            if self._balance.plan is None:
                raise LedgerError(
                    f"the ledger {folder} holds no plan, its beginning is lost: restore it from a "
                    "backup, or start a new run"
                )
        except LedgerError:
            self._chain.close()
            raise
        if self._chain.damaged:
            self._repair()

    @classmethod
    def create(cls, folder: Folder, key: bytes, plan: PrivacyPlan) -> None:
        """Begins a ledger with the plan that the run is held to.

        Raises:
            FileExistsError: there is one already.
            OSError: it cannot be written.
        """
        Chain.create(folder, key, "plan", plan.dump())

    def close(self) -> None:
        """Ends writing, and says which steps are paid for and were never noised."""
        try:
            unused = [charge.step for charge in self._balance.prepaid()]
            if (unused or self._chain.waiting) and self._is_writer():
                self._append("unused", {"steps": unused})
        finally:
            self._chain.close()
            if self._lock is not None:
                self._lock.release()

    def _is_writer(self) -> bool:
        try:
            return self._chain.writable and self._lock is not None and self._lock.is_held()
        except LedgerError:  # closing must not hide what went wrong before
            return False

    @property
    def plan(self) -> PrivacyPlan:
        """What the run is held to; with the steps that it was given since."""
        assert self._balance.plan is not None, "checked when the ledger was opened"
        return self._balance.plan

    @property
    def amended(self) -> bool:
        """Whether the run was given more steps than it was started with."""
        return self._balance.amended

    @property
    def charges(self) -> int:
        """Noised sums paid for."""
        return self._balance.charges

    @property
    def steps(self) -> int:
        """Steps that were paid for at least once."""
        return len(self._balance.newest)

    @property
    def charged(self) -> History:
        """What was paid for: σ, rate and number of charges."""
        return self._balance.charged

    @property
    def history(self) -> History:
        """What was paid for, as the accountants take it."""
        return self._mechanism.accounted(self._balance.charged)

    @property
    def engines(self) -> tuple[str, ...]:
        """What computed the sums, over all sessions."""
        named = (session.execution.engine for session in self.sessions)
        return tuple(dict.fromkeys(name for name in named if name is not None))

    def affords(self, cost: Cost) -> bool:
        """Whether the plan covers one more sum of that cost, whatever was spent on repeats."""
        return self._mechanism.room(self._balance.charged, cost) > 0

    @property
    def sessions(self) -> list[Session]:
        """The coordinators that worked on the run, in order."""
        return self._balance.sessions

    @property
    def version(self) -> int:
        """The version of the run's draws, noise and digests: that of its first session."""
        return self.sessions[0].version if self.sessions else LATEST

    def check_version(self) -> None:
        """Refuse to continue a run whose draws and noise this dp-ray cannot repeat.

        Raises:
            LedgerError: its version is not one of :data:`dp_ray.keys.VERSIONS`.
        """
        if self.version not in VERSIONS:
            raise LedgerError(
                f"the run's draws and noise are of version {self.version}, and this dp-ray has "
                f"versions {' and '.join(map(str, VERSIONS))}. Nothing was charged. Continue the "
                "run with the dp-ray that started it, or start a new run with another --name"
            )

    @property
    def checkpoints(self) -> dict[str, str]:
        """Name → digest of the checkpoints that were written, the newest last."""
        return self._balance.checkpoints

    @property
    def repairs(self) -> int:
        """How often a damaged end was accepted."""
        return self._balance.repairs

    @property
    def declared(self) -> dict[str, Any] | None:
        """What :meth:`declare` recorded last; None if nothing changed since the run's start."""
        return self._balance.declared

    @property
    def position(self) -> str:
        """Names the last durable record; :meth:`reaches` tells if a ledger still holds it."""
        return self._chain.position

    def reaches(self, position: str) -> bool:
        """Whether the record that ``position`` named is still there."""
        return self._chain.reaches(position)

    def incarnation_for(self, step: int, *, diverged: bool) -> int:
        """Under which incarnation a step is to be drawn.

        Args:
            step: the logical step.
            diverged: the parameters are no longer those that the step on record started from.

        Returns:
            That on record, if its very sum can be had again or was never noised; otherwise one
            that was never used. Always the first where the mechanism may not draw a step again:
            :meth:`charge` then tells whether the sum is the same.
        """
        if not self._mechanism.may_redraw:
            return 0
        entry = self._balance.newest.get(step)
        if entry is not None:
            same = entry.execution == self._balance.execution and entry.charge.digest != UNKNOWN
            if entry.prepaid or (same and not diverged):
                return entry.charge.incarnation
        return self._unused_incarnation(step)

    def is_paid(self, step: int, incarnation: int) -> bool:
        """Whether this invocation of a step needs no further charge."""
        entry = self._balance.newest.get(step)
        return entry is not None and entry.charge.incarnation >= incarnation

    def repeats(self, first_step: int, execution: Execution, *, diverged: bool = False) -> Repeats:
        """See :meth:`Balance.repeats <dp_ray.ledger.balance.Balance.repeats>`."""
        return self._balance.repeats(first_step, execution, diverged=diverged)

    def open_session(
        self,
        execution: Execution,
        *,
        first_step: int,
        data: str,
        parameters: str,
        untrained: str | None = None,
        binding: str | None = None,
    ) -> None:
        """Records how, from where and on what the run goes on; see :class:`Session`."""
        self.check_version()
        repeats = self.repeats(first_step, execution).count
        session = Session(
            execution, first_step, repeats, data, parameters, untrained, binding, self.version
        )
        self._append("session", session.content())

    def charge(self, charge: Charge) -> Verdict:
        """Decides on a sum and, where it is new, makes its charge durable.

        Args:
            charge: the sum's address, digest and noise.

        Returns:
            Whether the sum may be noised, and at what cost.

        Raises:
            LedgerError: the budget is spent, the mechanism may not draw a step again and another
                sum is on record, or the charge could not be made durable; nothing may be released.
        """
        verdict = self._verdict_on(charge)
        if verdict is Verdict.CONFLICT and not self._mechanism.may_redraw:
            raise LedgerError(
                f"privacy.mechanism = {self.plan.mechanism}: it may not draw a step again, and the "
                f"sum of step {charge.step} is not the one on record, or none is on record. "
                "Nothing was released. Resume with the workers, threads, device and versions of "
                "the session before, or start a new run with another --name; its privacy cost adds "
                "to this one's"
            )
        return verdict

    def _verdict_on(self, charge: Charge) -> Verdict:
        entry = self._balance.newest.get(charge.step)
        if charge.incarnation > 0 and not self._mechanism.may_redraw:
            return Verdict.CONFLICT
        if entry is None or entry.charge.incarnation < charge.incarnation:
            if charge.incarnation < self._balance.floor:
                return Verdict.CONFLICT
            if not self.affords(Cost(charge.noise_multiplier, charge.sample_rate)):
                raise LedgerError("the budget is spent: nothing more is released")
            self._append("charge", {**asdict(charge), "count": self._block_from(charge)})
            return Verdict.CHARGED
        if entry.prepaid and entry.charge.pays_for(charge):
            content = asdict(charge)
            known = {name: content[name] for name in ("step", "digest", "max_grad_norm")}
            self._append("sum", known, durable=False)
            return Verdict.CHARGED
        return Verdict.REPLAYED if entry.charge == charge else Verdict.CONFLICT

    def charge_score(self, name: str, noise: float) -> History:
        """Make the charge for an accuracy that is about to be published durable.

        Args:
            name: the same for the same figure only, which is charged once.
            noise: σ of the noise on the number of right answers; 0 of an exact figure.

        Returns:
            All accuracies of the run that were charged, as the accountants take them.

        Raises:
            LedgerError: the charge could not be made durable; nothing may be published.
        """
        if name not in self._balance.scores:
            self._append("score", {"name": name, "noise": noise})
        counts = Counter(self._balance.scores.values())
        return tuple((sigma, 1.0, count) for sigma, count in sorted(counts.items()))

    def charge_earlier_scores(self, newest: float | None) -> None:
        """Charge accuracies that an earlier version published without a charge.

        A run that was given more steps may have published one before the newest. Nobody knows its
        noise, so it counts as exact.

        Args:
            newest: σ of the accuracy that is published; None if none is.
        """
        if newest is None or self._balance.scores:
            return
        self._append("score", {"name": "of an earlier version", "noise": newest})
        if self.amended:
            self._append("score", {"name": "of an earlier version, replaced", "noise": 0.0})

    def add_checkpoint(self, name: str, digest: str) -> None:
        """Records a checkpoint that was written: only those on record are gone on from."""
        self._append("checkpoint", {"name": name, "digest": digest})

    def amend_plan(self, plan: PrivacyPlan) -> None:
        """Replaces the plan, by one with more steps."""
        self._append("plan", plan.dump())

    def declare(self, values: dict[str, Any]) -> None:
        """Records what the user declares about the run from here on, by field."""
        self._append("declared", values)

    def _block_from(self, charge: Charge) -> int:
        """Steps from this one on, all of its cost, that may be paid for together."""
        cost = Cost(charge.noise_multiplier, charge.sample_rate)
        left = self._mechanism.room(self._balance.charged, cost)
        most = min(self._block, left, self.plan.steps - charge.step)
        count = 1
        while (
            count < most
            and self._unused_incarnation(charge.step + count) == charge.incarnation
            and self._mechanism.cost_at(charge.step + count) == cost
        ):
            count += 1
        return count

    @property
    def _mechanism(self) -> Mechanism:
        return mechanism_of(self.plan)

    def _unused_incarnation(self, step: int) -> int:
        entry = self._balance.newest.get(step)
        floor = self._balance.floor
        return floor if entry is None else max(entry.charge.incarnation + 1, floor)

    def _repair(self) -> None:
        known = self._chain.totals
        # A torn record that the head does not know could have paid for one block more.
        lost = max(known.charges - self.charges, 0) + (known.block if self._chain.torn else 0)
        # Far from any incarnation that was used, even by records that an older head does not know.
        highest = max(known.incarnation, self._balance.highest)
        content = {
            "count": lost,
            "floor": highest + 1 + secrets.randbelow(2**40),
            **self._highest_cost()._asdict(),  # nobody knows of which steps
        }
        self._chain.cut()  # last: what a mechanism may refuse must leave the ledger as it was
        self._append("repair", content)

    def _highest_cost(self) -> Cost:
        """The least noise at the highest rate of all that is planned."""
        noises, rates, _ = zip(*self._mechanism.charges(), strict=True)
        return Cost(min(noises), max(rates))

    def _append(self, kind: str, content: dict[str, Any], *, durable: bool = True) -> None:
        totals = Totals(
            charges=self.charges + content.get("count", 0),
            incarnation=max(
                self._balance.highest, content.get("incarnation", 0), content.get("floor", 0)
            ),
            block=max(self._block, self._chain.totals.block),
        )
        self._chain.append(kind, content, totals, durable=durable)
        self._balance.take(Record(kind, content), writing=True)
