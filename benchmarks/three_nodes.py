"""Three nodes on this machine, a run and a search submitted to them, and a node killed in each.

``python benchmarks/three_nodes.py`` takes some minutes and prints what docs/cluster.md quotes. Its
nodes are processes that listen on 127.0.0.1 alone, which end, with all they wrote, with it.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
TRAIN = (
    "train configs/digits.yaml --set cluster.num_workers=[2,3] --set cluster.resize_interval_s=5"
)
TUNE = (
    "tune configs/sweeps/digits.yaml --name search --set tune.num_samples=3 "
    "--set tune.privacy_mode=compose"
)


class ThreeNodes:
    """A head that runs no workers and three nodes for one worker each.

    Args:
        shared: a folder that all of them see; short, because Ray's sockets lie in it.
    """

    def __init__(self, shared: Path) -> None:
        self.shared = shared
        token = shared / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32), encoding="ascii")
        port = free_port()
        os.environ.update(
            PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            RAY_ADDRESS=f"http://127.0.0.1:{port}",
            RAY_AUTH_MODE="token",
            RAY_AUTH_TOKEN_PATH=str(token),
            RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",  # else Ray takes the outer address
            RAY_USAGE_STATS_ENABLED="0",
            RAY_raylet_start_wait_time_s="300",  # 30 are few where other work is done
        )
        os.chdir(REPOSITORY)  # where jobs start then
        from ray.cluster_utils import Cluster  # reads the environment

        head = {
            "num_cpus": 0,
            "node_ip_address": "127.0.0.1",
            "dashboard_host": "127.0.0.1",
            "dashboard_port": port,
            "dashboard_agent_listen_port": free_port(),
            "include_dashboard": True,
            "temp_dir": str(shared / "ray"),
        }
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        # As ray start does: by it a job finds its own cluster if there are others on this machine.
        (shared / "ray/ray_current_cluster").write_text(self.cluster.gcs_address)
        self.nodes: dict[str, Any] = {}
        for name in ("node1", "node2", "node3"):
            self.add(name)

    def add(self, name: str) -> None:
        """One more node."""
        self.nodes[name] = self.cluster.add_node(
            num_cpus=1,
            node_name=name,
            node_ip_address="127.0.0.1",
            dashboard_agent_listen_port=free_port(),
        )
        say(f"# {name} is there")

    def kill(self, name: str) -> None:
        """SIGKILL, as a power cut would."""
        self.nodes.pop(name).kill_raylet(check_alive=False)  # what ran on it ends with it

    def command(self, line: str, *, shown: bool = True) -> str:
        """Runs a command in the repository and prints it with what it printed."""
        done = subprocess.run(
            line.split(),
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if shown:
            self.say(f"$ {line}")
            self.say(done.stdout)
        return done.stdout

    def submit(self, job: str, command: str) -> None:
        """``ray job submit``, which returns at once."""
        self.say(f"$ ray job submit --submission-id {job} -- dp-ray {command}")
        storage = f"--set train.storage_path={self.shared}/runs"
        # Without --working-dir: nodes of one machine share Ray's folder, and each would unpack it
        # over the others', from under a running job.
        submit = f"ray job submit --no-wait --submission-id {job}"
        for _ in range(10):
            told = self.command(f"{submit} -- dp-ray {command} {storage}", shown=False)
            if "No available agent" not in told:  # the head has only just started
                break
            time.sleep(10)
        if "submitted successfully" not in told:
            sys.exit(told)

    def say(self, text: str) -> None:
        """Prints it without this machine's paths."""
        say(text.replace(str(self.shared), "/shared").strip())

    def wait_for(self, what: Callable[[], bool], job: str) -> None:
        """Returns when it is so; the job's log is shown if that ends before."""
        looks = 0
        while not what():
            looks += 1
            if not looks % 100 and "FAILED" in self.command(f"ray job status {job}", shown=False):
                sys.exit(self.command(f"ray job logs {job}", shown=False))
            time.sleep(0.1)

    def end(self) -> None:
        """Ends all nodes."""
        self.cluster.shutdown()


def free_port() -> int:
    """A port that nobody listens on; those that Ray takes by itself may be another Ray's."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def say(text: str) -> None:
    """Prints at once."""
    print(text, flush=True)


def steps(run: Path) -> int:
    """How far a run is."""
    with suppress(OSError, ValueError):
        return int(json.loads((run / "private/progress.json").read_bytes())["step"])
    return 0


def main() -> None:
    """Makes the transcript."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # nothing is left behind
    with tempfile.TemporaryDirectory(prefix="dpr-", ignore_cleanup_errors=True) as folder:
        three = ThreeNodes(Path(folder))
        try:
            train_on(three)
            three.add("node4")
            search_on(three)
        finally:
            three.end()


def train_on(three: ThreeNodes) -> None:
    """A run loses a node and goes on with two workers."""
    run = three.shared / "runs/digits"
    three.submit("train", TRAIN)
    three.wait_for(lambda: steps(run) >= 30, "train")
    three.kill("node2")
    say(f"# node2 was killed; step {steps(run)} was the last before")
    three.command("ray job logs train --follow")
    three.command(f"dp-ray ledger {run}")


def search_on(three: ThreeNodes) -> None:
    """A search loses a node and its trial is taken up elsewhere."""
    trials = three.shared / "runs/search/private/trials"
    three.submit("tune", TUNE)
    three.wait_for(lambda: any(steps(trial) >= 20 for trial in trials.glob("*")), "tune")
    three.kill("node3")
    running = {trial.name: steps(trial) for trial in sorted(trials.glob("*"))}
    say(f"# node3 was killed; steps before: {running}")
    three.command("ray job logs tune --follow")
    for trial in sorted(trials.glob("*")):
        three.command(f"dp-ray ledger {trial}")


if __name__ == "__main__":
    main()
