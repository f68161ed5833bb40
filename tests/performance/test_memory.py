"""A GPU's memory: estimates give way to measurement, and too large a microbatch is one line."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.support import MakeConfig, charged, folder, start, what_is_raised

from dp_ray.artifacts.notes import EngineNote
from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.data.facts import data_facts
from dp_ray.errors import ConfigError, RunError
from dp_ray.gradients.engines.engine import Engine
from dp_ray.models.build import build_model
from dp_ray.objectives.single_label import SingleLabel
from dp_ray.performance import engine_choice, engine_trial, estimate, microbatch
from dp_ray.performance.engine_choice import choose
from dp_ray.performance.engine_trial import EngineTrial, Measurements
from dp_ray.performance.estimate import check_memory, memory_estimate
from dp_ray.performance.memory import process_peak_bytes, start_process_peak
from dp_ray.reporting.plan import describe_plan, plan_facts
from dp_ray.training import setup
from dp_ray.training.step import ShardWorker

NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has …")


@contextmanager
def room_for(most: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """A device on which microbatches above this size have no memory; lists the sizes tried."""
    microbatch_sum, tried = Engine.microbatch_sum, []

    def limited(self: Engine, model: Any, params: Any, views: Any, *args: Any, **more: Any) -> Any:
        tried.append(len(views))
        if len(views) > most:
            raise NO_MEMORY
        return microbatch_sum(self, model, params, views, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "microbatch_sum", limited)
        yield tried


@pytest.mark.parametrize("engine", ["vmap", "per_layer"])
def test_too_large_a_microbatch_is_one_line_that_names_a_size_before_any_charge(
    engine: str, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = {"engine": engine, "microbatch_size": 48}
    config = make_config(train=train, privacy={"steps": 2})
    with room_for(13, monkeypatch):
        text = what_is_raised(lambda: start(config))
    assert text.startswith("ConfigError: train.microbatch_size = 48: the GPU runs out of memory")
    assert "\n" not in text
    assert "48 examples × 2 views" in text
    assert "Nothing was charged. Set it to 12, which fits" in text
    assert charged(config) == []
    smaller = make_config(train={"engine": engine, "microbatch_size": 12}, privacy={"steps": 2})
    with room_for(13, monkeypatch) as tried:
        assert start(smaller, resume=True)["status"] == "finished"
    assert max(tried) == 12


def test_where_not_even_one_example_fits_no_size_is_named(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dp_ray.training.preparation._rehearse", lambda *_: None)  # on the CPU
    config = make_config(train={"engine": "vmap", "microbatch_size": 8})
    with (
        room_for(0, monkeypatch),
        pytest.raises(ConfigError, match=r"and with 1 as well\. Use fewer augment\.views"),
    ):
        start(config)
    assert charged(config) == []


def test_a_size_that_was_left_open_is_one_that_fits(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(privacy={"steps": 16})
    with room_for(13, monkeypatch):
        assert start(config)["status"] == "finished"
    assert EngineNote.read(RunDirectory.of(config).private).microbatch_size <= 13


def test_memory_that_runs_out_in_a_step_ends_in_one_line_and_costs_nothing(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where another process takes the GPU's memory during a run."""
    config = make_config(train={"engine": "vmap", "microbatch_size": 16})
    add_up = ShardWorker.clipped_sum

    def until_two(self: ShardWorker, params: Any, assignment: Any, **more: Any) -> Any:
        if assignment.step == 2:
            raise NO_MEMORY
        return add_up(self, params, assignment, **more)

    with monkeypatch.context() as patch:
        patch.setattr(ShardWorker, "clipped_sum", until_two)
        text = what_is_raised(lambda: start(config))
    assert text.startswith("RunError: the GPU ran out of memory (CUDA out of memory. Tried")
    assert "Set train.microbatch_size to 8" in text
    assert "\n" not in text
    assert charged(config) == [(0, 0), (1, 0)]
    assert not (folder(config) / "release").exists()
    assert start(config, resume=True)["status"] == "finished"
    assert sorted({step for step, _ in charged(config)}) == [0, 1, 2, 3]


