"""Pretrained weights and frozen parameters: what is loaded, what is trained, what is refused."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from helpers.oracle import loop_clipped_sum, loop_gradients, loop_norms
from helpers.support import MakeConfig, folder, released, start
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dp_ray import clipped_gradient_sum
from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.config.model import ModelConfig
from dp_ray.config.run import Config
from dp_ray.data.facts import DataFacts
from dp_ray.errors import ConfigError, RunError
from dp_ray.gradients.layout import trained_parameters
from dp_ray.models.build import build_model
from dp_ray.models.pretrained import load_pretrained
from dp_ray.training.evaluate_run import evaluate_run
from dp_ray.training.preparation import make_plan
from dp_ray.training.session import open_session
from dp_ray.training.task import Task

SMALL = "shufflenet_v2_x0_5"  # the smallest of torchvision's with batch norm and a linear head
TINY = DataFacts(1000, 3, 8, 1, (0.5,), (0.5,))
RGB = DataFacts(1000, 3, 32, 3, (0.5,) * 3, (0.5,) * 3)
FAKE = {"name": "fake", "num_examples": 64, "num_classes": 3, "expected_batch_size": 16}


def torchvision_network(name: str = SMALL, num_classes: int = 5) -> nn.Module:
    """In evaluation, with batch norms that have seen something."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = torchvision.models.get_model(name, num_classes=num_classes)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    nn.init.uniform_(tensor, 0.5, 1.5)
                for tensor in (module.bias, module.running_mean):
                    nn.init.normal_(tensor, std=0.2)
    return model.eval()


def save(state: dict[str, Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: t.contiguous() for name, t in state.items()}, path)
    else:
        torch.save(state, path)
    return path


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Of SMALL with five classes."""
    return save(torchvision_network().state_dict(), tmp_path / "weights.pt")


def fine_tuning(make_config: MakeConfig, pretrained: Path | str, **sections: Any) -> Config:
    model = {"name": SMALL, "pretrained": str(pretrained), "trainable": "head"}
    augment = {"views": 1, "rotation": 0.0, "shift": 0.0, "subpixel": False}
    common: dict[str, Any] = {"augment": augment, "privacy": {"delta": 1e-3}}
    return make_config(data=FAKE, model=model, **{**common, **sections})


def refused(action: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as caught:
        action()
    return str(caught.value)


# What is trained


@pytest.mark.parametrize(
    ("name", "trainable", "expected"),
    [
        ("gn_cnn", "head", {"9.weight", "9.bias"}),
        ("tanh_cnn", "head", {"head.3.weight", "head.3.bias"}),
        ("gn_cnn", ["9.*"], {"9.weight", "9.bias"}),
        ("gn_cnn", ["[05].*", "9.bias"], {"0.weight", "0.bias", "5.weight", "5.bias", "9.bias"}),
    ],
)
def test_what_is_named_is_trained_and_nothing_else(
    name: str, trainable: Any, expected: set[str]
) -> None:
    facts = DataFacts(1000, 3, 28, 1, (0.5,), (0.5,))
    model = build_model(ModelConfig(name=name, trainable=trainable), facts)
    assert set(trained_parameters(model)) == expected
    everything = build_model(ModelConfig(name=name), facts)
    assert set(trained_parameters(everything)) == {name for name, _ in model.named_parameters()}


def test_a_pattern_that_matches_nothing_is_refused_with_names_that_exist() -> None:
    config = ModelConfig(name="gn_cnn", trainable=["9.*", "layer4.*"])
    message = refused(lambda: build_model(config, TINY))
    assert message.startswith("model.trainable = 'layer4.*': matches no parameter. There are ")
    named = message.partition("There are ")[2].split(", ")[:4]
    existing = {
        name for name, _ in build_model(ModelConfig(name="gn_cnn"), TINY).named_parameters()
    }
    assert len(set(named) & existing) == 4


OWN_BUILDERS = """
from torch import nn

def gated(channels, image_size, num_classes):  # its last nn.Linear is no head
    head = nn.Conv2d(channels, num_classes, image_size)
    return nn.Sequential(head, nn.Flatten(), Gate(num_classes))

