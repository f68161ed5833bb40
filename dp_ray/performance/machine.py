"""What this machine is: what decides how it rounds and how fast it computes."""

from __future__ import annotations

import platform

import numpy as np
import torch


def describe_machine(device: torch.device) -> dict[str, str]:
    """What decides how this worker rounds and how fast it is, besides its threads."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }
