"""Shared by the tests on Ray: one Ray for all tests that can share it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray
from shared_ray import SharedRay


@pytest.fixture(scope="session")
def _shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedRay]:
    shared = SharedRay(tmp_path_factory.mktemp("shared"))
    yield shared
    shared.stop()


@pytest.fixture
def shared_ray(_shared: SharedRay, monkeypatch: pytest.MonkeyPatch) -> SharedRay:
    """A Ray with room for four workers; the test runs in the folder that it was started in."""
    _shared.start()
    monkeypatch.chdir(_shared.folder)
    monkeypatch.syspath_prepend(str(_shared.folder))
    return _shared


@pytest.fixture
def no_ray(_shared: SharedRay) -> None:
    """No Ray in this process: the test starts its own."""
    _shared.stop()
    assert not ray.is_initialized()
