"""What ``dp-ray clean`` does: finds what runs left behind and can be made again, and removes it.

Releases, ledgers, keys and results are never among it. What a process of this machine uses stays.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from dp_ray.errors import LedgerError, RunError
from dp_ray.ledger.lock import WriterLock
from dp_ray.on_ray.environment import temporary_folder
from dp_ray.storage import Folder, open_folder

_COPY = re.compile(r"[0-9a-f]{32}")
_HALF = re.compile(r"(\.removed\.)?([0-9a-f]{32})\.(?!lock$).+")
_LOCK = re.compile(r"[0-9a-f]{32}\.lock")

_QUIET_S = 300.0
"""A living Ray writes into its session's folder more often than this."""

_PROCESSES = Path("/proc")


class InUseError(Exception):
    """A leftover that a process has begun to use."""


@dataclass(frozen=True)
class Leftover:
    """Files that a run left behind.

    Attributes:
        kind: what they are.
        path: the file or folder.
        size: of all its files, in bytes.
        cost: what removing it means.
        guard: held while it is removed; raises :class:`InUseError` if a process uses it.
    """

    kind: str
    path: Path
    size: int
    cost: str
    guard: Callable[[], AbstractContextManager[None]] = field(default=nullcontext, repr=False)

    def remove(self) -> bool:
        """Remove it; return whether it is gone: one that is in use by now stays."""
        try:
            with self.guard():
                return self.path not in used_folders([self.path]) and _remove(self.path)
        except InUseError:
            return False


def find_leftovers(cache: Path, runs: Iterable[str] = ()) -> list[Leftover]:
    """List what can be removed on this machine; changes nothing.

    Args:
        cache: the folder of decoded copies.
        runs: paths of finished runs whose checkpoints are listed too.

    Raises:
        RunError: a path of ``runs`` is no finished run on this machine.
    """
    checkpoints = [leftover for run in runs for leftover in _checkpoints(run)]
    found = [*checkpoints, *_copies(cache), *_graphs(), *_sessions()]
    used = used_folders([leftover.path for leftover in found])
    return [leftover for leftover in found if leftover.path not in used]


def used_folders(paths: list[Path]) -> set[Path]:
    """Return those of the folders in which a process has mapped or opened a file.

    It sees this user's processes on this machine, on systems with /proc.
    """
    used: set[Path] = set()
    names = {f"{path.resolve()}/": path for path in paths}
    for process in _PROCESSES.glob("[0-9]*"):
        with suppress(OSError):  # it ended, or is another user's
            places = (process / "maps").read_text(errors="replace")
            for link in (process / "fd").iterdir():
                with suppress(OSError):
                    places += f"{link.readlink()}\n"
            used |= {path for name, path in names.items() if name in places}
    return used


def size_in_words(size: int) -> str:
    """``1.2 MB``."""
    for unit, bytes_ in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= bytes_:
            return f"{size / bytes_:.1f} {unit}"
    return f"{size} B"


def _copies(cache: Path) -> Iterator[Leftover]:
    """Decoded copies, and what processes that were killed left of one."""
    entries = _own_entries(cache)
    names = {path.name for path in entries}
    for path in entries:
        if _COPY.fullmatch(path.name) and path.is_dir():
            guard = _copy_guard(path.with_name(f"{path.name}.lock"))
            yield Leftover("decoded copy", path, _size(path), "decoded again when needed", guard)
        elif (half := _HALF.fullmatch(path.name)) and path.is_dir():
            guard = _copy_guard(cache / f"{half[2]}.lock")
            yield Leftover("half of a copy", path, _size(path), "nothing", guard)
        elif _LOCK.fullmatch(path.name) and path.stem not in names:
            yield Leftover("lock", path, _size(path), "nothing", _copy_guard(path))


def _graphs() -> Iterator[Leftover]:
    """torch's compiled graphs, which all programs of this user share."""
    default = Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"
    path = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or default)
    if _own_entries(path):
        cost = "compiled again when needed, by other programs that use torch too"
        yield Leftover("compiled graphs", path, _size(path), cost)


def _sessions() -> Iterator[Leftover]:
    """Session folders of Rays that have ended."""
    folders = [
        path
        for path in _own_entries(temporary_folder()[1] / "ray")
        if path.name.startswith("session_2") and _quiet_for(path) > _QUIET_S
    ]
    lines = "\n".join(_command_lines()) if folders else ""
    for path in folders:
        if path.name not in lines:
            yield Leftover("Ray session", path, _size(path), "its logs are lost")


def _checkpoints(location: str) -> Iterator[Leftover]:
    """Checkpoints of a finished run.

    Raises:
        RunError: it is none.
    """
    from dp_ray.artifacts.result import is_finished  # imports torch, which takes seconds

    root = open_folder(location)
    ledger = root / "private" / "ledger"
    if root.path is None or not ledger.names() or not is_finished(root):
        raise RunError(
            f"--checkpoints {location}: is no finished run on this machine, and only such a run "
            "needs its checkpoints no more. Give its folder, such as runs/digits"
        )
    path = Path(root.path) / "private" / "checkpoints"
    if _own_entries(path):
        cost = "the run cannot be given more steps"
        yield Leftover("checkpoints", path, _size(path), cost, lambda: _run_guard(ledger))


def _copy_guard(lock: Path) -> Callable[[], AbstractContextManager[None]]:
    """Hold a copy's lock, and remove its file at the end: nothing is left that it guards."""

    @contextmanager
    def held() -> Iterator[None]:
        try:
            with FileLock(lock, timeout=0):
                yield
                lock.unlink(missing_ok=True)
        except (Timeout, OSError) as error:
            raise InUseError from error

    return held


@contextmanager
def _run_guard(ledger: Folder) -> Iterator[None]:
    """Hold the lock of a run's writer."""
    try:
        lock = WriterLock(ledger, "clean")
    except LedgerError as error:
        raise InUseError from error
    try:
        yield
    finally:
        lock.release()


def _own_entries(folder: Path) -> list[Path]:
    """Entries of a folder that belong to this user, links left out."""
    found: list[Path] = []
    with suppress(OSError):
        for path in sorted(folder.iterdir()):
            with suppress(OSError):
                if not path.is_symlink() and path.stat().st_uid == os.getuid():
                    found.append(path)
    return found


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if not p.is_dir()]
    total = 0
    for file in files:
        with suppress(OSError):
            total += file.lstat().st_size
    return total


def _quiet_for(session: Path) -> float:
    """Seconds since a session's folder, or one of its logs, was written."""
    newest = 0.0
    for path in (session, *_own_entries(session / "logs")):
        with suppress(OSError):
            newest = max(newest, path.stat().st_mtime)
    return time.time() - newest


def _command_lines() -> Iterator[str]:
    for process in _PROCESSES.glob("[0-9]*"):
        with suppress(OSError):
            yield (process / "cmdline").read_text(errors="replace").replace("\0", " ")


def _remove(path: Path) -> bool:
    """Remove a file, or a folder: at once for whoever looks, then its files."""
    try:
        if not path.is_dir():
            path.unlink()
            return True
        gone = path.with_name(f".removed.{path.name}.{os.getpid()}")
        path.rename(gone)
    except OSError:
        return False
    shutil.rmtree(gone, ignore_errors=True)
    return not gone.exists()
