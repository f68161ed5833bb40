"""Times as others may see them."""

from __future__ import annotations


def roughly(seconds: float) -> float:
    """Return a time to one digit of its largest unit: 97 s are 2 min.

    How long steps take depends on how many examples were drawn. What leaves the private part, a
    log or result.json, has times no finer than this.
    """
    unit = next((unit for unit in (3600.0, 60.0) if seconds >= unit), 1.0)
    return float(f"{seconds / unit:.1g}") * unit
