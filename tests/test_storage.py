"""Folders: whole files or none, for the owner only, on a disk and in an object store alike."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.object_store import ObjectStore, serve_objects
from helpers.plans import privacy_plan

from dp_ray.errors import LedgerError, StorageError
from dp_ray.ledger.balance import Charge
from dp_ray.ledger.execution import Execution
from dp_ray.ledger.ledger import Ledger, Verdict
from dp_ray.ledger.lock import WriterLock
from dp_ray.storage import Folder, LocalFolder, ObjectFolder, open_folder

KEY = bytes(range(32))
PLAN = privacy_plan()


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with serve_objects() as served:
        yield served


@pytest.fixture(params=["local", "objects"])
def folder(request: pytest.FixtureRequest, store: ObjectStore, tmp_path: Path) -> Folder:
    """An empty folder that is not there yet."""
    return (
        LocalFolder(tmp_path / "new") if request.param == "local" else store.folder(tmp_path.name)
    )


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_written_is_read(folder: Folder) -> None:
    folder.write("b", b"first")
    folder.write("a", b"\0\xff" * 70_000)
    folder.write("b", b"second")
    (folder / "inner").write("c", b"")
    assert (folder.read("a"), folder.read("b")) == (b"\0\xff" * 70_000, b"second")
    assert (folder / "inner").read("c") == b""
    assert folder.names() == ["a", "b", "inner"]
    assert (folder / "inner").names() == ["c"]
    assert str(folder / "inner") == f"{folder}/inner"


def test_what_is_not_there(folder: Folder) -> None:
    assert folder.names() == []
    assert not folder.exists("a")
    folder.delete("a")
    with pytest.raises(FileNotFoundError):
        folder.read("a")


def test_a_name_is_not_the_beginning_of_another(folder: Folder) -> None:
    folder.write("lock-of-another", b"")
    assert not folder.exists("lock")
    folder.delete("lock")
    assert folder.names() == ["lock-of-another"]


def test_files_and_folders_are_deleted_and_others_are_kept(folder: Folder) -> None:
    folder.write("a", b"1")
    folder.write("b", b"2")
    (folder / "inner").write("c", b"3")
    assert folder.exists("a")
    assert folder.exists("inner")
    folder.delete("a")
    folder.delete("inner")
    assert folder.names() == ["b"]
    assert folder.read("b") == b"2"


def test_a_publication_replaces_the_one_before(folder: Folder) -> None:
    folder.write("beside", b"")
    folder.publish("release", {"old": b"1", "both": b"1"})
    folder.publish("release", {"both": b"2", "new": b"2"})
    assert (folder / "release").names() == ["both", "new"]
    assert (folder / "release").read("both") == b"2"
    assert folder.names() == ["beside", "release"]


def test_a_publication_makes_its_folder(folder: Folder) -> None:
    folder.publish("release", {"a": b"1"})
    assert (folder / "release").read("a") == b"1"


def test_private_files_are_for_their_owner_only(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        LocalFolder(tmp_path / "private").write("a", b"1")
        LocalFolder(tmp_path / "private").write("a", b"2")
    finally:
        os.umask(old)
    assert (mode(tmp_path / "private"), mode(tmp_path / "private" / "a")) == (0o700, 0o600)


def test_a_file_that_others_could_read_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "a").chmod(0o644)
    LocalFolder(tmp_path).write("a", b"secret")
    assert mode(tmp_path / "a") == 0o600


def test_a_publication_is_for_everybody(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        LocalFolder(tmp_path).publish("release", {"a": b"1"})
    finally:
        os.umask(old)
    assert (mode(tmp_path / "release"), mode(tmp_path / "release" / "a")) == (0o755, 0o644)


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    folder = LocalFolder(tmp_path)
    folder.write("a", b"old")
    fail = _raises(OSError(errno.ENOSPC, "No space left on device"))
    with monkeypatch.context() as patch:
        if call == "write":
            patch.setattr(os, "fdopen", lambda *_args: _Full(_args[0]))
        elif call == "fsync":
            patch.setattr(os, "fsync", fail)
        else:
            patch.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="No space"):
            folder.write("a", b"new content")
    assert folder.read("a") == b"old"
    assert folder.names() == ["a"]


def test_the_name_of_a_file_is_made_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsync of a file does not cover its name: the folder needs one after the rename."""
    happened: list[str] = []
    sync, replace = os.fsync, Path.replace

    def watched_sync(descriptor: int) -> None:
        happened.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        sync(descriptor)

    def watched_replace(self: Path, target: Path) -> Path:
        happened.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", watched_sync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    LocalFolder(tmp_path).write("a", b"1")
    assert happened == ["file", "rename", "folder"]