class Gate(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.gate = nn.Linear(num_classes, 1)

    def forward(self, x):
        return x * self.gate(x)
"""


def test_a_network_without_a_linear_head_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ModelConfig(name="squeezenet1_1", trainable="head")
    message = refused(lambda: build_model(config, RGB))
    assert message.startswith("model.trainable = 'head': the network has no nn.Linear. Give pat")

    (tmp_path / "gated_network.py").write_text(OWN_BUILDERS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    gated = ModelConfig(name="gated_network:gated", trainable="head")
    message = refused(lambda: build_model(gated, TINY))
    assert "the last nn.Linear, 2.gate, has 1 outputs and is none" in message


def by_both(
    model: nn.Module, views: Tensor, labels: Tensor, *, rtol: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Clipped sums as the product and as a plain loop has them, whose norms agree to ``rtol``."""
    examples = loop_gradients(model, views, labels)
    bound = float(loop_norms(examples).median()) * 1.01
    found = clipped_gradient_sum(
        model, trained_parameters(model), views, labels, max_grad_norm=bound
    )
    torch.testing.assert_close(found.norms, loop_norms(examples), rtol=rtol, atol=0)
    mask = torch.ones(len(labels), dtype=torch.bool)
    return found.gradients, loop_clipped_sum(examples, mask, bound * (1 - 2.0**-18))


def test_frozen_parameters_get_no_gradient_and_count_in_no_norm() -> None:
    """Against a loop that knows of the trained ones alone; a frozen layer is in between."""
    model = build_model(ModelConfig(name="gn_cnn", trainable=["0.*", "9.*"]), TINY).double()
    generator = torch.Generator().manual_seed(1)
    views = torch.randn(4, 2, 1, 8, 8, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 1])
    found, expected = by_both(model, views, labels, rtol=1e-9)
    assert set(found) == {"0.weight", "0.bias", "9.weight", "9.bias"}
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-11)


def test_a_release_is_trained_on_and_its_frozen_part_stays_bit_for_bit(
    make_config: MakeConfig,
) -> None:
    first = make_config(name="first")
    start(first)
    path = folder(first) / "release/model.safetensors"
    second = make_config(
        name="second", model={"pretrained": str(path), "trainable": ["9.*"]}, seed=2
    )
    start(second)
    before, after = released(first), released(second)
    assert before.keys() == after.keys()
    for name in before:
        assert torch.equal(before[name], after[name]) == (not name.startswith("9.")), name


# Pretrained weights


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", SMALL])
def test_frozen_batch_norm_computes_what_the_trained_one_did(name: str, tmp_path: Path) -> None:
    """Mobile nets have an eps of their own."""
    original = torchvision_network(name, num_classes=3)
    path = save(original.state_dict(), tmp_path / "weights.pt")
    config = ModelConfig(name=name, pretrained=str(path))
    model = build_model(config, RGB)
    load_pretrained(model, config)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = original(images)
        assert model.training
        torch.testing.assert_close(model.eval()(images), expected, rtol=1e-5, atol=1e-5)
    assert {n for n, _ in model.named_parameters()} < {n for n, _ in original.named_parameters()}
    # It is the weights that were compared: the network itself starts otherwise.
    assert not torch.allclose(build_model(config, RGB).eval()(images), expected, atol=1e-2)


def test_gradients_through_frozen_batch_norm_do_not_depend_on_the_batch(weights: Path) -> None:
    config = ModelConfig(name=SMALL, pretrained=str(weights))
    model = build_model(config, RGB)
    load_pretrained(model, config)
    model.double()
    generator = torch.Generator().manual_seed(2)
    views = torch.randn(3, 1, 3, 32, 32, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2])
    found, expected = by_both(model, views, labels, rtol=1e-8)
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_all_is_loaded_but_a_head_of_other_classes(suffix: str, tmp_path: Path) -> None:
    original = torchvision_network().state_dict()
    path = save(original, tmp_path / f"weights{suffix}")
    for num_classes in (5, 3):
        facts = DataFacts(1000, num_classes, 32, 3, (0.5,) * 3, (0.5,) * 3)
        config = ModelConfig(name=SMALL, pretrained=str(path))
        fresh = build_model(config, facts, init_seed=7).state_dict()
        model = build_model(config, facts, init_seed=7)
        load_pretrained(model, config)
        for name, tensor in model.state_dict().items():
            kept = num_classes == 3 and name.startswith("fc.")
            assert torch.equal(tensor, fresh[name] if kept else original[name]), name


