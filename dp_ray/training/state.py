"""What a network could remember from one call to the next, as places and digests.

Python's own garbage collector knows how to walk objects, but not what is in them. This walk reads
contents: attributes of modules and of what they refer to, their classes, the variables and defaults
of functions, the globals of the user's modules (of a script or a notebook those that its code
names), generators in both senses of the word. It does not enter installed packages, and cannot look
into objects that have neither attributes nor a buffer.
"""

from __future__ import annotations

import enum
import gc
import hashlib
import os
import random
import sys
import threading
import types
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dp_ray.imports import is_users, named_globals
from dp_ray.training.kept_in_c import (
    belongs_to_an_object,
    lock_state,
    parts_of_tensor,
    parts_of_wrapper,
    reduced,
    settings,
)

State = dict[str, str]
"""Place → digest of what is there."""

_PLAIN = (type(None), bool, int, float, complex, str, bytes, enum.Enum, range, slice)
_ALL_PLAIN = (*_PLAIN, torch.dtype, torch.device, torch.Size, torch.layout)

_LIBRARIES = {*sys.stdlib_module_names, "dp_ray", "numpy", "opacus", "torch", "torchvision", "timm"}

_OPAQUE = {"abc", "importlib", "logging", "re", "typing", "warnings"}
"""Packages whose objects change by themselves, and hold nothing that a network computes with."""

_CLOSED = (
    *(types.CodeType, types.BuiltinFunctionType, types.MethodDescriptorType, threading.Thread),
    *(types.GenericAlias, types.UnionType),  # in annotations, which lead to half of a library
)
"""Objects whose parts hold nothing that a network computes with."""

_EXACT = (dict, list, tuple)
"""Containers without attributes of their own."""

_LAYERS = ("layer ", "the network ", "the objective ")
"""How the names of places inside of modules begin."""

_DUNDER_KEPT = ("__dict__", "__slots__")

_OF_IMPORT = {
    *("__builtins__", "__cached__", "__doc__", "__file__", "__loader__", "__name__", "__package__"),
    *("__path__", "__spec__", "__warningregistry__"),
}
"""Globals that Python itself puts into a module."""


def read_state(model: nn.Module, device: torch.device, objective: object = None) -> State:
    """Read all that a call of the network could leave behind, apart from its own tensors.

    Parameters and buffers are left out: :mod:`dp_ray.training.untrained` compares them.

    Args:
        model: the network.
        device: where it runs; names the generator of random numbers there.
        objective: what its loss is computed by, which could remember as well.
    """
    rest = {"os.environ": dict(os.environ), "settings of torch and numpy": settings()}
    rest_digests = {name: _digest(values) for name, values in rest.items()}
    return {**read_objects(model, objective), **_generators(device), **rest_digests}


def read_objects(model: nn.Module, objective: object = None) -> State:
    """Read all objects that a network and its objective lead to, apart from its own tensors."""
    return _Walk(model, objective).state


def first_difference(before: Mapping[str, str], after: Mapping[str, str]) -> str | None:
    """The first place whose content differs, if possible an attribute; None if all are equal."""
    places = [p for p in chain(after, before) if before.get(p) != after.get(p)]
    attributes = [p for p in places if p.startswith(_LAYERS) and "(its class" not in p]
    return next(iter(attributes + places), None)


def _generators(device: torch.device) -> State:
    state = {
        "Python's generator of random numbers": _digest(random.getstate()),
        "numpy's generator of random numbers": _digest(np.random.get_state(legacy=False)),
        "torch's generator of random numbers": _digest(torch.get_rng_state()),
    }
    if device.type == "cuda":
        numbers = torch.cuda.get_rng_state(device)
        state["torch's generator of random numbers on the GPU"] = _digest(numbers)
    return state


