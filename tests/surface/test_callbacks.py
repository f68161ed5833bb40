"""Callbacks: which calls they receive; they do not change a run's result."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.support import MakeConfig, charged, key_of, released, same

import dp_ray
from dp_ray.api.dispatch import Dispatcher
from dp_ray.api.train import run_training
from dp_ray.artifacts.course import Stepped
from dp_ray.artifacts.progress import Progress
from dp_ray.artifacts.result import Ending, Result
from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.config.run import Config
from dp_ray.errors import RunError
from dp_ray.privacy.plan import PrivacyPlan
from dp_ray.reporting.callbacks import Callback, PrivateValues, PublicValues
from dp_ray.training.preparation import make_plan


def trained(config: Config, *callbacks: Callback, resume: bool = False) -> Result:
    replay = None if resume else key_of(1)
    return run_training(config, callbacks=callbacks, replay=replay, resume=resume)


class Recorder(Callback):
    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []
        self.threads: set[int] = set()

    def _note(self, method: str, value: Any) -> None:
        self.told.append((method, value))
        self.threads.add(threading.get_ident())

    def on_start(self, path: str, plan: PrivacyPlan) -> None:
        self._note("start", (path, plan))

    def on_message(self, text: str, *, detail: bool = False) -> None:
        self._note("message", (text, detail))

    def on_progress(self, progress: Progress) -> None:
        self._note("progress", progress)

    def on_evaluation(self, public: PublicValues, private: PrivateValues) -> None:
        self._note("evaluation", (public, private))

    def on_end(self, result: Ending | None) -> None:
        self._note("end", result)

    def of(self, method: str) -> list[Any]:
        return [value for told, value in self.told if told == method]


def test_every_evaluation_is_reported_once_in_order_with_the_steps_before_it(
    make_config: MakeConfig,
) -> None:
    recorder = Recorder()
    config = make_config(train={"evaluate_every": 2})
    result = trained(config, recorder)
    assert [method for method, _ in recorder.told if method != "progress"] == [
        *("start", "message", "evaluation", "evaluation", "end")
    ]
    path, plan = recorder.of("start")[0]
    assert (path, plan.steps) == (result.path, 4)
    publics, privates = zip(*recorder.of("evaluation"), strict=True)
    assert [(p.step, p.steps, p.delta) for p in publics] == [(2, 4, 1e-4), (4, 4, 1e-4)]
    assert publics[-1].epsilon == pytest.approx(result.epsilon)
    assert publics[-1].accuracy == result.metrics["test_accuracy"]
    assert [[step.step for step in private.steps] for private in privates] == [[0, 1], [2, 3]]
    assert recorder.of("end")[0] == result
    assert recorder.of("progress")[-1].step == 4
    assert recorder.threads.isdisjoint({threading.get_ident()})
    assert len(recorder.threads) == 1


def test_public_values_hold_nothing_that_was_computed_from_the_training_data(
    make_config: MakeConfig,
) -> None:
    recorder = Recorder()
    trained(make_config(data={"evaluation_noise": 2.0}), recorder)
    public, private = recorder.of("evaluation")[-1]
    assert set(vars(public)) == {*("step", "steps", "epsilon", "delta", "max_grad_norm", "metrics")}
    assert public.metrics == {}  # exact figures would undo the noise
    assert public.accuracy is None
    assert private.metrics["test_accuracy"] > 0
    assert isinstance(private.steps[0], Stepped)


class Vandal(Callback):
    """Changes all that it can reach, and what a thread has of its own."""

    def on_start(self, path: str, plan: PrivacyPlan) -> None:
        del path
        object.__setattr__(plan, "noise_multiplier", 0.0)
        object.__setattr__(plan, "max_grad_norm", 1e6)
        torch.set_grad_enabled(False)
        torch.manual_seed(0)

    def on_progress(self, progress: Progress) -> None:
        progress.__dict__["step"] = 0

    def on_evaluation(self, public: PublicValues, private: PrivateValues) -> None:
        public.metrics.clear()  # type: ignore[attr-defined]
        object.__setattr__(private.steps[0], "loss", 0.0)
        torch.rand(1000)

    def on_end(self, result: Ending | None) -> None:
        assert result is not None
        result.__dict__["epsilon"] = 0.0


def test_a_callback_that_changes_what_it_is_given_changes_nothing(
    make_config: MakeConfig,
) -> None:
    plain, vandalised = make_config(), make_config(name="vandalised")
    expected, recorder = trained(plain), Recorder()
    found = trained(vandalised, Vandal(), recorder)
    assert same(released(plain), released(vandalised))
    assert found.epsilon == expected.epsilon
    assert recorder.of("start")[0][1].noise_multiplier == 1.0  # each gets copies of its own
    assert recorder.of("evaluation")[-1][0].accuracy == expected.metrics["test_accuracy"]


def test_each_callback_gets_copies(make_config: MakeConfig) -> None:
    plan, recorder = make_plan(make_config()), Recorder()
    with Dispatcher([Vandal(), recorder]) as dispatcher:
        dispatcher.send("on_start", "runs/a", plan)
    assert (plan.noise_multiplier, plan.max_grad_norm) == (1.0, 1.0)
    assert recorder.of("start")[0][1] == plan


class Failing(Callback):
    def __init__(self, method: str) -> None:
        self.calls = 0
        setattr(self, method, self._fail)

    def _fail(self, *_: Any, **__: Any) -> None:
        self.calls += 1
        raise ZeroDivisionError("of mine")


def test_a_callback_that_fails_stops_the_run_which_can_be_resumed(make_config: MakeConfig) -> None:
    long = make_config(privacy={"steps": 4}, train={"evaluate_every": 1})
    failing, recorder = Failing("on_start"), Recorder()
    with pytest.raises(RunError) as caught:
        trained(long, failing, recorder)
    message = str(caught.value)
    assert "\n" not in message
    assert "callback Failing.on_start failed: ZeroDivisionError: of mine" in message
    assert f"{Path(__file__).name}, line" in message
    assert failing.calls == 1
    assert recorder.of("end")[0].status in ("stopped", "finished")  # the others receive every call
    if not RunDirectory.of(long).finished():
        assert "resume" in message
        trained(long, resume=True)
    plain = make_config(name="plain")
    trained(plain)
    assert same(released(plain), released(long))
    assert charged(plain) == charged(long)


def test_a_failure_at_an_evaluation_stops_a_long_run(make_config: MakeConfig) -> None:
    config = make_config(
        augment={"views": 1, "rotation": 0.0, "shift": 0.0, "subpixel": False},
        data={"expected_batch_size": 1},
        privacy={"steps": 20_000},
        train={"evaluate_every": 1},
    )
    failing = Failing("on_evaluation")
    with pytest.raises(RunError, match=r"Failing.on_evaluation failed.*resume the run"):
        trained(config, failing)
    result = Result.read(RunDirectory.of(config).root)
    assert (result.status, failing.calls) == ("stopped", 1)
    assert 0 < result.steps < 20_000


class Watch:
    """A run whose storage has no news."""

    def __init__(self) -> None:
        self.stopped = 0

    def news(self, *, at_once: bool = False) -> list[Any]:
        del at_once
        return []

    def stop(self) -> None:
        self.stopped += 1


@pytest.mark.parametrize("early", [True, False], ids=["before the run", "in the run"])
def test_the_first_failure_stops_the_run_and_the_others_are_called_on(early: bool) -> None:
    failing, recorder, watch = Failing("on_message"), Recorder(), Watch()
    with Dispatcher([failing, recorder]) as dispatcher:
        if early:
            dispatcher.message("one")
            while not recorder.told:
                time.sleep(0.001)
        dispatcher.follow(watch)  # type: ignore[arg-type]
        dispatcher.message("two")
        dispatcher.message("three")
    assert (watch.stopped, failing.calls) == (1, 1)
    assert len(recorder.told) == 3 - (not early)
    with pytest.raises(RunError, match="on_message failed"):
        dispatcher.check(finished=False)


def test_a_failure_at_the_end_leaves_a_finished_run(make_config: MakeConfig) -> None:
    config = make_config()
    with pytest.raises(RunError, match=r"Failing.on_end failed: .*its results are whole"):
        trained(config, Failing("on_end"))
    assert dp_ray.open_run(str(RunDirectory.of(config).root)).status == "finished"


def test_an_error_of_the_run_is_told_as_an_end_without_a_result(make_config: MakeConfig) -> None:
    recorder = Recorder()
    with pytest.raises(dp_ray.DpRayError, match="no such network"):
        trained(make_config(model={"name": "none"}), recorder)
    assert recorder.told == [("end", None)]


def test_evaluations_of_earlier_sessions_are_not_reported_again(make_config: MakeConfig) -> None:
    config = make_config(train={"evaluate_every": 1})
    trained(config)
    more, recorder = make_config(privacy={"steps": 6}, train={"evaluate_every": 1}), Recorder()
    trained(more, recorder, resume=True)
    assert [public.step for public, _ in recorder.of("evaluation")] == [5, 6]
