"""Workers that find other data, or none, on their nodes: all stop, and the message names nodes."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.support import MakeConfig
from torch import Tensor, nn

from dp_ray.config.data import AugmentConfig, DataConfig
from dp_ray.data.facts import DataFacts
from dp_ray.data.store import open_dataset
from dp_ray.data.views import ViewMaker
from dp_ray.errors import ConfigError, DpRayError, ModelError, RunError
from dp_ray.gradients.engines.engine import Engine, Sums
from dp_ray.gradients.engines.registry import build_engine
from dp_ray.gradients.engines.vmap import Vmap
from dp_ray.gradients.layout import ParameterLayout
from dp_ray.objectives.single_label import SingleLabel
from dp_ray.privacy.sampling import PoissonSampler
from dp_ray.training.agreement import check_same_arithmetic, open_same_dataset, stop_together
from dp_ray.training.collective import Alone


class _Threads:
    """One of some workers that are threads of this process."""

    def __init__(self, rank: int, node: str | None, board: list[Tensor], line: threading.Barrier):
        self.rank, self.node = rank, node
        self.world_size = line.parties
        self._board, self._line = board, line

    def reduce_(self, tensor: Tensor) -> None:
        self._board[self.rank] = tensor.clone()
        self._line.wait()
        if self.rank == 0:
            tensor.copy_(torch.stack(self._board).sum(0))
        self._line.wait()

    def broadcast_(self, tensor: Tensor) -> None:
        if self.rank == 0:
            self._board[0] = tensor.clone()
        self._line.wait()
        tensor.copy_(self._board[0])
        self._line.wait()


def opened_on(nodes: list[str], configs: list[DataConfig]) -> list[str]:
    """What becomes of it on each node: the digest, or the message."""
    return on_all(nodes, lambda worker: open_same_dataset(configs[worker.rank], worker).digest)


def on_all(nodes: list[str], task: Callable[[_Threads], str]) -> list[str]:
    """What a task returns on each node, or the message of what it raises."""
    line = threading.Barrier(len(nodes))
    board = [torch.empty(0)] * len(nodes)
    told = [""] * len(nodes)

    def work(rank: int) -> None:
        try:
            told[rank] = task(_Threads(rank, nodes[rank], board, line))
        except DpRayError as error:
            told[rank] = str(error)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(nodes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told


@pytest.fixture
def there(make_config: MakeConfig) -> DataConfig:
    """Data that can be read."""
    return make_config().data


@pytest.fixture
def missing(make_config: MakeConfig) -> DataConfig:
    """Data that cannot."""
    facts = {"num_examples": 4, "num_classes": 2, "image_size": 8, "channels": 1}
    own = {"name": "image_folder", "root": "/nowhere", "expected_batch_size": 2}
    return make_config(data={**own, **facts}, privacy={"delta": 1e-3}).data


@pytest.fixture
def other(make_config: MakeConfig) -> DataConfig:
    """Other data that can be read."""
    own = {"name": "fake", "num_examples": 20, "image_size": 8, "expected_batch_size": 2}
    return make_config(data=own, privacy={"delta": 1e-3}).data


def test_all_open_the_same(there: DataConfig) -> None:
    digest = open_dataset(there).digest
    assert opened_on(["a", "b", "c"], [there] * 3) == [digest] * 3


def test_all_stop_and_all_nodes_without_the_data_are_named(
    there: DataConfig, missing: DataConfig
) -> None:
    told = opened_on(["a", "b", "c", "c"], [there, missing, missing, missing])
    message = (
        "On b, c: data.root = '/nowhere': no such folder. Give the folder that holds train/. "
        "Each node with workers needs the data"
    )
    assert told == [message] * 4


def test_nodes_with_other_data_are_named(there: DataConfig, other: DataConfig) -> None:
    told = opened_on(["a", "b", "c"], [there, other, there])
    assert told[0].startswith("1 of 3 workers read other training data than the first one (those ")
    assert "on b)" in told[0]
    assert told == [told[0]] * 3


def test_on_one_machine_the_message_is_the_reader_s_own(missing: DataConfig) -> None:
    with pytest.raises(ConfigError, match=r"^data.root = '/nowhere': no such folder"):
        open_same_dataset(missing, Alone())


def test_a_root_is_what_it_is_on_the_node(
    missing: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variable is looked up where the data is read; an unset one is told."""
    config = missing.model_copy(update={"root": "$DISK/images"})
    with pytest.raises(ConfigError, match="Set what is unset in the environment there"):
        open_same_dataset(config, Alone())
    monkeypatch.setenv("DISK", str(tmp_path))
    with pytest.raises(ConfigError, match=f"no such folder as {tmp_path}/images"):
        open_same_dataset(config, Alone())


