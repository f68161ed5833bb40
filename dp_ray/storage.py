"""Folders on a local disk or on anything that ``pyarrow.fs`` opens (S3, GCS, Azure, …).

A file is written whole or not at all, and is durable when :meth:`Folder.write` returns. A disk
allows more (appends, file locks, renames): who needs those asks for :attr:`Folder.path`.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from dp_ray.errors import StorageError
from dp_ray.extras import require

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

OWNER_ONLY = 0o600


class Folder(ABC):
    """A place for files; made when the first file is written.

    Attributes:
        uri: the absolute path, or ``scheme://…``.
    """

    uri: str

    def __str__(self) -> str:
        return self.uri

    @property
    def path(self) -> Path | None:
        """The path, if this is a disk that allows appends and locks."""
        return None

    def exposure(self) -> str | None:
        """Why others could read or replace what is here, and what to do; None if nobody could.

        Only a disk can tell: who may read an object store is its policy's business.
        """
        return None

    @abstractmethod
    def __truediv__(self, name: str) -> Folder:
        """The folder ``name`` inside this one."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """A file's content.

        Raises:
            FileNotFoundError: there is none.
            OSError: it cannot be read.
        """

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Replaces a file, whole or not at all; on a disk only its owner may read it.

        Raises:
            OSError: it cannot be written; what was there is as it was.
        """

    @abstractmethod
    def names(self) -> list[str]:
        """The files and folders here, sorted; none if the folder is not there."""

    @abstractmethod
    def delete(self, name: str) -> None:
        """Removes a file or a folder, if it is there."""

    @abstractmethod
    def publish(self, name: str, files: Mapping[str, bytes]) -> None:
        """Replaces the folder ``name`` by one that everybody may read.

        On a disk it is whole or not there. Elsewhere the files appear one after the other, in
        their order: the last one says that all are there.
        """

    def exists(self, name: str) -> bool:
        """Whether there is such a file or folder."""
        return name in self.names()