def test_a_publication_is_whole_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = LocalFolder(tmp_path)
    folder.publish("release", {"a": b"old"})
    opened = os.open

    def full_at_b(path: str | Path, *arguments: int, **keywords: int) -> int:
        if Path(path).name == "b":
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(path, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", full_at_b)
        with pytest.raises(OSError, match="No space"):
            folder.publish("release", {"a": b"new", "b": b"new"})
    assert (folder / "release").names() == ["a"]
    assert (folder / "release").read("a") == b"old"
    assert folder.names() == ["release"]


def test_objects_are_published_in_order(store: ObjectStore) -> None:
    """The last one says that all are there."""
    store.written.clear()
    store.folder("ordered").publish("release", {"z": b"1", "a": b"2", "m": b"3"})
    assert store.written == [f"ordered/release/{name}" for name in "zam"]


def test_an_object_that_is_refused_leaves_what_was_there(store: ObjectStore) -> None:
    folder = store.folder("refused")
    folder.write("a", b"old")
    store.refusing = True
    try:
        with pytest.raises(OSError, match="ACCESS_DENIED"):
            folder.write("a", b"new")
    finally:
        store.refusing = False
    assert folder.read("a") == b"old"


def test_only_a_disk_has_a_path(store: ObjectStore, tmp_path: Path) -> None:
    """It is what says that appends and kernel locks may be used."""
    assert open_folder(str(tmp_path)).path == tmp_path
    assert open_folder(f"s3://{store.bucket}/x").path is None


def test_locations_that_are_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for location in (f"file://{tmp_path}/runs", f"{tmp_path}/runs/", "runs", "~/runs"):
        folder = open_folder(location)
        assert isinstance(folder, LocalFolder)
        assert folder.path == tmp_path / "runs"
    open_folder(f"file://{tmp_path}/runs").write("a", b"1")
    assert (tmp_path / "runs" / "a").read_bytes() == b"1"


def test_locations_that_are_uris(store: ObjectStore) -> None:
    folder = open_folder(f"s3://{store.bucket}/runs/")
    assert isinstance(folder, ObjectFolder)
    (folder / "mine").write("a", b"1")
    assert store.objects["runs/mine/a"] == b"1"
    assert (folder / "mine").uri == f"s3://{store.bucket}/runs/mine"


@pytest.mark.parametrize("location", ["ftp://host/runs", "s4://bucket/runs", "s3://bu cket"])
def test_unknown_stores_are_refused_with_a_way_out(location: str) -> None:
    with pytest.raises(StorageError, match=r"Give a path, or a URI .*s3://") as refused:
        open_folder(location)
    assert str(refused.value).startswith(location)


@pytest.mark.parametrize("location", ["s3:/bucket/runs", "file:/runs", "gs:/"])
def test_half_a_uri_makes_no_folder_here(location: str) -> None:
    with pytest.raises(StorageError, match="with two slashes") as refused:
        open_folder(location)
    assert str(refused.value).startswith(location)
    assert open_folder(f"./{location}").path is not None


# The ledger over it, end to end.


def charge(step: int) -> Charge:
    return Charge(step, 0, f"digest of {step}", 1.0, 0.5, 0.1)


def writer(folder: Folder, attempt: str = "one") -> Ledger:
    return Ledger(folder, KEY, lock=WriterLock(folder, attempt), block=4)


def begin(folder: Folder) -> Ledger:
    Ledger.create(folder, KEY, PLAN)
    ledger = writer(folder)
    ledger.open_session(Execution(workers=2), first_step=0, data="d", parameters="p")
    return ledger


def test_a_durable_record_is_one_object_and_the_head(store: ObjectStore) -> None:
    ledger = begin(store.folder("counted"))
    store.written.clear()
    for step in range(4):
        assert ledger.charge(charge(step)) is Verdict.CHARGED
    assert len(store.written) == 2
    assert store.written[0].startswith("counted/00000002-")
    assert store.written[1] == "counted/head"


def test_digests_of_a_block_appear_with_the_next_durable_record(store: ObjectStore) -> None:
    folder = store.folder("late")
    ledger = begin(folder)
    for step in range(4):
        ledger.charge(charge(step))

    def on_record() -> list[int]:
        reader = Ledger(folder, KEY)
        return [s for s in range(4) if reader.incarnation_for(s, diverged=False) == 0]

    assert on_record() == [0]
    assert Ledger(folder, KEY).charges == 4
    ledger.charge(charge(4))
    assert on_record() == [0, 1, 2, 3]


def test_a_ledger_in_an_object_store_from_begin_to_end(store: ObjectStore) -> None:
    """A crash costs what was paid for ahead; a clean stop costs nothing."""
    folder = store.folder("whole")
    ledger = begin(folder)
    for step in range(2):
        assert ledger.charge(charge(step)) is Verdict.CHARGED
    del ledger  # a crash: no close, and the lock names a process of the same attempt

    again = writer(folder)
    assert again.charges == 4
    again.open_session(Execution(workers=2), first_step=0, data="d", parameters="p")
    assert again.charge(charge(0)) is Verdict.REPLAYED
    assert again.incarnation_for(1, diverged=False) == 1
    assert again.charge(charge(1)) is Verdict.CONFLICT
    fresh = Charge(1, 1, "afresh", 1.0, 0.5, 0.1)
    assert again.charge(fresh) is Verdict.CHARGED
    assert again.charges == 7  # steps 1 to 3 at once: step 4 is at another incarnation
    again.close()
    assert "whole/lock" not in store.objects

    last = writer(folder, "two")
    last.open_session(Execution(workers=2), first_step=1, data="d", parameters="p")
    assert last.charge(fresh) is Verdict.REPLAYED
    for step in (2, 3):
        assert last.incarnation_for(step, diverged=True) == 1
        assert last.is_paid(step, 1)
        assert last.charge(Charge(step, 1, "afresh", 1.0, 0.5, 0.1)) is Verdict.CHARGED
    last.close()
    assert Ledger(folder, KEY).charges == 7


def test_a_clean_stop_keeps_the_digests_that_were_waiting(store: ObjectStore) -> None:
    folder = store.folder("waiting")
    ledger = begin(folder)
    for step in range(4):  # the whole block: nothing is left to be called unused
        ledger.charge(charge(step))
    ledger.close()
    again = writer(folder, "two")
    again.open_session(Execution(workers=2), first_step=0, data="d", parameters="p")
    assert [again.charge(charge(step)) for step in range(4)] == [Verdict.REPLAYED] * 4


def test_a_store_that_refuses_a_record_stops_the_release(store: ObjectStore) -> None:
    folder = store.folder("stopped")
    ledger = begin(folder)
    store.refusing = True
    try:
        with pytest.raises(LedgerError, match="nothing was released"):
            ledger.charge(charge(0))
    finally:
        store.refusing = False
    with pytest.raises(LedgerError, match="not open for writing"):
        ledger.charge(charge(0))
    assert Ledger(folder, KEY).charges == 0


class _Full:
    """A file on a disk that is full half way."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __enter__(self) -> _Full:
        return self

    def __exit__(self, *_error: object) -> None:
        os.close(self._descriptor)

    def write(self, data: bytes) -> None:
        os.write(self._descriptor, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")


def _raises(error: Exception) -> Any:
    def fail(*_args: object) -> None:
        raise error

    return fail


def test_threads_may_write_the_same_file_at_once(tmp_path: Path) -> None:
    folder, errors = LocalFolder(tmp_path), []

    def write() -> None:
        try:
            for _ in range(20):
                folder.write("stop", b"x")
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert folder.names() == ["stop"]
