"""What only a GPU can show: the checks of the GPU bundle, asserted where there is one."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="there is no NVIDIA GPU; benchmarks/gpu/run.sh checks the same where there is one",
)


@pytest.fixture
def checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The bundle's checks, on the GPU."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.syspath_prepend(str(BENCHMARKS / "gpu"))
    options = ["--out", str(tmp_path), "--work", str(tmp_path), "--device", "cuda"]
    parser = importlib.import_module("results").arguments("")
    until = time.monotonic() + 600
    correctness = importlib.import_module("correctness")
    return correctness.Checks(parser.parse_args([*options, "--until", str(until)]))


def gpu_only(name: str, *arguments: Any) -> Any:
    passed, figure, said = getattr(importlib.import_module("gpu_only"), name)(*arguments)
    assert passed, (figure, said)


@pytest.mark.parametrize(
    "engine", ["vmap", "per_layer", pytest.param("per_layer_compiled", marks=pytest.mark.slow)]
)
def test_nothing_waits_for_the_gpu_between_draw_and_sum(checks: Any, engine: str) -> None:
    gpu_only("unhindered", checks, engine)


def test_too_large_a_microbatch_names_a_size_that_fits(checks: Any) -> None:
    gpu_only("too_little_memory", checks)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["vmap_compiled", "per_layer_compiled"])
def test_a_cuda_graph_gives_each_microbatch_its_own_sum(checks: Any, engine: str) -> None:
    gpu_only("replayed", checks, engine)


def test_a_run_on_a_gpu_is_the_run_on_the_cpu(checks: Any) -> None:
    passed, distance, said = checks.steps()
    assert passed, (distance, said)


@pytest.mark.parametrize("to_device", [True, False])
def test_a_run_goes_on_on_another_device(checks: Any, to_device: bool) -> None:
    passed, charges, said = checks.resume(to_device=to_device)
    assert passed, (charges, said)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs")
def test_sums_travel_between_gpus_by_nccl(checks: Any) -> None:
    gpu_only("several", checks)
