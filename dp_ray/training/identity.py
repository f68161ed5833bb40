"""What identifies the objects that a run was passed: a run is not resumed with others.

A network is identified by its initial tensors, its layers and the code of the user's classes among
them; an objective by its code and its attributes; the test split by its content. (That of the
training split always counts.) Code is compared without comments and layout. What identifies a
network or an objective by its import path is that path, as everywhere.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import textwrap
from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor, nn

from dp_ray.config.run import Config
from dp_ray.config.section import OBJECT
from dp_ray.imports import is_users
from dp_ray.models.pretrained import digest_of_tensors

_PLAIN = (type(None), bool, int, float, complex, str, bytes)


def start_identity(
    config: Config, weights: str | None, model: nn.Module, objective: object, test_digest: str
) -> str | None:
    """Return a digest of what a run starts from, besides its configuration and training data.

    Args:
        config: says what was passed as an object.
        weights: digest of the pretrained weights.
        model: the network before the first step.
        objective: what is learnt.
        test_digest: of the test split.

    Returns:
        The digest of the weights itself where no object was passed.
    """
    parts: dict[str, Any] = {}
    if config.model.name == OBJECT:
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        parts["model"] = [digest_of_tensors(tensors), *map(_described, model.modules())]
        parts["layers"] = repr(model)
    if config.objective.name == OBJECT:
        parts["objective"] = _described(objective)
    if config.data.name == OBJECT:
        parts["test"] = test_digest
    if not parts:
        return weights
    return hashlib.sha256(json.dumps([weights, parts]).encode()).hexdigest()


def _described(value: object) -> list[str]:
    """A class of the user's and what an object of it holds, tensors of a network aside."""
    kind = type(value)
    codes = [_code_of(base) for base in kind.__mro__ if _is_own(base)]
    return [
        kind.__qualname__,
        *codes,
        *_attributes(vars(value) if hasattr(value, "__dict__") else {}),
    ]


def _attributes(values: dict[str, Any]) -> Iterable[str]:
    """Plain attributes and tensors, by name."""
    for name, value in sorted(values.items()):
        if name.startswith("_") or name == "training":
            continue
        if isinstance(value, Tensor):
            yield f"{name} = {digest_of_tensors({name: value})}"
        elif isinstance(value, np.ndarray):
            content = hashlib.sha256(value.tobytes()).hexdigest()
            yield f"{name} = {value.dtype} {value.shape} {content}"
        elif _is_plain(value):
            yield f"{name} = {value!r}"
        elif callable(value) and hasattr(value, "__code__"):
            yield f"{name} = {_code_of(value)}"


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)


def _is_own(kind: type) -> bool:
    """Whether a class is the user's: of a script, a notebook or a module that is not installed."""
    if kind.__module__ == "__main__":
        return True
    try:
        return is_users(inspect.getfile(kind))
    except (TypeError, OSError):  # built in, or of no file
        return False


def _code_of(value: Any) -> str:
    """The source of a class or a function as Python reads it; what it compiled to without one."""
    try:
        return ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(value))))
    except (OSError, TypeError, SyntaxError, ValueError):
        functions = [value, *vars(value).values()] if isinstance(value, type) else [value]
        codes = [f.__code__ for f in functions if hasattr(f, "__code__")]
        return " ".join(code.co_code.hex() + repr(code.co_names) for code in codes)
