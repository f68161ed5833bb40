"""The same functions in a script, in a notebook and in a thread."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from helpers.pages import ROOT
from helpers.support import MakeConfig

import dp_ray
from dp_ray.api.run import Run
from dp_ray.config.yaml_text import read_yaml, write_yaml

SCRIPT = ROOT / "examples/first.py"
NOTEBOOK = ROOT / "examples/accuracy_against_epsilon.ipynb"
PAGE = ROOT / "docs/how_to/python.md"


def configuration(folder: Path, steps: int) -> dict[str, Any]:
    """The example's own, shorter."""
    found = re.search(r"```yaml\n# first.yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert found is not None
    values: dict[str, Any] = read_yaml(found[1])
    values["privacy"] |= {"steps": steps, "accountant": "rdp"}
    values["data"]["cache"] = str(folder / "cache")
    values["cluster"]["threads_per_worker"] = 1
    return values


def environment() -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


def test_the_page_shows_the_example_that_is_run_and_checked_by_types() -> None:
    script = SCRIPT.read_text(encoding="utf-8")
    assert f"```python\n# first.py\n{script}```" in PAGE.read_text(encoding="utf-8")
    assert len([line for line in script.splitlines() if line]) <= 25


@pytest.mark.slow
def test_a_newcomers_script(tmp_path: Path) -> None:
    """In one file: an own network, an own loss, a callback; then a picture is classified."""
    (tmp_path / "first.yaml").write_text(write_yaml(configuration(tmp_path, 10)))
    (tmp_path / "first.py").write_bytes(SCRIPT.read_bytes())
    done = subprocess.run(
        [sys.executable, "first.py"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *evaluations, last = done.stdout.splitlines()
    steps = [int(re.match(r"step (\d+): accuracy 0\.\d+ at ε = \d", e)[1]) for e in evaluations]  # type: ignore[index]
    assert steps == list(range(1, 11))
    assert re.fullmatch(r"tensor\(\d\)", last)
    assert dp_ray.open_run(str(tmp_path / "runs/first")).status == "finished"


@pytest.mark.slow
def test_a_notebook_draws_as_it_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is run from its first cell to its last, and what it draws is there."""
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    published = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    monkeypatch.setenv("DP_RAY_EXAMPLE_STEPS", "10")
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": tmp_path}}).execute()
    executed = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    for outputs in (published, executed):  # as it is read, and as it is run here
        assert not [o for cell in outputs for o in cell if o.output_type == "error"]
        pictures = [o for cell in outputs for o in cell if "image/png" in o.get("data", {})]
        assert len(pictures) == 1  # one, drawn anew at each evaluation
    assert dp_ray.open_run(str(tmp_path / "runs/notebook")).result.steps == 10


def test_a_thread_trains(make_config: MakeConfig) -> None:
    """Only the main thread may handle signals."""
    found: list[Run] = []
    config = make_config(privacy={"steps": 1})
    thread = threading.Thread(target=lambda: found.append(dp_ray.train(config)))
    thread.start()
    thread.join()
    assert [run.status for run in found] == ["finished"]
