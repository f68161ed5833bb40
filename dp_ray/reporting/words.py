"""Numbers as people read them."""

from __future__ import annotations

import re
from typing import Any

from dp_ray.artifacts.times import roughly
from dp_ray.privacy.adaptive import AdaptiveClipping


def count(number: int, thing: str, things: str | None = None) -> str:
    """``1 step``, ``2 steps``; ``things`` where the plural has another ending."""
    return f"{number:,} {thing if number == 1 else things or f'{thing}s'}"


def describe_epsilon(epsilon: float | None, delta: float) -> str:
    """The budget in words; None is what noise-free runs spend."""
    if epsilon is None:
        return "none: without noise there is no ε"
    return f"ε = {epsilon:.4f} at δ = {delta:g}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, the leading zeros left out."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def about(seconds: float) -> str:
    """A time to one digit, for logs: see :func:`~dp_ray.artifacts.times.roughly`."""
    rough = roughly(seconds)
    size, unit = next(
        (s, u) for s, u in ((3600, "h"), (60, "min"), (1, "s")) if rough >= s or s == 1
    )
    return f"about {rough / size:g} {unit}"


def describe_point(point: dict[str, Any]) -> str:
    """A point of a search: ``views 4, max_grad_norm 1.2``."""
    parts = []
    for field, value in point.items():
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        parts.append(f"{field.rpartition('.')[2]} {shown}")
    return ", ".join(parts)


def table_fields(points: list[dict[str, Any]]) -> list[str]:
    """Return the searched fields that need a column: σ and T have theirs, as they were solved."""
    solved = ("privacy.noise_multiplier", "privacy.steps")
    return [field for field in points[0] if field not in solved] if points else []


def noise_in_words(facts: dict[str, Any]) -> str:
    """σ and C of a plan, as :meth:`~dp_ray.privacy.plan.PrivacyPlan.dump` gives it."""
    sigma, last = facts["noise_multiplier"], facts["noise_factors"][-1]
    falls = f" falling to {sigma * last:.4f}" if last != 1 else ""
    clipping = "" if facts["clipping"] == "flat" else f", {facts['clipping']} clipping"
    adaptive = facts["adaptive_clipping"]
    follows = ""
    if adaptive:
        share = AdaptiveClipping(**adaptive).sum_noise_multiplier(sigma) / (sigma or 1)
        follows = f" at first, then at quantile {adaptive['quantile']:g}"
        falls += f" (times {share:.3f} on the sum: the rest pays for finding C)" if share else ""
    return f"σ = {sigma:.4f}{falls}, C = {facts['max_grad_norm']:g}{follows}{clipping}"


def without_paths(text: str) -> str:
    """A text in which paths and URIs are replaced by …: they say where private data lies."""
    return _PATH.sub("…", text)


_PATH = re.compile(
    r"(?<![\w/.…])(?:[A-Za-z][\w+.-]*:/|~|\.{1,2})?/[^\s:;,'\"()<>]*[^\s:;,'\"()<>.]"
)
