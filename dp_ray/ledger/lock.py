"""One writer a run: a lock with an owner, which a person can break knowingly.

On a disk the lock is the kernel's (flock), so it ends with its process. In an object store it is a
file that names its owner: nobody can tell there whether that owner is dead, unless it is an earlier
process of the same attempt, or ran on this machine. Whoever has lost the lock notices before the
next charge.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from dp_ray.errors import LedgerError
from dp_ray.storage import OWNER_ONLY, Folder

LOCK = "lock"
_POLL_S = 0.2


@dataclass(frozen=True)
class Owner:
    """Who writes a run.

    Attributes:
        attempt: names one call of ``dp-ray``; Ray may start its coordinator several times.
        host: machine of the process, for people.
        place: where its number means that process: the boot of a machine, and the container.
        pid: its number there.
        started: when the process began, in seconds since 1970: numbers of processes are used again.
        since: when it took the lock, for people.
        nonce: tells two takings of the lock apart.
    """

    attempt: str
    host: str
    place: str
    pid: int
    started: float
    since: str
    nonce: str

    @classmethod
    def this_process(cls, attempt: str) -> Owner:
        """The process that calls this, now."""
        return cls(
            attempt=attempt,
            host=socket.gethostname(),
            place=_place(),
            pid=os.getpid(),
            started=psutil.Process().create_time(),
            since=datetime.now(UTC).isoformat(timespec="seconds"),
            nonce=secrets.token_hex(8),
        )

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    def is_known_dead(self) -> bool:
        """Whether it ran here, and no longer does; False where that cannot be told."""
        if not self.place or self.place != _place():
            return False
        try:
            return abs(psutil.Process(self.pid).create_time() - self.started) > 1
        except psutil.NoSuchProcess:
            return True


def _place() -> str:
    """Empty where the system does not tell it: two containers may share a host's name."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


OWNER_ENDS_S = 20.0
"""How long to wait for an owner that was killed, or whose driver was: it may take some seconds."""


class WriterLock:
    """The right to write a run, held until :meth:`release` or the end of the process.

    Args:
        folder: of the ledger.
        attempt: see :class:`Owner`.
        wait_s: how long to wait for an owner that is about to end.
        take_over: break another's lock: only for a process that is known to be gone.

    Raises:
        LedgerError: another process holds it; the message names it.
    """

    def __init__(
        self, folder: Folder, attempt: str, *, wait_s: float = 0.0, take_over: bool = False
    ) -> None:
        self._folder = folder
        self._owner = Owner.this_process(attempt)
        self._descriptor: int | None = None
        deadline = time.monotonic() + wait_s
        while not self._take(take_over):
            if time.monotonic() >= deadline:
                raise LedgerError(self._taken())
            time.sleep(_POLL_S)

    def check(self) -> None:
        """Makes sure that the lock was not taken over.

        Raises:
            LedgerError: it was.
        """
        if not self.is_held():
            raise LedgerError(
                f"{self._folder}: the run was taken over by {self._read() or 'another process'}; "
                "this process stops, and released nothing after that"
            )

    def release(self) -> None:
        """Lets the next writer in."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        elif self._folder.path is None and self.is_held():
            self._folder.delete(LOCK)

    def _take(self, take_over: bool) -> bool:
        path = self._folder.path
        return self._take_object(take_over) if path is None else self._take_file(path, take_over)

    def _take_file(self, path: Path, take_over: bool) -> bool:
        if take_over and not self._take_file(path, False):
            (path / LOCK).unlink(missing_ok=True)  # its holder finds another file in its place
        try:
            if self._descriptor is None:
                self._descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, OWNER_ONLY)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            return False
        except OSError as error:
            self.release()
            raise LedgerError(f"the ledger {self._folder} cannot be written: {error}") from error
        if not self.is_held():
            self.release()
            return False
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, self._content(), 0)
        return True

    def _take_object(self, take_over: bool) -> bool:
        owner = self._read()
        mine = owner is not None and owner.attempt == self._owner.attempt
        if owner is None or take_over or mine or owner.is_known_dead():
            try:
                self._folder.write(LOCK, self._content())
            except OSError as error:
                raise LedgerError(
                    f"the ledger {self._folder} cannot be written: {error}"
                ) from error
        return self.is_held()  # of two that wrote, the last has it

    def is_held(self) -> bool:
        """Whether the lock is still this one's.

        Raises:
            LedgerError: that cannot be found out.
        """
        try:
            return self._find_out()
        except OSError as error:
            raise LedgerError(
                f"the lock of the ledger {self._folder} cannot be read: {error}; nothing was "
                "released. Go on with --resume"
            ) from error

    def _find_out(self) -> bool:
        path = self._folder.path
        if path is None:
            return self._read() == self._owner
        if self._descriptor is None:
            return False
        try:  # opened anew: a network file system asks its server then
            there = os.open(path / LOCK, os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.fstat(there))
        finally:
            os.close(there)

    def _content(self) -> bytes:
        return json.dumps(asdict(self._owner)).encode()

    def _read(self) -> Owner | None:
        try:
            return Owner(**json.loads(self._folder.read(LOCK)))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):  # it is somebody's all the same
            return Owner("", "an unknown machine", "", 0, 0.0, "an unknown time", "")

    def _taken(self) -> str:
        return (
            f"{self._folder}: another process writes this run ({self._read() or 'unknown'}). Wait "
            "for it or end it; if it is known to be gone for good, --break-lock takes its place"
        )
