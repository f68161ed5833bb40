"""The rehearsal before the first charge: networks that are no functions are refused, and named."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.support import MakeConfig, charged, folder, start
from torch import Tensor, nn

from dp_ray.config.run import Config
from dp_ray.data.facts import DataFacts
from dp_ray.errors import ConfigError, DpRayError, ModelError
from dp_ray.gradients.engines.registry import build_engine
from dp_ray.gradients.layout import ParameterLayout
from dp_ray.models.build import build_model
from dp_ray.objectives.single_label import SingleLabel
from dp_ray.training.preparation import make_plan
from dp_ray.training.rehearsal import Rehearsal, rehearse
from dp_ray.training.untrained import Untrained

FACTS = DataFacts(100, 3, 4, 1, (0.5,), (0.5,))
CPU = torch.device("cpu")


class Plain(nn.Module):
    """A network without kinks, which those below spoil."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.b(torch.tanh(self.a(x.flatten(1))))
        return logits


class TrainsHalvesInTurn(Plain):
    """The first half of the hidden units for 64 calls, then the other: the effect begins late."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        mask = torch.zeros(8)
        if self.training:
            start = 4 * (self.calls // 64 % 2)
            self.calls += 1
            mask[start : start + 4] = 1
        logits: Tensor = self.b(mask * torch.tanh(self.a(x.flatten(1))))
        return logits


class KeepsTheLast(Plain):
    """Keeps what it saw, and does nothing with it."""

    last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        if self.training:
            self.last = x.mean()
        return super().forward(x)


class CountsEvaluations(Plain):
    """Counts in evaluation alone."""

    evaluations = 0

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        self.evaluations += not self.training
        return super().forward(x)


class ClampsItsWeights(Plain):
    """Changes what it is evaluated with."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        if not self.training:
            self.a.weight.data.clamp_(-0.01, 0.01)
        return super().forward(x)


class ScalesAFrozenLayer(Plain):
    """Changes a frozen parameter through ``.data``, which autograd does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.a.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        if not self.training:
            self.a.weight.data = self.a.weight.data * 0.99
        return super().forward(x)


class ObservesInEvaluation(Plain):
    """Adds up what it is evaluated on, as a calibration does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        if not self.training:
            self.seen.data += x.sum()
        return super().forward(x)


class _Mix(torch.autograd.Function):
    """Adds ``weight`` times the mean over examples, or their places, by a vmap rule of its own."""

    @staticmethod
    def forward(x: Tensor, _kind: str, _weight: float) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(_ctx: Any, _inputs: Any, _output: Any) -> None:
        pass

    @staticmethod
    def backward(_ctx: Any, grad: Tensor) -> Any:
        return grad, None, None

    @staticmethod
    def vmap(_info: Any, dims: Any, x: Tensor, kind: str, weight: float) -> Any:
        x = x.movedim(dims[0], 0)
        if kind == "companions":
            return x + weight * x.mean(0, keepdim=True), 0
        place = torch.arange(len(x), dtype=x.dtype).view(-1, *[1] * (x.ndim - 1))
        return x + weight * place, 0


class Mixes(Plain):
    """Lets an example see the others, or its place."""

    def __init__(self, kind: str, weight: float) -> None:
        super().__init__()
        self.kind, self.weight = kind, weight

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        if self.training:
            x = _Mix.apply(x, self.kind, self.weight)
        return super().forward(x)


class CentersTheBatch(Plain):
    """Subtracts the mean over the images, which in training are the views of one example."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return super().forward(x if self.training else x - x.mean(0))


class HidesBehindZeros(CentersTheBatch):
    """Starts from a head of zeros, as fine-tuning does: all logits are 0 at first."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.b.weight)
        nn.init.zeros_(self.b.bias)


class GivesNaN(Plain):
    """Divides 0 by 0, in one of the modes."""

    def __init__(self, *, training: bool) -> None:
        super().__init__()
        self.mode = training

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return super().forward(x / x.sub(x).abs() if self.training == self.mode else x)


class KeepsOnes(Plain):
    """Keeps a helper tensor as long as the shape stays: a function all the same."""

    ones: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        if self.ones is None or self.ones.shape != x.shape:
            self.ones = torch.ones_like(x)
        return super().forward(x + self.ones)


