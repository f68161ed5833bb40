"""Runs the stages of the GPU bundle in turn, each within its own time; run.sh calls it.

Decoding of CIFAR-10 runs beside the first stages. A stage that fails or is late is killed with all
that it started, and the next one begins.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from results import Results, in_short, write_table

HERE = Path(__file__).parent

STAGES = {"a": "correctness", "b": "speed", "c": "learning"}
SHARES = {"a": 80.0, "b": 250.0, "c": 200.0}
"""Seconds, of 530; scaled to what is left and what is asked for."""


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """What the figures depend on."""
    import numpy as np
    import torch

    found: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cores": os.cpu_count(),
        "device": "cpu",
    }
    if options.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": properties.name,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return found


def run_stage(command: list[str], seconds: float) -> str:
    """Runs one stage to its end or its limit; says how it ended."""
    process = subprocess.Popen(command, start_new_session=True)
    try:
        code = process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds:.0f} s"
    except KeyboardInterrupt:
        return "interrupted"
    finally:
        kill_group(process)
    return "ended" if code == 0 else f"failed with status {code}"


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main() -> None:
    """Runs what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--only", action="append", choices=tuple(STAGES))
    parser.add_argument("--seconds", type=float, default=560.0, help="for everything")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    options.out.mkdir(parents=True, exist_ok=True)
    options.work.mkdir(parents=True, exist_ok=True)
    wanted = options.only or list(STAGES)
    data, decoding = options.work / "cifar10", None
    archive = options.bundle / "cifar10_jpeg.tar.xz"
    if archive.exists() and set(wanted) & {"b", "c"}:
        command = [sys.executable, str(HERE / "unpack.py"), str(archive), str(data)]
        decoding = subprocess.Popen(
            command + (["--few"] if options.smoke else []), start_new_session=True
        )
    try:
        results = Results(options.out, "machine")
        try:
            results.add(**machine(options))
        except Exception as error:
            results.add(problem=in_short(error))
        for index, stage in enumerate(wanted):
            left = deadline - time.monotonic()
            share = SHARES[stage] / sum(SHARES[name] for name in wanted[index:])
            seconds = left * share
            if stage == "a" and not options.smoke:  # what it does not need is of use to the others
                seconds = min(seconds, 120.0)
            command = [
                sys.executable,
                str(HERE / f"{STAGES[stage]}.py"),
                *("--out", str(options.out), "--work", str(options.work), "--data", str(data)),
                *("--device", options.device, "--until", str(time.monotonic() + seconds - 5)),
                *(["--smoke"] if options.smoke else []),
            ]
            started = time.monotonic()
            ended = run_stage(command, seconds)
            results.add(stage=STAGES[stage], ended=ended, seconds=time.monotonic() - started)
    finally:
        if decoding is not None:
            kill_group(decoding)
    write_table(options.out)
    print((options.out / "report.md").read_text())


if __name__ == "__main__":
    main()
