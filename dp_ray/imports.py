"""A user's own code: by its import path, imported anew, and where in it an error arose."""

from __future__ import annotations

import importlib
import os
import site
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

from dp_ray.errors import ConfigError

USER_ERRORS = (Exception, SystemExit)
"""What a user's code may raise; not Ctrl-C."""

_LONGEST = 300

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
        ConfigError: it cannot be imported; the message says why, and where.
    """
    module, _, name = path.partition(":")
    search_users_folders_last()
    try:
        return getattr(importlib.import_module(module), name)
    except USER_ERRORS as error:
        raise ConfigError(
            field,
            path,
            f"cannot be imported: {cause_of(error)}",
            "Install it or run from its folder",
        ) from error


def cause_of(error: BaseException) -> str:
    """An error of a user's code in one line, with the file and line that it came from."""
    text = " ".join(str(error).split())[:_LONGEST]
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if isinstance(error, SyntaxError) and error.filename is not None:
        return f"{said} ({error.filename}, line {error.lineno})" if "line" not in text else said
    frames = [f for f in traceback.extract_tb(error.__traceback__) if is_users(f.filename)]
    return f"{said} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else said


def is_users(file: str | None) -> bool:
    """Whether a file of Python code is the user's: not Python's, not installed, not of dp-ray."""
    if file is None or file.startswith("<"):
        return False
    return not any(file.startswith(folder) for folder in _library_folders())


@contextmanager
def imported_anew() -> Iterator[None]:
    """Import the user's modules again inside, and put those that were there back afterwards."""
    before = _users_modules()
    for name in before:
        del sys.modules[name]
    try:
        yield
    finally:
        for name in _users_modules():
            del sys.modules[name]
        sys.modules.update(before)


def named_globals(function: FunctionType) -> dict[str, Any]:
    """Return the globals that a function's code names, those within it included, in order."""
    names, codes = set[str](), [function.__code__]
    while codes:
        code = codes.pop()
        names.update(code.co_names)
        codes += [part for part in code.co_consts if isinstance(part, CodeType)]
    return {
        name: function.__globals__[name] for name in sorted(names & function.__globals__.keys())
    }


def _users_modules() -> dict[str, Any]:
    return {
        name: module
        for name, module in list(sys.modules.items())
        if name != "__main__" and is_users(getattr(module, "__file__", None))
    }


@cache
def _library_folders() -> tuple[str, ...]:
    paths = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    paths += [*site.getsitepackages(), site.getusersitepackages(), str(Path(__file__).parent)]
    return tuple({f"{path}{os.sep}" for path in paths})
