"""A cluster of one machine, as ``ray start --head`` makes it, on the loopback, with its token."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import psutil

from helpers.surroundings import FOLDER

_START_S = 300
_SHOWN = (
    "api/jobs/",
    "api/v0/jobs?detail=1",
    "api/v0/actors?detail=1",
    "api/v0/tasks?detail=1",
    "api/v0/workers?detail=1",
    "api/v0/objects?detail=1",
    "api/v0/placement_groups?detail=1",
    "api/v0/runtime_envs?detail=1",
    "api/v0/cluster_events?detail=1",
    "api/train/v2/runs/v1",
    "nodes?view=summary",
    "logical/actors",
)
"""What the dashboard, ``ray list`` and the job server answer."""


@dataclass(frozen=True)
class Head:
    """A running head node.

    Attributes:
        process: of ``ray start``, from which all others descend.
        folder: Ray's temporary folder.
        url: the dashboard's and the job server's.
        environment: for commands that talk to it.
    """

    process: subprocess.Popen[bytes]
    folder: Path
    url: str
    environment: dict[str, str]

    def ray(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Runs Ray's command line."""
        return subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", *arguments],
            env=self.environment,
            cwd=cwd,
            capture_output=True,
            text=True,
            check=False,
        )

    def get(self, path: str) -> str:
        """What it answers to whoever has the token."""
        token = Path(self.environment["RAY_AUTH_TOKEN_PATH"]).read_text(encoding="ascii")
        request = urllib.request.Request(f"{self.url}/{path}")
        request.add_header("Authorization", f"Bearer {token}")
        with urllib.request.urlopen(request) as answer:
            return str(answer.read().decode())

    def job(self, name: str) -> dict[str, Any]:
        """What the job server knows of a job."""
        found: dict[str, Any] = json.loads(self.get(f"api/jobs/{name}"))
        return found

    def logs(self, name: str) -> str:
        """A job's log."""
        return str(json.loads(self.get(f"api/jobs/{name}/logs"))["logs"])

    def descendants(self) -> list[psutil.Process]:
        """Processes of the cluster and of its jobs."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def told(self) -> dict[str, bytes]:
        """All that somebody on the cluster can see, by its place: answers, files, environments.

        What the user sent by ``--working-dir`` is left out.
        """
        told = {}
        for page in _SHOWN:
            try:
                told[page] = self.get(page).encode()
            except HTTPError as error:  # Ray Train has nothing to tell before the first run
                told[page] = error.read()
        for path in self.folder.rglob("*"):
            if path.is_file() and "working_dir_files" not in path.parts:
                with suppress(FileNotFoundError):
                    told[str(path)] = path.read_bytes()
        for process in self.descendants():
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                told[str(process.pid)] = str([process.cmdline(), process.environ()]).encode()
        return told


def listening(processes: list[psutil.Process]) -> set[str]:
    """Addresses that processes listen on."""
    found = set()
    for process in processes:
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    found.add(connection.laddr.ip.removeprefix("::ffff:"))
    return found


def wait_for(what: Callable[[], bool], seconds: float = 600) -> None:
    """Returns when it is so.

    Raises:
        AssertionError: it did not come about.
    """
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@contextmanager
def start_head(resources: dict[str, float]) -> Iterator[Head]:
    """A head node with four CPUs, which ends with all of its processes."""
    folder = Path(tempfile.mkdtemp(prefix="h", dir=FOLDER / "ray"))
    token = Path(tempfile.mkdtemp(dir=FOLDER / "home")) / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32), encoding="ascii")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else Ray takes the outer address
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # else workers starve beside tests that compute
        # Off by default: what Ray can be made to tell of runs, and to write down of everything.
        "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",
        "RAY_enable_export_api_write": "1",
    }
    ports = _free_ports("port", "dashboard-port", "dashboard-agent-listen-port")
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", "--num-cpus=4"]
    command += [f"--temp-dir={folder}", f"--resources={json.dumps(resources)}"]
    command += [f"--{name}={port}" for name, port in ports.items()]
    with (token.parent / "head.log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    head = Head(process, folder, f"http://127.0.0.1:{ports['dashboard-port']}", environment)

    def answers() -> bool:
        assert process.poll() is None, (token.parent / "head.log").read_text(encoding="utf-8")
        with suppress(OSError):
            return json.loads(head.get("api/jobs/")) == []
        return False

    try:
        wait_for(answers, _START_S)
        yield head
    finally:
        everything = [*head.descendants(), psutil.Process(process.pid)]
        for one in everything:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        psutil.wait_procs(everything)
        process.wait()


def _free_ports(*names: str) -> dict[str, int]:
    listeners = {name: socket.create_server(("127.0.0.1", 0)) for name in names}
    ports = {name: listener.getsockname()[1] for name, listener in listeners.items()}
    for listener in listeners.values():
        listener.close()
    return ports
