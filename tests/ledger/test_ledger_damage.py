"""Damage to a ledger: all of it is refused; a lost end can be gone on from, and costs its charges.

The one exception is known and not tested here: who sets the whole folder back to what it once was
(records and head together) leaves a ledger that verifies. Checkpoints that are newer show that.
"""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.object_store import MemoryFolder, ObjectStore, serve_objects
from helpers.plans import privacy_plan
from helpers.support import key_of
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dp_ray.errors import LedgerError
from dp_ray.ledger.balance import Charge
from dp_ray.ledger.execution import Execution
from dp_ray.ledger.ledger import Ledger, Verdict
from dp_ray.ledger.lock import WriterLock
from dp_ray.privacy.accounting import epsilon_of
from dp_ray.storage import Folder, LocalFolder

KEY = key_of(3).derive("ledger")
OTHER_KEY = key_of(4).derive("ledger")
PLAN = privacy_plan(steps=40)
RECORDS, HEAD = "records.jsonl", "head"
GARBAGE = [b"\n", b"{}\n", b"[]\n", b"\0", b"null\n", b'{"body": "{}", "mac": ""}\n']
DEEP = b"[" * 9_999 + b"\n"

Files = dict[str, bytes]


def charge(step: int, incarnation: int = 0, digest: str = "a") -> Charge:
    return Charge(step, incarnation, digest, 1.0, 0.5, 0.1)


def write_run(folder: Folder, *, block: int, digest: str = "a", key: bytes = KEY) -> None:
    """Two sessions: one that ended, and one that repeated a step and died."""
    Ledger.create(folder, key, PLAN)
    for attempt in range(2):
        ledger = Ledger(folder, key, lock=WriterLock(folder, digest), block=block)
        ledger.open_session(
            Execution(workers=attempt), first_step=attempt, data="d", parameters="p"
        )
        for step in range(2 * attempt, 2 * attempt + 5):
            incarnation = ledger.incarnation_for(step, diverged=False)
            ledger.charge(charge(step, incarnation, f"{digest}{step}{attempt}"))
        ledger.add_checkpoint(f"checkpoint {attempt}", digest)
        if attempt == 0:
            ledger.close()
    ledger._chain.close()
    ledger._lock.release()  # type: ignore[union-attr]


def files_of(folder: Folder) -> Files:
    return {name: folder.read(name) for name in folder.names() if name != "lock"}


def write_files(folder: Folder, files: Files) -> None:
    for name in folder.names():
        folder.delete(name)
    for name, data in files.items():
        if isinstance(folder, LocalFolder):
            (folder.path / name).write_bytes(data)  # without fsync, which is slow
        else:
            folder.write(name, data)


def records_in(files: Files) -> list[bytes]:
    names = sorted(name for name in files if name.endswith(".jsonl"))
    return b"".join(files[name] for name in names).splitlines(keepends=True)


def with_records(files: Files, records: list[bytes]) -> Files:
    """The same layout: one file, or one object each, whose number orders it."""
    kept = {name: data for name, data in files.items() if not name.endswith(".jsonl")}
    if RECORDS in files:
        return {**kept, RECORDS: b"".join(records)}
    return kept | {f"{number:08d}-{0:08x}.jsonl": line for number, line in enumerate(records)}


class Case:
    """A genuine ledger in one layout, and others to mix it with."""

    def __init__(self, make: Callable[[str], Folder], block: int) -> None:
        self.folder, other, foreign = make("ledger"), make("other"), make("foreign")
        write_run(self.folder, block=block)
        write_run(other, block=block, digest="b")
        write_run(foreign, block=block, key=OTHER_KEY)
        self.files, self.other, self.foreign = map(files_of, (self.folder, other, foreign))

    def refuses(self, files: Files, **how: Any) -> str:
        """That it does, under its name and with a way out; the message."""
        write_files(self.folder, files)
        with pytest.raises(LedgerError) as refused:
            Ledger(self.folder, KEY, **how)
        message = str(refused.value)
        assert str(self.folder) in message
        assert "restore" in message
        return message


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with serve_objects() as served:
        yield served


OFFLINE = [("disk", 1), ("disk", 4), ("objects", 1), ("objects", 4)]
ALL = [*OFFLINE, ("S3", 4)]


