"""A microbatch's inputs: read ahead in a thread, in order, the same as without one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from helpers.support import MakeConfig, released, same, start

from dp_ray.performance.device import local_device, prepare_device
from dp_ray.training import feed
from dp_ray.training.feed import MicrobatchInputs, ahead
from dp_ray.training.step import ShardWorker


def test_items_come_in_order_from_one_other_thread() -> None:
    threads: set[int] = set()

    def items() -> Iterator[int]:
        for number in range(20):
            threads.add(threading.get_ident())
            yield number

    assert list(ahead(items())) == list(range(20))
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_at_most_two_items_wait_and_none_is_made_after_the_end() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            made.append(number)
            yield number

    walk = ahead(items())
    assert next(walk) == 0
    walk.close()
    assert len(made) <= 3
    assert not [t for t in threading.enumerate() if t.name.startswith("dp-ray-feed")]


def test_what_a_reader_raises_is_raised_in_its_place() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    walk = ahead(items())
    assert next(walk) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(walk)


def test_a_run_is_the_same_read_ahead(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of a GPU, all but the copy to it."""
    config = make_config(name="plain", privacy={"steps": 2})
    start(config)
    threaded = make_config(name="threaded", privacy={"steps": 2})
    seen: list[str] = []

    def pinned(self: MicrobatchInputs, device: torch.device) -> MicrobatchInputs:
        seen.append(f"{threading.current_thread().name} {device}")
        return self

    monkeypatch.setattr(feed, "READ_AHEAD", ("cpu",))
    monkeypatch.setattr(MicrobatchInputs, "pinned", pinned)
    start(threaded)
    assert seen
    assert all(name.startswith("dp-ray-feed") and name.endswith("cpu") for name in seen)
    assert same(released(config), released(threaded))


def test_padding_holds_no_example(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its id is 0, which is somebody's."""
    batches: list[MicrobatchInputs] = []
    add = ShardWorker._add

    def noted(self: ShardWorker, batch: MicrobatchInputs, *rest: torch.Tensor) -> None:
        batches.append(batch)
        add(self, batch, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(ShardWorker, "_add", noted)
    start(make_config(privacy={"steps": 2}, train={"microbatch_size": 48}))
    padded = [batch for batch in batches if not batch.mask.all()]
    assert padded
    for batch in padded:
        assert not batch.images[~batch.mask].any()
        assert not batch.labels[~batch.mask].any()
        assert batch.images[batch.mask].any()


def test_inputs_keep_their_types_on_a_device() -> None:
    inputs = MicrobatchInputs(
        images=torch.zeros(2, 1, 4, 4, dtype=torch.uint8),
        labels=torch.ones(2, dtype=torch.int64),
        mask=torch.tensor([True, False]),
        dropout_seeds=torch.from_numpy(np.arange(2)),
        view_numbers=torch.rand(11, 2, dtype=torch.float64),
    )
    moved = inputs.to(torch.device("meta"))
    for name, tensor in vars(inputs).items():
        there = getattr(moved, name)
        assert (there.dtype, there.shape, there.device.type) == (tensor.dtype, tensor.shape, "meta")


def test_the_device_is_what_the_workers_are_given(make_config: MakeConfig) -> None:
    cluster = make_config().cluster
    assert local_device(cluster).type == "cpu"
    assert local_device(cluster.model_copy(update={"gpus_per_worker": 0.5})).type == "cuda"


def test_a_gpu_computes_float32_unless_told() -> None:
    with switches_put_back() as switches:
        before = switches()
        prepare_device(torch.device("cpu"))
        assert switches() == before
        prepare_device(torch.device("cuda"))
        assert switches()[:2] == (False, False)


def test_workers_on_gpus_choose_convolutions_alike() -> None:
    """Measuring, each would choose for itself, round otherwise than others, and be refused."""
    with switches_put_back() as switches:
        for workers, measures, repeats in ((1, True, False), (2, False, True), (1, True, False)):
            prepare_device(torch.device("cuda"), workers)
            assert switches()[2:] == (measures, repeats)


@contextmanager
def switches_put_back() -> Iterator[Callable[[], tuple[bool, ...]]]:
    """Yields what reads the switches of a GPU: TF32 twice, measuring, repeatable algorithms."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn

    def read() -> tuple[bool, ...]:
        return matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic

    before = read()
    try:
        yield read
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = before
