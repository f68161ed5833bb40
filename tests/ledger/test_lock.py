"""The lock: one writer, known by name, and none that was pushed aside writes on."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from helpers.object_store import MemoryFolder
from helpers.plans import privacy_plan

from dp_ray.errors import LedgerError
from dp_ray.ledger.balance import Charge
from dp_ray.ledger.execution import Execution
from dp_ray.ledger.ledger import Ledger, Verdict
from dp_ray.ledger.lock import Owner, WriterLock
from dp_ray.storage import Folder, LocalFolder

KEY = bytes(range(32))
PLAN = privacy_plan()

HOLD = """
import sys
from pathlib import Path
from dp_ray.ledger.lock import WriterLock
from dp_ray.storage import LocalFolder

lock = WriterLock(LocalFolder(Path(sys.argv[1])), "of the holder")
print("held", flush=True)
sys.stdin.read()  # until the parent lets go, or kills
"""


@pytest.fixture
def disk(tmp_path: Path) -> LocalFolder:
    (tmp_path / "ledger").mkdir()
    return LocalFolder(tmp_path / "ledger")


@pytest.fixture(params=["disk", "objects"])
def folder(request: pytest.FixtureRequest, disk: LocalFolder) -> Folder:
    return disk if request.param == "disk" else MemoryFolder("memory://ledger")


@pytest.fixture
def holder(disk: LocalFolder) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock on the disk."""
    command = [sys.executable, "-c", HOLD, str(disk)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def owned(folder: Folder, **changed: object) -> Owner:
    """Leaves the lock file of another process in an object store."""
    owner = replace(Owner.this_process("theirs"), **changed)  # type: ignore[arg-type]
    folder.write("lock", json.dumps(asdict(owner)).encode())
    return owner


def ledger_of(folder: Folder, lock: WriterLock, block: int = 1) -> Ledger:
    ledger = Ledger(folder, KEY, lock=lock, block=block)
    ledger.open_session(Execution(), first_step=0, data="", parameters="")
    return ledger


def charge(step: int, digest: str = "a") -> Charge:
    return Charge(step, 0, digest, 1.0, 0.5, 0.1)


# On both.


def test_a_second_writer_is_refused_and_told_who_holds_it(folder: Folder) -> None:
    lock = WriterLock(folder, "one")
    with pytest.raises(LedgerError, match="another process writes this run") as refused:
        WriterLock(folder, "two")
    message = str(refused.value)
    assert f"process {os.getpid()} on {socket.gethostname()}" in message
    assert message.startswith(str(folder))
    assert "--break-lock" in message
    lock.check()  # the attempt did not take it away


def test_a_lock_that_was_released_is_free(folder: Folder) -> None:
    lock = WriterLock(folder, "one")
    lock.release()
    with pytest.raises(LedgerError):
        lock.check()
    WriterLock(folder, "two").release()


def test_a_release_does_not_take_the_next_writers_lock(folder: Folder) -> None:
    first = WriterLock(folder, "one")
    first.release()
    second = WriterLock(folder, "two")
    first.release()
    second.check()
    with pytest.raises(LedgerError):
        WriterLock(folder, "three")


def test_who_is_pushed_aside_does_not_take_the_lock_along(folder: Folder) -> None:
    first = WriterLock(folder, "one")
    second = WriterLock(folder, "two", take_over=True)
    first.release()
    second.check()
    with pytest.raises(LedgerError):
        WriterLock(folder, "three")


@pytest.mark.parametrize("block", [1, 4])
def test_the_old_holder_charges_nothing_after_a_takeover(folder: Folder, block: int) -> None:
    Ledger.create(folder, KEY, PLAN)
    old = ledger_of(folder, WriterLock(folder, "one"), block)
    assert old.charge(charge(0)) is Verdict.CHARGED
    new = ledger_of(folder, WriterLock(folder, "two", take_over=True), block)
    if block == 1 or folder.path is not None:
        with pytest.raises(LedgerError, match=f"taken over by process {os.getpid()}"):
            old.charge(charge(1))
    else:  # paid for before the takeover, and for the new holder never to be noised as it was
        assert old.charge(charge(1)) is Verdict.CHARGED
        assert new.charge(charge(1)) is Verdict.CONFLICT
    with pytest.raises(LedgerError):
        old.charge(charge(5))
    assert new.charge(charge(6)) is Verdict.CHARGED
    assert Ledger(folder, KEY).charges == new.charges


def test_the_old_holder_closes_without_a_word_after_a_takeover(folder: Folder) -> None:
    """It ends because of another error, which a second one must not hide."""
    Ledger.create(folder, KEY, PLAN)
    old = ledger_of(folder, WriterLock(folder, "one"), block=4)
    old.charge(charge(0))
    new = ledger_of(folder, WriterLock(folder, "two", take_over=True))
    before = Ledger(folder, KEY).position
    old.close()
    assert Ledger(folder, KEY).position == before
    new.close()


def test_a_takeover_during_the_write_is_noticed_before_the_release(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guard asks again when the record is written: no noise if the lock went meanwhile."""
    Ledger.create(folder, KEY, PLAN)
    ledger = ledger_of(folder, WriterLock(folder, "one"))
    lines = ledger._chain._lines
    append = lines.append

    def taken_over_meanwhile(line: bytes, *, durable: bool) -> bool:
        WriterLock(folder, "two", take_over=True)
        return append(line, durable=durable)

    monkeypatch.setattr(lines, "append", taken_over_meanwhile)
    with pytest.raises(LedgerError, match="taken over"):
        ledger.charge(charge(0))


def test_a_wait_ends_when_the_holder_does(folder: Folder) -> None:
    first = WriterLock(folder, "one")
    timer = threading.Timer(0.3, first.release)
    timer.start()
    WriterLock(folder, "two", wait_s=30).check()
    timer.join()


# On a disk: the kernel's lock.


def test_another_process_is_refused_by_name(
    disk: LocalFolder, holder: subprocess.Popen[str]
) -> None:
    with pytest.raises(LedgerError, match=f"process {holder.pid} on {socket.gethostname()}"):
        WriterLock(disk, "mine", wait_s=0.3)


def test_a_killed_holder_leaves_the_lock_free(
    disk: LocalFolder, holder: subprocess.Popen[str]
) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    WriterLock(disk, "mine").check()


def test_a_writer_waits_for_a_holder_that_is_killed(
    disk: LocalFolder, holder: subprocess.Popen[str]
) -> None:
    timer = threading.Timer(0.3, holder.kill)
    timer.start()
    WriterLock(disk, "mine", wait_s=30).check()
    timer.join()
    assert holder.wait() == -signal.SIGKILL


def test_a_takeover_from_a_living_process(disk: LocalFolder, holder: subprocess.Popen[str]) -> None:
    lock = WriterLock(disk, "mine", take_over=True)
    lock.check()
    assert holder.poll() is None
    with pytest.raises(LedgerError, match=f"process {os.getpid()}"):
        WriterLock(disk, "third")


def test_the_same_attempt_is_no_way_around_a_kernel_lock(disk: LocalFolder) -> None:
    lock = WriterLock(disk, "same")
    with pytest.raises(LedgerError, match="another process"):
        WriterLock(disk, "same")
    lock.check()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": 3}', b"\xff"])
def test_a_lock_file_that_names_nobody_still_locks(disk: LocalFolder, content: bytes) -> None:
    lock = WriterLock(disk, "one")
    (disk.path / "lock").write_bytes(content)
    with pytest.raises(LedgerError, match="unknown"):
        WriterLock(disk, "two")
    lock.release()
    WriterLock(disk, "two").check()


def test_a_lock_file_that_was_removed_stops_its_holder(disk: LocalFolder) -> None:
    lock = WriterLock(disk, "one")
    (disk.path / "lock").unlink()
    with pytest.raises(LedgerError, match="taken over by another process"):
        lock.check()


def test_a_folder_that_is_not_there_or_read_only_is_said_so(
    disk: LocalFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(LedgerError, match="cannot be written"):
        WriterLock(disk / "missing", "one")
    open_file = os.open

    def read_only(path: str, flags: int, *mode: int) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(30, "Read-only file system")
        return open_file(path, flags, *mode)

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(LedgerError, match=r"cannot be written: .*Read-only"):
        WriterLock(disk, "one")


# In an object store: a file that names its owner.


@pytest.fixture
def objects() -> MemoryFolder:
    return MemoryFolder("memory://ledger")


def test_a_foreign_owner_is_refused_unless_it_is_broken(objects: MemoryFolder) -> None:
    """Whether it is alive cannot be told from here, so a dead number there means nothing."""
    owned(objects, host="elsewhere", place="elsewhere", pid=2**22 + 1, started=0.0)
    with pytest.raises(LedgerError, match=f"process {2**22 + 1} on elsewhere"):
        WriterLock(objects, "mine")
    WriterLock(objects, "mine", take_over=True).check()


@pytest.mark.parametrize("place", ["another container", ""])
def test_a_host_of_this_name_is_not_this_place(objects: MemoryFolder, place: str) -> None:
    """Containers may share a name, and each numbers its own processes."""
    owned(objects, place=place, pid=2**22 + 1, started=0.0)
    with pytest.raises(LedgerError, match=f"process {2**22 + 1} on {socket.gethostname()}"):
        WriterLock(objects, "mine")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": 3}', b"\xff"])
def test_an_owner_that_cannot_be_read_is_an_owner(objects: MemoryFolder, content: bytes) -> None:
    """It may be of another version of this program: to take its place is a person's decision."""
    objects.write("lock", content)
    with pytest.raises(LedgerError, match="another process writes this run"):
        WriterLock(objects, "mine")
    assert objects.read("lock") == content
    WriterLock(objects, "mine", take_over=True).check()


def test_the_same_attempt_takes_its_earlier_process_lock(objects: MemoryFolder) -> None:
    owned(objects, host="elsewhere", place="elsewhere", attempt="mine")
    WriterLock(objects, "mine").check()


def test_the_earlier_process_of_an_attempt_notices(objects: MemoryFolder) -> None:
    first = WriterLock(objects, "mine")
    second = WriterLock(objects, "mine")
    second.check()
    with pytest.raises(LedgerError, match="taken over"):
        first.check()


def test_a_dead_process_of_this_host_is_taken(objects: MemoryFolder) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    owned(objects, pid=process.pid)
    WriterLock(objects, "mine").check()


def test_a_number_that_is_used_again_is_another_process(objects: MemoryFolder) -> None:
    mine = Owner.this_process("theirs")
    owned(objects, started=mine.started - 1000)
    WriterLock(objects, "mine").check()


def test_a_living_process_of_this_host_is_not_taken(objects: MemoryFolder) -> None:
    owner = owned(objects)
    with pytest.raises(LedgerError, match=str(owner.pid)):
        WriterLock(objects, "mine")


def test_a_release_removes_the_file(objects: MemoryFolder) -> None:
    lock = WriterLock(objects, "mine")
    assert objects.names() == ["lock"]
    lock.release()
    assert objects.names() == []


def test_the_loser_of_a_race_notices(
    objects: MemoryFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both found no lock, both wrote; the last one has it."""
    write = MemoryFolder.write

    def and_another(self: MemoryFolder, name: str, data: bytes) -> None:
        write(self, name, data)
        write(self, name, json.dumps(asdict(Owner.this_process("other"))).encode())

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFolder, "write", and_another)
        with pytest.raises(LedgerError, match="another process writes this run"):
            WriterLock(objects, "mine")


def test_the_loser_of_a_late_race_notices_before_it_charges(objects: MemoryFolder) -> None:
    Ledger.create(objects, KEY, PLAN)
    ledger = ledger_of(objects, WriterLock(objects, "mine"))
    owned(objects, host="elsewhere")
    with pytest.raises(LedgerError, match="taken over by process"):
        ledger.charge(charge(0))
    assert Ledger(objects, KEY).charges == 0


def test_two_writers_that_do_not_know_of_each_other_break_the_chain(objects: MemoryFolder) -> None:
    """If all else fails: their objects have different names, and both are found."""
    Ledger.create(objects, KEY, PLAN)
    one = Ledger(objects, KEY, lock=_Blind(objects, "one"))
    two = Ledger(objects, KEY, lock=_Blind(objects, "two", take_over=True))
    for ledger, digest in ((one, "a"), (two, "b")):
        ledger.open_session(Execution(engine=digest), first_step=0, data="", parameters="")
    with pytest.raises(LedgerError, match="changed"):
        Ledger(objects, KEY)


def test_a_writer_that_does_not_know_of_another_does_not_write_behind_it(
    disk: LocalFolder,
) -> None:
    """On a disk the file has grown meanwhile, and stays as the other left it."""
    Ledger.create(disk, KEY, PLAN)
    one = Ledger(disk, KEY, lock=_Blind(disk, "one"))
    two = ledger_of(disk, _Blind(disk, "two", take_over=True))
    with pytest.raises(LedgerError, match="another process wrote"):
        one.charge(charge(0))
    assert two.charge(charge(0)) is Verdict.CHARGED
    assert Ledger(disk, KEY).charges == 1


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_store_that_does_not_answer_stops_the_writer(
    objects: MemoryFolder, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Whether the lock is still held cannot be asked: nothing is released, then or later."""
    Ledger.create(objects, KEY, PLAN)
    ledger = ledger_of(objects, WriterLock(objects, "mine"))
    read, asked = MemoryFolder.read, 0

    def unreachable(self: MemoryFolder, name: str) -> bytes:
        nonlocal asked
        asked += name == "lock"
        if asked > (when == "after"):
            raise OSError("no route to host")
        return read(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFolder, "read", unreachable)
        with pytest.raises(LedgerError, match="no route to host"):
            ledger.charge(charge(0))
    if when == "after":  # the record is there: another one by this instance would not follow it
        with pytest.raises(LedgerError):
            ledger.charge(charge(0))
    assert Ledger(objects, KEY).charges == (when == "after")


class _Blind(WriterLock):
    def check(self) -> None:
        """Sees nothing."""
