"""Shared by the tests on Ray: one Ray for all tests that can share it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray
from helpers.shared_ray import SharedRay


@pytest.fixture(scope="session")
def session_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedRay]:
    shared = SharedRay(tmp_path_factory.mktemp("shared"))
    yield shared
    shared.stop()


@pytest.fixture
def shared_ray(session_ray: SharedRay, monkeypatch: pytest.MonkeyPatch) -> SharedRay:
    """A Ray with room for four workers; the test runs in the folder that it was started in."""
    session_ray.start()
    monkeypatch.chdir(session_ray.folder)
    monkeypatch.syspath_prepend(str(session_ray.folder))
    return session_ray


@pytest.fixture
def no_ray(session_ray: SharedRay) -> None:
    """No Ray in this process: the test starts its own."""
    session_ray.stop()
    assert not ray.is_initialized()
