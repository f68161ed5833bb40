"""The ledger: durable before a verdict, one noise one sum, and what a crash may cost.

That no damage goes unseen is tested in ``test_ledger_damage``.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.object_store import MemoryFolder
from helpers.plans import privacy_plan
from helpers.support import key_of
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from dp_ray.errors import LedgerError
from dp_ray.keys import LATEST
from dp_ray.ledger.balance import Charge, Session
from dp_ray.ledger.execution import Execution
from dp_ray.ledger.ledger import Ledger, Verdict
from dp_ray.ledger.lock import WriterLock
from dp_ray.privacy.mechanism import Cost
from dp_ray.storage import Folder, LocalFolder

KEY = key_of(3).derive("ledger")
PLAN = privacy_plan()
EXECUTION = Execution(workers=2)

CHARGED, REPLAYED, CONFLICT = Verdict.CHARGED, Verdict.REPLAYED, Verdict.CONFLICT


def charge(step: int, *, digest: str = "a", incarnation: int = 0) -> Charge:
    return Charge(step, incarnation, digest, 1.0, 0.5, 0.1)


class Writer(Ledger):
    """A ledger whose process may die."""

    def __init__(self, folder: Folder, *, block: int = 1, repair: bool = False) -> None:
        self.held = WriterLock(folder, "attempt")
        try:
            super().__init__(folder, KEY, lock=self.held, block=block, repair=repair)
        except BaseException:
            self.held.release()
            raise

    def die(self) -> None:
        """What the kernel does for a process that is killed: all is closed, nothing is said."""
        self._chain.close()
        self.held.release()

    def begin(self, first_step: int = 0, execution: Execution | None = None) -> Writer:
        self.open_session(
            EXECUTION if execution is None else execution,
            first_step=first_step,
            data="data",
            parameters="parameters",
        )
        return self


@pytest.fixture
def folder(tmp_path: Path) -> LocalFolder:
    created = LocalFolder(tmp_path / "ledger")
    Ledger.create(created, KEY, PLAN)
    return created


def filled(folder: Folder, steps: int = 5, *, block: int = 1) -> Writer:
    ledger = Writer(folder, block=block).begin()
    for step in range(steps):
        assert ledger.charge(charge(step)) is CHARGED
    return ledger


def records(folder: LocalFolder) -> list[dict[str, Any]]:
    """What is on the disk."""
    return [json.loads(json.loads(line)["body"]) for line in lines(folder)]


def lines(folder: LocalFolder) -> list[bytes]:
    return (folder.path / "records.jsonl").read_bytes().splitlines(keepends=True)


def kinds(folder: LocalFolder) -> list[str]:
    return [record["kind"] for record in records(folder)]


def cut(folder: LocalFolder, keep: int, head: bytes) -> None:
    """A power cut: the last records were not durable, and neither was the head."""
    (folder.path / "records.jsonl").write_bytes(b"".join(lines(folder)[:keep]))
    (folder.path / "head").write_bytes(head)


# What is on record.


def test_charges_survive(folder: LocalFolder) -> None:
    ledger = filled(folder)
    position = ledger.position
    ledger.die()
    again = Ledger(folder, KEY)
    assert (again.charges, again.steps, again.repairs) == (5, 5, 0)
    assert again.history == ((1.0, 0.1, 5),)
    assert again.plan == PLAN
    assert again.position == position
    assert again.reaches(position)
    assert not again.reaches("elsewhere")
    assert [again.is_paid(step, 0) for step in range(6)] == [True] * 5 + [False]
    assert not again.is_paid(0, 1)


def test_an_earlier_position_is_still_reached_and_a_later_one_is_not(folder: LocalFolder) -> None:
    """A checkpoint names the last record it has seen: an older ledger is told by it."""
    ledger = filled(folder, 1)
    earlier = ledger.position
    content, head = lines(folder), folder.read("head")
    ledger.charge(charge(1))
    later = ledger.position
    ledger.die()
    assert Ledger(folder, KEY).reaches(earlier)
    cut(folder, len(content), head)
    assert not Ledger(folder, KEY).reaches(later)


@pytest.mark.parametrize("layout", ["disk", "objects"])
def test_a_position_is_that_of_a_record_which_no_crash_takes(layout: str, tmp_path: Path) -> None:
    """A checkpoint that names a lost record would make an honest ledger look cut."""
    on_disk = layout == "disk"
    folder = LocalFolder(tmp_path / "ledger") if on_disk else MemoryFolder("memory://ledger")
    Ledger.create(folder, KEY, PLAN)
    ledger = filled(folder, 1, block=4)
    keep, head = (len(lines(folder)) if isinstance(folder, LocalFolder) else 0), folder.read("head")
    assert ledger.charge(charge(1)) is CHARGED  # its digest is not durable yet
    position = ledger.position
    ledger.die()
    if isinstance(folder, LocalFolder):
        cut(folder, keep, head)
    assert Ledger(folder, KEY).reaches(position)


def test_sessions_survive_in_order(folder: LocalFolder) -> None:
    filled(folder, 3).die()
    ledger = Writer(folder)
    ledger.open_session(Execution(workers=4), first_step=1, data="x", parameters="y")
    ledger.die()
    first, second = Ledger(folder, KEY).sessions
    assert (first.execution, first.first_step, first.repeats) == (EXECUTION, 0, 0)
    assert (second.execution, second.first_step, second.repeats) == (Execution(workers=4), 1, 2)
    assert (second.data, second.parameters) == ("x", "y")


def test_a_session_without_a_version_is_of_the_first(folder: LocalFolder) -> None:
    """And so are those after it."""
    ledger = Writer(folder)
    assert ledger.version == LATEST > 1
    ledger.begin().die()
    assert Ledger(folder, KEY).version == records(folder)[-1]["version"] == LATEST
    content = {name: value for name, value in records(folder)[-1].items() if name != "kind"}
    del content["version"]
    assert Session.of(content).version == 1


def test_steps_that_were_never_noised_are_no_repeats(folder: LocalFolder) -> None:
    filled(folder, 2, block=4).close()
    Writer(folder).begin(first_step=1).die()
    assert Ledger(folder, KEY).sessions[-1].repeats == 1


def test_checkpoints_survive_with_the_newest_last(folder: LocalFolder) -> None:
    ledger = filled(folder, 1)
    for name, digest in (("b", "1"), ("a", "2"), ("b", "3")):
        ledger.add_checkpoint(name, digest)
    ledger.die()
    assert list(Ledger(folder, KEY).checkpoints.items()) == [("a", "2"), ("b", "3")]


def test_a_plan_with_more_steps_replaces_the_first(folder: LocalFolder) -> None:
    ledger = filled(folder, 9)
    with pytest.raises(LedgerError, match="budget"):
        ledger.charge(charge(9))
    ledger.amend_plan(replace(PLAN, steps=10))
    assert ledger.charge(charge(9)) is CHARGED
    ledger.die()
    again = Ledger(folder, KEY)
    assert (again.plan.steps, again.charges) == (10, 10)


def test_a_charge_is_on_disk_when_it_returns(folder: LocalFolder) -> None:
    ledger = filled(folder, 1)
    ledger.charge(charge(1))
    assert Ledger(folder, KEY).charges == 2


@pytest.mark.parametrize("block", [1, 4])
def test_a_charge_is_synced_before_it_returns(
    folder: LocalFolder, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    """Written is not durable: the record itself must be in the file when fsync is called."""
    synced: list[int] = []
    sync = os.fsync

    def watched(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_size)
        sync(descriptor)

    ledger = Writer(folder, block=block).begin()
    monkeypatch.setattr(os, "fsync", watched)
    ledger.charge(charge(0))
    assert synced == [len(b"".join(lines(folder)))]


def test_history_counts_each_noise_by_itself(folder: LocalFolder) -> None:
    ledger = filled(folder, 2)
    ledger.charge(replace(charge(2), noise_multiplier=3.0))
    with pytest.raises(LedgerError, match="budget is spent"):  # no step is planned at this rate
        ledger.charge(replace(charge(3), sample_rate=0.2))
    ledger.die()
    assert Ledger(folder, KEY).history == ((1.0, 0.1, 2), (3.0, 0.1, 1))


# One noise, one sum.


def test_same_sum_is_a_replay_at_no_cost(folder: LocalFolder) -> None:
    filled(folder).close()
    again = Writer(folder).begin()
    before = lines(folder)
    assert again.charge(charge(2)) is REPLAYED
    assert again.charges == 5
    assert lines(folder) == before


@pytest.mark.parametrize(
    "changed",
    [{"digest": "b"}, {"noise_multiplier": 2.0}, {"max_grad_norm": 1.0}, {"sample_rate": 0.2}],
)
@pytest.mark.parametrize("reread", [False, True])
def test_another_sum_never_gets_the_same_noise(
    folder: LocalFolder, changed: dict[str, Any], reread: bool
) -> None:
    ledger = filled(folder)
    if reread:
        ledger.die()
        ledger = Writer(folder).begin()
    other = replace(charge(2), **changed)
    assert ledger.charge(other) is CONFLICT
    assert ledger.charges == 5
    planned = replace(other, incarnation=1, sample_rate=0.1)
    assert ledger.charge(planned) is CHARGED
    assert ledger.charges == 6
    # The old invocation is history: it cannot be released again either.
    assert ledger.charge(charge(2)) is CONFLICT
    ledger.die()
    assert Writer(folder).begin().charge(charge(2)) is CONFLICT


def test_an_incarnation_is_kept_only_for_the_sum_that_is_on_record(folder: LocalFolder) -> None:
    ledger = filled(folder, 3)
    ledger.charge(charge(1, incarnation=4))
    assert ledger.incarnation_for(3, diverged=False) == 0  # never drawn
    assert ledger.incarnation_for(3, diverged=True) == 0
    assert ledger.incarnation_for(2, diverged=False) == 0  # to be had again
    assert ledger.incarnation_for(2, diverged=True) == 1
    assert ledger.incarnation_for(1, diverged=False) == 4
    assert ledger.incarnation_for(1, diverged=True) == 5


def test_another_execution_raises_the_incarnation_of_what_it_repeats(folder: LocalFolder) -> None:
    """Its sums would differ in the last bit; which draws are spent is known without trying."""
    filled(folder, 3).die()
    ledger = Writer(folder).begin(first_step=1, execution=Execution(workers=4))
    assert [ledger.incarnation_for(step, diverged=False) for step in range(4)] == [1, 1, 1, 0]
    ledger.charge(charge(1, incarnation=1))
    assert ledger.incarnation_for(1, diverged=False) == 1
    ledger.die()
    # The first execution again: what the second one did is not its own.
    ledger = Writer(folder).begin(first_step=0)
    assert [ledger.incarnation_for(step, diverged=False) for step in range(4)] == [0, 2, 0, 0]


def test_each_step_has_its_own_incarnation(folder: LocalFolder) -> None:
    ledger = filled(folder, 3)
    ledger.charge(charge(0, incarnation=1))
    assert ledger.incarnation_for(2, diverged=False) == 0
    assert ledger.charge(charge(2)) is REPLAYED


# The budget.


@pytest.mark.parametrize("block", [1, 4])
def test_nothing_is_charged_past_the_budget(folder: LocalFolder, block: int) -> None:
    ledger = filled(folder, 9, block=block)
    for refused in (charge(9), charge(8, incarnation=1)):
        with pytest.raises(LedgerError, match="budget is spent"):
            ledger.charge(refused)
    assert ledger.charge(charge(8)) is REPLAYED
    assert (ledger.charges, Ledger(folder, KEY).charges) == (9, 9)


# Blocks.


def test_a_block_is_one_charge(folder: LocalFolder) -> None:
    ledger = Writer(folder, block=4).begin()
    for step in range(4):
        assert ledger.charge(charge(step)) is CHARGED
        assert ledger.charges == Ledger(folder, KEY).charges == 4
    assert kinds(folder) == ["plan", "session", "charge", "sum", "sum", "sum"]
    assert records(folder)[2]["count"] == 4
    ledger.charge(charge(4))
    assert ledger.charges == 8


def test_a_block_ends_with_the_plan_and_with_the_budget(folder: LocalFolder) -> None:
    ledger = filled(folder, 7, block=3)
    assert ledger.charges == 9
    assert [r["count"] for r in records(folder) if r["kind"] == "charge"] == [3, 3, 3]
    ledger.die()
    ledger = Writer(folder, block=5)
    ledger.amend_plan(replace(PLAN, steps=13))
    ledger.begin(first_step=7)
    # Steps 7 and 8 were paid for by a process that died: incarnation 1, and no step 9 with it.
    ledger.charge(charge(7, incarnation=1))
    ledger.charge(charge(9))
    assert [r["count"] for r in records(folder) if r["kind"] == "charge"][3:] == [2, 2]
    assert ledger.charges == 13


def test_a_block_near_the_last_step_does_not_pay_for_steps_that_are_not_there(
    folder: LocalFolder,
) -> None:
    ledger = Writer(folder, block=5).begin(first_step=7)
    ledger.charge(charge(7))
    assert ledger.charges == 2


def test_a_block_holds_steps_of_one_incarnation(folder: LocalFolder) -> None:
    ledger = filled(folder, 2)
    ledger.die()
    ledger = Writer(folder, block=4).begin()
    ledger.charge(charge(0, digest="b", incarnation=1))
    assert records(folder)[-1]["count"] == 2
    assert [ledger.is_paid(step, 1) for step in range(3)] == [True, True, False]


def test_a_paid_step_is_no_licence_for_another_noise(folder: LocalFolder) -> None:
    """The accountant was told σ and q, so a step paid for ahead keeps them; C costs nothing."""
    ledger = filled(folder, 1, block=4)
    for changed in ({"noise_multiplier": 0.5}, {"sample_rate": 0.9}):
        assert ledger.charge(replace(charge(1), **changed)) is CONFLICT
    adapted = replace(charge(1), max_grad_norm=9.0)
    assert ledger.charge(adapted) is CHARGED
    ledger.die()
    again = Writer(folder, block=4).begin()
    assert again.charge(charge(1)) is CONFLICT  # it was noised for another C
    assert again.charge(adapted) is REPLAYED


# σ that falls.

FALLING = replace(PLAN, noise_multiplier=2.0, noise_factors=(1.0, 0.5))  # 4 steps at 2, 5 at 1


def falling(step: int, **changed: Any) -> Charge:
    return replace(charge(step), noise_multiplier=2.0 if step < 4 else 1.0, **changed)


@pytest.fixture
def falling_folder(tmp_path: Path) -> LocalFolder:
    created = LocalFolder(tmp_path / "falling")
    Ledger.create(created, KEY, FALLING)
    return created


def test_a_block_pays_for_one_noise(falling_folder: LocalFolder) -> None:
    ledger = Writer(falling_folder, block=3).begin()
    for step in range(9):
        assert ledger.charge(falling(step)) is CHARGED
    found = [(r["noise_multiplier"], r["count"]) for r in records(falling_folder) if "count" in r]
    assert found == [(2.0, 3), (2.0, 1), (1.0, 3), (1.0, 2)]
    assert ledger.history == ((1.0, 0.1, 5), (2.0, 0.1, 4))


def test_repeats_never_cost_more_than_the_steps_that_they_take_the_place_of(
    falling_folder: LocalFolder,
) -> None:
    ledger = Writer(falling_folder).begin()
    for step in range(6):
        ledger.charge(falling(step))
    ledger.charge(falling(5, digest="b", incarnation=1))
    ledger.charge(falling(2, digest="b", incarnation=1))
    assert ledger.affords(Cost(1.0, 0.1))
    ledger.charge(falling(6))
    assert not ledger.affords(Cost(1.0, 0.1))
    with pytest.raises(LedgerError, match="budget is spent"):
        ledger.charge(falling(7))
    # 5 at σ = 2 and 4 at σ = 1, where 4 and 5 were planned.
    assert ledger.history == ((1.0, 0.1, 4), (2.0, 0.1, 5))


def test_a_repair_that_may_have_spent_too_much_ends_the_run(tmp_path: Path) -> None:
    """What it charges counts as the least noise, of which the plan has too few."""
    folder = LocalFolder(tmp_path / "thirds")
    plan = replace(PLAN, noise_multiplier=2.0, noise_factors=(1.0, 0.5, 0.25))
    Ledger.create(folder, KEY, plan)
    ledger = Writer(folder, block=9).begin()
    for step, sigma in ((0, 2.0), (3, 1.0)):
        ledger.charge(replace(charge(step), noise_multiplier=sigma))
    ledger.die()
    cut(folder, 2, (folder.path / "head").read_bytes())
    repaired = Writer(folder, block=9, repair=True).begin()
    assert repaired.history == ((0.5, 0.1, 6),)  # 3 are planned
    assert not any(repaired.affords(Cost(sigma, 0.1)) for sigma in (0.5, 1.0, 2.0))


def test_less_noise_than_planned_is_refused(falling_folder: LocalFolder) -> None:
    ledger = Writer(falling_folder).begin()
    with pytest.raises(LedgerError, match="budget is spent"):
        ledger.charge(replace(charge(0), noise_multiplier=0.5))
    for step in range(5):
        ledger.charge(replace(charge(step), noise_multiplier=1.0))
    with pytest.raises(LedgerError, match="budget is spent"):
        ledger.charge(replace(charge(5), noise_multiplier=1.0))
    assert ledger.charge(replace(charge(5), noise_multiplier=2.0)) is CHARGED


def test_a_paid_step_is_noised_once(folder: LocalFolder) -> None:
    ledger = filled(folder, 2, block=4)
    assert ledger.charge(charge(1)) is REPLAYED
    assert ledger.charge(charge(1, digest="b")) is CONFLICT


def test_digests_of_a_block_survive_the_death_of_the_process(folder: LocalFolder) -> None:
    filled(folder, 3, block=4).die()
    ledger = Writer(folder, block=4).begin()
    assert [ledger.charge(charge(step)) for step in range(3)] == [REPLAYED] * 3
    assert ledger.charges == 4


def test_a_step_whose_digest_was_never_written_counts_as_noised(folder: LocalFolder) -> None:
    filled(folder, 2, block=4).die()
    ledger = Writer(folder).begin()
    for step in (2, 3):
        assert ledger.charge(charge(step)) is CONFLICT
        assert ledger.incarnation_for(step, diverged=False) == 1
        assert ledger.charge(charge(step, incarnation=1)) is CHARGED
    assert ledger.charges == 6


def test_a_clean_stop_gives_back_what_was_not_noised(folder: LocalFolder) -> None:
    filled(folder, 2, block=4).close()
    assert records(folder)[-1] == {"kind": "unused", "steps": [2, 3]}
    ledger = Writer(folder, block=4).begin()
    for step in (2, 3):
        assert ledger.incarnation_for(step, diverged=True) == 0
        assert ledger.is_paid(step, 0)
        assert ledger.charge(charge(step, digest="any")) is CHARGED
    assert ledger.charges == 4


def test_what_was_given_back_is_free_under_another_execution(folder: LocalFolder) -> None:
    """No noise was ever added there, so there is nothing that could cancel out."""
    filled(folder, 2, block=4).close()
    ledger = Writer(folder).begin(first_step=2, execution=Execution(workers=9))
    assert ledger.incarnation_for(2, diverged=False) == 0
    ledger.charge(charge(2))
    ledger.die()
    # The sum is of the execution that made it, not of the one that paid.
    ledger = Writer(folder).begin(first_step=2, execution=Execution(workers=9))
    assert ledger.incarnation_for(2, diverged=False) == 0
    assert ledger.charge(charge(2)) is REPLAYED


def test_what_was_given_back_twice_is_still_free(folder: LocalFolder) -> None:
    filled(folder, 1, block=4).close()
    Writer(folder).begin().close()
    ledger = Writer(folder).begin()
    assert [ledger.charge(charge(step)) for step in (1, 2, 3)] == [CHARGED] * 3
    assert ledger.charges == 4
    ledger.close()  # and what was used is not given back a third time
    assert Writer(folder).begin().charge(charge(1, digest="b")) is CONFLICT


def test_what_was_given_back_and_used_by_a_process_that_died_counts_as_noised(
    folder: LocalFolder,
) -> None:
    """Its digest record was not durable: a power cut takes it, with a head from before it."""
    filled(folder, 1, block=4).close()
    ledger = Writer(folder, block=4).begin()
    before, head = len(lines(folder)), folder.read("head")
    assert ledger.charge(charge(1)) is CHARGED  # and noise is added
    assert kinds(folder)[-1] == "sum"
    ledger.die()
    cut(folder, before, head)
    ledger = Writer(folder, block=4).begin()
    assert ledger.charge(charge(1, digest="another")) is CONFLICT
    assert ledger.incarnation_for(1, diverged=False) == 1
    ledger.close()  # and a clean stop of this one must not give it back
    ledger = Writer(folder).begin()
    assert ledger.charge(charge(1, digest="another")) is CONFLICT


def test_a_session_that_died_before_its_first_step_spends_what_was_given_back(
    folder: LocalFolder,
) -> None:
    """Nobody can tell it from one whose digests were lost."""
    filled(folder, 1, block=4).close()
    Writer(folder).begin().die()
    assert Writer(folder).begin().charge(charge(1)) is CONFLICT


def test_a_reader_does_not_spend_what_was_given_back(folder: LocalFolder) -> None:
    filled(folder, 1, block=4).close()
    Ledger(folder, KEY).close()
    assert Writer(folder).begin().charge(charge(1)) is CHARGED


def test_a_reader_beside_the_writer_takes_nothing_for_free(folder: LocalFolder) -> None:
    ledger = filled(folder, 1, block=4)
    assert Ledger(folder, KEY).incarnation_for(1, diverged=False) == 1
    assert ledger.incarnation_for(1, diverged=False) == 0


# Who may write, and where.


def test_two_writers_are_refused_and_readers_are_not(folder: LocalFolder) -> None:
    """Two coordinators on one run would add equal noise to two sums."""
    first = filled(folder)
    with pytest.raises(LedgerError, match="another process"):
        Writer(folder)
    assert Ledger(folder, KEY).charges == 5
    first.close()
    Writer(folder).close()


def test_a_reader_cannot_charge(folder: LocalFolder) -> None:
    filled(folder).close()
    reader = Ledger(folder, KEY)
    for write in (
        lambda: reader.charge(charge(5)),
        lambda: reader.amend_plan(PLAN),
        lambda: reader.add_checkpoint("a", "b"),
        lambda: reader.open_session(Execution(), first_step=0, data="", parameters=""),
    ):
        with pytest.raises(LedgerError, match="not open for writing"):
            write()
    assert reader.charges == Ledger(folder, KEY).charges == 5
    assert reader.plan == PLAN
    assert reader.checkpoints == {}


def test_a_closed_ledger_charges_nothing(folder: LocalFolder) -> None:
    ledger = filled(folder, 1, block=4)
    ledger.close()
    assert ledger.charge(charge(1)) is CONFLICT  # given back: the next writer may have used it
    with pytest.raises(LedgerError, match="not open for writing"):
        ledger.charge(charge(5))


def test_a_ledger_is_created_once(folder: LocalFolder) -> None:
    ledger = filled(folder)
    with pytest.raises(FileExistsError):
        Ledger.create(folder, KEY, PLAN)
    assert ledger.charge(charge(5)) is CHARGED
    assert Ledger(folder, KEY).charges == 6


def test_a_creation_that_was_interrupted_is_done_again(tmp_path: Path) -> None:
    """The head is written first: without records it promises nothing."""
    folder = LocalFolder(tmp_path)
    folder.write("head", b"of the first attempt")
    Ledger.create(folder, KEY, PLAN)
    assert Ledger(folder, KEY).plan == PLAN


def test_a_lost_ledger_is_not_begun_again(tmp_path: Path) -> None:
    for lost in (LocalFolder(tmp_path / "lost"), MemoryFolder("memory://lost")):
        with pytest.raises(LedgerError, match="what this run has spent"):
            Ledger(lost, KEY)
    (tmp_path / "empty").mkdir()
    with pytest.raises(LedgerError, match="what this run has spent"):
        Writer(LocalFolder(tmp_path / "empty"))
    assert "records.jsonl" not in os.listdir(tmp_path / "empty")  # noqa: PTH208


def test_files_are_for_their_owner_only(folder: LocalFolder) -> None:
    filled(folder).close()
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in folder.path.iterdir()}
    assert modes == {"records.jsonl": 0o600, "head": 0o600, "lock": 0o600}
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700


def test_no_key_material_in_the_files(folder: LocalFolder) -> None:
    filled(folder).close()
    for path in folder.path.iterdir():
        assert KEY not in path.read_bytes()
        assert KEY.hex() not in path.read_text()
    assert records(folder)[0] == {"kind": "plan", **json.loads(json.dumps(PLAN.dump()))}


# Any order of steps, stops and crashes.


class Coordinators(RuleBasedStateMachine):
    """Coordinators one after the other on one ledger, and a log of all noise that they added.

    They do what ``training.coordinator`` does; a sum is a function of its step, its incarnation,
    its execution and the parameters, or is not (``salt``). Some are broken, and ask for anything.
    """

    STEPS = 7

    def __init__(self) -> None:
        super().__init__()
        self.folder = self.new_folder()
        Ledger.create(self.folder, KEY, replace(PLAN, steps=self.STEPS))
        self.ledger: Writer | None = None
        self.noised: dict[tuple[int, int], Charge] = {}
        self.states: dict[str, tuple[int, str]] = {}
        self.heads: dict[int, bytes] = {}  # by the record that they name
        self.remember_head()
        self.step, self.parameters = 0, ""
        self.diverged = self.repaired = self.damaged = False
        self.execution = ""

    def new_folder(self) -> Folder:
        raise NotImplementedError

    def teardown(self) -> None:
        if self.ledger is not None:
            self.ledger.die()

    def writer(self) -> Writer:
        assert self.ledger is not None
        return self.ledger

    @precondition(lambda self: self.ledger is None)
    @rule(
        execution=st.sampled_from(["one", "other"]),
        block=st.integers(1, 5),
        which=st.integers(0, 1),
    )
    def start(self, execution: str, block: int, which: int) -> None:
        if self.damaged:
            with pytest.raises(LedgerError, match="--repair"):
                Writer(self.folder, block=block)
        self.ledger = Writer(self.folder, block=block, repair=self.damaged)
        self.repaired |= self.damaged
        self.damaged = False
        on_record = [("", (0, "")), *((n, self.states[n]) for n in self.ledger.checkpoints)]
        self.step, self.parameters = on_record[-1 - min(which, len(on_record) - 1)][1]
        self.diverged = False
        self.execution = execution
        self.ledger.begin(self.step, Execution(engine=execution))
        self.remember_head()

    @precondition(lambda self: self.ledger is not None)
    @rule(salt=st.sampled_from(["", "", "", "x", "y"]), dies=st.sampled_from([False] * 5 + [True]))
    def take_a_step(self, salt: str, dies: bool) -> None:
        ledger = self.writer()
        incarnation = ledger.incarnation_for(self.step, diverged=self.diverged)
        if self.step >= self.STEPS:
            return
        if not ledger.is_paid(self.step, incarnation) and ledger.charges >= self.STEPS:
            with pytest.raises(LedgerError, match="budget"):
                ledger.charge(charge(self.step, incarnation=incarnation))
            return
        total = f"{self.step}.{incarnation}.{self.execution}.{salt}({self.parameters})"
        asked = charge(self.step, digest=str(hash(total)), incarnation=incarnation)
        verdict = ledger.charge(asked)
        self.remember_head()
        if dies:  # after the charge, before the noise
            ledger.die()
            self.ledger = None
        elif verdict is CONFLICT:
            self.diverged = True
        else:
            self.diverged |= verdict is CHARGED and incarnation > 0
            self.add_noise(asked)
            self.parameters = asked.digest
            self.step += 1

    @precondition(lambda self: self.ledger is not None)
    @rule(
        step=st.integers(0, STEPS - 1),
        incarnation=st.integers(0, 3),
        digest=st.sampled_from("ab"),
    )
    def ask_for_anything(self, step: int, incarnation: int, digest: str) -> None:
        asked = charge(step, digest=digest, incarnation=incarnation)
        try:
            verdict = self.writer().charge(asked)
        except LedgerError as error:
            assert "budget" in str(error)  # noqa: PT017
            return
        self.remember_head()
        if verdict is not CONFLICT:
            self.add_noise(asked)

    @precondition(lambda self: self.ledger is not None)
    @rule()
    def save(self) -> None:
        name = f"checkpoint of {self.step}, {len(self.states)}"
        self.states[name] = self.step, self.parameters
        self.writer().add_checkpoint(name, "digest")
        self.remember_head()

    @precondition(lambda self: self.ledger is not None)
    @rule()
    def stop(self) -> None:
        def seen(ledger: Ledger) -> list[object]:
            steps = range(self.STEPS)
            drawn = [ledger.incarnation_for(step, diverged=False) for step in steps]
            paid = [ledger.is_paid(step, i) for step, i in zip(steps, drawn, strict=True)]
            return [drawn, paid, ledger.history, ledger.checkpoints, ledger.sessions]

        before = seen(self.writer())
        self.writer().close()
        self.ledger = None
        self.remember_head()
        assert seen(Ledger(self.folder, KEY)) == before  # a clean stop loses nothing

    @precondition(lambda self: self.ledger is not None)
    @rule()
    def die(self) -> None:
        self.writer().die()
        self.ledger = None

    def remember_head(self) -> None:
        head = self.folder.read("head")
        self.heads[int(head.split()[0])] = head

    def add_noise(self, asked: Charge) -> None:
        before = self.noised.setdefault((asked.step, asked.incarnation), asked)
        assert before == asked, "equal noise was added to two sums"

    @invariant()
    def what_was_noised_is_charged(self) -> None:
        if self.damaged:
            return
        charges = Ledger(self.folder, KEY).charges
        assert charges >= len(self.noised)
        assert self.repaired or charges <= self.STEPS


class OnADisk(Coordinators):
    """Digests of a block are written at once, and a power cut may take them."""

    def new_folder(self) -> Folder:
        self.temporary = tempfile.TemporaryDirectory()
        return LocalFolder(Path(self.temporary.name) / "ledger")

    def teardown(self) -> None:
        super().teardown()
        self.temporary.cleanup()

    @precondition(lambda self: self.ledger is not None)
    @rule(kept=st.integers(0, 5), age=st.integers(0, 99), torn=st.integers(0, 400))
    def power_cut(self, kept: int, age: int, torn: int) -> None:
        assert isinstance(self.folder, LocalFolder)
        self.writer().die()
        self.ledger = None
        whole = lines(self.folder)
        durable = 1 + max(n for n, kind in enumerate(kinds(self.folder)) if kind != "sum")
        keep = min(durable + kept, len(whole))
        tail = b"" if keep == len(whole) else whole[keep][:-1][:torn]
        self.heads = {named: head for named, head in self.heads.items() if named <= keep}
        self.damaged = bool(tail)
        (self.folder.path / "records.jsonl").write_bytes(b"".join(whole[:keep]) + tail)
        (self.folder.path / "head").write_bytes(list(self.heads.values())[age % len(self.heads)])


class InAnObjectStore(Coordinators):
    """Digests of a block wait for the next durable record, and any crash takes them."""

    def new_folder(self) -> Folder:
        return MemoryFolder("memory://ledger")

    @precondition(lambda self: self.ledger is not None and len(self.heads) > 2)
    @rule()
    def die_before_the_head_is_written(self) -> None:
        self.die()
        self.folder.write("head", self.heads[sorted(self.heads)[-2]])


MANY = settings(max_examples=80, stateful_step_count=30, deadline=None, database=None)

TestOnADisk = OnADisk.TestCase
TestOnADisk.settings = MANY
TestInAnObjectStore = InAnObjectStore.TestCase
TestInAnObjectStore.settings = MANY


def test_the_log_of_noise_would_show_a_second_sum() -> None:
    """The machine above is of use only if its own check fails when it should."""
    state = InAnObjectStore()
    state.add_noise(charge(0))
    with pytest.raises(AssertionError, match="two sums"):
        state.add_noise(charge(0, digest="b"))
    with pytest.raises(AssertionError, match=">= 1"):
        state.what_was_noised_is_charged()
