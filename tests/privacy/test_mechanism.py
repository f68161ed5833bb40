"""The seam of mechanisms: what the Gaussian one answers, and one with correlated noise instead.

``helpers.two_bands`` is that other one: a file, and the line of registry that is patched in here.
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.interrupted import crash, start_and_stop
from helpers.plans import privacy_plan
from helpers.support import (
    MakeConfig,
    charged,
    folder,
    key_of,
    released,
    same,
    start,
    what_is_raised,
)
from helpers.two_bands import BELOW, COLUMN_NORM, TwoBands
from torch import Tensor

from dp_ray.artifacts.claim import OWN_MECHANISM
from dp_ray.artifacts.run_directory import RunDirectory, deciding_fields
from dp_ray.config.run import Config
from dp_ray.errors import ConfigError, LedgerError, RunError
from dp_ray.keys import KeyedStream, SamplingKeys
from dp_ray.ledger.balance import Charge
from dp_ray.ledger.execution import Execution
from dp_ray.ledger.ledger import Ledger, Verdict
from dp_ray.ledger.lock import WriterLock
from dp_ray.privacy.accounting import epsilon_of
from dp_ray.privacy.adaptive import AdaptiveClipping
from dp_ray.privacy.gaussian import Gaussian
from dp_ray.privacy.history import History
from dp_ray.privacy.mechanism import (
    MECHANISMS,
    Cost,
    Mechanism,
    StepNoise,
    check_description,
    mechanism_of,
)
from dp_ray.privacy.noise import StepNoises
from dp_ray.privacy.plan import PrivacyPlan, solve_budget
from dp_ray.privacy.sampling import PoissonSampler, Shard
from dp_ray.storage import LocalFolder
from dp_ray.training.resume import plan_resumption
from dp_ray.training.step import Assignment, ShardSum, ShardWorker

KEY = key_of(8)
TWO_BANDS = "helpers.two_bands:TwoBands"
BANDED = privacy_plan(mechanism=TWO_BANDS)
COUNTER = itertools.count(1)


def streams(step: int) -> KeyedStream:
    return KeyedStream(KEY.derive("noise"), incarnation=0, step=step)


# The Gaussian one.


def test_the_gaussian_mechanism_answers_as_its_plan_says() -> None:
    plan = privacy_plan(noise_multiplier=2.0, noise_factors=(1.0, 0.5))  # 4 and 5 steps
    mechanism = mechanism_of(plan)
    assert isinstance(mechanism, Gaussian)
    assert mechanism.may_redraw
    assert mechanism.sampler == PoissonSampler(100, 10)
    assert [mechanism.cost_at(step) for step in (3, 4)] == [Cost(2.0, 0.1), Cost(1.0, 0.1)]
    assert [mechanism.noise_at(step) for step in (3, 4)] == [StepNoise(2.0), StepNoise(1.0)]
    assert mechanism.charges() == plan.releases == ((2.0, 0.1, 4), (1.0, 0.1, 5))
    spent = ((2.0, 0.1, 1), (1.0, 0.1, 4))
    assert mechanism.accounted(spent) == spent
    assert [mechanism.room(spent, Cost(sigma, 0.1)) for sigma in (0.5, 1.0, 2.0)] == [0, 1, 4]
    assert mechanism.next_max_grad_norm(0.5, 7.0) == 0.5


def test_adaptive_clipping_splits_the_noise_and_costs_the_same() -> None:
    adaptive = AdaptiveClipping(0.5, 0.2, count_noise=2.0)
    plan = privacy_plan(adaptive_clipping=adaptive)
    mechanism = mechanism_of(plan)
    assert mechanism.cost_at(0) == mechanism_of(privacy_plan()).cost_at(0)
    noise = mechanism.noise_at(0)
    assert noise == StepNoise(adaptive.sum_noise_multiplier(1.0), on_count=2.0)
    assert mechanism.next_max_grad_norm(0.5, 3.0) == adaptive.next_norm(0.5, 3.0, 10)
    assert "counts" in mechanism.sentence
    assert "counts" not in mechanism_of(privacy_plan()).sentence


def test_plans_keys_and_records_of_before_there_were_others_stay_as_they_are(
    make_config: MakeConfig,
) -> None:
    plan, other = privacy_plan(), replace(BANDED, mechanism_arguments=(("bands", 2),))
    assert "mechanism" not in " ".join(plan.dump())
    for one in (plan, other):
        assert PrivacyPlan.from_dump(json.loads(json.dumps(one.dump()))) == one
    assert "mechanism" not in " ".join(deciding_fields(make_config()))
    fields = deciding_fields(make_config(privacy={"mechanism": TWO_BANDS}))
    assert fields["privacy.mechanism"] == TWO_BANDS


@pytest.mark.parametrize(
    ("privacy", "problem"),
    [
        ({"mechanism": "laplace"}, r"mechanism = 'laplace': no such mechanism.*gaussian"),
        ({"mechanism": "helpers.nowhere:Own"}, r"privacy\.mechanism = .*cannot be imported"),
        ({"mechanism": "builtins:repr"}, r"privacy\.mechanism = .*gives a str.*Derive"),
        ({"mechanism": "builtins:int"}, r"privacy\.mechanism = .*cannot be made"),
        ({"mechanism_arguments": {"bands": 2}}, r"mechanism_arguments = \{'bands': 2\}: gaussian"),
    ],
)
def test_what_is_no_mechanism_is_refused(
    make_config: MakeConfig, privacy: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        solve_budget(make_config(privacy=privacy))


def described(**methods: Any) -> Mechanism:
    """Two bands, of which some methods answer otherwise."""
    made: Mechanism = type("Changed", (TwoBands,), methods)(BANDED)
    return made


@pytest.mark.parametrize(
    ("methods", "problem"),
    [
        ({"may_redraw": True}, r"step 0 has correlated noise.*may_redraw = False"),
        ({"noise_at": lambda _, step: StepNoise(1.0, feedback=(0.5,) * (step > 7))}, "step 8 dep"),
        ({"noise_at": lambda _, step: StepNoise(float(step != 8))}, "step 8 has no noise"),
        ({"noise_at": lambda *_: StepNoise(math.nan)}, "step 0 has numbers that are"),
        ({"noise_at": lambda *_: StepNoise(1.0, on_count=-1.0)}, "step 0 has numbers that are"),
        ({"noise_at": lambda *_: 1 / 0}, "cannot describe its steps: ZeroDivisionError"),
        ({"cost_at": lambda _, step: Cost(1.0 + step // 8, 0.2)}, r"charges\(\) has|step 8 costs"),
        ({"charges": lambda _: ((1.0, 0.2, 8),)}, r"charges\(\) has 8 charges for 9 steps"),
        ({"noise_at": lambda *_: StepNoise(float(next(COUNTER)))}, "not the same"),
    ],
)
def test_a_description_that_contradicts_itself_is_refused(
    methods: dict[str, Any], problem: str
) -> None:
    check_description(described())
    with pytest.raises(ConfigError, match=rf"privacy\.mechanism = .*{problem}"):
        check_description(described(**methods))


def test_a_plan_is_checked_for_contradictions(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TwoBands, "may_redraw", True)
    with pytest.raises(ConfigError, match="must not be drawn again"):
        solve_budget(make_config(privacy={"mechanism": TWO_BANDS}))


# Correlated noise.


def test_correlated_noise_is_what_the_mechanism_describes() -> None:
    """C times the noises is the streams' numbers again; C has two bands."""
    noises = StepNoises(TwoBands(BANDED))
    found = [noises.of(step, streams).normal(50) for step in range(6)]
    assert np.array_equal(found[0], streams(0).normal(50))
    for step in range(1, 6):
        expected = streams(step).normal(50)
        np.testing.assert_allclose(found[step] + BELOW * found[step - 1], expected, atol=1e-14)
    # After a restart, and for a step that is taken again.
    fresh = StepNoises(TwoBands(BANDED))
    for step in (4, 5, 5, 2, 3):
        assert np.array_equal(fresh.of(step, streams).normal(50), found[step])


