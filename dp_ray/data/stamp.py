"""What tells whether the files that images are decoded from may have changed."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from dp_ray.data.files import walk

_DECODING = "decoding 3"
"""Changes with what is made of the same files."""

_CLOCK_NS = 20_000_000
"""Two changes of a file within it may get the same time: the kernel's clock ticks 100 times a
second or faster."""


def stamp_of_files(root: Path, folders: Iterable[str], settings: Iterable[str] = ()) -> str:
    """Return a text that differs whenever files below the folders may differ; open none.

    Args:
        root: the folder that holds the folders.
        folders: names below it; one that is not there counts as empty.
        settings: texts on how the files are decoded, which differ when that differs.

    Raises:
        DataError: see :func:`~dp_ray.data.files.walk`.
    """
    stamps, newest = [_DECODING, *settings], 0
    for found in (entry for folder in folders for entry in walk(root / folder)):
        path, status = found.path, found.status
        if status is None:  # left out: only that it is there counts
            stamps.append(f"{path.relative_to(root)} {found.folder} left out")
            continue
        stamps.append(
            f"{path.relative_to(root)} {found.folder} {status.st_ino} {status.st_size} "
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
