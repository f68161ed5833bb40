"""JSON as every reader takes it: the one place where values become JSON text."""

from __future__ import annotations

import json
import math
from typing import Any


def write_json(value: Any, *, indent: int | None = None) -> str:
    """Return a value as JSON text; NaN and infinities, which JSON does not have, become null."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def finite(value: float) -> float | None:
    """Return a number that JSON has; None for NaN and infinities."""
    return value if math.isfinite(value) else None


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return finite(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
