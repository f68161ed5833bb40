"""A lost worker ends in a one-line message."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray._private import worker

from dp_ray.errors import ConfigError
from dp_ray.on_ray.failures import explained, first_sentences

DIED = """A worker health check failed.
Worker info: Worker(
  actor=Actor(RayTrainWorker, 39169fa4917fa5fcb65e7c8101000000),
  metadata=ActorMetadata(hostname='vm', node_id='76', node_ip='10.0.0.7', pid=4500,),
  distributed_context=DistributedContext(world_rank=1, world_size=2, local_rank=0, node_rank=0),
  log_file_path='/tmp/ray/session/logs/train/worker.log',
)
The actor died unexpectedly before finishing this task.
class_name: RayTrainWorker
Worker exit detail: Worker unexpectedly exits with a connection error code 2. End of file. """


def failed(*failures: Exception) -> Any:
    """As Ray Train tells of it."""
    return SimpleNamespace(worker_failures=dict(enumerate(failures)))


def test_a_worker_that_died_is_named_with_its_log() -> None:
    text = str(explained(failed(RuntimeError(DIED * 5))))
    assert text == (
        "worker 1 of 2 (counted from 0) died, process 4500 on 10.0.0.7: it was killed, had no "
        "memory left, or crashed. Its log: /tmp/ray/session/logs/train/worker.log. What was "
        "charged is in the ledger; --resume goes on from the last checkpoint"
    )


def test_an_error_that_says_nothing_of_the_worker_is_told_as_well() -> None:
    assert str(explained(failed(RuntimeError("The actor died.")))).startswith("a worker died: it")


def test_what_a_worker_raised_is_told_in_a_line() -> None:
    text = str(explained(failed(ValueError("no\n" * 1000))))
    assert text.startswith("training failed on a worker: ValueError: no no no")
    assert len(text) < 500
    assert "\n" not in text


def test_a_mistake_of_the_user_is_told_as_it_is() -> None:
    mistake = ConfigError("model.name", "x", "is none", "Use another")
    outer = RuntimeError("on a worker")
    outer.__cause__ = mistake
    assert explained(failed(outer)) is mistake


def test_of_what_ray_reports_the_first_sentence_is_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[Any] = []

    def tell(data: Any, ignore_prefix: bool) -> None:
        told.append((data["pid"], data["lines"], ignore_prefix))

    monkeypatch.setattr(worker, "print_to_stdstream", tell)
    report = {"pid": "raylet", "lines": ["A worker died\nor was killed. To find out, …" * 9]}
    with first_sentences():
        worker.print_to_stdstream(report, ignore_prefix=False)
        worker.print_to_stdstream({"pid": 7, "lines": ["One. Two."]}, ignore_prefix=True)
    assert told == [("raylet", ["A worker died or was killed."], False), (7, ["One. Two."], True)]
    assert worker.print_to_stdstream is tell
    with pytest.raises(ZeroDivisionError), first_sentences():
        1 / 0  # noqa: B018
    assert worker.print_to_stdstream is tell