class Rounding(Vmap):
    """Rounds one number of a sum otherwise, as another kind of processor does."""

    def microbatch_sum(self, *arguments: Any, **keywords: Any) -> Sums:
        """See the base class."""
        total, norms, losses = super().microbatch_sum(*arguments, **keywords)
        first = next(iter(total.values())).flatten()
        first[0] = torch.nextafter(first[0], torch.tensor(torch.inf, dtype=torch.float64))
        return total, norms, losses


def compared(engines: list[Engine], batches: Sequence[int] = (5, 5, 5)) -> list[str]:
    """What each worker is told of the comparison; empty if it may go on."""
    facts = DataFacts(20, 3, 4, 1, (0.5,), (0.5,))
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))

    def task(worker: _Threads) -> str:
        check_same_arithmetic(
            worker,
            model=copy.deepcopy(model),  # threads must not share what functional_call fills in
            layout=ParameterLayout.of(model),
            views=ViewMaker(AugmentConfig(views=2, rotation=5), facts, torch.device("cpu")),
            objective=SingleLabel(3),
            facts=facts,
            clipping="flat",
            max_grad_norm=1.0,
            microbatch_size=3,
            engine=engines[worker.rank],
            device=torch.device("cpu"),
            sampler=PoissonSampler(20, batches[worker.rank]),
        )
        return ""

    return on_all(["a", "b", "c"][: len(engines)], task)


def test_workers_that_round_otherwise_are_refused() -> None:
    """In the last bit of one number; an example that changes workers would be another there."""
    assert compared([build_engine(), build_engine(), build_engine()]) == ["", "", ""]
    told = compared([build_engine(), Rounding(), build_engine()])
    assert told[0].startswith("1 of 3 workers round otherwise than the first one (cpu, ")
    assert "): b (cpu, " in told[0]
    assert "ATEN_CPU_CAPABILITY" in told[0]
    assert told == [told[0]] * 3


def test_workers_that_draw_other_examples_are_refused() -> None:
    told = compared([build_engine()] * 3, batches=(5, 5, 9))
    assert told == [told[0]] * 3
    assert told[0].startswith("privacy.mechanism: 1 of 3 workers draw other examples than the")
    assert "one: c." in told[0]


def test_workers_with_other_settings_are_refused() -> None:
    """Though they agree on the made-up images, which hold no number that one of them drops."""

    class Flushing(Vmap):
        def microbatch_sum(self, *arguments: Any, **keywords: Any) -> Sums:
            torch.set_flush_denormal(True)  # of this thread alone
            return super().microbatch_sum(*arguments, **keywords)

    assert torch.set_flush_denormal(False)
    told = compared([build_engine(), Flushing()])
    assert told[0].startswith("1 of 2 workers round otherwise than the first one")


def test_all_stop_where_one_has_a_problem() -> None:
    """Each with its own problem, or else with the first that another one has."""
    problems = [None, ModelError("that of b"), RunError("that of c")]

    def task(worker: _Threads) -> str:
        stop_together(worker, problems[worker.rank])
        return "goes on"

    assert on_all(["a", "b", "c"], task) == ["that of b", "that of b", "that of c"]
    problems[:] = [None, None, None]
    assert on_all(["a", "b", "c"], task) == ["goes on"] * 3
