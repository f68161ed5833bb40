"""Which engine a run takes: a function of measurements, remembered, recorded, kept."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from helpers.support import MakeConfig, folder, released, same, start
from torch import nn

from dp_ray.config.run import Config, TrainConfig
from dp_ray.data.facts import DataFacts, data_facts
from dp_ray.errors import ConfigError
from dp_ray.gradients.engines.engine import Engine, EngineError, Precision
from dp_ray.gradients.engines.registry import build_engine
from dp_ray.models.build import build_model
from dp_ray.objectives.single_label import SingleLabel
from dp_ray.performance.engine_choice import Choice, choose
from dp_ray.performance.engine_trial import EngineTrial, Measurements
from dp_ray.reporting.fields import described
from dp_ray.training.collective import Alone
from dp_ray.training.engine_agreement import agree_on_engine
from dp_ray.training.preparation import make_plan

CPU = torch.device("cpu")
DIGITS = SingleLabel(10)


def parts(config: Config) -> tuple[DataFacts, nn.Module]:
    facts = data_facts(config.data)
    return facts, build_model(config.model, facts, init_seed=1)


def chosen(config: Config, steps: int, seconds: Callable[[str, int], float]) -> Choice:
    facts, model = parts(config)
    return choose(config, facts, model, steps=steps, measure=seconds)


def linear(**per_example: float) -> Callable[[str, int], float]:
    """Time grows with B, from a small fixed cost; engines that are not named cannot be used."""
    return lambda name, size: 0.001 + size * per_example.get(name, math.inf)


ALL = {"vmap": 0.4, "per_layer": 0.3, "vmap_compiled": 0.1, "per_layer_compiled": 0.2}


@pytest.mark.parametrize(
    ("steps", "faster", "engine"),
    [
        (15, 1, "vmap"),  # 8 minutes, but fewer microbatches than trying engines would take
        (16, 32, "vmap"),  # 16 s of vmap: too short for any other
        (16, 8, "per_layer"),  # a minute: too short for anything but the two plain ones
        (20, 1, "per_layer_compiled"),  # ten minutes: the better of the plain ones is compiled
        (200, 1, "vmap_compiled"),
    ],
)
def test_the_longer_the_run_the_more_is_tried(
    make_config: MakeConfig, steps: int, faster: int, engine: str
) -> None:
    config = make_config(train={"microbatch_size": 32})
    costs = {name: cost / faster for name, cost in ALL.items()}
    assert chosen(config, steps, linear(**costs)).engine == engine


def test_a_run_of_a_few_steps_measures_nothing(make_config: MakeConfig) -> None:
    def measure(_name: str, _size: int) -> float:
        raise AssertionError

    assert chosen(make_config(), 4, measure) == Choice("vmap", 32)


def test_a_short_run_measures_once_and_takes_the_default(make_config: MakeConfig) -> None:
    asked: list[tuple[str, int]] = []

    def measure(name: str, size: int) -> float:
        asked.append((name, size))
        return 1e-3

    assert chosen(make_config(), 40, measure) == Choice("vmap", 32)
    assert set(asked) == {("vmap", 32)}


def test_what_is_given_is_not_measured(make_config: MakeConfig) -> None:
    def measure(_name: str, _size: int) -> float:
        raise AssertionError

    config = make_config(train={"engine": "per_layer", "microbatch_size": 7})
    assert chosen(config, 10**6, measure) == Choice("per_layer", 7)


@pytest.mark.parametrize("best", [4, 8, 32, 64, 128])
def test_the_size_that_makes_a_step_fastest(make_config: MakeConfig, best: int) -> None:
    """A step of n examples takes n/B + 1/2 microbatches; the time of one has its least at best."""
    config = make_config(data={"expected_batch_size": 512}, train={"engine": "vmap"})
    share = config.data.expected_batch_size

    def measure(_name: str, size: int) -> float:
        return (1 + abs(math.log2(size / best))) / (share / size + 0.5)

    assert chosen(config, 100, measure).microbatch_size == best


def test_a_microbatch_is_no_larger_than_what_is_drawn(make_config: MakeConfig) -> None:
    config = make_config(data={"expected_batch_size": 24}, train={"engine": "vmap"})
    assert chosen(config, 10**6, lambda _name, _size: 1.0).microbatch_size == 32
    config = make_config(data={"expected_batch_size": 32}, train={"engine": "vmap"})
    assert chosen(config, 10**6, lambda _name, _size: 1.0).microbatch_size == 64


def test_nothing_larger_than_memory_is_tried(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(data={"expected_batch_size": 1024}, train={"engine": "vmap"})
    facts, model = parts(config)
    from dp_ray.performance import engine_choice, estimate

    room = 2 * estimate.memory_estimate(config, facts, model, 100)
    for module in (engine_choice, estimate):
        monkeypatch.setattr(module, "available_memory", lambda _config: room)
    sizes: set[int] = set()

    def measure(_name: str, size: int) -> float:
        sizes.add(size)
        return 1.0

    assert choose(config, facts, model, steps=10**6, measure=measure).microbatch_size == 64
    assert max(sizes) == 64


def test_measurements_are_remembered_by_machine_and_network(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config()
    Path(str(config.data.cache)).mkdir()
    calls: list[str] = []

    def seconds(_self: EngineTrial, name: str, size: int) -> float:
        calls.append(f"{name}/{size}")
        if name == "vmap_compiled":
            raise EngineError("no compiler")
        return 0.25

    monkeypatch.setattr(EngineTrial, "seconds", seconds)

    def again(config: Config) -> Measurements:
        return Measurements(config, EngineTrial(config, *parts(config), DIGITS, CPU))

    first = again(config)
    assert [first("vmap", 8), first("vmap", 8), first("vmap_compiled", 8)] == [0.25, 0.25, math.inf]
    assert first("vmap_compiled", 16) == math.inf  # not tried again
    assert first.failures == {"vmap_compiled": "EngineError: no compiler"}
    assert calls == ["vmap/8", "vmap_compiled/8"]
    assert again(config)("vmap", 8) == 0.25
    assert again(config)("vmap_compiled", 8) == math.inf  # a compiler may have been installed
    assert calls == ["vmap/8", "vmap_compiled/8", "vmap_compiled/8"]
    wider = {"name": "gn_cnn", "arguments": {"widths": [16, 48]}}
    for other in ({"augment": {"views": 3}}, {"model": wider}):
        again(make_config(**other))("vmap", 8)
    assert calls[3:] == ["vmap/8", "vmap/8"]
    for damage in ("{", "[1]", '{"a": 3}'):
        (Path(str(config.data.cache)) / "engines.json").write_text(damage)
        assert again(config)("vmap", 8) == 0.25


def test_a_size_that_fails_is_no_reason_against_others(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds(_self: EngineTrial, _name: str, size: int) -> float:
        if size > 32:
            raise RuntimeError("out of memory")
        return 0.1 * size

    monkeypatch.setattr(EngineTrial, "seconds", seconds)
    config = make_config(data={"expected_batch_size": 512})
    facts, model = parts(config)
    choice, _ = agree_on_engine(
        config, facts, model, DIGITS, steps=20, collective=Alone(), device=CPU
    )
    assert choice.engine == "vmap"
    assert choice.microbatch_size <= 32
    assert "vmap cannot be used" not in choice.note


def test_when_time_is_up_nothing_more_is_measured(make_config: MakeConfig) -> None:
    """The other workers wait in a collective, and give up after cluster.timeout_s."""
    config = make_config(cluster={"timeout_s": 1e-6})
    measure = Measurements(config, EngineTrial(config, *parts(config), DIGITS, CPU))
    assert measure("vmap", 2) == math.inf
    assert not measure.failures


def test_memory_is_estimated_where_the_network_is(make_config: MakeConfig) -> None:
    from dp_ray.performance.estimate import memory_estimate

    config = make_config()
    facts, model = parts(config)
    here = memory_estimate(config, facts, model, 8)
    assert memory_estimate(config, facts, model.to("meta"), 8) == here > 0


def test_the_noise_that_is_drawn_ahead_is_counted_where_it_lies(make_config: MakeConfig) -> None:
    """8 bytes a parameter, in the memory of the host: on a GPU not beside the network."""
    from dp_ray.performance.estimate import memory_estimate, parameter_count

    facts, model = parts(make_config())
    host, gpu = (
        memory_estimate(make_config(cluster={"gpus_per_worker": gpus}), facts, model, 8)
        for gpus in (0, 1)
    )
    assert host - gpu == 8 * parameter_count(model)


def test_workers_that_are_started_anew_keep_what_was_chosen(make_config: MakeConfig) -> None:
    from dp_ray.artifacts.notes import EngineNote
    from dp_ray.artifacts.run_directory import RunDirectory
    from dp_ray.training.preparation import make_plan
    from dp_ray.training.setup import _settled
    from dp_ray.training.task import Task

    config = make_config()
    run = RunDirectory.of(config)
    plan = make_plan(config)
    run.create(config, plan)
    task = Task(config, plan, run, "attempt")
    assert _settled(task) == config
    choice = Choice("per_layer", 12)
    EngineNote.of(choice).write(run.private)
    train = _settled(task).train
    assert (train.engine, train.microbatch_size) == ("per_layer", 12)


def test_a_folder_that_cannot_be_written_to_is_no_reason_to_stop(make_config: MakeConfig) -> None:
    config = make_config(data={"cache": "/proc/nowhere"})
    assert Measurements(config, EngineTrial(config, *parts(config), DIGITS, CPU))("vmap", 2) > 0


def test_an_engine_with_another_result_is_not_used(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dp_ray.gradients.engines import layer_rules

    def agreed() -> Choice:
        config = make_config(train={"engine": "per_layer", "microbatch_size": 4})
        facts, model = parts(config)
        choice, engine = agree_on_engine(
            config, facts, model, DIGITS, steps=3, collective=Alone(), device=CPU
        )
        assert engine.name == choice.engine
        return choice

    assert agreed() == Choice("per_layer", 4)
    right = layer_rules._small_weight_gradients
    monkeypatch.setattr(
        layer_rules, "_small_weight_gradients", lambda *arguments: 1.01 * right(*arguments)
    )
    wrong = agreed()
    assert wrong.engine == "vmap"
    assert wrong.note.startswith("per_layer cannot be used: its norms are off by")


def session_records(config: Config) -> list[dict[str, Any]]:
    text = (folder(config) / "private/ledger/records.jsonl").read_text()
    bodies = [json.loads(json.loads(line)["body"]) for line in text.splitlines()]
    return [b for b in bodies if b["kind"] == "session"]


def test_a_resumed_run_keeps_engine_and_microbatches(make_config: MakeConfig) -> None:
    """They decide how sums round: with others, repeated steps would have to be charged afresh."""
    config = make_config(privacy={"steps": 2}, train={"engine": "per_layer", "microbatch_size": 16})
    start(config)
    start(make_config(), resume=True)
    start(make_config(privacy={"steps": 5}, train={"microbatch_size": 4}), resume=True)
    records = [record["execution"] for record in session_records(config)]
    kept = [(r["engine"], r["microbatch_size"]) for r in records]
    assert kept == [("per_layer", 16), ("per_layer", 16), ("per_layer", 4)]


def test_the_network_trains_in_bfloat16_and_cannot_change_over(make_config: MakeConfig) -> None:
    from dp_ray.errors import ConfigError

    config = make_config(train={"precision": "bfloat16"}, privacy={"steps": 2})
    start(config)
    plain = make_config(name="plain", privacy={"steps": 2})
    start(plain)
    assert not same(released(config), released(plain))
    with pytest.raises(ConfigError, match=r"train\.precision = 'float32'.*'bfloat16'"):
        start(make_config(), resume=True)


@pytest.mark.slow
def test_no_compiler_is_one_line_and_not_the_end(make_config: MakeConfig, tmp_path: Path) -> None:
    """A compiled engine that was asked for: told in one line, and the run goes on uncompiled."""
    config = make_config(
        model={"name": "gn_cnn", "arguments": {"widths": [12, 20]}},
        train={"engine": "vmap_compiled", "microbatch_size": 8},
        privacy={"steps": 1},
    )
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(config.dump()))
    environment = {"CXX": str(tmp_path / "none"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "new")}
    done = subprocess.run(
        [sys.executable, "-m", "dp_ray", "train", str(file)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if "vmap_compiled cannot be used" in line]
    assert len(told) == 1
    assert "Traceback" not in done.stderr
    (session,) = session_records(config.model_copy(update={"name": "run"}))
    assert session["execution"]["engine"] in ("vmap", "per_layer")  # the faster one


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({"vmap": 3.0, "per_layer": 1.0}, "per_layer"),
        ({"vmap": 1.0, "per_layer": 3.0}, "vmap"),
        ({"vmap": 3.0, "per_layer": 2.0, "vmap_compiled": 1.0}, "vmap_compiled"),
    ],
)
def test_an_engine_that_gives_nan_is_replaced_by_the_fastest_that_is_right(
    seconds: dict[str, float],
    expected: str,
    make_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As per_layer_compiled does in bfloat16 for WRN-16-4 on processors with AMX."""
    plain = Engine.microbatch_sum

    def microbatch_sum(self: Engine, *args: Any, **kwargs: Any) -> Any:
        sums, norms, losses = plain(build_engine("vmap", self.precision), *args, **kwargs)
        if self.name == "per_layer_compiled":
            return sums, norms * math.nan, losses
        return sums, norms, losses

    monkeypatch.setattr(Engine, "microbatch_sum", microbatch_sum)
    monkeypatch.setattr(Measurements, "__call__", lambda _self, name, _size: seconds[name])
    monkeypatch.setattr(Measurements, "knows", lambda _self, name, _size: name in seconds)
    config = make_config(
        train={"engine": "per_layer_compiled", "precision": "bfloat16", "microbatch_size": 4}
    )
    choice, engine = agree_on_engine(
        config, *parts(config), DIGITS, steps=3, collective=Alone(), device=CPU
    )
    assert (choice.engine, engine.name) == (expected, expected)
    assert choice.note.startswith("per_layer_compiled cannot be used: its norms are off by nan")


