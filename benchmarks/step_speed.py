"""The private step beside the non-private one and beside other libraries, in one run.

    python -m pip install --constraint constraints.txt -e '.[all,peers]'
    python benchmarks/step_speed.py --out docs/step_speed

All contenders of a case are built in one process and called in turn, round by round, so that a
noisy machine slows all of them alike; a figure is the median over the rounds. Peak memory is taken
in a process of its own each: what a call adds to what the process held before it. Peers that are
not installed are left out. ``--out`` writes FILE.json, FILE.md and FILE.svg; cases of FILE.json
with the same machine, versions and options that are not measured again stay.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from ctypes import CDLL
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from contenders import NETWORKS, Call, Case, contenders, in_float64

from dp_ray.performance.allocator import keep_freed_memory

CASES = (
    Case("WRN-16-4", 8, 4),
    Case("WRN-16-4", 8, 16),
    Case("WRN-16-4", 128, 1),
    Case("WRN-16-4 plain", 8, 4),
    Case("WRN-16-4 plain", 8, 16),
    Case("small CNN", 64, 8),
    Case("small CNN", 256, 1),
)
BASELINE = "non-private, compiled"


def build(case: Case, wanted: str) -> dict[str, Call]:
    """The contenders of a case whose names hold one of the words; each called twice to warm up."""
    calls: dict[str, Call] = {}
    for name, builder in contenders(case).items():
        if not any(word in name for word in wanted.split("|")):
            continue
        try:
            call = builder()
            call()
            call()
        except ImportError as error:
            print(f"  {name} is left out: {error}", file=sys.stderr)
            continue
        except Exception as error:  # a peer that cannot do this case is part of the result
            print(f"  {name} fails: {str(error)[:200]}", file=sys.stderr)
            continue
        calls[name] = call
    return calls


def time_in_turn(calls: dict[str, Call], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call of each contender."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def difference(found: torch.Tensor | None, expected: torch.Tensor) -> float | None:
    """Distance of two sums, relative to the length of the second."""
    if found is None:
        return None
    return float((found - expected).norm() / expected.norm())


def is_wrong(name: str, difference: float | None) -> bool:
    """Whether a result is further from float64 than rounding at kinks takes it.

    The limits are those by which a run refuses an engine (``performance/engine_trial.py``).
    """
    limit = 0.5 if "bfloat16" in name else 0.03
    return difference is not None and not difference <= limit


def peak_memory(call: Callable[[], Any]) -> float:
    """MiB that one call adds at its peak (Linux)."""

    def status(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field))

    CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status("VmRSS")
    call()
    return (status("VmHWM") - before) / 1024


def peak_in_a_process(case: Case, name: str, threads: int) -> float | None:
    """:func:`peak_memory` of a contender, in a fresh process."""
    spec = [case.network, str(case.examples), str(case.views), name]
    command = [sys.executable, __file__, "--threads", str(threads), "--peak", *spec]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return float(done.stdout.split()[-1]) if done.returncode == 0 else None


def measure(case: Case, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Contender → seconds, ratio to the baseline, peak memory and agreement."""
    calls = build(case, options.only)
    seconds = time_in_turn(calls, options.rounds)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    expected = in_float64(case)
    rows = {}
    for name, call in calls.items():
        off = difference(call(), expected)
        wrong = is_wrong(name, off)
        if wrong:
            print(f"  {name}: its result is wrong, off by {off:.0e}", file=sys.stderr)
        rows[name] = {
            "seconds": None if wrong else medians[name],
            "fastest": None if wrong else min(seconds[name]),
            "ratio": None if wrong else medians[name] / medians.get(BASELINE, math.nan),
            "difference": off if off is None or math.isfinite(off) else None,
            "wrong": wrong,
            "peak_mib": None
            if options.no_memory
            else peak_in_a_process(case, name, options.threads),
        }
    return rows


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    found: dict[str, Any] = {"python": platform.python_version(), "machine": _processor()}
    for package in ("torch", "opacus", "jax", "jax_privacy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [x for x in info.read_text().splitlines() if x.startswith("model name")]
    return names[0].split(":")[1].strip() if names else platform.machine()


def table(results: dict[str, Any]) -> str:
    """Markdown."""
    said = ", ".join(f"{name} {value}" for name, value in results["machine"].items() if value)
    lines = [f"{said}; {results['threads']} threads, median of {results['rounds']} rounds", ""]
    for case, rows in results["cases"].items():
        lines += [
            f"**{case}**",
            "",
            "| step | seconds | of non-private, compiled | peak MiB | off float64 by |",
            "| --- | --- | --- | --- | --- |",
        ]
        for name, row in rows.items():
            peak = "" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}"
            off = "" if row["difference"] is None else f"{row['difference']:.0e}"
            if row.get("wrong"):
                lines.append(f"| {name} | wrong result | | {peak} | {off} |")
                continue
            lines.append(f"| {name} | {row['seconds']:.4f} | {row['ratio']:.2f} | {peak} | {off} |")
        lines.append("")
    return "\n".join(lines)