class _Walk:
    """One walk over all objects that a network and its objective lead to, each visited once."""

    def __init__(self, model: nn.Module, objective: object = None) -> None:
        self.state: State = {}
        self._first: dict[int, str] = {}
        self._alive: list[Any] = []  # an id names an object only while it lives
        named = chain(model.named_parameters(), model.named_buffers())
        self._own = {id(tensor) for _, tensor in named}
        self._stack: list[tuple[str, Any]] = []
        for name, module in model.named_modules():
            kind = type(module).__name__
            self._stack.append(
                (f"layer {name} ({kind})" if name else f"the network ({kind})", module)
            )
        self._registered = {id(module) for _, module in self._stack}
        if objective is not None:
            self._stack.append((f"the objective ({type(objective).__name__})", objective))
        self._stack.reverse()
        while self._stack:
            self._visit(*self._stack.pop())

    def _visit(self, place: str, value: Any) -> None:
        while place in self.state:  # one name for two things
            place += "'"
        if type(value) in _PLAIN or isinstance(value, _ALL_PLAIN):  # the first is fast, and common
            self.state[place] = f"{type(value).__name__} {value!r}"
            return
        if id(value) in self._first:
            self.state[place] = f"same as {self._first[id(value)]}"
            return
        self._first[id(value)] = place
        self._alive.append(value)
        own = id(value) in self._own
        content = "a tensor of the network" if own else _content(value)
        self.state[place] = _kind(value) if content is None else content
        if content is None or isinstance(value, Tensor | np.ndarray):
            parts = [(_join(place, name), part) for name, part in self._parts(value)]
            self._stack.extend(reversed(parts))

    def _parts(self, value: Any) -> Iterator[tuple[str, Any]]:
        """What a value holds, with how it is reached."""
        if isinstance(value, types.FunctionType):
            yield from _function_parts(value)
            if value.__module__ == "__main__":  # which holds the user's data, or a whole notebook
                named = named_globals(value).items()
                yield from ((f"={name} of the module __main__", part) for name, part in named)
            else:
                yield from self._globals(value.__globals__, value.__module__)
        elif isinstance(value, types.ModuleType):
            yield from self._globals(vars(value), value.__name__)
        elif isinstance(value, type):
            yield from _class_parts(value)
        elif isinstance(value, Tensor | np.ndarray):
            yield from parts_of_tensor(value)
        else:
            simple = _simple_parts(value)
            yield from simple or ()
            exact = type(value) in _EXACT
            derived = not exact and isinstance(value, Mapping | list | tuple)
            if simple is None or derived:
                yield from self._object_parts(value)

    def _globals(self, namespace: dict[str, Any], module: str) -> Iterator[tuple[str, Any]]:
        """What a module holds, once."""
        if id(namespace) not in self._first:
            self._first[id(namespace)] = module
            for name, part in list(namespace.items()):
                if name not in _OF_IMPORT:
                    yield f"={name} of the module {module}", part

    def _object_parts(self, value: Any) -> Iterator[tuple[str, Any]]:
        cls = type(value)
        attributes = dict(getattr(value, "__dict__", {}))  # first: some objects make it when asked
        yield f" (its class {cls.__name__})", cls
        if isinstance(value, set | frozenset):
            yield " (its members)", sorted(map(_digest, value))
        elif _iterates(value):
            yield " (its items)", list(value)
        if (state := reduced(value, library=_is_library(cls.__module__))) is not None:
            yield " (its state)", state
        if cls.__module__ in ("functools", "itertools"):
            referents = [part for part in gc.get_referents(value) if not isinstance(part, type)]
            yield " (its state)", referents
        attributes.update((n, getattr(value, n, None)) for n in _slots(cls))  # type: ignore[arg-type]
        registered = id(value) in self._registered
        for name, part in attributes.items():
            if registered and name == "_modules":
                yield f".{name}", dict.fromkeys(part)  # they are visited as layers
            else:
                yield f".{name}", part


def _simple_parts(value: Any) -> Iterable[tuple[str, Any]] | None:
    """Parts of Python's own containers and wrappers; None of other objects."""
    exact = type(value) in _EXACT
    parts: Iterable[tuple[str, Any]] | None = None if exact else parts_of_wrapper(value)
    if isinstance(value, Mapping):
        items = list(value.items())
        objects = [(" (a key)", key) for key, _ in items if not isinstance(key, _PLAIN)]
        parts = [*((f"[{_label(key)}]", part) for key, part in items), *objects]
    elif isinstance(value, list | tuple):
        parts = ((f"[{i}]", part) for i, part in enumerate(value))
    elif isinstance(value, types.MethodType):
        parts = (("", value.__self__), ("", value.__func__))
    elif isinstance(value, classmethod | staticmethod):
        parts = (("", value.__func__),)
    elif isinstance(value, property):
        parts = (("", part) for part in (value.fget, value.fset) if part is not None)
    elif isinstance(value, types.CellType):
        parts = (("", _cell(value)),)
    elif isinstance(value, types.GeneratorType | types.CoroutineType):
        frame = value.gi_frame if isinstance(value, types.GeneratorType) else value.cr_frame
        at, variables = (None, {}) if frame is None else (frame.f_lasti, dict(frame.f_locals))
        parts = (("", at), (" (its variables)", variables))
    return parts


def _content(value: Any) -> str | None:
    """A digest of a value that is read as a whole; None if it has parts."""
    if type(value) in _EXACT:
        return None
    name = type(value).__name__
    if isinstance(value, Tensor):
        return _tensor(value)
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        data = repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes()
        return f"{name} {array.dtype} {array.shape} {_hash(data)}"
    if (numbers := _generator(value)) is not None:
        return f"{name} {numbers}"
    if (lock := lock_state(value)) is not None:
        return lock
    if _is_closed(value):
        return f"{name} {getattr(value, '__qualname__', '')}"
    try:
        return f"{name} {_hash(memoryview(value).tobytes())}"
    except (TypeError, ValueError, BufferError):
        return None


def _is_closed(value: Any) -> bool:
    """Whether a value belongs to a library, and what it holds is none of the network's state."""
    if isinstance(value, types.ModuleType):
        return _is_library(value.__name__)
    if isinstance(value, types.FunctionType):
        return _is_library(value.__module__)
    if belongs_to_an_object(value):
        return False
    package = str(type(value).__module__).partition(".")[0]
    return isinstance(value, _CLOSED) or package in _OPAQUE