def test_the_digest_is_one_of_contents(tmp_path: Path) -> None:
    """The same for each format; another for another value, type, shape or name."""
    state = {"1.weight": torch.zeros(3, 4), "1.bias": torch.zeros(3), "count": torch.tensor(2)}
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    model.register_buffer("count", torch.tensor(0))

    def digest(state: dict[str, Tensor], name: str) -> str | None:
        path = save(state, tmp_path / name)
        return load_pretrained(model, ModelConfig(pretrained=str(path)))

    first = digest(state, "a.pt")
    assert first == digest(dict(reversed(state.items())), "a.safetensors")
    others = [
        {**state, "1.bias": torch.tensor([0.0, 0.0, -0.0])},
        {**state, "1.bias": torch.zeros(3, dtype=torch.int32)},
        {**state, "1.weight": torch.zeros(2, 4), "1.bias": torch.zeros(2)},
        {**state, "1.num_batches_tracked": torch.tensor(2)},
    ]
    found = {digest(other, f"{i}.pt") for i, other in enumerate(others)}
    assert len(found | {first}) == 5
    assert load_pretrained(model, ModelConfig()) is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("conv1.0.weight"), ["conv1.0.weight is missing"]),
        (lambda s: s.pop("conv1.1.running_var"), ["conv1.1.running_var is missing"]),
        (lambda s: s.pop("fc.bias"), ["fc.bias is missing"]),
        (lambda s: s.update(more=torch.zeros(1)), ["more is not in the network"]),
        (
            lambda s: s.update({"conv1.0.weight": torch.zeros(24, 1, 3, 3)}),
            ["conv1.0.weight is [24, 1, 3, 3] and not [24, 3, 3, 3]"],
        ),
        (
            lambda s: s.update({"fc.weight": torch.zeros(5, 7)}),
            ["fc.weight is [5, 7] and not [3, 1024]", "fc.bias is [5] and not [3]"],
        ),
        (
            lambda s: [s.pop(n) for n in list(s) if n.startswith("stage2.0")],
            ["stage2.0.branch1.0.weight is missing", ", …"],
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    change: Callable[[dict[str, Tensor]], object],
    words: list[str],
    tmp_path: Path,
    make_config: MakeConfig,
) -> None:
    state = dict(torchvision_network().state_dict())
    change(state)
    path = save(state, tmp_path / "weights.pt")
    message = refused(lambda: make_plan(fine_tuning(make_config, path)))
    assert message.startswith(f"model.pretrained = {str(path)!r}: does not fit the network: ")
    assert all(word in message for word in words)
    assert 1 <= sum(message.count(f" is {kind}") for kind in ("missing", "not in", "[")) <= 3


class Evil:
    """What a pickle may hold: a call."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code was run",))


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        ("nowhere.pt", lambda _path: None, "there is no such file"),
        ("folder.pt", Path.mkdir, "there is no such file"),
        ("a.safetensors", lambda path: path.write_bytes(b"no weights"), "cannot be read: "),
        ("a.safetensors", Path.touch, "cannot be read: "),
        ("a.pt", lambda path: path.write_bytes(b"no weights"), "cannot be read: it is damaged"),
        ("a.pth", Path.touch, "cannot be read: "),
        ("a.pt", lambda path: torch.save(Evil(), path), "cannot be read: it is damaged, or holds"),
        ("a.pt", lambda path: torch.save([torch.zeros(2)], path), "something else than tensors by"),
        ("a.pt", lambda path: torch.save({"epoch": 3}, path), "something else than tensors by"),
        ("a.pt", lambda path: torch.save({}, path), "does not fit the network: "),
        ("a.bin", Path.touch, "is neither a file (.safetensors, .pt, .pth) nor torchvision's"),
    ],
)
def test_files_that_hold_no_weights_are_refused(
    name: str,
    write: Callable[[Path], object],
    words: str,
    tmp_path: Path,
    make_config: MakeConfig,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before data is read, and without running what they hold."""
    path = tmp_path / name
    write(path)
    message = refused(lambda: make_plan(fine_tuning(make_config, path)))
    assert message.startswith(f"model.pretrained = {str(path)!r}: ")
    assert words in message
    assert "code was run" not in capsys.readouterr().out