@pytest.fixture(scope="module", params=ALL, ids=str)
def case(
    request: pytest.FixtureRequest, store: ObjectStore, tmp_path_factory: pytest.TempPathFactory
) -> Case:
    """Each layout, with each step charged by itself and in blocks."""
    layout, block = request.param
    root = tmp_path_factory.mktemp("ledgers")

    def make(name: str) -> Folder:
        if layout == "disk":
            return LocalFolder(root / name)
        if layout == "objects":
            return MemoryFolder(f"memory://{name}")
        return store.folder(f"{root.name}-{name}")

    return Case(make, block)


# A network between each example and the next would make them few.
offline = pytest.mark.parametrize("case", OFFLINE, indirect=True, ids=str)


def test_the_genuine_ledger_opens(case: Case) -> None:
    """Also with the head of any record before the last: it may lag behind."""
    write_files(case.folder, case.files)
    assert Ledger(case.folder, KEY).charges >= 10
    assert len(records_in(case.files)) > 12
    assert with_records(case.files, records_in(case.files))[HEAD] == case.files[HEAD]
    write_files(case.folder, with_records(case.files, records_in(case.files)))
    assert Ledger(case.folder, KEY).charges >= 10


@st.composite
def damages(draw: st.DrawFn) -> tuple[str, list[int], bytes]:
    """What is done, where (as fractions of whatever is there, in 1/10⁶), and with what."""
    how = draw(st.sampled_from(sorted(DAMAGE)))
    places = draw(st.lists(st.integers(0, 999_999), min_size=4, max_size=4))
    return how, places, draw(st.binary(min_size=1, max_size=40) | st.sampled_from([*GARBAGE, DEEP]))


def _at(place: int, length: int) -> int:
    return place * length // 1_000_000


def _some_file(files: Files, place: int) -> str:
    return sorted(files)[_at(place, len(files))]


def truncate(case: Case, places: list[int], _garbage: bytes) -> Files:
    name = _some_file(case.files, places[0])
    return {**case.files, name: case.files[name][: _at(places[1], len(case.files[name]))]}


def cut_records(case: Case, places: list[int], _garbage: bytes) -> Files:
    records = records_in(case.files)
    return with_records(case.files, records[: _at(places[0], len(records))])


def cut_out(case: Case, places: list[int], _garbage: bytes) -> Files:
    name = _some_file(case.files, places[0])
    data = case.files[name]
    first, last = sorted(_at(place, len(data) + 1) for place in places[1:3])
    return {**case.files, name: data[:first] + data[last:]}


def flip(case: Case, places: list[int], _garbage: bytes) -> Files:
    name = _some_file(case.files, places[0])
    data = bytearray(case.files[name])
    data[_at(places[1], len(data))] ^= 1 << _at(places[2], 8)
    return {**case.files, name: bytes(data)}


def insert_garbage(case: Case, places: list[int], garbage: bytes) -> Files:
    name = _some_file(case.files, places[0])
    data = case.files[name]
    at = _at(places[1], len(data) + 1)
    return {**case.files, name: data[:at] + garbage + data[at:]}


def append_garbage(case: Case, places: list[int], garbage: bytes) -> Files:
    name = _some_file(case.files, places[0])
    return {**case.files, name: case.files[name] + garbage}


def lose_a_file(case: Case, places: list[int], _garbage: bytes) -> Files:
    lost = _some_file(case.files, places[0])
    return {name: data for name, data in case.files.items() if name != lost}


def empty_a_file(case: Case, places: list[int], _garbage: bytes) -> Files:
    return {**case.files, _some_file(case.files, places[0]): b""}


def reorder(case: Case, places: list[int], _garbage: bytes) -> Files:
    records = records_in(case.files)
    one, other = _at(places[0], len(records)), _at(places[1], len(records))
    records[one], records[other] = records[other], records[one]
    return with_records(case.files, records)


def double(case: Case, places: list[int], _garbage: bytes) -> Files:
    records = records_in(case.files)
    records.insert(_at(places[0], len(records) + 1), records[_at(places[1], len(records))])
    return with_records(case.files, records)


def delete(case: Case, places: list[int], _garbage: bytes) -> Files:
    records = records_in(case.files)
    for place in places[: 1 + places[-1] % 3]:
        del records[_at(place, len(records))]
    return with_records(case.files, records)


def swap_with_another(case: Case, places: list[int], _garbage: bytes) -> Files:
    """A record of a ledger with the same key and plan (a copied run), at the same place."""
    records, others = records_in(case.files), records_in(case.other)
    at = _at(places[0], min(len(records), len(others)))
    return with_records(case.files, [*records[:at], others[at], *records[at + 1 :]])


