"""Runs tests on a copy of the source, in a process of its own, and says how each ended."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Any

import pytest

# Imported once, in a process that each judge is forked from: that takes longer than most tests.
# This module too, so that nothing changes during a run.
_HEAVY = ["dp_accounting", "opacus", "scipy.stats", "sklearn.datasets", "torch", "torchvision"]
_HEAVY += [__name__]
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(_HEAVY)
_ENDINGS, _LOG = "endings.json", "log"

PASSED = "passed"
CAUGHT = "failed an assertion"


class _Endings:
    """A plugin of pytest that notes node id → how it ended."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.found[report.nodeid] = f"could not be collected: {report.longreprtext[-500:]}"

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[Any]) -> Any:
        report: pytest.TestReport = yield
        if call.excinfo is None:
            if call.when == "call":
                self.found.setdefault(item.nodeid, PASSED)
        elif call.when == "call" and _is_assertion(call.excinfo.value):
            self.found[item.nodeid] = CAUGHT
        else:
            what = call.excinfo.exconly().splitlines()[0]
            self.found[item.nodeid] = f"{report.outcome} at {call.when}: {what}"
        return report


def _is_assertion(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):  # hypothesis tells of several examples at once
        return all(_is_assertion(e) for e in error.exceptions)
    return isinstance(error, AssertionError | pytest.fail.Exception)


def endings(
    folder: Path, nodes: list[str], *, patience_s: float, stop_early: bool = False
) -> dict[str, str]:
    """Node id → how it ended, of tests that run on the copy in ``folder``.

    Args:
        folder: a copy of the repository.
        nodes: ids of tests; one without parameters stands for all of them.
        patience_s: when they are given up.
        stop_early: run nothing more once one has failed.
    """
    process = _CONTEXT.Process(target=_judge, args=(folder, nodes, stop_early))
    process.start()
    process.join(patience_s)
    if process.is_alive():
        process.kill()
        process.join()
        return dict.fromkeys(nodes, f"took more than {patience_s:.0f} s")
    if not (folder / _ENDINGS).exists():
        return dict.fromkeys(nodes, f"did not run: {(folder / _LOG).read_text()[-800:]}")
    found: dict[str, str] = json.loads((folder / _ENDINGS).read_text())
    return found


def verdict(found: dict[str, str], node: str) -> str:
    """One ending for all parameters that a node id covers."""
    own = {e for name, e in found.items() if name == node or name.startswith(f"{node}[")}
    other = sorted(own - {PASSED, CAUGHT}) or [e for n, e in found.items() if "::" not in n]
    if other or not own:
        return other[0] if other else "there is no such test"
    return CAUGHT if CAUGHT in own else PASSED


def _judge(folder: Path, nodes: list[str], stop_early: bool) -> None:
    """In a process that was just forked: nothing of the package is loaded yet."""
    log = os.open(folder / _LOG, os.O_WRONLY | os.O_CREAT)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    os.chdir(folder)
    own = [str(folder), str(folder / "tests")]
    sys.path[:0] = own
    os.environ["PYTHONPATH"] = os.pathsep.join(own)  # of processes that tests start
    import dp_ray

    assert Path(dp_ray.__file__).is_relative_to(folder), f"{dp_ray.__file__} is no copy"
    found = _Endings()
    options = ["-q", "-p", "no:cacheprovider", *(["--exitfirst"] if stop_early else [])]
    pytest.main([*options, *nodes], plugins=[found])
    (folder / _ENDINGS).write_text(json.dumps(found.found))
