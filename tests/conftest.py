"""Shared by all tests: a clean environment, a configuration to start from, and real data."""

from __future__ import annotations

from helpers import surroundings  # isort: skip  # sets what libraries read when imported

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.support import MakeConfig, config_maker
from helpers.without_ray import skip_tests_that_need_ray

skip_tests_that_need_ray()

pytest_plugins = ["helpers.sweep_fixture"]

_STARTS_RAY = ("tests/on_ray/", "tests/faults/test_with_ray.py")
_COMPILES = ("tests/gradients/test_engines.py",)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Leave all tests that start Ray to one process, and all that compile to one.

    The former share one Ray and mostly wait; the latter load the compiler once. xdist's own groups
    (3.8) have no effect with pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByWhatIsShared(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            shared = (s for s in (_STARTS_RAY, _COMPILES) if nodeid.startswith(s))
            return next((scope[0] for scope in shared), nodeid)

    return ByWhatIsShared(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Say where the logs are of a test that failed beside a Ray."""
    report: pytest.TestReport = yield
    if report.failed and item.nodeid.startswith(_STARTS_RAY):
        logs = surroundings.FOLDER / "ray"
        report.sections.append(
            ("Ray's logs", f"{logs}/**/session_*/logs, kept until you delete it")
        )
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Note whether logs are wanted; the folder is deleted when nothing uses it any more."""
    session.config.stash[_FAILED] = session.testsfailed > 0


def pytest_unconfigure(config: pytest.Config) -> None:
    """Delete what tests left outside of their own folders."""
    surroundings.remove(keep_logs=config.stash.get(_FAILED, False))


_FAILED = pytest.StashKey[bool]()


@pytest.fixture
def make_config(tmp_path: Path) -> MakeConfig:
    """Builds a small configuration; keyword arguments replace fields: ``data={"name": …}``."""
    return config_maker(tmp_path)


@pytest.fixture
def real_data() -> Path:
    """The folder with MNIST that ``DP_RAY_TEST_DATA`` names; the test is skipped without it."""
    root = os.environ.get("DP_RAY_TEST_DATA")
    if root is None:
        pytest.skip("DP_RAY_TEST_DATA names no folder with real data")
    return Path(root)
