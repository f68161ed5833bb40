"""The environment that tests run in: the same on every machine, and gone afterwards.

Importing this module sets it up, in the process that was started first; processes that this one
starts inherit it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from dp_ray.config.cluster import ClusterConfig
from dp_ray.on_ray.environment import prepare_environment

_FOLDER = "DP_RAY_TEST_FOLDER"
_DAY_S = 86400


def _prepare() -> Path:
    """Point everything that libraries read or leave outside of a test's folder to a new folder."""
    if inherited := os.environ.get(_FOLDER):
        return Path(inherited)
    for left in Path("/tmp").glob("dpt-*"):  # by a run that was killed; none lasts so long
        with suppress(OSError):  # another run may delete it too
            found = left.stat()
            if found.st_uid == os.getuid() and found.st_mtime < time.time() - _DAY_S:
                shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix="dpt-", dir="/tmp"))  # short: Ray's sockets lie in it
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        del os.environ[name]
    for name in ("home", "ray", "matplotlib", "inductor"):
        (folder / name).mkdir()
    os.environ |= {
        _FOLDER: str(folder),
        "HOME": str(folder / "home"),  # Ray's token, dp-ray's decoded copies
        "RAY_TMPDIR": str(folder / "ray"),
        "RAY_worker_niceness": "0",  # else Ray's workers starve beside tests that compute
        "MPLCONFIGDIR": str(folder / "matplotlib"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        # Not tried out by compiling for each kind of vector: 16 s, in the empty cache of each run.
        "TORCHINDUCTOR_VEC_ISA_OK": "1",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }
    # What Ray reads when it is imported, which any test module may do first.
    prepare_environment(ClusterConfig(num_workers=[1, 2]))
    # One thread a process: small tensors gain nothing from more, and tests run side by side.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return folder


_INHERITED = _FOLDER in os.environ
FOLDER = _prepare()
"""Holds a home, Ray's sessions with their logs, and caches of libraries."""


def remove(*, keep_logs: bool) -> None:
    """Delete the folder; do nothing in a process that inherited it.

    Args:
        keep_logs: keep Ray's logs, because a test has failed.
    """
    if _INHERITED:
        return
    keep_logs = keep_logs and any((FOLDER / "ray").iterdir())
    for path in FOLDER.iterdir():
        if not (keep_logs and path.name == "ray"):
            shutil.rmtree(path, ignore_errors=True)
    if not keep_logs:
        shutil.rmtree(FOLDER, ignore_errors=True)
