"""Audits through Ray Train: canaries on every worker, and alarms for what workers do wrong."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from faults.broken import audited, broken_worker
from helpers.support import replay_of

from dp_ray.api.audit import run_audit
from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.auditing.directory import AuditDirectory
from dp_ray.auditing.observers import scores
from dp_ray.on_ray import trainer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_ray")]


def test_the_number_of_workers_is_no_part_of_an_audit(tmp_path: Path) -> None:
    """Half of the places are canaries', in both shards: scores of W = 0 and 2 agree."""
    seen = {}
    for workers in (0, 2):
        config = audited(tmp_path, seed=2, workers=workers, name=f"w{workers}")
        found = run_audit(config, replay=replay_of(config)).dump()
        assert not found["refuted"]
        run = AuditDirectory.of(config).run_config(config, 0)
        seen[workers] = scores(RunDirectory.of(run).observations)
    assert seen[2] == pytest.approx(seen[0], abs=1e-4)
    assert seen[0].std() > 0.01


def test_alarm_where_workers_break_privacy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = functools.partial(broken_worker, fault="a quarter of the noise")
    monkeypatch.setattr(trainer, "train_func_per_worker", worker)
    config = audited(tmp_path, seed=0, workers=2)
    found = run_audit(config, canaries=4000, replay=replay_of(config)).dump()
    assert found["refuted"]
    assert found["epsilon_lower"] > found["epsilon_claimed"]
