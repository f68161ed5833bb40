"""Names that several test modules share."""

from __future__ import annotations

from collections.abc import Callable

from dp_ray.config import Config

MakeConfig = Callable[..., Config]
"""The type of the ``make_config`` fixture."""
