"""Stage c: whole runs by the command line. First where a step's time goes, then accuracy at ε = 8.

Both are CIFAR-10 (JPEG) with WRN-16-4. The second is as long as the time that is left allows: B̄, K
and T are smaller than those of De et al. 2022, and σ is solved for ε = 8.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from results import Results, arguments, in_short, read

RECIPE = Path(__file__).parents[2] / "configs" / "cifar10" / "wrn_16_4_eps8.yaml"

ENGINE, PRECISION, IMAGES = "per_layer_compiled", "bfloat16", 2048
"""Where stage b has nothing to say; B·K of a microbatch."""

START_S = 45.0
"""What a run takes besides its steps: imports, compilation, evaluations."""

EVALUATIONS = 12


def main() -> None:
    """Both runs."""
    options = arguments(str(__doc__)).parse_args()
    until = options.until
    results = Results(options.out, "learning")
    data = source(options, until)
    for name, run in (("profiled step", profiled), ("learning", learn)):
        try:
            run(options, results, data, until)
        except Exception as error:
            results.add(run=name, problem=in_short(error))


def source(options: argparse.Namespace, until: float) -> dict[str, Any]:
    """The data's fields: CIFAR-10 once it is unpacked, or random images."""
    if options.data is not None:
        done = options.data.with_suffix(".done")
        while not done.exists() and options.data.exists() and time.monotonic() < until - 60:
            time.sleep(0.5)
        if done.exists():
            return cifar10(options.data)
    return {"data.name": "fake", "data.root": "null", "data.num_examples": 5000}


def cifar10(folder: Path) -> dict[str, Any]:
    """CIFAR-10 as images below one folder a class."""
    return {
        "data.name": "image_folder",
        "data.root": folder,
        "data.num_examples": sum(1 for _ in (folder / "train").rglob("*.jpg")),
        "data.num_classes": 10,
        "data.image_size": 32,
        "data.channels": 3,
        "data.mean": "[0.4914, 0.4822, 0.4465]",
        "data.std": "[0.2470, 0.2435, 0.2616]",
    }


def cache(work: Path) -> Path:
    """Where decoded images are kept."""
    return work / "cache"


def fields(options: argparse.Namespace, views: int) -> dict[str, Any]:
    """How a run computes, by the fastest that stage b found."""
    engine, precision = fastest(options.out, views)
    found: dict[str, Any] = {
        "augment.views": views,
        "train.engine": engine,
        "train.precision": precision,
        "train.microbatch_size": IMAGES // views,
        "train.storage_path": options.work / "runs",
        "data.cache": cache(options.work),
        "cluster.num_workers": 0,
        "cluster.gpus_per_worker": int(options.device == "cuda"),
        "seed": 0,
    }
    if options.smoke:
        found |= {"train.engine": "per_layer", "train.microbatch_size": 8}
        found |= {"cluster.threads_per_worker": 1}
        found |= {"model.name": "gn_cnn", "model.arguments": "{widths: [8, 8]}"}
    return found


def fastest(out: Path, views: int) -> tuple[str, str]:
    """The engine and precision with most images a second for WRN-16-4."""
    rows = [
        row
        for row in read(out, "speed")
        if row["network"] == "WRN-16-4" and row["K"] == views and row.get("images_per_s")
    ]
    rows = [r for r in rows if not r["step"].startswith("non-private") and not r["variant"]]
    if not rows:
        return ENGINE, PRECISION
    best = max(rows, key=lambda row: row["images_per_s"])
    return best["step"], best["precision"]