def test_a_torn_file_is_refused(weights: Path, make_config: MakeConfig) -> None:
    whole = weights.read_bytes()
    for size in (len(whole) // 2, len(whole) - 1):
        weights.write_bytes(whole[:size])
        message = refused(lambda: make_plan(fine_tuning(make_config, weights)))
        assert "cannot be read: " in message


# By torchvision's names


@pytest.fixture
def published(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ThreadingHTTPServer]:
    """SMALL's weights, with five classes, are published by a server on this machine."""
    served = tmp_path / "served"
    served.mkdir()
    name = f"small-{hashlib.sha256(weights.read_bytes()).hexdigest()[:8]}.pth"
    (served / name).write_bytes(weights.read_bytes())

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            """Nothing on the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(served)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    entry = torchvision.models.get_model_weights(SMALL)["IMAGENET1K_V1"]
    url = f"http://127.0.0.1:{server.server_port}/{name}"
    monkeypatch.setattr(entry.value, "url", url)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("name", ["DEFAULT", "IMAGENET1K_V1"])
@pytest.mark.usefixtures("published")
def test_weights_by_name_are_downloaded(name: str, weights: Path) -> None:
    models = []
    for pretrained in (name, str(weights)):
        config = ModelConfig(name=SMALL, pretrained=pretrained)
        models.append(build_model(config, RGB))
        load_pretrained(models[-1], config)
    by_name, by_path = (model.state_dict() for model in models)
    assert all(torch.equal(by_name[n], by_path[n]) for n in by_name.keys() | by_path.keys())


def test_a_failed_download_names_the_way_out(
    published: ThreadingHTTPServer, tmp_path: Path, make_config: MakeConfig
) -> None:
    config = fine_tuning(make_config, "DEFAULT")
    (served,) = (tmp_path / "served").iterdir()
    whole = served.read_bytes()

    served.write_bytes(whole[:-1] + b"?")
    message = refused(lambda: make_plan(config))
    assert message.startswith("model.pretrained = 'DEFAULT': cannot be downloaded: ")
    assert "invalid hash" in message
    url = f"http://127.0.0.1:{published.server_port}/{served.name}"
    assert f"Fetch {url} elsewhere and give the file's path" in message

    published.shutdown()
    published.socket.close()
    message = refused(lambda: make_plan(config))
    assert "cannot be downloaded: " in message
    assert "refused" in message


def test_names_that_there_are_not_are_refused(make_config: MakeConfig) -> None:
    message = refused(lambda: make_plan(fine_tuning(make_config, "IMAGENET1K_V9")))
    assert "is neither a file (.safetensors, .pt, .pth) nor torchvision's weights of" in message
    assert "Use IMAGENET1K_V1, DEFAULT, or the path of a file" in message
    own = make_config(model={"name": "gn_cnn", "pretrained": "DEFAULT"})
    message = refused(lambda: make_plan(own))
    assert "gn_cnn is none of torchvision's networks. Give the path of a file" in message


# Runs


@pytest.mark.slow
def test_a_fine_tuned_model_is_evaluated_without_the_file(
    make_config: MakeConfig, weights: Path
) -> None:
    config = fine_tuning(make_config, weights)
    result = start(config)
    original = load_file(folder(config) / "release/model.safetensors")
    weights.unlink()
    for place in (folder(config), folder(config) / "release"):
        found = evaluate_run(str(place), [f"data.cache={config.data.cache}"]).figures
        assert found["test_accuracy"] == pytest.approx(result["test_accuracy"])
    assert original["conv1.1.running_mean"].abs().sum() > 0


def test_the_statement_says_that_the_weights_are_declared_public(
    make_config: MakeConfig, weights: Path
) -> None:
    with_weights, without = fine_tuning(make_config, weights), make_config(name="without")
    for config, expected in ((with_weights, 1), (without, 0)):
        start(config)
        release = folder(config) / "release"
        statement = json.loads((release / "privacy.json").read_text())
        said = [text for text in statement["assumptions"] if "public data" in text]
        assert len(said) == expected
        for name in ("privacy.json", "config.yaml"):
            assert str(weights.parent) not in (release / name).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("trainable", ["head", pytest.param("all", marks=pytest.mark.slow)])
def test_a_run_does_not_go_on_with_other_weights(
    make_config: MakeConfig, weights: Path, trainable: str
) -> None:
    def config(steps: int) -> Config:
        model = {"name": SMALL, "pretrained": str(weights), "trainable": trainable}
        return fine_tuning(
            lambda **sections: make_config(**{**sections, "model": model}),
            weights,
            privacy={"delta": 1e-3, "steps": steps},
        )

    start(config(2))
    whole = weights.read_bytes()
    state = dict(torchvision_network().state_dict())
    state["conv1.1.running_mean"] = state["conv1.1.running_mean"] + 1e-3
    save(state, weights)
    with pytest.raises(RunError, match=r"not those that the run was started.*model\.pretrained"):
        start(config(3), resume=True)
    weights.unlink()
    message = refused(lambda: start(config(3), resume=True))
    assert "there is no such file" in message
    weights.write_bytes(whole)
    assert start(config(3), resume=True)["steps"] == 3


@pytest.mark.slow
def test_runs_of_one_seed_with_other_weights_share_no_noise(
    make_config: MakeConfig, weights: Path
) -> None:
    """Equal noise on two sums would cancel out in the difference of the releases."""
    heads = []
    for name, shift in (("one", 0.0), ("same", 0.0), ("other", 1e-3)):
        state = dict(torchvision_network().state_dict())
        state["conv1.1.running_mean"] = state["conv1.1.running_mean"] + shift
        save(state, weights)
        privacy = {"delta": 1e-3, "steps": 1, "noise_multiplier": 1e4}
        config = fine_tuning(make_config, weights, name=name, privacy=privacy)
        start(config)
        heads.append(released(config)["fc.weight"].flatten())  # nearly nothing but noise
    one, same, other = heads
    assert torch.equal(one, same)
    assert torch.cosine_similarity(one, other, dim=0).abs() < 0.1


class Recorder:
    """Rank 0 of two, whose broadcasts are kept; the other has the same data, and adds nothing."""

    rank, world_size, node = 0, 2, None

    def __init__(self) -> None:
        self.said: list[Tensor] = []

    def reduce_(self, tensor: Tensor) -> None:
        """Only this worker's part; of texts by rank, the same from both."""
        if tensor.shape[0] == self.world_size and tensor.dtype == torch.uint8:
            tensor[1 - self.rank] = tensor[self.rank]

    def broadcast_(self, tensor: Tensor) -> None:
        """Kept for the other."""
        self.said.append(tensor.clone())


class Follower(Recorder):
    """Rank 1, which hears what rank 0 said."""

    rank = 1

    def broadcast_(self, tensor: Tensor) -> None:
        """The next that was said."""
        tensor.copy_(self.said.pop(0))


def test_only_rank_0_needs_the_file(make_config: MakeConfig, weights: Path) -> None:
    config = fine_tuning(make_config, weights)
    task = Task(config, make_plan(config), RunDirectory.of(config), "test")
    task.run.create(config, task.plan)
    rank_0, rank_1 = Recorder(), Follower()
    cpu = torch.device("cpu")
    leader = open_session(task, rank_0, device=cpu, threads=1)
    assert leader.lead is not None
    leader.lead.close()
    weights.unlink()
    rank_1.said = rank_0.said
    follower = open_session(task, rank_1, device=cpu, threads=1)
    assert not rank_1.said
    expected, original = leader.worker.model.state_dict(), torchvision_network().state_dict()
    for name, tensor in follower.worker.model.state_dict().items():
        if not name.startswith("fc."):  # trained ones are broadcast with each step
            assert torch.equal(tensor, expected[name])
            assert torch.equal(tensor, original[name])
