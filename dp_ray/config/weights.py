"""What a file of weights holds, told from the names of its tensors."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, Literal

SUFFIXES = (".safetensors", ".pt", ".pth")

Norm = Literal["frozen", "group"]


def norm_of_weights(pretrained: Any) -> Norm | None:
    """Return what the weights of a file hold for batch norms: their statistics, or none.

    A run that starts from scratch replaces batch norm by group norm, and its release has no
    statistics. None if there is no file that can be read; the error shows where it is loaded.
    """
    if not isinstance(pretrained, str) or Path(pretrained).suffix not in SUFFIXES:
        return None
    try:
        names = _names(Path(pretrained).expanduser())
    except Exception:  # a damaged file fails in any way, here and again where it is loaded
        return None
    return "frozen" if any(name.endswith("running_mean") for name in names) else "group"


def _names(path: Path) -> list[str]:
    if path.suffix == ".safetensors":
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            return list(json.loads(file.read(min(length, 10**8))))
    import torch

    found = torch.load(path, map_location="meta", weights_only=True)
    return [name for name in found if isinstance(name, str)]