def test_the_benchmark_gives_a_wrong_contender_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    benchmarks = Path(__file__).parents[2] / "benchmarks"
    monkeypatch.syspath_prepend(str(benchmarks))
    import step_speed  # type: ignore[import-not-found]

    right = torch.tensor([3.0, 4.0])
    calls = {
        step_speed.BASELINE: lambda: None,
        "dp-ray vmap": lambda: right * 1.0001,
        "dp-ray per_layer": lambda: right * 1.1,
        "dp-ray vmap, bfloat16": lambda: right * 1.1,
        "dp-ray per_layer_compiled, bfloat16": lambda: right * math.nan,
        "dp-ray vmap_compiled, bfloat16": lambda: right * 0,
    }
    monkeypatch.setattr(step_speed, "build", lambda *_: calls)
    monkeypatch.setattr(step_speed, "in_float64", lambda _case: right)
    options = step_speed.argparse.Namespace(only="", rounds=1, no_memory=True, threads=1)
    rows = step_speed.measure(step_speed.CASES[0], options)
    timed = [name for name, row in rows.items() if row["seconds"] is not None]
    assert timed == [step_speed.BASELINE, "dp-ray vmap", "dp-ray vmap, bfloat16"]
    results = {"machine": {}, "threads": 1, "rounds": 1, "cases": {"case": rows}}
    assert step_speed.table(results).count("| wrong result | |") == 3


def test_a_configuration_names_the_precisions_that_there_are() -> None:
    """Spelled out in both, because neither file may import the other."""
    assert get_args(TrainConfig.model_fields["precision"].annotation) == get_args(Precision)


@pytest.mark.parametrize(
    ("engine", "problem"),
    [
        ("fast", r"no such engine.*auto, vmap, per_layer"),
        ("no_module:Engine", r"cannot be imported"),
        ("builtins:divmod", r"cannot be made"),
        ("builtins:str", r"gives a str.*Derive"),
    ],
)
def test_an_engine_that_there_is_not_is_refused(
    make_config: MakeConfig, engine: str, problem: str
) -> None:
    with pytest.raises(ConfigError, match=rf"train\.engine = '{engine}': .*{problem}"):
        make_plan(make_config(train={"engine": engine}))
    assert "vmap, per_layer, vmap_compiled" in described(
        "train.engine", TrainConfig.model_fields["engine"]
    )
