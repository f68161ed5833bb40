"""Workers that find other data, or none, on their nodes: all stop, and the message names nodes."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from support import MakeConfig
from torch import Tensor

from dp_ray.config import DataConfig
from dp_ray.data.store import open_dataset
from dp_ray.errors import ConfigError, DataError
from dp_ray.training.agreement import open_same_dataset
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
    line = threading.Barrier(len(nodes))
    board = [torch.empty(0)] * len(nodes)
    told = [""] * len(nodes)

    def work(rank: int) -> None:
        try:
            worker = _Threads(rank, nodes[rank], board, line)
            told[rank] = open_same_dataset(configs[rank], worker).digest
        except DataError as error:
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
