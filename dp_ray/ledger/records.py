"""Where a ledger's records lie: lines of one file, or objects that can only be written whole.

Beside the records lies the head, which names the last of them; it is what shows that records were
cut off at the end.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod

from dp_ray.storage import Folder, LocalFolder

_HEAD = "head"
_SUFFIX = ".jsonl"
_FILE = f"records{_SUFFIX}"


class Records(ABC):
    """Lines that are only ever added, and a head that is replaced."""

    queues: bool
    """Whether lines that need not be durable are kept in memory until one must be."""

    @abstractmethod
    def read(self) -> bytes:
        """All lines.

        Raises:
            OSError: there are none, or they cannot be read.
        """

    @abstractmethod
    def read_head(self) -> bytes:
        """The head; errors as in :meth:`read`."""

    @abstractmethod
    def append(self, line: bytes, *, durable: bool) -> bool:
        """Adds a line.

        Args:
            line: with its line break.
            durable: it, and all before it, must survive a power cut when this returns.

        Returns:
            Whether the line is in its place, where the head may name it.

        Raises:
            OSError: it is not written, or not known to be.
        """

    @abstractmethod
    def write_head(self, head: bytes, *, durable: bool) -> None:
        """Replaces the head; always of the same length."""

    @abstractmethod
    def cut(self, size: int) -> None:
        """Removes what follows the first ``size`` bytes: a line that was never whole."""

    @abstractmethod
    def close(self) -> None:
        """Gives back what is open."""


def open_records(folder: Folder, *, writable: bool) -> Records:
    """The records in a folder.

    Raises:
        OSError: there are none, or they cannot be opened.
    """
    if isinstance(folder, LocalFolder):
        return _LinesOfAFile(folder, writable=writable)
    return _Objects(folder)


def create_records(folder: Folder, line: bytes, head: bytes) -> None:
    """Begins records with a first line, durably.

    Raises:
        FileExistsError: there are some already.
        OSError: they cannot be written.
    """
    if any(name.endswith(_SUFFIX) for name in folder.names()):
        raise FileExistsError(f"{folder} holds a ledger")
    folder.write(_HEAD, head)
    folder.write(_FILE if isinstance(folder, LocalFolder) else _object_name(0, line), line)


class _LinesOfAFile(Records):
    """One file, each line made durable by itself; the head is written in place, and seldom synced.

    A crash of the process loses nothing of either. A power cut may set the head back, which is no
    harm, or take lines that were not meant to be durable yet.
    """

    queues = False

    def __init__(self, folder: LocalFolder, *, writable: bool) -> None:
        self._folder = folder
        self._lines = self._head = -1
        self._size = 0
        if writable:
            self._lines = os.open(folder.path / _FILE, os.O_WRONLY | os.O_APPEND)
            self._head = os.open(folder.path / _HEAD, os.O_WRONLY)
            self._size = os.fstat(self._lines).st_size

    def read(self) -> bytes:
        return self._folder.read(_FILE)

    def read_head(self) -> bytes:
        return self._folder.read(_HEAD)

    def append(self, line: bytes, *, durable: bool) -> bool:
        if os.fstat(self._lines).st_size != self._size:
            raise OSError("another process wrote to it")
        try:
            if os.write(self._lines, line) != len(line):
                raise OSError("the record was written in part")
        except OSError:
            os.ftruncate(self._lines, self._size)  # a full disk must not tear the ledger
            raise
        self._size += len(line)
        if durable:
            os.fsync(self._lines)
        return True

    def write_head(self, head: bytes, *, durable: bool) -> None:
        os.pwrite(self._head, head, 0)
        if durable:
            os.fsync(self._head)

    def cut(self, size: int) -> None:
        os.ftruncate(self._lines, size)
        os.fsync(self._lines)
        self._size = size

    def close(self) -> None:
        for descriptor in (self._lines, self._head):
            if descriptor >= 0:
                os.close(descriptor)
        self._lines = self._head = -1


class _Objects(Records):
    """One object for each durable line, with those before it that were not."""

    queues = True

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._count = len(self._names())
        self._waiting = b""
        if self._count == 0:
            raise FileNotFoundError(f"{folder} holds no records")

    def _names(self) -> list[str]:
        return [name for name in self._folder.names() if name.endswith(_SUFFIX)]

    def read(self) -> bytes:
        return b"".join(self._folder.read(name) for name in self._names())

    def read_head(self) -> bytes:
        return self._folder.read(_HEAD)

    def append(self, line: bytes, *, durable: bool) -> bool:
        self._waiting += line
        if durable:
            self._folder.write(_object_name(self._count, self._waiting), self._waiting)
            self._count += 1
            self._waiting = b""
        return durable

    def write_head(self, head: bytes, *, durable: bool) -> None:
        del durable  # always
        self._folder.write(_HEAD, head)

    def cut(self, size: int) -> None:
        raise OSError(f"{self._folder} is a store of whole objects, and one ends in byte {size}")

    def close(self) -> None:
        pass


def _object_name(number: int, content: bytes) -> str:
    # Two writers that do not know of each other must not overwrite each other's records: with
    # both there, the chain of hashes shows it.
    return f"{number:08d}-{hashlib.sha256(content).hexdigest()[:8]}{_SUFFIX}"
