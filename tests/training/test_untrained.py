"""What is not trained is released as it was before the first step, or the run stops."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.support import MakeConfig, charged, folder, released, start
from torch import Tensor, nn

from dp_ray.config.run import Config
from dp_ray.errors import ModelError, RunError
from dp_ray.gradients.layout import ParameterLayout
from dp_ray.training.untrained import Untrained, check_saved, same_bits

NET = """
from pathlib import Path
import torch
from torch import nn

HERE = Path(__file__).parent

class Net(nn.Module):
    def __init__(self, num_classes, channels, image_size):
        super().__init__()
        self.head = nn.Linear(channels * image_size**2, num_classes)
        self.register_buffer("scale", torch.tensor(float((HERE / "scale").read_text())))

    def forward(self, x):
        mode = "training" if self.training else "evaluation"
        if (HERE / mode).exists():
            self.scale.data = self.scale.data + 1
        return self.head(x.flatten(1) * self.scale)
"""


@pytest.fixture
def config(
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Config:
    """A network whose buffer is read from a file, and changes once there is a file that says so."""
    name = f"watched_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(NET, encoding="utf-8")
    (tmp_path / "scale").write_text("0.5")
    monkeypatch.syspath_prepend(tmp_path)
    train = {"evaluate_every": 2, "checkpoint_every": 2}
    return make_config(model={"name": f"{name}:Net"}, augment={"views": 1}, train=train)


def stop_after(monkeypatch: pytest.MonkeyPatch, then: Path) -> None:
    """Let the network change its buffer once a step was released, which no rehearsal can see."""
    from dp_ray.training.coordinator import Coordinator

    release = Coordinator.release

    def watched(self: Coordinator, *arguments: object) -> bool:
        then.write_text("")
        return release(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Coordinator, "release", watched)


@pytest.mark.parametrize("mode", ["evaluation"])
def test_a_tensor_that_changes_stops_the_run_at_once(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    """At the next evaluation or checkpoint; the run goes on once the network is mended."""
    with monkeypatch.context() as patch:
        stop_after(patch, tmp_path / mode)
        with pytest.raises(RunError, match=f"scale is not trained, .* changed it in {mode}"):
            start(config)
    assert not (folder(config) / "release").exists()
    assert charged(config) == [(0, 0), (1, 0)]
    (tmp_path / mode).unlink()
    assert start(config, resume=True)["charges"] == 4
    assert released(config)["scale"].item() == 0.5


def test_the_release_holds_the_copy_whatever_became_of_the_network() -> None:
    class Counts(nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2)
            self.register_buffer("calls", torch.zeros(()))
            self.register_buffer("scratch", torch.zeros(3), persistent=False)
            self.tied = self.weight
            self.bias.requires_grad_(False)

    net = Counts()
    untrained = Untrained.of(net, ParameterLayout.of(net))
    assert set(untrained.tensors) == {"bias", "calls", "scratch"}
    bias = net.bias.detach().clone()
    with torch.no_grad():
        net.calls += 7
        net.bias += 1
    assert untrained.changed_in(net) == "bias"
    files = untrained.released({"weight": torch.ones(2, 2)})
    assert set(files) == {"weight", "tied", "bias", "calls"} == set(net.state_dict())
    assert files["calls"] == 0
    assert torch.equal(files["bias"], bias)
    assert torch.equal(files["tied"], torch.ones(2, 2))


class Adds(nn.Linear):
    """Adds a count to its state_dict."""

    def state_dict(self, *arguments: object, **keywords: object) -> dict[str, Tensor]:  # type: ignore[override]
        """See torch."""
        return {**super().state_dict(*arguments, **keywords), "calls": torch.zeros(())}  # type: ignore[arg-type]


class Rescales(nn.Linear):
    """Writes other values than it computes with."""

    def state_dict(self, *arguments: object, **keywords: object) -> dict[str, Tensor]:  # type: ignore[override]
        """See torch."""
        found = super().state_dict(*arguments, **keywords)  # type: ignore[arg-type]
        return {name: 2 * tensor for name, tensor in found.items()}


class ExtraState(nn.Linear):
    """Has state of torch's third kind."""

    def get_extra_state(self) -> int:
        """See torch."""
        return 1


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (Adds(1, 1), "adds calls"),
        (Rescales(1, 1), "changes weight"),
        (ExtraState(1, 1), "adds _extra_state"),
    ],
)
def test_a_state_dict_of_its_own_is_refused(net: nn.Module, words: str) -> None:
    with pytest.raises(
        ModelError, match=rf"model\.name = 'own': the network's state_dict\(\) {words}"
    ):
        check_saved(net, "model.name = 'own'")
    check_saved(nn.Linear(1, 1), "")


def test_a_run_resumed_with_other_untrained_tensors_is_refused(
    config: Config, tmp_path: Path
) -> None:
    start(config)
    longer = config.model_copy(update={"privacy": config.privacy.model_copy(update={"steps": 6})})
    (tmp_path / "scale").write_text("0.25")
    with pytest.raises(RunError, match=r"model\.name: the network's frozen parameters or buffers"):
        start(longer, resume=True)
    assert len(charged(config)) == 4
    (tmp_path / "scale").write_text("0.5")
    assert start(longer, resume=True)["charges"] == 6


def test_ledgers_say_what_is_not_trained(config: Config) -> None:
    start(config)
    records = (folder(config) / "private/ledger/records.jsonl").read_text().splitlines()
    bodies = [json.loads(json.loads(line)["body"]) for line in records]
    found = [body["untrained"] for body in bodies if body["kind"] == "session"]
    assert [len(digest) for digest in found] == [64]


def test_bits_are_compared() -> None:
    nan = torch.tensor([float("nan"), 0.0])
    assert same_bits(nan, nan.clone())
    assert not same_bits(nan, torch.tensor([float("nan"), -0.0]))
    assert not same_bits(torch.zeros(2), torch.zeros(2, dtype=torch.float64))
    assert not same_bits(torch.zeros(2), torch.zeros(2, 1))