class LocalFolder(Folder):
    """A folder on a file system of this machine, or one that it mounts."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.uri = str(path)

    @property
    def path(self) -> Path:
        """See :class:`Folder`."""
        return self._path

    def exposure(self) -> str | None:
        """See :class:`Folder`."""
        mode = stat.S_IMODE(self._path.stat().st_mode)
        if mode & 0o077:
            return (
                f"{self._path} has mode {mode:04o}, so others can read it: chmod 700 {self._path}; "
                "if that changes nothing, its file system keeps no modes: choose another one"
            )
        for parent in self._path.resolve().parents:
            mode = stat.S_IMODE(parent.stat().st_mode)
            if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
                return (
                    f"everybody may rename what is in {parent} (mode {mode:04o}), and put a folder "
                    f"of their own in its place: chmod +t {parent} (or chmod o-w)"
                )
        return None

    def __truediv__(self, name: str) -> LocalFolder:
        return LocalFolder(self._path / name)

    def read(self, name: str) -> bytes:
        """See :class:`Folder`."""
        return (self._path / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        """See :class:`Folder`."""
        self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Of this thread: a stop may be requested by a signal and by a callback at the same time.
        temporary = self._path / f".{name}.{os.getpid()}.{threading.get_ident()}"
        try:
            _write_durably(temporary, data, OWNER_ONLY)
            temporary.replace(self._path / name)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(self._path)

    def names(self) -> list[str]:
        """See :class:`Folder`."""
        try:
            return sorted(p.name for p in self._path.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def exists(self, name: str) -> bool:
        """See :class:`Folder`."""
        try:
            return (self._path / name).exists()
        except OSError as error:  # a name that is too long, a folder that may not be entered
            raise StorageError(f"{self._path} cannot be opened: {error.strerror}") from error

    def delete(self, name: str) -> None:
        """See :class:`Folder`."""
        target = self._path / name
        if target.is_dir():
            shutil.rmtree(target, ignore_errors=True)
        else:
            target.unlink(missing_ok=True)

    def publish(self, name: str, files: Mapping[str, bytes]) -> None:
        """See :class:`Folder`."""
        self._path.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=self._path))
        try:
            for file, data in files.items():
                _write_durably(temporary / file, data, 0o644)
            temporary.chmod(0o755)
            sync_folder(temporary)
            self.delete(name)
            temporary.rename(self._path / name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        sync_folder(self._path)


class ObjectFolder(Folder):
    """A folder of a store whose files can only be written whole, such as S3."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")

    def __truediv__(self, name: str) -> ObjectFolder:
        return ObjectFolder(f"{self.uri}/{name}")

    def read(self, name: str) -> bytes:
        """See :class:`Folder`."""
        files, base = _open(self.uri)
        with files.open_input_stream(f"{base}/{name}") as stream:
            return bytes(stream.read())

    def write(self, name: str, data: bytes) -> None:
        """See :class:`Folder`."""
        files, base = _open(self.uri)
        with files.open_output_stream(f"{base}/{name}") as stream:  # visible when closed
            stream.write(data)

    def names(self) -> list[str]:
        """See :class:`Folder`."""
        from pyarrow.fs import FileSelector

        files, base = _open(self.uri)
        found = files.get_file_info(FileSelector(base, allow_not_found=True))
        return sorted(info.base_name for info in found)

    def exists(self, name: str) -> bool:
        """See :class:`Folder`."""
        from pyarrow.fs import FileType

        files, base = _open(self.uri)
        return bool(files.get_file_info(f"{base}/{name}").type != FileType.NotFound)

    def delete(self, name: str) -> None:
        """See :class:`Folder`."""
        from pyarrow.fs import FileType

        files, base = _open(self.uri)
        kind = files.get_file_info(f"{base}/{name}").type
        if kind == FileType.File:
            files.delete_file(f"{base}/{name}")
        elif kind == FileType.Directory:
            files.delete_dir(f"{base}/{name}")

    def publish(self, name: str, files: Mapping[str, bytes]) -> None:
        """See :class:`Folder`."""
        self.delete(name)
        for file, data in files.items():
            (self / name).write(file, data)


def user_path(text: str) -> Path:
    """A path on this machine: ``~`` and ``$NAME`` are what they are here, on this node.

    A name that is not set, or a home that nobody has, stays as it is written.
    """
    path = Path(os.path.expandvars(text))
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def open_folder(location: str) -> Folder:
    """The folder at a path, or at a URI of one of pyarrow's file systems.

    Raises:
        StorageError: pyarrow knows no such file system, or this is half a URI.
        MissingExtraError: a URI needs pyarrow, which is not installed.
    """
    if re.match(r"[a-z][a-z0-9+]+:/(?!/)", location):
        raise StorageError(
            f"{location} is neither a URI nor a path: write scheme://… with two slashes, or "
            f"./{location} for a folder of that name"
        )
    if location.startswith("file://"):
        location = location.removeprefix("file://")
    if "://" not in location:
        return LocalFolder(user_path(location).absolute())
    _open(location.rstrip("/"))
    return ObjectFolder(location)


@cache
def _open(uri: str) -> tuple[FileSystem, str]:
    """pyarrow's file system for a URI, and the path in it."""
    require("storage", uri, "give a path on this machine")
    import pyarrow
    from pyarrow.fs import FileSystem

    try:
        files, path = FileSystem.from_uri(uri)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise StorageError(
            f"{uri} cannot be opened: {error}. Give a path, or a URI that pyarrow.fs knows, "
            "such as s3://bucket/runs"
        ) from error
    return files, path


def _write_durably(path: Path, data: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fchmod(descriptor, mode)  # whatever the umask
        os.fsync(descriptor)


def sync_folder(path: Path) -> None:
    """Makes the names in a folder durable: fsync of a file does not cover its name."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
