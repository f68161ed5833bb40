"""The files that a data set is read from: where they are, and which of them are no data."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dp_ray.config.data import DataConfig
from dp_ray.errors import ConfigError, DataError
from dp_ray.storage import user_path

_LEFT_BEHIND = {
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "icon\r",
    "__macosx",
    "__pycache__",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "@eadir",
    "#recycle",
    "@recycle",
}
"""What Windows, macOS, Python, file systems and storage devices leave in folders, in lower case."""


@dataclass(frozen=True)
class Found:
    """A file below a folder of the data, or an entry that is left out.

    Attributes:
        folder: the folder that it really is in, links followed.
        path: where it was found.
        status: of the file; None if the entry is left out whatever it holds.
    """

    folder: str
    path: Path
    status: os.stat_result | None


def is_left_behind(name: str) -> bool:
    """Whether a name is hidden, or is one that systems and editors give to files of their own."""
    return name.startswith(".") or name.lower() in _LEFT_BEHIND


def root_of(config: DataConfig, *, holds: str, may_download: bool = False) -> Path:
    """Return ``data.root`` on this machine.

    Args:
        config: the data section.
        holds: a folder that the root must hold, for the message.
        may_download: whether data.download makes up for a root that is not there.

    Raises:
        ConfigError: it is not set, or not there.
    """
    if config.root is None:
        raise ConfigError(
            "data.root",
            None,
            f"{config.name} needs the folder that holds {holds}/",
            "Set data.root to it",
        )
    root = user_path(config.root)
    if not root.is_dir() and not (config.download and may_download):
        remedy = f"Give the folder that holds {holds}/"
        if "$" in str(root):
            remedy = f"Set what is unset in the environment there, or give it in full. {remedy}"
        if may_download:
            remedy += ", or set data.download=true"
        problem = "no such folder" + ("" if str(root) == config.root else f" as {root}")
        raise ConfigError("data.root", config.root, problem, remedy)
    return root


def walk(part: Path) -> Iterator[Found]:
    """All files below a folder, in order, links followed.

    Hidden entries and what systems leave are found, and neither opened nor entered. A file's time
    of change (ctime) is set by the kernel at each change of content or name, and by nobody else.

    Args:
        part: the folder; it need not be there.

    Raises:
        DataError: a file cannot be looked at or is none, such as a pipe, for whose end a reader
            would wait; or a folder is reached twice, so that its examples would count twice.
    """
    reached: dict[str, str] = {}
    number = 0
    try:
        for folder, folders, files in os.walk(part, followlinks=True, onerror=_raise):
            real = os.path.realpath(folder)
            first = reached.setdefault(real, folder)
            if first != folder:
                problem = "once more, by a link: its examples would count twice. Remove the link"
                raise DataError(
                    f"{folder} is {first} {problem}",
                    shared=f"{_place(part, number)} is followed by a folder {problem}",
                )
            hidden = [name for name in (*folders, *files) if is_left_behind(name)]
            for name in sorted(hidden):
                yield Found(real, Path(folder, name), None)
            folders[:] = sorted(name for name in folders if not is_left_behind(name))
            for name in sorted(name for name in files if not is_left_behind(name)):
                number += 1
                path = Path(folder, name)
                status = path.stat()
                if not stat.S_ISREG(status.st_mode):
                    problem = "is no file but a pipe or a device. Remove it"
                    raise DataError(f"{path} {problem}", shared=f"{_place(part, number)} {problem}")
                yield Found(real, path, status)
    except OSError as error:
        problem = f"cannot be read: {error.strerror}. Repair or remove it"
        raise DataError(
            f"{error.filename} {problem}", shared=f"{_place(part, number)} {problem}"
        ) from error


def _place(part: Path, number: int) -> str:
    """A file for a log, which must not have its name."""
    return f"data.root: file {number} of {part.name}/, counted from 1 in the order of their names,"


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # which data.download may mend
        raise error


def skipped_line(skipped: dict[str, int]) -> str | None:
    """A line about entries below data.root that are no examples; None if there are none.

    It names no file, so that a log may have it.
    """
    if not skipped:
        return None
    reasons = ", ".join(f"{number:,} {reason}" for reason, number in skipped.items())
    entries = "1 entry" if (total := sum(skipped.values())) == 1 else f"{total:,} entries"
    return f"data.root: {entries} skipped: {reasons}; dp-ray data names them"
