"""Nodes that are lost while a run goes on, and with them the room for its workers."""

from __future__ import annotations

import threading
import time

import pytest

from dp_ray.config.cluster import ClusterConfig
from dp_ray.on_ray import room


def test_the_loss_of_room_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_WATCH_INTERVAL_S", 0.01)
    nodes, looks = [{"CPU": 1.0}] * 3, threading.Semaphore(0)
    told: list[str] = []

    def look() -> list[dict[str, float]]:
        looks.release()
        return list(nodes)

    monkeypatch.setattr(room, "_nodes", look)
    with room.lost_room_told(ClusterConfig(num_workers=3), told.append):
        for _ in range(3):
            assert looks.acquire()
        assert told == []
        nodes.pop()
        while not told:
            time.sleep(0.01)
        for _ in range(10):
            assert looks.acquire()
    (message,) = told
    assert "room for 2 of 3" in message
    assert message.endswith("the run goes on when there are others")
