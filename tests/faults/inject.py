"""What a test adds to the processes of a run: a log of all noise that was drawn, and a fault.

The log is written where the noise is added, not where it is charged, so that it can bear witness
against the ledger.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from dp_ray.keys import KeyedStream
from dp_ray.privacy.sampling import PoissonSampler, Streams

POINTS = (
    "before charge",
    "record - head",
    "charge - noise",
    "noise - optimizer step",
    "optimizer step - broadcast",
    "broadcast - checkpoint",
    "checkpoint - record",
    "after checkpoint",
)
TARGETS = ("coordinator", "follower", "driver", "node")


@dataclass(frozen=True)
class Fault:
    """What happens when the coordinator reaches a point of some steps, once for each of them.

    Attributes:
        folder: for the log, the numbers of processes and the marks of what has happened.
        point: one of :data:`POINTS`, or "" for no fault.
        steps: it happens when the point is reached first at each of these steps or later.
        target: whom to kill; "pause" waits until the process is killed from outside.
    """

    folder: str
    point: str = ""
    steps: tuple[int, ...] = ()
    target: str = "coordinator"

    def to_json(self) -> str:
        """For the command line of the driver."""
        return json.dumps(asdict(self))


def driver(fault: Fault) -> None:
    """Notes the driver's process."""
    (Path(fault.folder) / "driver").write_text(str(os.getpid()))


def worker(config: dict[str, Any], *, fault: Fault) -> None:
    """In place of ``train_func_per_worker``: the same, watched."""
    import ray.train

    from dp_ray.on_ray.worker import train_func_per_worker

    context = ray.train.get_context()
    rank = context.get_world_rank()
    (Path(fault.folder) / f"worker{rank}").write_text(str(os.getpid()))
    (Path(fault.folder) / "workers").write_text(str(context.get_world_size()))
    if rank == 0:
        watch(fault)
    train_func_per_worker(config)


def watch(fault: Fault) -> None:
    """Patches this process, which will be the coordinator's."""
    from dp_ray.artifacts.checkpoint import Checkpoints
    from dp_ray.ledger.ledger import Ledger
    from dp_ray.ledger.records import _LinesOfAFile
    from dp_ray.privacy.noise import KeyedNoiseOptimizer
    from dp_ray.training.coordinator import Coordinator

    _log_noise(fault)
    now = {"step": 0}

    def reach(point: str) -> None:
        if point == fault.point:
            for step in fault.steps:
                if now["step"] >= step:
                    _strike(fault, step)

    def note_step(_self: Any, charge: Any) -> None:
        now["step"] = charge.step
        reach("before charge")

    _around(Ledger, "charge", before=note_step, after=lambda: reach("charge - noise"))
    _around(_LinesOfAFile, "write_head", before=lambda *_: reach("record - head"))
    _around(KeyedNoiseOptimizer, "add_noise", after=lambda: reach("noise - optimizer step"))
    _around(Coordinator, "release", after=lambda: reach("optimizer step - broadcast"))
    _around(
        Checkpoints,
        "save",
        before=lambda *_: reach("broadcast - checkpoint"),
        after=lambda: reach("after checkpoint"),
    )
    _around(Ledger, "add_checkpoint", before=lambda *_: reach("checkpoint - record"))


def kill(folder: Path, target: str) -> bool:
    """SIGKILL to a process of the run, by the number that it left; False if it is gone."""
    name = {"coordinator": "worker0", "follower": "worker1"}.get(target, "driver")
    try:
        process = psutil.Process(int((folder / name).read_text()))
        below = process.children(recursive=True) if target == "node" else []
    except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
        return False
    own = [p for p in below if p.pid == os.getpid()]
    for victim in [process, *(p for p in below if p not in own), *own]:
        try:
            victim.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    return True


def _strike(fault: Fault, step: int) -> None:
    folder = Path(fault.folder)
    try:
        (folder / f"struck {step}").touch(exist_ok=False)
    except FileExistsError:
        return  # once
    if fault.target == "pause":
        while True:
            time.sleep(0.05)
    elif fault.target == "coordinator":
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        kill(folder, fault.target)


def _around(
    owner: type,
    name: str,
    *,
    before: Callable[..., None] = lambda *_: None,
    after: Callable[[], None] = lambda: None,
) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        before(*args)
        result = original(*args, **kwargs)
        after()
        return result

    setattr(owner, name, wrapped)


def _log_noise(fault: Fault) -> None:
    """One line for each time that noise meets a sum or a count: the two keys, what, how much."""
    from dp_ray.privacy.adaptive import COUNT_SENSITIVITY
    from dp_ray.privacy.noise import KeyedNoiseOptimizer, NoiseSource
    from dp_ray.training import coordinator

    log = os.open(Path(fault.folder) / "noise", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    begin, draw, add = KeyedStream.__init__, PoissonSampler.draw, KeyedNoiseOptimizer.add_noise
    count = coordinator.noised_count
    last = {"draw": ""}

    def note(kind: str, stream: NoiseSource | None, noised: bytes, sigma: float) -> None:
        entry = {
            "kind": kind,
            "draw": last["draw"],
            "noise": getattr(stream, "stream", stream).identity,  # that drawn ahead, or its own
            "sum": hashlib.sha256(noised).hexdigest(),
            "sigma": sigma,
        }
        os.write(log, (json.dumps(entry) + "\n").encode())

    def named(self: KeyedStream, key: bytes, **address: int) -> None:
        begin(self, key, **address)
        text = key + f"/{address['incarnation']}/{address['step']}".encode()
        self.identity = hashlib.sha256(text).hexdigest()[:32]  # type: ignore[attr-defined]

    def drawn(self: PoissonSampler, streams: Streams, step: int, shard: Any) -> Any:
        last["draw"] = streams(step).identity  # type: ignore[attr-defined]
        return draw(self, streams, step, shard)

    def added(self: KeyedNoiseOptimizer) -> None:
        sums = (parameter.summed_grad.cpu().numpy().tobytes() for parameter in self.params)
        note("sum", self._stream, b"".join(sums), self.noise_multiplier)
        add(self)

    def counted(within: float, *, std: float, stream: KeyedStream) -> float:
        note("count", stream, repr(within).encode(), std / COUNT_SENSITIVITY)
        return count(within, std=std, stream=stream)

    KeyedStream.__init__ = named  # type: ignore[method-assign]
    PoissonSampler.draw = drawn  # type: ignore[method-assign]
    KeyedNoiseOptimizer.add_noise = added  # type: ignore[method-assign]
    coordinator.noised_count = counted
