"""A run whose folder is in an object store: the same command, and the same guarantees."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from helpers.object_store import ObjectStore, serve_objects
from helpers.support import MakeConfig, released, same, start
from safetensors.torch import load

from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.config.run import Config
from dp_ray.errors import LedgerError, RunError
from dp_ray.ledger.records import _Objects
from dp_ray.privacy.noise import KeyedNoiseOptimizer
from dp_ray.reporting.confusion import picture_file, save_confusion
from dp_ray.reporting.ledger import ledger_facts
from dp_ray.reporting.make import write_report
from dp_ray.training.evaluate_run import evaluate_run


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    """One server for the module."""
    with serve_objects() as served:
        yield served


def configured(make_config: MakeConfig, store: ObjectStore, name: str, **train: Any) -> Config:
    location = f"s3://{store.bucket}/runs"
    return make_config(
        name=name,
        privacy={"steps": 6},
        train={"storage_path": location, "charge_every": 4, **train},
    )


class KilledError(BaseException):
    """The process is gone, and can write nothing any more."""


def kill_at(config: Config, release: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs until noise is drawn for the n-th time, and dies there without a word."""
    add, append = KeyedNoiseOptimizer.add_noise, _Objects.append
    seen: list[int] = []

    def die(self: KeyedNoiseOptimizer) -> None:
        add(self)
        seen.append(1)
        if len(seen) == release:
            raise KilledError

    def silent(self: _Objects, line: bytes, *, durable: bool) -> bool:
        if len(seen) >= release:
            raise KilledError
        return append(self, line, durable=durable)

    with monkeypatch.context() as patch:
        patch.setattr(KeyedNoiseOptimizer, "add_noise", die)
        patch.setattr(_Objects, "append", silent)
        with pytest.raises(KilledError):
            start(config)


def test_it_ends_as_on_a_disk(make_config: MakeConfig, store: ObjectStore) -> None:
    on_disk = make_config(name="one", privacy={"steps": 6})
    start(on_disk)
    config = configured(make_config, store, "one")
    result = start(config)
    assert (result["status"], result["charges"]) == ("finished", 6)
    files = store.content("runs/one")
    assert {"result.json", "release/privacy.json", "private/run_key"} <= set(files)
    assert same(load(files["release/model.safetensors"]), released(on_disk))
    assert json.loads(files["release/privacy.json"])["epsilon"] == result["epsilon"]
    location = f"s3://{store.bucket}/runs/one"
    found = evaluate_run(location, []).figures
    assert found["test_accuracy"] == result["test_accuracy"]
    assert save_confusion(found, picture_file(location, None)) == f"{location}/confusion.png"
    assert store.content("runs/one")["confusion.png"].startswith(b"\x89PNG")
    told = write_report(location, public=True, form="html", output=None)
    assert told["report"] == f"{location}/privacy-report.html"
    assert store.content("runs/one")["privacy-report.html"].startswith(b"<!doctype html>")
    assert ledger_facts(location)["charges"] == 6
    lines = files["private/metrics.jsonl"].decode().splitlines()
    assert sum("loss" in json.loads(line) for line in lines) == 6
    with pytest.raises(RunError, match="finished run"):
        start(config)


def test_a_crash_costs_the_rest_of_a_block_and_is_never_forgotten(
    make_config: MakeConfig, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(make_config, store, "hurt", checkpoint_every=2)
    kill_at(config, 4, monkeypatch)  # steps 0 to 3 were paid for at once, and all were noised
    result = start(config, resume=True)
    # Saved at 2, with the digests until then: 2 and 3 are drawn and charged again.
    assert (result["status"], result["charges"], result["steps"]) == ("finished", 6, 4)
    facts = ledger_facts(f"s3://{store.bucket}/runs/hurt")
    assert (facts["charged_again"], facts["repeated"]) == (2, 2)


def test_a_lock_that_is_left_behind_is_broken_knowingly(
    make_config: MakeConfig, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dp_ray.training.opening.OWNER_ENDS_S", 0.0)
    config = configured(make_config, store, "locked")
    kill_at(config, 2, monkeypatch)
    lock = json.loads(store.content("runs/locked/private/ledger").get("lock", b"{}"))
    elsewhere = {**lock, "attempt": "another", "host": "node7", "place": "elsewhere", "pid": 77}
    elsewhere.update(started=0.0, since="yesterday", nonce="0")
    RunDirectory.of(config).ledger.write("lock", json.dumps(elsewhere).encode())
    with pytest.raises(LedgerError, match=r"process 77 on node7.*--break-lock"):
        start(config, resume=True)
    assert start(config, resume=True, break_lock=True)["status"] == "finished"