def end_as_another(case: Case, places: list[int], _garbage: bytes) -> Files:
    records, others = records_in(case.files), records_in(case.other)
    at = _at(places[0], len(records))
    return with_records(case.files, records[:at] + others[at:])


def continue_as_another(case: Case, places: list[int], _garbage: bytes) -> Files:
    records = records_in(case.files)
    others = records_in(case.foreign if places[0] % 2 else case.other)
    return with_records(case.files, records + others[_at(places[1], len(others)) :])


def head_of_another(case: Case, places: list[int], _garbage: bytes) -> Files:
    return {**case.files, HEAD: (case.foreign if places[0] % 2 else case.other)[HEAD]}


def all_but_the_head_of_another(case: Case, _places: list[int], _garbage: bytes) -> Files:
    return {**case.other, HEAD: case.files[HEAD]}


def another_key(case: Case, _places: list[int], _garbage: bytes) -> Files:
    return case.foreign


DAMAGE: dict[str, Callable[[Case, list[int], bytes], Files]] = {
    f.__name__: f
    for f in (
        truncate,
        cut_records,
        cut_out,
        flip,
        insert_garbage,
        append_garbage,
        lose_a_file,
        empty_a_file,
        reorder,
        double,
        delete,
        swap_with_another,
        end_as_another,
        continue_as_another,
        head_of_another,
        all_but_the_head_of_another,
        another_key,
    )
}


@offline
@settings(deadline=None, max_examples=100, derandomize=True, database=None)
@given(damage=damages())
def test_damage_is_refused(case: Case, damage: tuple[str, list[int], bytes]) -> None:
    how, places, garbage = damage
    files = DAMAGE[how](case, places, garbage)
    assume(_differ(files, case.files))
    case.refuses(files)


def _differ(files: Files, original: Files) -> bool:
    """Not merely spread over other objects, in the same order."""
    return files.get(HEAD) != original[HEAD] or records_in(files) != records_in(original)


@pytest.mark.parametrize("how", sorted(DAMAGE))
def test_each_kind_of_damage_is_refused(case: Case, how: str) -> None:
    """Whatever hypothesis happens to draw: each kind, in the middle."""
    places = [500_001, 400_000, 700_000, 1]
    files = DAMAGE[how](case, places, b"garbage\n")
    assert _differ(files, case.files)
    case.refuses(files)


@pytest.mark.parametrize("garbage", [*GARBAGE, DEEP])
def test_garbage_behind_the_end_is_refused(case: Case, garbage: bytes) -> None:
    last = max(name for name in case.files if name.endswith(".jsonl"))
    case.refuses({**case.files, last: case.files[last] + garbage})


@pytest.fixture
def small(tmp_path: Path) -> Case:
    """A short one on the disk, for what is tried at every byte."""
    case = Case(lambda name: LocalFolder(tmp_path / name), 1)
    folder = LocalFolder(tmp_path / "small")
    Ledger.create(folder, KEY, PLAN)
    ledger = Ledger(folder, KEY, lock=WriterLock(folder, "x"), block=2)
    ledger.open_session(Execution(), first_step=0, data="", parameters="")
    for step in range(2):
        ledger.charge(charge(step))
    ledger.close()
    case.folder, case.files = folder, files_of(folder)
    return case


@pytest.mark.parametrize("name", [RECORDS, HEAD])
def test_every_single_byte_matters(small: Case, name: str) -> None:
    whole, path = small.files[name], Path(str(small.folder)) / name
    for position in range(len(whole)):
        broken = bytearray(whole)
        broken[position] ^= 1 << position % 8
        path.write_bytes(bytes(broken))
        with pytest.raises(LedgerError, match=f"{small.folder} .*restore"):
            Ledger(small.folder, KEY)
    path.write_bytes(whole)
    assert Ledger(small.folder, KEY).charges == 2


@pytest.mark.parametrize("name", [RECORDS, HEAD])
def test_every_length_but_the_whole_is_refused(small: Case, name: str) -> None:
    whole, path = small.files[name], Path(str(small.folder)) / name
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(LedgerError, match=f"{small.folder} .*restore"):
            Ledger(small.folder, KEY)


def test_a_writer_refuses_damage_too_and_changes_nothing(case: Case) -> None:
    for how in ("flip", "cut_records", "head_of_another"):
        files = DAMAGE[how](case, [500_001, 400_000, 300_000, 1], b"")
        write_files(case.folder, files)
        lock = WriterLock(case.folder, "mine")
        with pytest.raises(LedgerError, match="restore"):
            Ledger(case.folder, KEY, lock=lock)
        lock.release()
        assert files_of(case.folder) == files


