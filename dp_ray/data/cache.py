"""The folder of decoded copies: its owner's alone, with names that say nothing without its key."""

from __future__ import annotations

import hmac
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from dp_ray.config.data import DataConfig
from dp_ray.errors import DataError
from dp_ray.storage import OWNER_ONLY, LocalFolder, user_path

DEFAULT = "~/.cache/dp-ray"
"""Where decoded copies are kept unless data.cache says otherwise."""

KEY = "key"
_KEY_BYTES = 32


def cache_path(config: DataConfig) -> Path:
    """Where decoded copies are kept on this machine."""
    return user_path(config.cache or DEFAULT)


@dataclass(frozen=True, repr=False)
class Cache:
    """The opened folder ``data.cache``.

    A name in it is a keyed hash: whoever may list the folder, or reads a list of its names in a
    backup's log, cannot test a guess of the images against it.

    Attributes:
        path: the folder.
        key: 32 bytes, the same for all runs that share the folder.
    """

    path: Path
    key: bytes

    @classmethod
    def open(cls, config: DataConfig) -> Cache:
        """Creates the folder and its key where they are missing.

        Raises:
            DataError: others can list or replace the folder, it cannot be written, or its key is
                damaged.
        """
        path = cache_path(config)
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            exposure = LocalFolder(path).exposure()
            if exposure is None:
                return cls(path, _read_key(path))
        except OSError as error:
            raise unwritable(path, error) from error
        raise DataError(
            f"{exposure}. Or set data.cache to another folder: it holds the decoded images",
            shared="data.cache: others can list or replace the folder, which holds the decoded "
            "images: set its mode to 0700, or set data.cache to another folder",
        )

    def name_of(self, identity: Any) -> str:
        """The name of a decoded copy.

        Args:
            identity: plain values that differ wherever the copies may differ.
        """
        data = json.dumps(identity).encode()
        return hmac.digest(self.key, data, "sha256").hex()[:32]

    def lock(self, name: str) -> FileLock:
        """A lock among this machine's processes, on a file for its owner alone."""
        return _lock(self.path, name)


def unwritable(path: Path, error: Exception) -> DataError:
    """What to report of a folder that cannot be written."""
    remedy = "set data.cache to another folder"
    return DataError(
        f"the decoded copy of the data cannot be written to {path}: {error}; {remedy}",
        shared=f"the decoded copy of the data cannot be written ({type(error).__name__}); {remedy}",
    )


def _lock(path: Path, name: str) -> FileLock:
    return FileLock(path / f"{name}.lock", mode=OWNER_ONLY)


def _read_key(path: Path) -> bytes:
    """The folder's key; of processes that find none at the same time, one draws it for all."""
    folder = LocalFolder(path)
    if not folder.exists(KEY):
        with _lock(path, KEY):
            if not folder.exists(KEY):
                folder.write(KEY, os.urandom(_KEY_BYTES).hex().encode())
    try:
        key = bytes.fromhex(folder.read(KEY).decode())
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise DataError(
            f"{path / KEY} is damaged: remove it, and decoded copies are made anew",
            shared="data.cache: its file key is damaged: remove it",
        )
    return key
