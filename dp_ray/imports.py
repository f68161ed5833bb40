"""A user's own code: by its import path, imported anew, and where in it an error arose.

A configuration that a user trains with may name any code. The files of a run that is read may have
been written by anybody: inside :func:`reading`, only code is imported that the user agreed to.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import os
import site
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, TypeVar

from dp_ray.errors import ConfigError, OwnCodeError

USER_ERRORS = (Exception, SystemExit)
"""What a user's code may raise; not Ctrl-C."""

_LONGEST = 300

USERS_FOLDERS = "DP_RAY_IMPORT_PATHS"
"""Variable that names the user's folders to workers, which may run in others."""

_AGREED = "~/.local/state/dp-ray/own_code"
"""Import paths that configurations of this user named, where they were imported from, and what the
file's content was."""

_RUN_OTHER_CODE = {"__import__", "eval", "exec", "importlib", "pkgutil", "runpy"}
"""What runs code that a file's own text does not show."""

_AGREES: ContextVar[bool | None] = ContextVar("agrees", default=None)
"""While files are read: whether the user agreed to all code that they name. None otherwise."""


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
        OwnCodeError: a file that is read names it, and the user did not agree to run it.
        ConfigError: it cannot be imported; the message says why, and where.
    """
    module, _, name = path.partition(":")
    if not may_import(path):
        raise OwnCodeError(field, path)
    try:
        found = getattr(importlib.import_module(module), name)
    except USER_ERRORS as error:
        raise ConfigError(
            field,
            path,
            f"cannot be imported: {cause_of(error)}",
            "Install it or run from its folder",
        ) from error
    if _AGREES.get() is None:
        agree_to(path)
    return found


@contextmanager
def reading(*, own_code: bool) -> Iterator[None]:
    """Import inside only code that the user agreed to run.

    That is code which this user has named in a configuration on this machine before, at the same
    place; or the same file at another place, if all that it imports is installed.

    Args:
        own_code: the user agrees to all code that the files name.
    """
    token = _AGREES.set(own_code)
    try:
        yield
    finally:
        _AGREES.reset(token)


def may_import(path: str) -> bool:
    """Return whether :func:`import_object` would import ``path`` here.

    Args:
        path: ``package.module:name``.
    """
    search_users_folders_last()
    if _AGREES.get() is not False:
        return True
    return not _agreed_lines().isdisjoint(_lines_of(path))


def agree_to(path: str) -> None:
    """Remember that a configuration of this user named ``path``; not in a worker of a cluster."""
    search_users_folders_last()
    agreed = _agreed_lines()
    new = [line for line in _lines_of(path) if line not in agreed]
    if USERS_FOLDERS in os.environ or not new:
        return
    with suppress(OSError, RuntimeError):  # then --own-code has to be given
        file = Path(_AGREED).expanduser()
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(file, "a", encoding="utf-8", opener=lambda p, f: os.open(p, f, 0o600)) as out:
            out.writelines(f"{line}\n" for line in new)


def _agreed_lines() -> set[str]:
    with suppress(OSError, RuntimeError, ValueError):
        return set(Path(_AGREED).expanduser().read_text(encoding="utf-8").splitlines())
    return set()


def _lines_of(path: str) -> list[str]:
    """An import path with its outermost package's place, and with its file's content.

    Nothing is imported for that. A file counts by its content if all that runs is in it.
    """
    module = path.partition(":")[0]
    with suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(module.partition(".")[0])
        if spec is not None:
            place = spec.origin or sorted({*(spec.submodule_search_locations or ())})
            lines = [repr((path, str(place)))]
            if spec.origin and "." not in module and _stands_alone(spec.origin):
                content = hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()
                lines.append(repr((path, f"sha256 {content}")))
            return lines
    return [repr((path, None))]


def _stands_alone(file: str) -> bool:
    """Whether a file of the user's imports only what is installed, and runs no other code."""
    try:
        nodes = list(ast.walk(ast.parse(Path(file).read_bytes())))
    except (OSError, SyntaxError, ValueError):  # a compiled module, or one that cannot be read
        return False
    modules, names = set[str](), set[str]()
    for node in nodes:
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add("." if node.level or node.module is None else node.module)
        elif isinstance(node, ast.Name):
            names.add(node.id)
    tops = {module.partition(".")[0] for module in modules}
    return names.isdisjoint(_RUN_OTHER_CODE) and all(_is_installed(top) for top in tops)


def _is_installed(module: str) -> bool:
    """Whether a module is Python's own or a library's, which no folder of the user's replaces."""
    if module in _RUN_OTHER_CODE or not module:
        return False
    with suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(module)
        # "built-in" and "frozen" are no files.
        return spec is not None and spec.origin is not None and not is_users(spec.origin)
    return False


T = TypeVar("T")


def make_own(path: str, field: str, kind: type[T], *arguments: Any) -> T:
    """Return what the user's class or function at an import path makes.

    Args:
        path: ``package.module:name``.
        field: that holds the path.
        kind: what it must be an instance of.
        *arguments: that it is called with.

    Raises:
        ConfigError: it cannot be imported or called, or makes something else.
    """
    factory = import_object(path, field)
    try:
        made = factory(*arguments)
    except ConfigError:
        raise
    except USER_ERRORS as error:
        raise ConfigError(field, path, f"cannot be made: {cause_of(error)}", "Repair it") from error
    if not isinstance(made, kind):
        remedy = f"Derive its class from {kind.__module__}.{kind.__qualname__}"
        raise ConfigError(field, path, f"gives a {type(made).__name__}", remedy)
    return made


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
    # Wherever else packages were installed: by pip's --target, or as a .pth file says.
    paths += [path for path in sys.path if path and any(Path(path).glob("*.dist-info"))]
    return tuple({f"{path}{os.sep}" for path in paths})
