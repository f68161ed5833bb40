"""The GPU bundle: what it measures, what it writes, what it packs; the smoke run is slow."""

from __future__ import annotations

import importlib
import io
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks" / "gpu"


@pytest.fixture
def bundled(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of the bundle, as its stages do."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def test_each_result_is_on_disk_at_once(bundled: Any, tmp_path: Path) -> None:
    results = bundled("results")
    speed = results.Results(tmp_path, "speed")
    speed.add(network="WRN-16-4", ms=1.23456789)
    results.Results(tmp_path, "correctness").add(item="a | b", figure=0.5)
    assert [row["ms"] for row in results.read(tmp_path, "speed")] == [1.23456789]
    speed.add(network="ViT", problem="none\nat all")
    text = (tmp_path / "report.md").read_text()
    assert text.index("## correctness") < text.index("## speed")
    assert "| a / b | 0.5 |" in text
    assert "| WRN-16-4 | 1.235 |" in text
    assert "none at all" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "correctness.json",
        "report.md",
        "speed.json",
    ]


def test_the_first_job_is_the_goal(bundled: Any) -> None:
    jobs = bundled("jobs").jobs
    found = jobs("cuda", smoke=False)
    first, second = found[:2]
    assert (first.case.network, first.case.views, first.precision) == ("WRN-16-4", 16, "bfloat16")
    assert second.steps == ("non-private compiled",)
    assert second.case == first.case
    networks = bundled("contenders").NETWORKS
    assert {job.case.network for job in found + jobs("cpu", smoke=True)} <= networks.keys()
    assert len({(job.case, job.precision, job.steps, job.variant) for job in found}) == len(found)


def test_steps_are_compared_by_time_an_image(bundled: Any, tmp_path: Path) -> None:
    speed, job = bundled("speed"), bundled("jobs").jobs("cpu", smoke=True)[0]
    options = (
        bundled("results")
        .arguments("")
        .parse_args(["--out", str(tmp_path), "--work", str(tmp_path), "--device", "cpu"])
    )
    board = speed.Board(options, tmp_path, [])
    board._add(job, [{"step": "per_layer", "images_per_s": 50.0}])
    board._add(
        job, [{"step": speed.BASELINE, "images_per_s": 100.0}, {"step": "x", "problem": "y"}]
    )
    rows = json.loads((tmp_path / "speed.json").read_text())
    assert [row.get("ratio") for row in rows] == [2.0, 1.0, None]
    assert bundled("learning").fastest(tmp_path, 4) == ("per_layer_compiled", "bfloat16")


def test_a_step_that_was_not_measured_explains_no_whole_step(bundled: Any, tmp_path: Path) -> None:
    """A job that was late leaves a row without a figure; a variant is another step."""
    speed = bundled("results").Results(tmp_path, "speed")
    common = {"network": "WRN-16-4", "K": 2, "precision": "float32", "step": "per_layer"}
    row = {"engine": "per_layer", "precision": "float32", "K": 2, "images_per_s": 30.0}
    speed.add(**common, variant="", problem="time limit")
    speed.add(**common, variant="channels_last", images_per_s=90.0)
    outside = bundled("learning").outside
    assert outside(tmp_path, row) is None
    speed.add(**common, variant="", images_per_s=60.0)
    assert outside(tmp_path, row) == 0.5


def test_a_late_stage_ends_with_all_it_started(bundled: Any, tmp_path: Path) -> None:
    run, file = bundled("run"), tmp_path / "pid"
    child = f"import os, time; open({str(file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert (
        run.run_stage([sys.executable, "-c", "raise SystemExit(3)"], 30) == "failed with status 3"
    )
    assert run.run_stage([sys.executable, "-c", code], 1.0) == "stopped after 1 s"
    deadline = time.monotonic() + 20
    while file.exists() and Path(f"/proc/{file.read_text()}").exists():
        assert time.monotonic() < deadline, "the stage's own process outlived it"
        time.sleep(0.02)


def test_images_are_unpacked_by_class(bundled: Any, tmp_path: Path) -> None:
    archive, folder = tmp_path / "images.tar.xz", tmp_path / "cifar10"
    with tarfile.open(archive, "w:xz") as tar:
        for name in ("train/cat/0.jpg", "train/cat/1.jpg", "train/dog/0.jpg", "test/cat/0.jpg"):
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(b"jpg"))
    unpack = bundled("unpack")
    unpack.FEW = 1
    unpack.unpack(archive, folder, few=True)
    found = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.jpg"))
    assert found == ["test/cat/0.jpg", "train/cat/0.jpg", "train/dog/0.jpg"]


def test_packed_wheels_have_exact_versions(bundled: Any) -> None:
    packages = {name.lower() for name in bundled("bundle").PACKAGES}
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    exact = {line.split("==")[0].lower() for line in lines if "==" in line}
    assert packages <= exact
    assert not packages & {"torch", "torchvision", "numpy", "ray"}


def test_files_stay_readable() -> None:
    for file in FOLDER.glob("*.py"):
        assert len(file.read_text(encoding="utf-8").splitlines()) <= 300, file.name


@pytest.mark.slow
def test_the_whole_bundle_runs_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["bash", str(FOLDER / "run.sh"), "--out", str(out), "--device", "cpu", "--smoke"]
    command += ["--seconds", "6000"]
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "DP_RAY_GPU_WORK": str(tmp_path / "work"),
    }
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    rows = {
        stage: json.loads((out / f"{stage}.json").read_text())
        for stage in ("machine", "correctness", "speed", "learning")
    }
    assert not [row for row in rows["correctness"] if row["outcome"] in ("FAIL", "ERROR")]
    assert [row["ended"] for row in rows["machine"] if "stage" in row] == ["ended"] * 3
    problems = [row for row in rows["speed"] + rows["learning"] if row.get("problem")]
    assert not problems, problems
    assert rows["learning"][-1]["test_accuracy"] > 0
    assert len(list(out.iterdir())) <= 8