def _generator(value: Any) -> str | None:
    """A digest of where a generator of random numbers is; None of other objects."""
    if isinstance(value, torch.Generator):
        return _hash(value.get_state().cpu().numpy().tobytes())
    if isinstance(value, random.SystemRandom):
        return ""
    if isinstance(value, random.Random):
        return _hash(repr(value.getstate()).encode())
    if isinstance(value, np.random.Generator | np.random.RandomState | np.random.BitGenerator):
        bits = value if isinstance(value, np.random.BitGenerator) else _bit_generator(value)
        return _hash(repr(bits.state).encode())
    return None


def _bit_generator(value: Any) -> Any:
    return value.bit_generator if isinstance(value, np.random.Generator) else value._bit_generator


def _tensor(value: Tensor) -> str:
    """Type, shape and content, also of what ``vmap`` and ``grad`` wrapped and left behind.

    A tensor that is the same for each example of a microbatch counts as one that has no examples.
    """
    functorch = torch._C._functorch
    if functorch.is_functorch_wrapped_tensor(value):
        inner, batch = functorch.get_unwrapped(value), functorch.maybe_get_bdim(value)
        if functorch.is_batchedtensor(value) and not functorch.is_functorch_wrapped_tensor(inner):
            by_example = inner.detach().movedim(batch, 0)
            alike = len(by_example) > 0 and bool((by_example == by_example[:1]).all())
            inner = by_example[0] if alike else by_example
        return _tensor(inner)
    said = f"{type(value).__name__} {value.dtype} {tuple(value.shape)}"
    try:
        flat = value.detach().cpu().contiguous().reshape(-1)
        return f"{said} {_hash(flat.view(torch.uint8).numpy().tobytes())}"
    except Exception:  # without storage, or in a format of its own
        return said


def _iterates(value: Any) -> bool:
    """Whether the items of a container from C can be read without using it up."""
    return type(value).__module__ == "collections" and hasattr(type(value), "__len__")


def _function_parts(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    names = function.__code__.co_freevars
    for name, cell in zip(names, function.__closure__ or (), strict=True):
        yield f" (its variable {name})", _cell(cell)
    yield " (its code)", hash(function.__code__)  # within a process, by content
    yield " (its text)", function.__doc__
    yield " (its defaults)", function.__defaults__
    yield " (its keyword defaults)", function.__kwdefaults__
    yield from ((f".{name}", part) for name, part in vars(function).items())


@cache
def _slots(cls: type) -> tuple[str, ...]:
    """Names of the attributes that an object keeps outside its ``__dict__``."""
    return tuple(
        name
        for base in cls.__mro__
        for name, slot in vars(base).items()
        if isinstance(slot, types.MemberDescriptorType) and name not in _DUNDER_KEPT
    )


def _cell(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _class_parts(cls: type) -> Iterator[tuple[str, Any]]:
    """Attributes of a class and of those it is derived from; of a library's, plain values alone."""
    for base in cls.__mro__:
        if base.__module__ in ("builtins", "abc"):
            continue
        library = _is_library(base.__module__)
        for name, part in list(vars(base).items()):
            if library and not isinstance(part, (*_PLAIN, list, dict, set, Tensor, np.ndarray)):
                continue
            if name not in _DUNDER_KEPT and not isinstance(part, _DESCRIPTORS):
                yield f"{'' if base is cls else f' (its base {base.__name__})'}.{name}", part


_DESCRIPTORS = (
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    types.WrapperDescriptorType,
)


@cache
def _is_library(name: Any) -> bool:
    """Whether a module is Python's, this package's or an installed one, and not the user's."""
    if not isinstance(name, str) or name == "__main__":  # a class may say anything
        return False
    if name.partition(".")[0] in _LIBRARIES:
        return True
    file = getattr(sys.modules.get(name), "__file__", None)
    return file is not None and not is_users(file)


def _join(place: str, name: str) -> str:
    """The place of a part; a global is named by its module alone."""
    return name[1:] if name.startswith("=") else place + name


def _kind(value: Any) -> str:
    size = f" of {len(value)}" if isinstance(value, Mapping | list | tuple | set) else ""
    order = f" in order {_digest([*map(_label, value)])}" if isinstance(value, Mapping) else ""
    return f"{type(value).__name__}{size}{order}"


def _label(key: Any) -> str:
    return repr(key) if isinstance(key, _PLAIN) else _digest(key)


def _digest(value: Any) -> str:
    """Of plain values, nested in tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return _tensor(value)
    if isinstance(value, Mapping):
        value = [(key, _digest(part)) for key, part in value.items()]
    elif isinstance(value, np.ndarray):
        value = value.tobytes()
    elif not isinstance(value, (*_ALL_PLAIN, list, tuple)):
        return type(value).__name__  # whose representation may be an address
    return _hash(repr(value).encode())


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=12).hexdigest()
