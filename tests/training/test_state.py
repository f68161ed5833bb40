"""What a network could remember between calls is found, wherever it is kept."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.func import vmap

from dp_ray.training.state import first_difference, read_objects, read_state

CPU = torch.device("cpu")

HIDING_PLACES = """
import array, collections, contextvars, ctypes, datetime, decimal, functools, io, itertools, os
import queue, random, threading, types, weakref

import numpy as np
import torch
from torch import nn

COUNT = 0
__count__ = 0
VARIABLE = contextvars.ContextVar("count", default=0)
BOX = types.SimpleNamespace(n=0)
LOCAL = threading.local()
LOCAL.n = 0


@functools.lru_cache
def cached():
    return [0]


class Slotted:
    __slots__ = ("n",)


class WithProperty:
    n = 0

    @property
    def next(self):
        WithProperty.n += 1


def endless():
    i = 0
    while True:
        i += 1
        yield i


class Box:
    pass


class Derived(dict):
    pass


class DerivedArray(np.ndarray):
    pass


def dunder_global(net):
    global __count__
    __count__ += 1


def context_variable(net):
    VARIABLE.set(VARIABLE.get() + 1)


def text_of_a_function(net):
    closure.__doc__ = (closure.__doc__ or "") + "x"


def threads(net):
    torch.set_num_threads(1 + torch.get_num_threads() % 2)


def attribute_of_a_buffer(net):
    net.buffer.n = getattr(net.buffer, "n", 0) + 1


def gradient_of_a_buffer(net):
    net.buffer.grad = torch.ones(1) if net.buffer.grad is None else net.buffer.grad + 1


def attribute_of(value):
    value.n = getattr(value, "n", 0) + 1


def weak_key(net):
    net.kept[net] = net.kept.get(net, 0) + 1


def lock(net):
    net.kept.release() if net.kept.locked() else net.kept.acquire()


def flag(net):
    net.kept.clear() if net.kept.is_set() else net.kept.set()


def add(step):
    def tick(net):
        net.kept = net.kept + step

    return tick


def other_function(net):
    net.kept = (lambda: 1) if net.kept() == 2 else (lambda: 2)


def rewrite(net):
    number = int(net.kept.getvalue() or b"0") + 1
    net.kept.seek(0)
    net.kept.write(b"%d" % number)
    net.kept.seek(0)


def rotate(net):
    first = next(iter(net.kept))
    net.kept[first] = net.kept.pop(first)


def counting_factory():
    numbers = []

    def make():
        numbers.append(0)
        return 0

    return collections.defaultdict(make)


def ask_and_forget(net):
    net.kept["a"]
    del net.kept["a"]


def closure():
    n = 0

    def tick(net):
        nonlocal n
        n += 1

    return tick


def module_global(net):
    global COUNT
    COUNT += 1


def default_argument(net, kept=[]):
    kept.append(1)


def class_attribute(net):
    type(net).calls = getattr(type(net), "calls", 0) + 1


def base_class_of_torch(net):
    nn.Module.calls = getattr(nn.Module, "calls", 0) + 1


def function_attribute(net):
    function_attribute.n = getattr(function_attribute, "n", 0) + 1


def namespace(net):
    BOX.n += 1


def thread_local(net):
    LOCAL.n += 1


def lru_cache(net):
    cached()[0] += 1


def property_of_another(net):
    net.kept.next


def environment(net):
    os.environ["CALLS"] = str(int(os.environ.get("CALLS", 0)) + 1)


def attribute(net):
    net.kept += 1


def generator(net):
    next(net.kept)


def append(net):
    net.kept.append(0)


def nested(net):
    net.kept["a"][0].z[0] += 1


def count(net):
    net.kept.value += 1


def element(net):
    net.kept[0] += 1


def slot(net):
    net.kept.n += 1


def write(net):
    net.kept.write("x")


def draw(net):
    net.kept.random()


def draw_from_torch(net):
    torch.rand(1, generator=net.kept)


def numpy_global(net):
    np.random.rand()


def python_global(net):
    random.random()


def torch_global(net):
    torch.seed()


