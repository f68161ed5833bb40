"""A user's own code, by its import path."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from dp_ray.errors import ConfigError


def import_object(path: str, field: str) -> Any:
    """The object named ``package.module:name``; the working directory is searched too.

    Raises:
        ConfigError: it cannot be imported; the message says why.
    """
    module, _, name = path.partition(":")
    here = str(Path.cwd())
    if "" not in sys.path and here not in sys.path:
        sys.path.insert(0, here)
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            field, path, f"cannot be imported: {error}", "Install it or run from its folder"
        ) from error
