"""What a ledger's records add up to: the newest charge of each step, and how many there were."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, replace
from typing import Any

from dp_ray.errors import LedgerError
from dp_ray.ledger.chain import Record
from dp_ray.ledger.execution import Execution
from dp_ray.privacy.history import History
from dp_ray.privacy.plan import PrivacyPlan

UNKNOWN = ""
"""The digest of a sum that was never written down."""


@dataclass(frozen=True)
class Charge:
    """One noised sum.

    Attributes:
        step: the logical step.
        incarnation: which invocation of the mechanism; it keys draw, views and noise.
        digest: keyed digest of the sum before noise, or :data:`UNKNOWN`.
        noise_multiplier: σ.
        max_grad_norm: C.
        sample_rate: q.
    """

    step: int
    incarnation: int
    digest: str
    noise_multiplier: float
    max_grad_norm: float
    sample_rate: float

    def pays_for(self, other: Charge) -> bool:
        """Whether this, without a digest yet, was meant for the other; C costs nothing."""
        known = replace(self, digest=other.digest, max_grad_norm=other.max_grad_norm)
        return known == other


@dataclass(frozen=True)
class Session:
    """One coordinator's work on a run.

    Attributes:
        execution: how it computed.
        first_step: where it began.
        repeats: steps on record that it had to repeat.
        data: digest of the training data.
        parameters: digest of the parameters' names and shapes.
        untrained: digest of frozen parameters and buffers; None in ledgers from before it was kept.
        binding: what the run key is bound to; None in ledgers from before it was kept.
        version: of the run's draws, noise and digests (:data:`dp_ray.keys.VERSIONS`); 1 in ledgers
            from before it was kept.
    """

    execution: Execution
    first_step: int
    repeats: int
    data: str
    parameters: str
    untrained: str | None = None
    binding: str | None = None
    version: int = 1

    def content(self) -> dict[str, Any]:
        """Return the content of its record."""
        return {**asdict(self), "execution": self.execution.dump()}

    @classmethod
    def of(cls, content: dict[str, Any]) -> Session:
        """Return the session that a record says."""
        return cls(**{**content, "execution": Execution.of(content["execution"])})


@dataclass(frozen=True)
class Entry:
    """The newest charge of a step.

    Attributes:
        charge: what was paid for.
        execution: how its sum was computed.
        prepaid: paid for as part of a block, and certainly not noised yet.
    """

    charge: Charge
    execution: Execution
    prepaid: bool


@dataclass(frozen=True)
class Repeats:
    """Steps on record that a session takes again.

    Attributes:
        count: how many.
        charged: how many of them must be paid for again.
    """

    count: int
    charged: int


class Balance:
    """The state of a ledger after its records so far; :meth:`take` adds one.

    Attributes:
        plan: what the run is held to; None before its record.
        newest: step → its newest charge.
        sessions: coordinators that worked on the run, in order.
        checkpoints: name → digest of those that were written, the newest last.
        floor: incarnations below may have been used by records that were lost.
        highest: the highest incarnation that was used, or may have been.
        amended: whether the plan was replaced.
        repairs: how often a damaged end was accepted.
        scores: name → σ of each published accuracy; 0 of an exact one, and of one that a repair
            may have lost.
        declared: what the user declared last, by field; None if it never changed.
    """

    def __init__(self) -> None:
        self.plan: PrivacyPlan | None = None
        self.newest: dict[int, Entry] = {}
        self.sessions: list[Session] = []
        self.checkpoints: dict[str, str] = {}
        self.floor = 0
        self.highest = 0
        self.amended = False
        self.repairs = 0
        self.scores: dict[str, float] = {}
        self.declared: dict[str, Any] | None = None
        self._counts: Counter[tuple[float, float]] = Counter()

    @property
    def charges(self) -> int:
        """Noised sums paid for."""
        return sum(self._counts.values())

    @property
    def charged(self) -> History:
        """What was paid for: σ, rate and number of charges."""
        return tuple((sigma, rate, count) for (sigma, rate), count in sorted(self._counts.items()))

    @property
    def execution(self) -> Execution:
        """Of the newest session."""
        return self.sessions[-1].execution if self.sessions else Execution()

    def prepaid(self) -> list[Charge]:
        """Steps that are paid for and certainly not noised."""
        return [entry.charge for entry in self.newest.values() if entry.prepaid]

    def repeats(self, first_step: int, execution: Execution, *, diverged: bool) -> Repeats:
        """Return which steps on record a session would take again.

        From the first step whose sum cannot be had again, the parameters are others, so that all
        later steps on record are charged again too.

        Args:
            first_step: where it begins.
            execution: how it computes.
            diverged: see :meth:`~dp_ray.ledger.ledger.Ledger.incarnation_for`.
        """
        again = [
            self.newest[step]
            for step in sorted(self.newest)
            if step >= first_step and not self.newest[step].prepaid
        ]
        for index, entry in enumerate(again):
            if diverged or entry.execution != execution or entry.charge.digest == UNKNOWN:
                return Repeats(len(again), len(again) - index)
        return Repeats(len(again), 0)

    def take(self, record: Record, *, writing: bool) -> None:
        """Adds what a record means.

        Args:
            record: the next one.
            writing: this process has just written it; otherwise it was read back, and its writer
                may have died before it could say what it noised.
        """
        meaning = {
            "plan": self._take_plan,
            "session": self._take_session,
            "charge": self._take_charge,
            "sum": self._take_sum,
            "unused": self._take_unused,
            "checkpoint": self._take_checkpoint,
            "repair": self._take_repair,
            "score": self._take_score,
            "declared": self._take_declared,
        }
        meaning[record.kind](record.content, writing)

    def _take_plan(self, content: dict[str, Any], _writing: bool) -> None:
        self.amended = self.plan is not None
        try:
            self.plan = PrivacyPlan.from_dump(content)
        except (KeyError, TypeError, ValueError) as error:
            raise LedgerError(
                f"the ledger's plan was written by another version of dp-ray ({error!r}): use the "
                "version that the run was started with"
            ) from error

    def _take_session(self, content: dict[str, Any], writing: bool) -> None:
        self.sessions.append(Session.of(content))
        if not writing:  # it may have noised what was given back before
            self._spend_prepaid()

    def _take_charge(self, content: dict[str, Any], writing: bool) -> None:
        count = content["count"]
        charge = Charge(**{name: value for name, value in content.items() if name != "count"})
        self._counts[charge.noise_multiplier, charge.sample_rate] += count
        self.highest = max(self.highest, charge.incarnation)
        self.newest[charge.step] = Entry(charge, self.execution, prepaid=False)
        for step in range(charge.step + 1, charge.step + count):
            rest = replace(charge, step=step, digest=UNKNOWN)
            self.newest[step] = Entry(rest, self.execution, prepaid=writing)

    def _take_sum(self, content: dict[str, Any], _writing: bool) -> None:
        charge = self.newest[content["step"]].charge
        norm = content.get("max_grad_norm", charge.max_grad_norm)  # where it does not adapt
        charge = replace(charge, digest=content["digest"], max_grad_norm=norm)
        self.newest[charge.step] = Entry(charge, self.execution, prepaid=False)

    def _take_unused(self, content: dict[str, Any], writing: bool) -> None:
        for step in content["steps"]:
            self.newest[step] = replace(self.newest[step], prepaid=not writing)

    def _take_checkpoint(self, content: dict[str, Any], _writing: bool) -> None:
        self.checkpoints.pop(content["name"], None)
        self.checkpoints[content["name"]] = content["digest"]

    def _take_repair(self, content: dict[str, Any], _writing: bool) -> None:
        self._counts[content["noise_multiplier"], content["sample_rate"]] += content["count"]
        self.floor = self.highest = content["floor"]
        self.repairs += 1
        self.scores[f"lost before repair {self.repairs}"] = 0.0  # of an exact accuracy, if at all
        self._spend_prepaid()

    def _take_score(self, content: dict[str, Any], _writing: bool) -> None:
        self.scores[content["name"]] = content["noise"]

    def _take_declared(self, content: dict[str, Any], _writing: bool) -> None:
        self.declared = content

    def _spend_prepaid(self) -> None:
        for charge in self.prepaid():
            self.newest[charge.step] = replace(self.newest[charge.step], prepaid=False)