def slotted():
    made = Slotted()
    made.n = 0
    return made


KEPT = {
    "attribute": (attribute, lambda: 0),
    "list": (append, list),
    "deque": (append, collections.deque),
    "nested": (nested, lambda: {"a": [types.SimpleNamespace(z=[0])]}),
    "generator": (generator, endless),
    "itertools.count": (generator, itertools.count),
    "list iterator": (generator, lambda: iter([1] * 100)),
    "itertools.cycle": (generator, lambda: itertools.cycle([1, 2, 3])),
    "ctypes": (count, ctypes.c_long),
    "array": (element, lambda: array.array("l", [0])),
    "tensor": (element, lambda: torch.zeros(1)),
    "numpy array": (element, lambda: np.zeros(1)),
    "layer in a list": (lambda net: net.kept[0].bias.data.add_(1), lambda: [nn.Linear(1, 1)]),
    "slots": (slot, slotted),
    "property": (property_of_another, WithProperty),
    "StringIO": (write, io.StringIO),
    "Python's Random": (draw, lambda: random.Random(0)),
    "numpy's Generator": (draw, lambda: np.random.default_rng(0)),
    "numpy's RandomState": (lambda net: net.kept.rand(), lambda: np.random.RandomState(0)),
    "torch's Generator": (draw_from_torch, torch.Generator),
    "Decimal": (add(decimal.Decimal(1)), lambda: decimal.Decimal(0)),
    "datetime": (add(datetime.timedelta(1)), lambda: datetime.datetime(2026, 1, 1)),
    "BytesIO": (rewrite, io.BytesIO),
    "order of a dict": (rotate, lambda: {"a": 1, "b": 2}),
    "factory of a dict": (ask_and_forget, counting_factory),
    "attribute of a dict": (lambda net: attribute_of(net.kept), Derived),
    "attribute of a tensor": (lambda net: attribute_of(net.kept[0]), lambda: [torch.zeros(1)]),
    "attribute of an array": (
        lambda net: attribute_of(net.kept), lambda: np.zeros(1).view(DerivedArray)
    ),
    "member of a set": (lambda net: attribute_of(*net.kept), lambda: {Box()}),
    "key of a dict": (lambda net: attribute_of(*net.kept), lambda: {Box(): 1}),
    "bound method": (lambda net: net.kept.__self__.append(1), lambda: [].append),
    "other function": (other_function, lambda: lambda: 1),
    "WeakKeyDictionary": (weak_key, weakref.WeakKeyDictionary),
    "weak reference": (lambda net: attribute_of(net.kept()), lambda: weakref.ref(Derived)),
    "Semaphore": (lambda net: net.kept.release(), lambda: threading.Semaphore(0)),
    "Event": (flag, threading.Event),
    "Lock": (lock, threading.Lock),
    "RLock": (lambda net: net.kept.acquire(), threading.RLock),
    "SimpleQueue": (lambda net: net.kept.put(1), queue.SimpleQueue),
    **{
        tick.__name__: (tick, int)
        for tick in (
            module_global, default_argument, class_attribute, base_class_of_torch, namespace,
            function_attribute, thread_local, lru_cache, environment, numpy_global,
            python_global, torch_global, dunder_global, context_variable, text_of_a_function,
            threads, attribute_of_a_buffer, gradient_of_a_buffer,
        )
    },
    "closure": (closure(), int),
}


def make(kind):
    tick, kept = KEPT[kind]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.kept = kept()
            self.register_buffer("buffer", torch.zeros(1))

        def forward(self, x):
            tick(self)
            return x

    return Net()