def test_a_network_that_does_not_fit_at_all_is_one_line(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing_left(*_: Any) -> None:
        raise NO_MEMORY

    monkeypatch.setattr(setup, "share_parameters", nothing_left)
    with pytest.raises(RunError, match=r"the GPU ran out of memory \(CUDA.*a smaller network"):
        start(make_config())


# Figures of a GPU: these stand in for torch's counter, which a CPU has not.


@pytest.mark.parametrize(("share", "largest"), [(0.4, 64), (0.5, 32), (None, 256)])
def test_sizes_grow_as_far_as_the_measured_peak_allows(
    share: float | None, largest: int, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The estimate would allow all of them, and counts where nothing was measured."""
    config = make_config(data={"expected_batch_size": 128}, train={"engine": "vmap"})
    facts = data_facts(config.data)
    model = build_model(config.model, facts)
    for module in (engine_choice, estimate):
        monkeypatch.setattr(module, "available_memory", lambda _config: 1e12)
    peaks = {} if share is None else {32: share * 1e12, 64: 2 * share * 1e12}
    tried: set[int] = set()

    def measure(_name: str, size: int) -> float:
        tried.add(size)
        return 1.0

    choice = choose(
        config, facts, model, steps=10**6, measure=measure, peak=lambda _, size: peaks.get(size)
    )
    assert choice.microbatch_size == max(tried) == largest


def test_measured_peaks_are_remembered_beside_the_times(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config()
    Path(str(config.data.cache)).mkdir()
    facts = data_facts(config.data)
    model = build_model(config.model, facts)

    def measurements() -> Measurements:
        device = torch.device("cpu")
        trial = EngineTrial(config, facts, model, SingleLabel(10), device)
        return Measurements(config, trial)

    with monkeypatch.context() as patch:
        patch.setattr(engine_trial, "peak_bytes", lambda _device: 3e9)
        measured = measurements()
        assert measured.peak("vmap", 4) is None
        assert measured("vmap", 4) > 0
        assert measured.peak("vmap", 4) == 3e9
    assert measurements().peak("vmap", 4) == 3e9
    on_cpu = measurements()
    assert on_cpu("vmap", 5) > 0
    assert on_cpu.peak("vmap", 5) is None


def test_a_run_notes_the_peak_that_it_measured(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "peak_bytes", lambda _device: 3 * 2.0**30)
    config = make_config(privacy={"steps": 1}, train={"engine": "vmap", "microbatch_size": 16})
    start(config)
    note = EngineNote.read(RunDirectory.of(config).private)
    assert note.peak_bytes == 3 * 2**30
    assert "16 examples a microbatch, 3 GiB of the GPU's memory at its peak" in note.line


def test_a_plan_says_whether_its_memory_is_an_estimate(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config()
    facts = plan_facts(config, quick=True)
    assert not facts["memory_is_measured"]
    assert "a microbatch (an estimate, within a factor of two)" in describe_plan(facts)
    monkeypatch.setattr(microbatch, "process_peak_bytes", lambda: None)  # another system
    assert not plan_facts(config)["memory_is_measured"]
    monkeypatch.setattr(microbatch, "process_peak_bytes", lambda: 2.0**31)
    facts = plan_facts(config)
    noise = 8 * facts["parameters"] / 2**30
    assert facts["memory_gib_per_worker"] == 2.0 + noise
    assert "about 2.00 GiB for a worker with 32 examples a microbatch (meas" in describe_plan(facts)
    # Planned where there is none, for a cluster.
    for_gpu = make_config(cluster={"gpus_per_worker": 1, "address": "127.0.0.1:6379"})
    assert not plan_facts(for_gpu)["memory_is_measured"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process's peak")
def test_the_peak_of_a_process_is_measured_anew() -> None:
    size = 2**28
    start_process_peak()
    before = process_peak_bytes()
    with mmap.mmap(-1, size) as block:  # given back when it is closed, whatever malloc keeps
        block.write(bytes(size))
        with_block = process_peak_bytes()
    closed = process_peak_bytes()
    start_process_peak()
    after = process_peak_bytes()
    assert before is not None
    assert with_block is not None
    assert closed is not None
    assert after is not None
    assert min(with_block, closed) > before + size / 2
    assert after < with_block - size / 2


def test_a_plan_that_does_not_fit_is_one_line(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(train={"microbatch_size": 64})
    with (
        room_for(20, monkeypatch),
        pytest.raises(ConfigError, match=r"train\.microbatch_size = 64: .* Set it to 16, which"),
    ):
        plan_facts(config)


def test_an_estimate_refuses_a_gpu_only_what_cannot_fit(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be twice too high, and the GPU itself is asked before the first charge."""
    on_cpu = make_config(train={"microbatch_size": 16})
    on_gpu = make_config(train={"microbatch_size": 16}, cluster={"gpus_per_worker": 1})
    facts = data_facts(on_cpu.data)
    model = build_model(on_cpu.model, facts)
    needed = memory_estimate(on_cpu, facts, model, 16)
    monkeypatch.setattr(estimate, "available_memory", lambda _config: needed / 1.5)
    check_memory(on_gpu, facts, model)
    with pytest.raises(ConfigError, match=r"\(an estimate\), which has"):
        check_memory(on_cpu, facts, model)
    monkeypatch.setattr(estimate, "available_memory", lambda _config: needed / 2.5)
    with pytest.raises(ConfigError, match=r"\(an estimate\), which has"):
        check_memory(on_gpu, facts, model)
