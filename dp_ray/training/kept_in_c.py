"""State that Python and its libraries keep in C, where no attribute shows it."""

from __future__ import annotations

import contextvars
import threading
import types
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

_BOUND = (types.BuiltinMethodType, types.MethodWrapperType)
"""Functions in C, some of which belong to an object: ``[].append``."""

_SAID = ("getvalue", "tell", "qsize")
"""Methods that say what a stream or a queue holds, and change nothing."""


def settings() -> dict[str, Any]:
    """Return switches of torch and numpy that a call could set, and that change what is computed.

    Those of a GPU are of its whole process, and are set before the rehearsal.
    """
    return {
        "threads": torch.get_num_threads(),
        "default type": torch.get_default_dtype(),
        "products of float32": torch.get_float32_matmul_precision(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "TF32 of cuDNN": torch.backends.cudnn.allow_tf32,
        "benchmarks of cuDNN": torch.backends.cudnn.benchmark,
        "repeatable algorithms of cuDNN": torch.backends.cudnn.deterministic,
        "numbers below 1e-38": bool(torch.tensor(1e-39) * 0.5 > 0),  # or flushed to zero
        "errors of numpy": tuple(sorted(np.geterr().items())),
    }


def belongs_to_an_object(value: Any) -> bool:
    """Whether a value is a function in C that is bound to an object."""
    owner = getattr(value, "__self__", None) if isinstance(value, _BOUND) else None
    return not isinstance(owner, types.ModuleType | type | None)


def lock_state(value: Any) -> str | None:
    """Return whether a lock is held, and how often; None of other objects."""
    if type(value).__module__ != "_thread" or hasattr(value, "__dict__"):
        return None
    return repr(value).partition(" at ")[0]


def parts_of_wrapper(value: Any) -> Iterator[tuple[str, Any]] | None:
    """Return what a reference, a context variable or a bound function leads to; None of others."""
    if isinstance(value, weakref.ReferenceType):
        return iter([("", value())])
    if isinstance(value, contextvars.ContextVar):
        return iter([("", value.get(None))])
    if belongs_to_an_object(value):
        return iter([("", value.__self__)])
    return None


def parts_of_tensor(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a tensor or an array has beside its numbers: attributes and a gradient."""
    yield from ((f".{name}", part) for name, part in getattr(value, "__dict__", {}).items())
    if isinstance(value, Tensor):
        try:
            grad = value.grad if value.is_leaf else None
        except RuntimeError:  # of a kind that has none
            grad = None
        if grad is not None:
            yield ".grad", grad


def reduced(value: Any, *, library: bool) -> Any:
    """Return the state of an object without attributes, as pickle would write it; None of others.

    Args:
        value: whose.
        library: whether its class is Python's or an installed package's; no other code is called.
    """
    cls = type(value)
    if not library or isinstance(value, type | threading.Thread):
        return None
    for name in _SAID:
        if hasattr(cls, name):
            try:
                return getattr(value, name)()
            except (OSError, ValueError):  # of a stream that is closed, or cannot tell
                return None
    if hasattr(value, "__dict__"):
        return None
    try:
        return list(value.__reduce_ex__(4)[1:3])
    except Exception:  # some cannot be pickled, in later versions of Python fewer
        said = cls.__module__ == "itertools" and cls.__name__ in ("count", "repeat")
        return repr(value) if said else len(value) if hasattr(cls, "__len__") else None