class RemembersByShape(Plain):
    """Keeps a table by shapes, as position encodings do."""

    def __init__(self) -> None:
        super().__init__()
        self.table: dict[torch.Size, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        if x.shape not in self.table:
            self.table[x.shape] = torch.linspace(0, 1, x.shape[-1])
        return super().forward(x + self.table[x.shape])


class Memoizes(Plain):
    """Calls a partial function, and one that Python remembers the results of."""

    def __init__(self) -> None:
        super().__init__()
        self.activation = functools.partial(torch.nn.functional.leaky_relu, negative_slope=0.1)
        self.table = functools.lru_cache(maxsize=8)(torch.ones)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return super().forward(self.activation(x) + self.table(x.shape[-1]))


class KeepsTheLatestShapes(Plain):
    """Keeps tables of the shapes that were used last, in the order of their use."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[torch.Size, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        table = self.tables.pop(x.shape, None)
        self.tables[x.shape] = torch.ones(x.shape[-1]) if table is None else table
        return super().forward(x + self.tables[x.shape])


class Gives(Plain):
    """Returns something else in evaluation."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor) -> Tensor:
        """Logits in training."""
        logits = super().forward(x)
        return logits if self.training else self.output(logits)


class MixesTypes(Plain):
    """Works in float32 alone."""

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        h = self.a(x.flatten(1))
        out = h.new_zeros(h.shape, dtype=torch.float32)
        out[:, torch.arange(8)] = h
        logits: Tensor = self.b(out)
        return logits


def rehearsal(make_config: MakeConfig, model: nn.Module, **train: Any) -> None:
    config: Config = make_config(augment={"views": 1})
    engine = build_engine(precision=train.pop("precision", "float32"))
    size, objective = train.pop("size", 4), train.pop("objective", SingleLabel(3))
    rehearse(
        config,
        FACTS,
        model.train(),
        objective,
        engine=engine,
        microbatch_size=size,
        device=CPU,
        evaluated=[5],
    )


REFUSED = {
    "effect after 64 calls": (
        TrainsHalvesInTurn(),
        r"the network \(TrainsHalvesInTurn\).calls changes with each call in training mode",
    ),
    "kept data": (KeepsTheLast(), r"\(KeepsTheLast\).last depends on the examples"),
    "count of evaluations": (
        CountsEvaluations(),
        r"\(CountsEvaluations\).evaluations changes with each call in evaluation mode",
    ),
    "weights": (ClampsItsWeights(), "the parameter a.weight is changed by a call .* evaluation"),
    "frozen": (ScalesAFrozenLayer(), "the frozen parameter a.weight is changed .* evaluation"),
    "buffer": (ObservesInEvaluation(), "the buffer seen is changed by a call .* evaluation"),
    "companions": (Mixes("companions", 1e-3), "depends on the other examples of its microbatch"),
    "companions, a little": (
        Mixes("companions", 1e-6),
        "depends on the other examples of its microbatch",
    ),
    "place": (Mixes("place", 1e-3), "depends on its place in the microbatch"),
    "images of a batch": (CentersTheBatch(), "depend on the other images of the batch"),
    "zeros": (HidesBehindZeros(), "depend on the other images of the batch"),
    "NaN": (GivesNaN(training=True), "the gradients of an image of noise are not finite"),
    "NaN in evaluation": (GivesNaN(training=False), "logits.* of an image of noise are not finite"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_network_that_is_no_function_is_refused(make_config: MakeConfig, kind: str) -> None:
    model, words = REFUSED[kind]
    with pytest.raises(ModelError, match=words):
        rehearsal(make_config, model)


@pytest.mark.parametrize(
    "model",
    [Plain(), KeepsOnes(), RemembersByShape(), Memoizes(), KeepsTheLatestShapes()],
    ids=lambda m: type(m).__name__,
)
@pytest.mark.parametrize("size", [1, 3])
def test_a_function_is_taken(make_config: MakeConfig, model: nn.Module, size: int) -> None:
    """Also one that keeps what is the same for equal shapes; whatever the microbatch size."""
    rehearsal(make_config, model, size=size)


def test_a_buffer_that_changed_before_the_rehearsal_is_noticed(make_config: MakeConfig) -> None:
    """An engine that is tried out calls the network first, at sizes that no rehearsal has."""
    model = Plain().train()
    model.register_buffer("seen", torch.zeros(()))
    before = Untrained.of(model, ParameterLayout.of(model))
    model.get_buffer("seen").add_(1)
    found = Rehearsal(make_config(), FACTS, model, SingleLabel(3), untrained=before)
    with pytest.raises(ModelError, match="the buffer seen is changed by a call of the network"):
        found.try_out()


@pytest.mark.parametrize("kept", ["1.0", "torch.randn(())"])
def test_what_a_head_of_zeros_hides_is_found_by_the_second_instance(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    init = f"nn.init.zeros_(self.head.weight); self.kept = {kept}"
    config = own(
        make_config, tmp_path, monkeypatch, NET.format(init=init, forward="x = x * self.kept")
    )
    if kept == "1.0":
        assert make_plan(config).steps == 4
        return
    with pytest.raises(ModelError, match=r"\.kept differs, and is outside its state_dict"):
        make_plan(config)


def test_place_within_rounding_is_noted(make_config: MakeConfig) -> None:
    """A device may do that; the statement says that it is assumed to do no harm."""
    config = make_config(augment={"views": 1})
    found = Rehearsal(config, FACTS, Mixes("place", 1e-7).train(), SingleLabel(3))
    found.run(4)
    assert any("depends on its place in the microbatch" in note for note in found.notes)
    found = Rehearsal(config, FACTS, Plain(), SingleLabel(3))
    found.run(4)
    assert found.notes == []


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        (lambda logits: (logits, logits), "tuple"),
        (lambda logits: {"logits": logits}, "dict"),
        (lambda logits: logits[:, :1], r"\(3, 1\)"),
    ],
)
def test_another_output_in_evaluation_is_refused(
    make_config: MakeConfig, output: Any, shown: str
) -> None:
    with pytest.raises(ConfigError, match=rf"model\.name.*returns {shown} in evaluation mode"):
        Rehearsal(make_config(), FACTS, Gives(output).train(), SingleLabel(3)).try_out()


def test_a_network_that_fails_in_bfloat16_alone_is_told_so(make_config: MakeConfig) -> None:
    rehearsal(make_config, MixesTypes())
    with pytest.raises(ConfigError, match=r"train\.precision = 'bfloat16'.*dtype.*Use float32"):
        rehearsal(make_config, MixesTypes(), precision="bfloat16")


def test_a_plan_tries_the_run_s_precision(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = "out = x.new_zeros(len(x), 10); out[:, torch.arange(10)] = self.head(x); return out"
    config = own(make_config, tmp_path, monkeypatch, NET.format(init="", forward=forward))
    assert make_plan(config).steps == 4
    short = config.model_copy(
        update={"train": config.train.model_copy(update={"precision": "bfloat16"})}
    )
    with pytest.raises(ConfigError, match=r"train\.precision = 'bfloat16'"):
        make_plan(short)


def test_a_rehearsal_leaves_the_generators_as_they_were(make_config: MakeConfig) -> None:
    before = torch.get_rng_state()
    rehearsal(make_config, build_model(make_config().model, FACTS))
    assert torch.equal(torch.get_rng_state(), before)


def own(make_config: MakeConfig, tmp_path: Path, patch: pytest.MonkeyPatch, text: str) -> Config:
    """A configuration whose network is built by a module of that text."""
    name = f"own_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    patch.syspath_prepend(tmp_path)
    return make_config(model={"name": f"{name}:Net"}, augment={"views": 1})


NET = """
import itertools, os
import numpy as np
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, channels, image_size):
        super().__init__()
        self.head = nn.Linear(channels * image_size**2, num_classes)
        {init}

    def forward(self, x):
        x = x.flatten(1)
        {forward}
        return self.head(x)
"""


def test_a_run_is_refused_before_it_has_a_folder(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = NET.format(init="self.calls = itertools.count()", forward="next(self.calls)")
    config = own(make_config, tmp_path, monkeypatch, text)
    with pytest.raises(ModelError, match="changes with each call"):
        start(config)
    assert not folder(config).exists()


def test_the_run_s_own_microbatches_are_rehearsed(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What shows at no other size than the run's; nothing is charged."""
    forward = "assert self.training or len(x) != 360, 'too many images'"
    config = own(make_config, tmp_path, monkeypatch, NET.format(init="", forward=forward))
    with pytest.raises(DpRayError, match=rf"too many images \({tmp_path}.*line 15\)"):
        start(config)
    assert charged(config) == []


ELSEWHERE = {
    "attribute": (
        "self.kept = torch.randn(channels * image_size**2)",
        r"\(Net\)\.kept differs, and is outside its state_dict",
    ),
    "buffer": (
        "self.register_buffer('kept', torch.randn(channels * image_size**2), persistent=False)",
        "the buffer kept differs, and is not persistent",
    ),
    "import": ("self.kept = AT_IMPORT", "a second instance .* gives other outputs"),
    "numpy": (
        "self.kept = float(np.random.default_rng().random())",
        r"\(Net\)\.kept differs, and is outside its state_dict",
    ),
}


@pytest.mark.parametrize("kind", ELSEWHERE)
def test_outputs_that_depend_on_what_is_not_released_are_refused(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    init, words = ELSEWHERE[kind]
    text = f"{NET.format(init=init, forward='x = x * self.kept')}\nAT_IMPORT = np.random.rand()\n"
    with pytest.raises(ModelError, match=words):
        start(own(make_config, tmp_path, monkeypatch, text))


def test_what_is_computed_from_the_arguments_needs_no_file(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = NET.format(
        init="self.kept = torch.sin(torch.arange(channels * image_size**2.0))",
        forward="x = x * self.kept",
    )
    config = own(make_config, tmp_path, monkeypatch, text)
    assert start(config)["status"] == "finished"


def test_a_frozen_part_that_is_drawn_anew_is_refused(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = "torch.from_numpy(np.random.default_rng({}).random(channels * image_size**2)).float()"
    frozen = f"self.kept = nn.Parameter({drawn}, requires_grad=False)"
    text = NET.format(init=frozen.format(""), forward="x = x * self.kept")
    with pytest.raises(ModelError, match="kept is not trained, and is drawn anew"):
        start(own(make_config, tmp_path, monkeypatch, text))
    text = NET.format(init=frozen.format("3"), forward="x = x * self.kept")
    assert start(own(make_config, tmp_path, monkeypatch, text))["status"] == "finished"