def test_correlated_noise_must_not_be_drawn_again() -> None:
    class Careless(TwoBands):
        may_redraw = True

    with pytest.raises(ValueError, match="must not be drawn again"):
        StepNoises(Careless(BANDED)).of(0, streams)


def test_groups_take_turns() -> None:
    everyone, sampler = Shard(0, 100), TwoBands(BANDED).sampler
    first, second = (
        {int(i) for step in range(n, 300, 2) for i in sampler.draw(streams, step, everyone)}
        for n in (0, 1)
    )
    assert first | second == set(range(100))
    assert not first & second
    parts = [sampler.draw(streams, 4, Shard.of(rank, 3, 100)) for rank in range(3)]
    assert np.concatenate(parts).tolist() == sampler.draw(streams, 4, everyone).tolist()


@pytest.mark.parametrize("ids", [[3, 3], [4, 3], [2, 3], [3, 10]])
def test_a_draw_of_an_example_twice_or_of_another_shard_is_refused(ids: list[int]) -> None:
    class Drawn:
        def draw(self, *_: Any) -> Any:
            return np.array(ids)

    given: Any = dict.fromkeys(field.name for field in fields(ShardWorker))
    keys = SamplingKeys.from_bytes(bytes(96))
    worker = ShardWorker(**{**given, "keys": keys, "sampler": Drawn(), "shard": Shard(3, 10)})
    with pytest.raises(RunError, match=r"privacy\.mechanism: its sampler drew ids for step 5"):
        worker.drawn(Assignment(5, 0, 1.0, done=False))


