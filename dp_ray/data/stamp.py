"""What tells whether the files that images are decoded from may have changed."""

from __future__ import annotations

import time
from importlib.metadata import version

from dp_ray.config.run import DataConfig
from dp_ray.data.files import FOLDERS, root_of, walk
from dp_ray.data.sources.registry import load_splits

_DECODING = "decoding 3"
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
    if config.name == "image_folder":
        stamps.append(f"background {config.background}")
    for found in (entry for part in parts for entry in walk(root / part)):
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