# Going on from a lost end.


def used(records: list[bytes]) -> dict[int, set[int]]:
    """Step → all incarnations that records paid for."""
    found: dict[int, set[int]] = {}
    for line in records:
        body = json.loads(json.loads(line)["body"])
        if body["kind"] == "charge":
            for step in range(body["step"], body["step"] + body["count"]):
                found.setdefault(step, set()).add(body["incarnation"])
    return found


def repaired(folder: Folder, files: Files, *, block: int = 1) -> Ledger:
    write_files(folder, files)
    return Ledger(folder, KEY, lock=WriterLock(folder, "repair"), block=block, repair=True)


@offline
@pytest.mark.parametrize("block", [1, 7])
def test_a_lost_end_costs_its_charges_and_its_incarnations(case: Case, block: int) -> None:
    records = records_in(case.files)
    on_disk = RECORDS in case.files  # objects are whole or not there
    for keep, torn in itertools.product(range(1, len(records)), (0, 1, 90) if on_disk else (0,)):
        kept = with_records(case.files, records[:keep])
        if torn:
            kept[RECORDS] += records[keep][:torn]
        case.refuses(kept)
        ledger = repaired(case.folder, kept, block=block)
        bodies = [json.loads(json.loads(line)["body"]) for line in records]
        # The head knows what all of them paid for: exactly that, lost or not.
        assert ledger.charges == sum(b["count"] for b in bodies if b["kind"] == "charge")
        assert ledger.repairs == 1
        highest = max((max(found) for found in used(records[:keep]).values()), default=0)
        before = used(records)
        for step in range(12):
            for diverged in (False, True):
                incarnation = ledger.incarnation_for(step, diverged=diverged)
                if ledger.is_paid(step, incarnation):
                    assert not diverged
                    assert ledger.charge(charge(step, incarnation, "new")) is Verdict.CONFLICT
                else:
                    assert incarnation > highest
                    assert incarnation not in before.get(step, set())
        _check_old_incarnations(ledger, before)
        spent = ledger.charges
        ledger.close()
        again = Ledger(case.folder, KEY)  # and it verifies from now on
        assert (again.charges, again.repairs) == (spent, 1)


def _check_old_incarnations(ledger: Ledger, before: dict[int, set[int]]) -> None:
    """Nothing new can be had at an address that may have been noised."""
    for step, incarnations in before.items():
        for incarnation in incarnations:
            assert ledger.charge(charge(step, incarnation, "new")) is Verdict.CONFLICT


def test_a_torn_last_record_is_gone_on_from(small: Case) -> None:
    """A power cut while a charge was written: the head does not know of it."""
    files = {**small.files, RECORDS: small.files[RECORDS] + b'{"body": "{'}
    assert "--repair" in small.refuses(files)
    ledger = repaired(small.folder, files)
    assert ledger.charges == 2 + 2  # it may have been a block of two
    ledger.open_session(Execution(), first_step=0, data="", parameters="")
    assert ledger.charge(charge(0)) is Verdict.REPLAYED
    ledger.close()
    assert Ledger(small.folder, KEY).charges == 4


def test_what_was_given_back_is_not_free_after_a_repair(tmp_path: Path) -> None:
    """The session that used it may be what was lost."""
    folder = LocalFolder(tmp_path / "ledger")
    Ledger.create(folder, KEY, PLAN)
    ledger = Ledger(folder, KEY, lock=WriterLock(folder, "x"), block=4)
    ledger.open_session(Execution(), first_step=0, data="", parameters="")
    ledger.charge(charge(0))
    ledger.close()
    files = files_of(folder)
    ledger = Ledger(folder, KEY, lock=WriterLock(folder, "x"), block=4)
    ledger.open_session(Execution(), first_step=0, data="", parameters="")
    ledger.charge(charge(1))
    ledger._chain.close()
    ledger._lock.release()  # type: ignore[union-attr]
    ledger = repaired(folder, {**files, HEAD: folder.read(HEAD)})
    assert ledger.charge(charge(1, 0, "b")) is Verdict.CONFLICT
    assert ledger.incarnation_for(1, diverged=False) > 1


