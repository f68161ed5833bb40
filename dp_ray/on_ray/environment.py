"""Settings that Ray reads from the environment when it is imported; set before that."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from pathlib import Path

from dp_ray.config.cluster import ClusterConfig
from dp_ray.errors import ConfigError, RunError
from dp_ray.extras import require


def prepare_environment(cluster: ClusterConfig) -> None:
    """Usage reports off, quick start of workers where we are, a Ray of our own on the loopback.

    Args:
        cluster: with the address that :func:`located` gave. What the user has set is left alone.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Also the interval at which Ray Train polls for its workers to be up; the default is 2 s.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    # Paths in a configuration start where the command was given, for workers too.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    if cluster.is_elastic:
        # How long a group of a size that is no longer to be had is waited for; the default is 60 s.
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")
    if cluster.address is None:
        # Not wanted on one machine: there is no dashboard to show them, and no other node to lose.
        os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        # Without this Ray replaces 127.0.0.1 by the machine's outer address and listens there.
        # The name is historical: it is how Ray keeps to the loopback on laptops.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


_LONGEST_SOCKET = 107
"""Characters in the path of a Unix socket (sun_path of Linux, without the final zero)."""

_BELOW = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
"""What Ray appends to its temporary folder."""

_LEAST_FREE = 64 * 2**20
_CONNECT_S = 5.0


def check_environment(cluster: ClusterConfig) -> None:
    """Refuses what Ray would only wait for, or end with a message of its own after minutes.

    Args:
        cluster: with the address that :func:`located` gave.

    Raises:
        MissingExtraError: Ray is not installed.
        RunError: the temporary folder cannot be used, or nothing listens at the address.
    """
    require(
        "ray",
        f"cluster.num_workers = {cluster.num_workers}",
        "train in this process with cluster.num_workers=0",
    )
    if cluster.address is None:
        _check_temporary_folder()
    elif cluster.address != "auto":
        _check_listens(cluster.address)


def temporary_folder() -> tuple[str | None, Path]:
    """Return the folder below which Ray keeps its sessions, and the variable that names it."""
    name = next((n for n in ("RAY_TMPDIR", "TMPDIR") if os.environ.get(n)), None)
    return name, Path(os.environ[name] if name else "/tmp")


def _check_temporary_folder() -> None:
    name, folder = temporary_folder()
    place = f"{name} = {folder}" if name else str(folder)
    remedy = "Set RAY_TMPDIR to a short path of a folder that can be written to, such as /tmp"
    room = _LONGEST_SOCKET - len(_BELOW)
    if len(os.fsencode(folder)) > room:
        raise RunError(
            f"{place}: Ray cannot start with a temporary folder of {len(os.fsencode(folder))} "
            f"characters: its sockets leave room for {room}. {remedy}"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise RunError(
            f"{place}: Ray cannot use this temporary folder: {error.strerror or error}. {remedy}"
        ) from error
    if free < _LEAST_FREE:
        raise RunError(
            f"{place}: Ray's temporary folder is full ({free // 2**20} MiB are free). Make room, "
            "or set RAY_TMPDIR to a short path on another disk"
        )


def _check_listens(address: str) -> None:
    host, _, port = address.rpartition(":")
    source = "RAY_ADDRESS" if address == os.environ.get("RAY_ADDRESS") else "cluster.address"
    remedy = (
        f"Start the cluster, correct {source}, or take a Ray of our own with cluster.address=local"
    )
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise RunError(f"{source} = {address}: is not host:port. {remedy}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
    except OSError as error:
        raise RunError(
            f"{source} = {address}: Ray cannot be reached, nothing answers there "
            f"({error.strerror or error}). {remedy}"
        ) from error


def located(cluster: ClusterConfig) -> ClusterConfig:
    """Return the section with the address of the cluster that is joined.

    Called once, by the process that the user started. From then on an address of None means a Ray
    of our own, and RAY_ADDRESS is not read again: Ray sets it in processes that it starts, and
    ``local`` must win over it.

    Raises:
        ConfigError: the address is one to submit jobs to.
    """
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    if address in (None, "", "local"):
        address = None  # Ray's own "local" would listen on the outer address
    elif "://" in address:
        raise ConfigError(
            "cluster.address",
            address,
            "jobs are submitted there (ray job submit, see docs/cluster.md), and a run joins the "
            "cluster itself",
            "Give host:port, or local for a Ray of our own; RAY_ADDRESS counts where it is not set",
        )
    return cluster.model_copy(update={"address": address})