# A run.


@pytest.mark.parametrize("registered", [True, False])
def test_a_newcomer_is_one_file_and_one_line(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, registered: bool
) -> None:
    monkeypatch.setitem(MECHANISMS, "two_bands", TWO_BANDS)
    name = "two_bands" if registered else TWO_BANDS
    config = make_config(privacy={"mechanism": name, "steps": 5})
    result = start(config)
    assert (result["status"], result["steps"]) == ("finished", 5)
    ledger = RunDirectory.of(config).read_ledger()
    accounted = ((1.0 / COLUMN_NORM, 2 * 64 / 1437, 3),)
    assert ledger.charges == result["charges"] == 5  # and not as accountants count
    assert ledger.plan.releases == ledger.history == accounted
    assert result["epsilon"] == pytest.approx(epsilon_of("rdp", accounted, 1e-4))
    statement = json.loads((folder(config) / "release/privacy.json").read_text())
    assert statement["mechanism"].startswith("DP-FTRL")
    assert (statement["charges"], statement["released"][0]["sums"]) == (5, 3)
    assert (OWN_MECHANISM in statement["assumptions"]) == (not registered)


def banded(make_config: MakeConfig, name: str) -> Any:
    privacy = {"mechanism": TWO_BANDS, "steps": 6}
    return make_config(name=name, privacy=privacy, train={"checkpoint_every": 2})


def test_a_crash_replays_what_may_not_be_drawn_again(make_config: MakeConfig) -> None:
    whole, config = banded(make_config, "whole"), banded(make_config, "crashed")
    start(whole)
    crash(config, at_step=3)
    result = start(config, resume=True)
    assert (result["steps"], charged(config)) == (6, [(step, 0) for step in range(6)])
    assert same(released(whole), released(config))