def train(options: argparse.Namespace, name: str, values: dict[str, Any], limit: float) -> str:
    """Runs ``dp-ray train``; stops it cleanly at the limit. Returns how it ended."""
    command = [sys.executable, "-m", "dp_ray", "train", str(RECIPE), "--name", name]
    for key, value in values.items():
        command += ["--set", f"{key}={value}"]
    if name == "profiled":
        command.append("--profile")
    with (options.work / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        for moment, sign in ((limit, signal.SIGTERM), (12.0, signal.SIGKILL)):
            try:
                code = process.wait(timeout=max(moment, 1.0))
            except subprocess.TimeoutExpired:
                process.send_signal(sign)
            else:
                break
        else:
            code = process.wait()
    tail = (options.work / f"{name}.log").read_text(errors="replace")[-600:]
    return "" if code == 0 else f"status {code}: {tail}"


def lines(options: argparse.Namespace, name: str) -> list[dict[str, Any]]:
    """What the run wrote of itself: a line for each step and each evaluation."""
    file = options.work / "runs" / name / "private" / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def profiled(
    options: argparse.Namespace, results: Results, data: dict[str, Any], until: float
) -> None:
    """A few steps of the published size: their seconds, and what is not the network's."""
    views, batch = (2, 64) if options.smoke else (16, 4096)
    values = data | fields(options, views) | {"privacy.steps": 6, "train.evaluate_every": 6}
    values["data.expected_batch_size"] = batch
    problem = train(options, "profiled", values, min(90.0, until - time.monotonic() - 30))
    seconds = [line["seconds"] for line in lines(options, "profiled") if "seconds" in line]
    row: dict[str, Any] = {"run": "profiled step", "K": views, "batch": batch}
    row |= {"engine": values["train.engine"], "precision": values["train.precision"]}
    if len(seconds) > 3:  # the third is traced
        step = min(seconds[3:])
        row |= {"step_s": step, "images_per_s": batch * views / step}
        row["outside"] = outside(options.out, row)
    file = options.work / "runs" / "profiled" / "private" / "profile" / "rank0.txt"
    if file.exists():
        with (options.out / "profile.txt").open("a") as profile:
            profile.write(f"\n\na whole step, {json.dumps(row)}\n{file.read_text()}")
    results.add(**row, problem=problem)


def outside(out: Path, row: dict[str, Any]) -> float | None:
    """The share of a step that microbatches by themselves do not explain."""
    for cell in read(out, "speed"):
        same = cell["network"] == "WRN-16-4" and cell["step"] == row["engine"]
        same &= (cell["K"], cell["precision"]) == (row["K"], row["precision"])
        if same and not cell["variant"] and cell.get("images_per_s"):
            return 1 - float(row["images_per_s"]) / float(cell["images_per_s"])
    return None


def learn(
    options: argparse.Namespace, results: Results, data: dict[str, Any], until: float
) -> None:
    """Accuracy at ε = 8 against steps and seconds."""
    views, batch = (2, 64) if options.smoke else (4, 2048)
    values = data | fields(options, views)
    rows = [r for r in read(options.out, "speed") if r["network"] == "WRN-16-4"]
    rates = [
        r["images_per_s"]
        for r in rows
        if r["K"] == views and r["step"] == values["train.engine"] and r.get("images_per_s")
    ]
    rate = 0.85 * max(rates, default=15_000.0)
    seconds = until - time.monotonic() - START_S
    steps = max(int(seconds * rate / (batch * views)), 20)
    steps = min(steps, 10 if options.smoke else 2500)
    values |= {
        "data.expected_batch_size": batch,
        "privacy.epsilon": 8,
        "privacy.noise_multiplier": "null",
        "privacy.steps": steps,
        "train.evaluate_every": max(steps // EVALUATIONS, 1),
    }
    problem = train(options, "learning", values, until - time.monotonic() - 20)
    elapsed, common = 0.0, {"run": "learning", "K": views, "batch": batch}
    common |= {"engine": values["train.engine"], "precision": values["train.precision"]}
    for line in lines(options, "learning"):
        elapsed += line.get("seconds", 0.0)
        if "test_accuracy" in line:
            row = {key: line[key] for key in ("step", "epsilon", "test_accuracy")}
            results.add(**common, **row, seconds=round(elapsed, 1), of=steps)
    if problem:
        results.add(run="learning", problem=problem)


if __name__ == "__main__":
    main()