def draw(results: dict[str, Any], file: Path) -> None:
    """Bars of the ratio to the compiled non-private step; a panel for each case with peers."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "dp-ray"
    from matplotlib import pyplot as plt

    peers = ("Opacus functorch", "jax_privacy")
    cases = {c: rows for c, rows in results["cases"].items() if any(p in rows for p in peers)}
    columns = 2
    rows = -(-len(cases) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(11, 2.9 * rows), layout="constrained")
    for axis in list(axes.flat)[len(cases) :]:
        axis.remove()
    for axis, (case, contenders_of_case) in zip(axes.flat, cases.items(), strict=False):
        names = [n for n, row in contenders_of_case.items() if not row.get("wrong")][::-1]
        ratios = [contenders_of_case[name]["ratio"] for name in names]
        axis.barh(names, ratios, color=[_color(name) for name in names])
        axis.axvline(1.0, color="black", linewidth=0.8)
        axis.set_xlim(0, max(ratios) * 1.14)
        for place, ratio in enumerate(ratios):
            axis.text(ratio, place, f" {ratio:.2f}", va="center", fontsize=8)
        axis.set_title(case, fontsize=10)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(
        f"Time of a step over the compiled non-private one ({results['threads']} CPU threads)",
        fontsize=11,
    )
    figure.savefig(file, metadata={"Date": None})


def _color(name: str) -> str:
    if name.startswith("dp-ray"):
        return "#1f77b4"
    return "#9aa0a6" if name.startswith("non-private") else "#d98c3f"


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--case", action="append", help="such as 'WRN-16-4:8:4'; may be repeated")
    parser.add_argument(
        "--only", default="", help="words in contenders' names, such as 'dp-ray|non'"
    )
    parser.add_argument(
        "--default-allocator",
        action="store_true",
        help="leave the C library as other projects' users have it",
    )
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parser.add_argument("--out", type=Path, help="where to write results, without a suffix")
    parser.add_argument(
        "--peak", nargs=4, metavar=("NET", "B", "K", "NAME"), help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    if not options.default_allocator:
        keep_freed_memory()  # for all contenders alike
    if options.peak is not None:
        network, examples, views, name = options.peak
        case = Case(network, int(examples), int(views))
        call = contenders(case)[name]()
        call()
        print(peak_memory(call))
        return
    cases = CASES
    if options.case:
        parts = [text.rsplit(":", 2) for text in options.case]
        cases = tuple(Case(network, int(b), int(k)) for network, b, k in parts)
    unknown = {case.network for case in cases} - NETWORKS.keys()
    if unknown:
        parser.error(f"no such network: {', '.join(unknown)}; there are {', '.join(NETWORKS)}")
    results: dict[str, Any] = {
        "machine": machine(),
        "threads": options.threads,
        "rounds": options.rounds,
        "cases": {},
    }
    if options.out is not None and options.out.with_suffix(".json").exists():
        before = json.loads(options.out.with_suffix(".json").read_text())
        if all(before[key] == results[key] for key in ("machine", "threads", "rounds")):
            results["cases"] = before["cases"]
    for case in cases:
        print(case.name, file=sys.stderr)
        results["cases"][case.name] = measure(case, options)
        if options.out is not None:
            options.out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    order = [case.name for case in CASES]
    results["cases"] = dict(
        sorted(results["cases"].items(), key=lambda x: order.index(x[0]) if x[0] in order else 99)
    )
    text = table(results)
    print(text)
    if options.out is not None:
        options.out.with_suffix(".md").write_text(text)
        draw(results, options.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
