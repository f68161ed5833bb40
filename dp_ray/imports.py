"""A user's own code, by its import path."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

from dp_ray.errors import ConfigError

USERS_FOLDERS = "DP_RAY_IMPORT_PATHS"
"""Variable that names the user's folders to workers, which may run in others."""


def search_users_folders_last() -> None:
    """Puts the working directory behind all other places where Python looks for modules.

    So a file of the user's that is named as a module of Python's (``profile.py``, ``secrets.py``)
    or of a library is not imported in its place.
    """
    here = str(Path.cwd())
    users = [here, *filter(None, os.environ.get(USERS_FOLDERS, "").split(os.pathsep))]
    others = [path for path in sys.path if path not in ("", *users)]
    sys.path[:] = [*others, *dict.fromkeys(users)]


def import_object(path: str, field: str) -> Any:
    """The object named ``package.module:name``; the working directory is searched too.

    Raises:
        ConfigError: it cannot be imported; the message says why.
    """
    module, _, name = path.partition(":")
    search_users_folders_last()
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            field, path, f"cannot be imported: {error}", "Install it or run from its folder"
        ) from error
