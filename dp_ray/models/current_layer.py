"""Which layer of a network is being called, for messages of code that it calls."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def current_layer() -> str:
    """Return name and type of the innermost layer on the stack: ``layer 1.drop (Dropout): ``.

    Empty if no layer is being called.
    """
    from torch import nn

    layers: list[nn.Module] = []
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module):
            layers.append(owner)
        frame = frame.f_back  # type: ignore[assignment]
    if not layers:
        return ""
    names = [name for name, module in layers[-1].named_modules() if module is layers[0]]
    place = f"{names[0]} " if names and names[0] else ""
    return f"layer {place}({type(layers[0]).__name__}): "