@pytest.mark.parametrize("first", [1, 4])
def test_a_lost_block_is_charged_in_full(first: int) -> None:
    """Without its session too: whoever repairs need not know how much one record paid for."""
    folder = MemoryFolder("memory://ledger")
    Ledger.create(folder, KEY, PLAN)
    for number, block in enumerate((first, 4)):
        ledger = Ledger(folder, KEY, lock=WriterLock(folder, "x"), block=block)
        ledger.open_session(Execution(), first_step=0, data="", parameters="")
        if number == 0 and first == 1:
            ledger.charge(charge(0))
            ledger.close()
            continue
        noised = [ledger.charge(charge(step)) for step in range(1, 5)]
        assert noised == [Verdict.CHARGED] * 4
        break
    files = files_of(folder)
    del files[max(name for name in files if name.endswith(".jsonl"))]  # the object with the block
    ledger = repaired(folder, files)
    assert ledger.charges >= 4 + (first == 1)


@offline
@settings(deadline=None, max_examples=60, derandomize=True, database=None)
@given(damage=damages())
def test_repair_mends_nothing_but_a_lost_end(
    case: Case, damage: tuple[str, list[int], bytes]
) -> None:
    """What does not begin as the genuine records begin, or has another's head, is not mended."""
    how, places, garbage = damage
    files = DAMAGE[how](case, places, garbage)
    assume(_differ(files, case.files))
    records, genuine = records_in(files), records_in(case.files)
    whole = [line for line in records if line.endswith(b"\n")]
    lost_end = (
        files.get(HEAD) == case.files[HEAD]
        and 0 < len(whole) <= len(genuine)
        and whole == genuine[: len(whole)]
    )
    longer = len(whole) == len(genuine) and whole == genuine
    assume(not lost_end and not longer)
    write_files(case.folder, files)
    lock = WriterLock(case.folder, "repair")
    with pytest.raises(LedgerError, match="restore"):
        Ledger(case.folder, KEY, lock=lock, repair=True)
    lock.release()
    assert files_of(case.folder) == files


def test_repair_does_not_take_another_ledgers_head_beside_a_torn_record(small: Case) -> None:
    """Of the same key, and of a record that is here: so it can be told."""
    early = MemoryFolder("memory://early")
    Ledger.create(early, KEY, replace(PLAN, steps=41))
    files = {RECORDS: small.files[RECORDS] + b"torn", HEAD: early.read(HEAD)}
    write_files(small.folder, files)
    lock = WriterLock(small.folder, "repair")
    try:
        with pytest.raises(LedgerError, match="restore"):
            Ledger(small.folder, KEY, lock=lock, repair=True)
    finally:
        lock.release()
    assert files_of(small.folder) == files


def test_repair_of_a_ledger_whose_plan_is_lost(case: Case) -> None:
    for records in ([], [records_in(case.files)[0][:30]]):
        if records and RECORDS not in case.files:
            continue
        files = with_records(case.files, records)
        write_files(case.folder, files)
        lock = WriterLock(case.folder, "repair")
        with pytest.raises(LedgerError, match="restore"):
            Ledger(case.folder, KEY, lock=lock, repair=True)
        lock.release()
        assert files_of(case.folder) == files  # what is refused is not cut either


def test_a_repair_does_not_forget_that_an_accuracy_was_published(small: Case) -> None:
    """Nobody knows what a lost record held, so it counts as an exact one."""
    lock = WriterLock(small.folder, "score")
    ledger = Ledger(small.folder, KEY, lock=lock)
    assert ledger.charge_score("one", 20.0) == ((20.0, 1.0, 1),)
    ledger.close()
    files = files_of(small.folder)
    ledger = repaired(small.folder, with_records(files, records_in(files)[:-1]))
    ledger.close()
    ledger = Ledger(small.folder, KEY, lock=WriterLock(small.folder, "again"))  # read back
    published = ledger.charge_score("two", 20.0)
    ledger.close()
    assert published == ((0.0, 1.0, 1), (20.0, 1.0, 1))
    assert math.isinf(epsilon_of("rdp", published, 1e-5))


def test_repair_needs_the_right_to_write(small: Case) -> None:
    for tail in (b"", b"torn"):
        records = b"".join(records_in(small.files)[:-1]) + tail
        files = {**small.files, RECORDS: records}
        write_files(small.folder, files)
        with pytest.raises(LedgerError):
            Ledger(small.folder, KEY, repair=True)
        assert files_of(small.folder) == files


