"""What tells whether the files that images are decoded from may have changed."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from dp_ray.config import DataConfig
from dp_ray.data.readers import FOLDERS, load_splits, root_of
from dp_ray.errors import DataError

_DECODING = "decoding 2"
"""Changes with what is made of the same files."""

_CLOCK_NS = 20_000_000
"""Two changes of a file within it may get the same time: the kernel's clock ticks 100 times a
second or faster."""


def source_stamp(config: DataConfig) -> str | None:
    """What changes when the source of the data changes; None if that cannot be told cheaply."""
    if config.name == "digits":
        return f"scikit-learn {version('scikit-learn')}"
    if config.name == "fake":
        return "fake 2"
    if ":" in config.name:
        return None
    root = root_of(config)
    parts = FOLDERS[config.name]
    if config.download and not any((root / part).exists() for part in parts):
        load_splits(config)
    stamps, newest = [_DECODING], 0
    for folder, path, status in (found for part in parts for found in _walk(root / part)):
        stamps.append(
            f"{path.relative_to(root)} {folder} {status.st_ino} {status.st_size} "
            f"{status.st_mtime_ns} {status.st_ctime_ns}"
        )
        newest = max(newest, status.st_ctime_ns)
    _let_settle(newest)
    return "\n".join(stamps)


def _let_settle(changed_ns: int) -> None:
    """Waits until a further change of a file would get another time than its last."""
    left = changed_ns + _CLOCK_NS - time.time_ns()
    if left > 0:
        time.sleep(min(left, _CLOCK_NS) / 1e9)


def _walk(part: Path) -> Iterator[tuple[str, Path, os.stat_result]]:
    """All files below a folder, in order, links followed.

    Returns:
        For each: the folder that it really is in, its path, and its status. Its time of change
        (ctime) is set by the kernel at each change of content or name, and by nobody else.

    Raises:
        DataError: one cannot be looked at or is none, such as a pipe, for whose end a reader would
            wait; or a folder is reached twice, so that its examples would count twice.
    """
    reached: dict[str, str] = {}
    number = 0
    try:
        for folder, folders, files in os.walk(part, followlinks=True, onerror=_raise):
            real = os.path.realpath(folder)
            first = reached.setdefault(real, folder)
            if first != folder:
                problem = "once more, by a link: its examples would count twice. Take the link away"
                raise DataError(
                    f"{folder} is {first} {problem}",
                    shared=f"{_place(part, number)} is followed by a folder {problem}",
                )
            folders.sort()
            for name in sorted(files):
                number += 1
                path = Path(folder, name)
                status = path.stat()
                if not stat.S_ISREG(status.st_mode):
                    problem = "is no file but a pipe or a device. Take it away"
                    raise DataError(f"{path} {problem}", shared=f"{_place(part, number)} {problem}")
                yield real, path, status
    except OSError as error:
        problem = f"cannot be read: {error.strerror}. Mend it or take it away"
        raise DataError(
            f"{error.filename} {problem}", shared=f"{_place(part, number)} {problem}"
        ) from error


def _place(part: Path, number: int) -> str:
    """A file for a log, which must not have its name."""
    return f"data.root: file {number} of {part.name}/, counted from 1 in the order of their names,"


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # which data.download may mend
        raise error