"""
PLACES = {
    "attribute": "the network (Net).kept",
    "closure": "(its variable n)",
    "module_global": "COUNT of the module hiding_places",
    "default_argument": "(its defaults)[0]",
    "class_attribute": "(its class Net).calls",
    "nested": "the network (Net).kept['a'][0].z[0]",
    "namespace": "BOX of the module hiding_places.n",
    "numpy_global": "numpy's generator of random numbers",
    "python_global": "Python's generator of random numbers",
    "torch_global": "torch's generator of random numbers",
    "environment": "os.environ",
}
KINDS = (
    *("attribute", "list", "deque", "nested", "generator", "itertools.count", "list iterator"),
    *("itertools.cycle", "ctypes", "array", "tensor", "numpy array", "layer in a list", "slots"),
    *("property", "StringIO", "Python's Random", "numpy's Generator", "numpy's RandomState"),
    *("torch's Generator", "module_global", "default_argument", "class_attribute", "closure"),
    *("base_class_of_torch", "namespace", "function_attribute", "thread_local", "lru_cache"),
    *("environment", "numpy_global", "python_global", "torch_global", "dunder_global", "Decimal"),
    *("context_variable", "text_of_a_function", "threads", "attribute_of_a_buffer", "datetime"),
    *("gradient_of_a_buffer", "BytesIO", "order of a dict", "factory of a dict", "bound method"),
    *("attribute of a dict", "attribute of a tensor", "attribute of an array", "key of a dict"),
    *("member of a set", "other function", "WeakKeyDictionary", "weak reference", "Semaphore"),
    *("Event", "Lock", "RLock", "SimpleQueue"),
)


@pytest.fixture(scope="module")
def hiding_places(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """A user's module of networks that count their calls."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "hiding_places.py").write_text(HIDING_PLACES, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        return importlib.import_module("hiding_places")


@pytest.mark.parametrize("kind", KINDS)
def test_a_count_of_calls_is_found_wherever_it_is_kept(
    hiding_places: ModuleType, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALLS", "0")
    monkeypatch.setattr(nn.Module, "calls", 0, raising=False)
    assert set(hiding_places.KEPT) == set(KINDS)
    net = hiding_places.make(kind)
    net(torch.zeros(1))
    before = read_state(net, CPU)
    assert first_difference(before, read_state(net, CPU)) is None
    net(torch.zeros(1))
    place = first_difference(before, read_state(net, CPU))
    assert place is not None
    assert PLACES.get(kind, "") in place


class Keeps(nn.Module):
    """Keeps whatever it is given."""

    def forward(self, x: Tensor) -> Tensor:
        """Keep the input."""
        self.kept = x
        return x


def test_what_vmap_leaves_behind_is_compared_by_content() -> None:
    """A wrapped tensor that is equal for all examples is as good as one that is not wrapped."""
    net, states = Keeps(), []
    for images in (torch.ones(3, 2), torch.ones(1, 2), torch.tensor([[1.0, 1], [1, 2]])):
        vmap(net)(images)
        states.append(read_objects(net))
    net(torch.ones(2))
    states.append(read_objects(net))
    same, same_again, other, plain = states
    assert same == same_again == plain
    assert first_difference(same, other) == "the network (Keeps).kept"


def test_parameters_and_buffers_are_left_to_others() -> None:
    """They are compared bit by bit, and not once more by a digest."""
    net = nn.BatchNorm1d(2)
    before = read_objects(net)
    net(torch.randn(3, 2))
    with torch.no_grad():
        net.weight.add_(1)
    assert read_objects(net) == before


def test_of_a_scripts_globals_those_are_read_that_its_code_names() -> None:
    """The others are the user's data, or a notebook's own."""
    script: dict[str, object] = {"nn": nn, "__name__": "__main__"}
    exec(
        "used, unused = [1], [1]\n"
        "def helper(x):\n"
        "    return x * used[0]\n"
        "class Net(nn.Linear):\n"
        "    def forward(self, x):\n"
        "        return super().forward((lambda y: helper(y))(x))\n",
        script,
    )
    net = script["Net"](2, 2)  # type: ignore[operator]
    before = read_objects(net)
    script["unused"] = 2
    script["more"] = 3
    assert read_objects(net) == before
    script["used"] = [2]
    assert "used of the module __main__" in str(first_difference(before, read_objects(net)))


def test_a_class_whose_module_is_no_text_is_read() -> None:
    class Odd:
        __module__ = property(lambda _: "x")  # type: ignore[assignment]

    net = nn.Linear(2, 2)
    net.odd = Odd()  # type: ignore[assignment]
    assert read_objects(net) == read_objects(net)