def test_what_may_not_be_drawn_again_is_not_rounded_otherwise(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where normal numbers differ in the last bit, equal sums would get two noises."""
    config = banded(make_config, "elsewhere")
    crash(config, at_step=3)
    monkeypatch.setattr("dp_ray.training.execution._COUNT", 100)
    with pytest.raises(LedgerError, match="Resume with the workers, threads, device and versions"):
        start(config, resume=True)
    assert charged(config) == [(step, 0) for step in range(4)]


def test_an_older_ledger_is_noticed_by_the_charges_of_the_result(
    make_config: MakeConfig,
) -> None:
    """Accountants take six charges of this mechanism as three sums."""
    config, older = banded(make_config, "older"), folder(banded(make_config, "kept"))
    start_and_stop(config, 4)
    shutil.copytree(folder(config) / "private", older)
    assert what_is_raised(lambda: start(config, resume=True)) == ""
    shutil.rmtree(folder(config) / "private")
    shutil.copytree(older, folder(config) / "private")
    with pytest.raises(LedgerError, match=r"tells of 6 noised sums and the ledger of 4"):
        plan_resumption(
            RunDirectory.of(config), RunDirectory.of(config).read_ledger(), raised(config, 8)
        )


def raised(config: Config, steps: int) -> Config:
    """The configuration with more steps."""
    privacy = config.privacy.model_copy(update={"steps": steps})
    return config.model_copy(update={"privacy": privacy})


def test_steps_that_would_have_had_other_noise_in_a_longer_run_stay_the_last(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise that is laid out by the number of steps is that of no longer run."""

    def fading(self: TwoBands, step: int) -> StepNoise:
        return StepNoise(1.0 + step / self.plan.steps, feedback=(-BELOW,))

    monkeypatch.setattr(TwoBands, "noise_at", fading)
    config = banded(make_config, "fading")
    start_and_stop(config, 2)
    run = RunDirectory.of(config)
    with pytest.raises(ConfigError, match="TwoBands was laid out for 6 steps"):
        plan_resumption(run, run.read_ledger(), raised(config, 8))


def test_another_sum_ends_a_run_that_may_not_draw_again(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = banded(make_config, "crashed")
    crash(config, at_step=3)
    before, add_up = charged(config), ShardWorker.clipped_sum

    def shaken(self: ShardWorker, params: Tensor, assignment: Assignment) -> ShardSum:
        found = add_up(self, params, assignment)
        found.vector[0] += 1e-6
        return found

    with monkeypatch.context() as patch:
        patch.setattr(ShardWorker, "clipped_sum", shaken)
        with pytest.raises(LedgerError, match=r"privacy\.mechanism = .*TwoBands: it may not"):
            start(config, resume=True)
    assert charged(config) == before
    assert start(config, resume=True)["steps"] == 6  # nothing was lost


@pytest.mark.parametrize("changed", [{"on_sum": 2.0}, {"feedback": (-0.25,)}])
def test_a_step_that_would_get_other_noise_is_not_taken_again(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]
) -> None:
    """The charge says neither how much noise is on the sum nor which steps it depends on."""
    config = banded(make_config, "crashed")
    crash(config, at_step=3)

    def noise_at(self: TwoBands, step: int) -> StepNoise:
        del self, step
        return replace(StepNoise(on_sum=1.0, feedback=(-BELOW,)), **changed)

    monkeypatch.setattr(TwoBands, "noise_at", noise_at)
    with pytest.raises(LedgerError, match="it may not draw a step again"):
        start(config, resume=True)


# The ledger.


def ledger(path: Path, plan: PrivacyPlan, *, block: int = 1, repair: bool = False) -> Ledger:
    """Open for writing; begun, if it was not."""
    where, key = LocalFolder(path), KEY.derive("ledger")
    if not (path / "head").exists():
        Ledger.create(where, key, plan)
    return Ledger(where, key, lock=WriterLock(where, "attempt"), block=block, repair=repair)


def session(of: Ledger, workers: int) -> Ledger:
    of.open_session(Execution(workers=workers), first_step=0, data="d", parameters="p")
    return of


def charge(step: int, digest: str = "a", incarnation: int = 0) -> Charge:
    return Charge(step, incarnation, digest, 1.0, 0.5, 0.2)


def test_a_step_that_may_not_be_drawn_again_keeps_its_incarnation(tmp_path: Path) -> None:
    """Whoever executes it, and whatever differed before: its digest decides."""
    first = session(ledger(tmp_path, BANDED, block=3), 1)
    assert first.charge(charge(0)) is Verdict.CHARGED
    first._chain.close()  # dies: steps 1 and 2 are paid for, and may have been noised
    assert first._lock is not None
    first._lock.release()
    again = session(ledger(tmp_path, BANDED), 2)
    steps, both = range(4), (False, True)
    found = {again.incarnation_for(step, diverged=diverged) for step in steps for diverged in both}
    assert found == {0}
    assert again.charge(charge(0)) is Verdict.REPLAYED
    for refused in (charge(0, "b"), charge(1), charge(0, incarnation=1), charge(4, incarnation=1)):
        with pytest.raises(LedgerError, match="may not draw a step again"):
            again.charge(refused)
    assert again.charges == 3
    again.close()


def test_a_repaired_ledger_of_such_a_mechanism_is_read_and_not_continued(tmp_path: Path) -> None:
    """Lost records may have used the noise of any later step."""
    session(ledger(tmp_path, BANDED), 1).close()
    with (tmp_path / "records.jsonl").open("ab") as torn:
        torn.write(b"{")
    repaired = session(ledger(tmp_path, BANDED, repair=True), 1)
    assert repaired.history == ((1.0 / COLUMN_NORM, 0.2, 1),)
    with pytest.raises(LedgerError, match="may not draw a step again"):
        repaired.charge(charge(0))
    repaired.close()


class Dipping(Gaussian):
    """The second step has the least noise, and the third the highest rate."""

    def cost_at(self, step: int) -> Cost:
        """See :class:`~dp_ray.privacy.mechanism.Mechanism`."""
        return {1: Cost(0.5, 0.1), 2: Cost(1.0, 0.3)}.get(step, Cost(1.0, 0.1))

    def charges(self) -> History:
        """See :class:`~dp_ray.privacy.mechanism.Mechanism`."""
        return tuple((*self.cost_at(step), 1) for step in range(self.plan.steps))


def torn_ledger(path: Path, plan: PrivacyPlan) -> None:
    session(ledger(path, plan), 1).close()
    with (path / "records.jsonl").open("ab") as torn:
        torn.write(b"{")


def test_a_repair_charges_for_the_least_noise_and_the_highest_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost records may be of any step, and the last is not the most costly."""
    monkeypatch.setattr("dp_ray.ledger.ledger.mechanism_of", Dipping)
    torn_ledger(tmp_path, privacy_plan())
    repaired = ledger(tmp_path, privacy_plan(), repair=True)
    assert repaired.charged == ((0.5, 0.3, 1),)
    repaired.close()


def test_a_repair_that_fails_leaves_the_ledger_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The torn record tells what to charge for, and must not be removed before it is charged."""

    def gone(plan: PrivacyPlan) -> Mechanism:
        raise ConfigError("privacy.mechanism", plan.mechanism, "cannot be imported", "Repair it")

    torn_ledger(tmp_path, BANDED)
    before = (tmp_path / "records.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("dp_ray.ledger.ledger.mechanism_of", gone)
        lock = WriterLock(LocalFolder(tmp_path), "attempt")
        with pytest.raises(ConfigError, match="cannot be imported"):
            Ledger(LocalFolder(tmp_path), KEY.derive("ledger"), lock=lock, repair=True)
        lock.release()
    assert (tmp_path / "records.jsonl").read_bytes() == before
    repaired = ledger(tmp_path, BANDED, repair=True)
    assert repaired.charges == 1
    repaired.close()


def test_accountants_take_what_the_mechanism_makes_of_charges(tmp_path: Path) -> None:
    found = session(ledger(tmp_path, BANDED), 1)
    for step, pairs in enumerate((1, 1, 2, 2, 3)):
        found.charge(charge(step))
        assert found.charges == step + 1
        assert found.history == ((1.0 / COLUMN_NORM, 0.2, pairs),)
    found.close()


def test_a_planned_charge_covers_one_at_its_own_rate_alone() -> None:
    mechanism = Dipping(privacy_plan())  # σ = 1 at q = 0.1, of two steps σ = 0.5 and q = 0.3
    room = mechanism.room
    assert (room((), Cost(1.0, 0.1)), room((), Cost(1.0, 0.3)), room((), Cost(1.0, 0.2))) == (
        8,
        1,
        0,
    )
    assert room(((1.0, 0.3, 1),), Cost(1.0, 0.1)) == 8
    for exceeded in (((1.0, 0.3, 2),), ((1.0, 0.2, 1),), ((0.5, 0.3, 1),)):
        assert room(exceeded, Cost(1.0, 0.1)) < 0
        assert not mechanism.covers(exceeded)
    assert mechanism.covers(mechanism.charges())


class Sparing(Gaussian):
    """Covers three charges, whatever T is."""

    def room(self, charged: History, cost: Cost) -> int:
        """See :class:`~dp_ray.privacy.mechanism.Mechanism`."""
        return min(3 - sum(count for _, _, count in charged), super().room(charged, cost))


@pytest.mark.parametrize("block", [1, 2])
def test_the_ledger_charges_what_the_mechanism_covers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr("dp_ray.ledger.ledger.mechanism_of", Sparing)
    found = session(ledger(tmp_path, privacy_plan(), block=block), 1)
    for step in range(3):
        assert found.affords(Cost(1.0, 0.1)) or found.is_paid(step, 0)
        found.charge(replace(charge(step), sample_rate=0.1))
    assert not found.affords(Cost(1.0, 0.1))
    with pytest.raises(LedgerError, match="budget is spent"):
        found.charge(replace(charge(3), sample_rate=0.1))
    assert found.charges == 3
    assert math.isfinite(epsilon_of("rdp", found.history, 1e-5))
    found.close()
