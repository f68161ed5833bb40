"""The ledger: durable before a verdict, one noise one sum, and no change goes unseen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dp_ray.errors import LedgerError
from dp_ray.keys import RunKey
from dp_ray.privacy.ledger import Charge, Ledger, Verdict

KEY = RunKey.from_seed(3).derive("ledger")


def charge(step: int, *, digest: str = "a", incarnation: int = 0) -> Charge:
    return Charge(step, incarnation, digest, 1.0, 0.5, 0.1)


def filled(path: Path, steps: int = 5) -> Ledger:
    Ledger.create(path, KEY, {"steps": 9})
    ledger = Ledger(path, KEY, writable=True)
    ledger.open_session({"workers": 2})
    for step in range(steps):
        assert ledger.charge(charge(step)) is Verdict.CHARGED
    return ledger


def test_charges_survive(tmp_path: Path) -> None:
    position = filled(tmp_path / "ledger").position
    again = Ledger(tmp_path / "ledger", KEY)
    assert (again.charges, again.next_step(), again.incarnation) == (5, 5, 0)
    assert again.history == ((1.0, 0.1, 5),)
    assert again.plan == {"steps": 9}
    assert again.executions_from(3) == [{"workers": 2}] * 2
    assert again.recorded(3) == charge(3)
    assert again.recorded(5) is None
    assert again.position == position
    assert again.reaches(position)
    assert not again.reaches("elsewhere")


def test_a_charge_is_on_disk_when_it_returns(tmp_path: Path) -> None:
    ledger = filled(tmp_path / "ledger", steps=1)
    ledger.charge(charge(1))
    assert Ledger(tmp_path / "ledger", KEY).charges == 2


def test_same_sum_is_a_replay_at_no_cost(tmp_path: Path) -> None:
    filled(tmp_path / "ledger").close()
    again = Ledger(tmp_path / "ledger", KEY, writable=True)
    assert again.charge(charge(2)) is Verdict.REPLAYED
    assert again.charges == 5


@pytest.mark.parametrize(
    "changed", [{"digest": "b"}, {"noise_multiplier": 2.0}, {"max_grad_norm": 1.0}]
)
def test_another_sum_never_gets_the_same_noise(tmp_path: Path, changed: dict[str, object]) -> None:
    ledger = filled(tmp_path / "ledger")
    other = replace(charge(2), **changed)  # type: ignore[arg-type]
    assert ledger.charge(other) is Verdict.CONFLICT
    assert ledger.charges == 5
    assert ledger.charge(replace(other, incarnation=1)) is Verdict.CHARGED
    assert (ledger.charges, ledger.incarnation) == (6, 1)
    # The old invocation is history: it cannot be released again either.
    assert ledger.charge(charge(2)) is Verdict.CONFLICT


def test_history_counts_each_noise_by_itself(tmp_path: Path) -> None:
    ledger = filled(tmp_path / "ledger", steps=2)
    ledger.charge(replace(charge(2), noise_multiplier=3.0))
    assert ledger.history == ((1.0, 0.1, 2), (3.0, 0.1, 1))


def test_two_writers_are_refused_and_readers_are_not(tmp_path: Path) -> None:
    """Two coordinators on one run would add equal noise to two sums."""
    first = filled(tmp_path / "ledger")
    with pytest.raises(LedgerError, match="another process"):
        Ledger(tmp_path / "ledger", KEY, writable=True)
    assert Ledger(tmp_path / "ledger", KEY).charges == 5
    first.close()
    Ledger(tmp_path / "ledger", KEY, writable=True).close()


def test_a_ledger_is_created_once(tmp_path: Path) -> None:
    filled(tmp_path / "ledger")
    with pytest.raises(FileExistsError):
        Ledger.create(tmp_path / "ledger", KEY, {})


def test_a_lost_ledger_is_not_begun_again(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="what this run has spent"):
        Ledger(tmp_path / "ledger", KEY, writable=True)


def test_file_is_for_its_owner_only(tmp_path: Path) -> None:
    filled(tmp_path / "ledger")
    assert (tmp_path / "ledger").stat().st_mode & 0o777 == 0o600


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def test_every_single_byte_matters(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    filled(path, steps=2)
    whole = path.read_bytes()
    for position in range(len(whole)):
        broken = bytearray(whole)
        broken[position] ^= 1
        path.write_bytes(bytes(broken))
        with pytest.raises(LedgerError):
            Ledger(path, KEY)


@pytest.mark.parametrize(
    "how", ["delete", "delete the first", "swap", "duplicate", "torn", "forged", "empty"]
)
def test_tampering_is_refused(tmp_path: Path, how: str) -> None:
    path = tmp_path / "ledger"
    filled(path)
    records = lines(path)
    if how == "delete":
        del records[2]
    elif how == "delete the first":
        del records[0]
    elif how == "empty":
        records.clear()
    elif how == "swap":
        records[2], records[3] = records[3], records[2]
    elif how == "duplicate":
        records.insert(3, records[2])
    elif how == "torn":
        records[-1] = records[-1][:-9]
    else:  # someone without the key writes a well-formed record
        Ledger.create(tmp_path / "other", RunKey.from_seed(4).derive("ledger"), {"steps": 9})
        records += lines(tmp_path / "other")
    path.write_bytes(b"".join(records))
    with pytest.raises(LedgerError, match=r"line \d+.*restore"):
        Ledger(path, KEY)


def test_a_ledger_that_cannot_be_written_stops_the_release(tmp_path: Path) -> None:
    filled(tmp_path / "ledger").close()
    ledger = Ledger(tmp_path / "ledger", KEY)
    with pytest.raises(LedgerError, match="nothing was released"):
        ledger.charge(charge(5))
    assert ledger.charges == 5


def test_no_key_material_in_the_file(tmp_path: Path) -> None:
    filled(tmp_path / "ledger")
    text = (tmp_path / "ledger").read_text()
    assert KEY.hex() not in text
    assert json.loads(json.loads(text.splitlines()[0])["body"])["steps"] == 9