def test_repair_of_a_torn_object_is_refused_in_words(store: ObjectStore) -> None:
    """Objects are whole or not there: one that is shorter was changed by somebody."""
    case = Case(lambda name: store.folder(f"torn-{name}"), 1)
    last = max(name for name in case.files if name.endswith(".jsonl"))
    files = {**case.files, last: case.files[last][:-9]}
    write_files(case.folder, files)
    lock = WriterLock(case.folder, "repair")
    with pytest.raises(LedgerError, match=f"{case.folder}.*restore"):
        Ledger(case.folder, KEY, lock=lock, repair=True)
    lock.release()


def test_repair_of_a_ledger_that_is_whole_changes_nothing(case: Case) -> None:
    ledger = repaired(case.folder, case.files)
    assert (ledger.repairs, ledger.charges) == (0, _charges(case))
    ledger.close()
    assert files_of(case.folder) == case.files


def _charges(case: Case) -> int:
    write_files(case.folder, case.files)
    return Ledger(case.folder, KEY).charges


# A disk that is full, broken or read-only.


def opened(folder: Folder, block: int) -> tuple[Ledger, WriterLock]:
    lock = WriterLock(folder, "mine")
    ledger = Ledger(folder, KEY, lock=lock, block=block)
    ledger.open_session(Execution(), first_step=0, data="", parameters="")
    return ledger, lock


@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("fault", ["part", "short", "none", "fsync", "head"])
def test_a_record_that_cannot_be_written_stops_the_release(
    small: Case, monkeypatch: pytest.MonkeyPatch, block: int, fault: str
) -> None:
    ledger, lock = opened(small.folder, block)
    before, records = ledger.charges, small.folder.read(RECORDS)
    with monkeypatch.context() as patch:
        _break(patch, fault)
        with pytest.raises(LedgerError, match=r"nothing was released.*--resume") as refused:
            ledger.charge(charge(5))
    assert str(small.folder) in str(refused.value)
    assert ledger.charges == before
    # By this instance nothing more is written, though the disk is well again …
    for step in (5, 6):
        with pytest.raises(LedgerError, match="not open for writing"):
            ledger.charge(charge(step))
    lock.release()
    # … and what is there verifies: with the charge, or as if it had never been asked for.
    left = small.folder.read(RECORDS)
    if fault in {"part", "short", "none"}:
        assert left == records
    assert left.startswith(records)
    again, _ = opened(small.folder, block)
    assert again.charges == before + (0 if left == records else block)
    again.close()


def _break(patch: pytest.MonkeyPatch, fault: str) -> None:
    write, full = os.write, OSError(errno.ENOSPC, "No space left on device")

    def part(descriptor: int, data: bytes) -> int:
        if fault != "none":
            write(descriptor, data[: len(data) // 2])
        if fault == "short":
            return len(data) // 2
        raise full

    def broken(*_args: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    if fault == "fsync":
        patch.setattr(os, "fsync", broken)
    elif fault == "head":
        patch.setattr(os, "pwrite", broken)
    else:
        patch.setattr(os, "write", part)


def test_a_digest_that_cannot_be_written_stops_the_release(
    small: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not durable, but a step whose digest is known to be lost is not noised."""
    ledger, lock = opened(small.folder, 4)
    ledger.charge(charge(5))
    with monkeypatch.context() as patch:
        _break(patch, "part")
        with pytest.raises(LedgerError, match="nothing was released"):
            ledger.charge(charge(6))
    lock.release()
    again, _ = opened(small.folder, 4)
    assert again.charges == 6
    assert again.charge(charge(6)) is Verdict.CONFLICT
    again.close()


@pytest.mark.parametrize("fault", ["part", "fsync"])
def test_a_failed_ledger_closes_without_a_second_error(
    small: Case, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """It is closed because of the first one, which is what the user must read."""
    ledger, _ = opened(small.folder, 4)
    ledger.charge(charge(5))  # three more are paid for
    with monkeypatch.context() as patch:
        _break(patch, fault)
        with pytest.raises(LedgerError, match="nothing was released"):
            ledger.add_checkpoint("a", "b")
    ledger.close()
    WriterLock(small.folder, "next").release()
    assert Ledger(small.folder, KEY).charges == 6


def test_a_read_only_folder_is_read_and_not_written(
    small: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = WriterLock(small.folder, "mine")
    open_file = os.open

    def read_only(path: str, flags: int, *mode: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, "Read-only file system")
        return open_file(path, flags, *mode)

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(LedgerError, match=r"Read-only.*restore"):
        Ledger(small.folder, KEY, lock=lock)
    assert Ledger(small.folder, KEY).charges == 2
