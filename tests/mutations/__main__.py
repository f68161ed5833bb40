"""Puts each fault of the list into a copy of the source and runs its test: ``make verify``."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from mutations.catalogue import ROOT, Mutation, load_guarantees
from mutations.judge import CAUGHT, PASSED, endings, verdict
from mutations.table import DOCUMENT, render

_COPIED = ("dp_ray", "tests", "configs", "docs", "pyproject.toml")
_PATIENCE_S = 300


def copy_source(source: Path, target: Path) -> None:
    """What tests need, with what Python compiled of it."""
    target.mkdir()
    for name in _COPIED:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name)
        else:
            shutil.copy2(source / name, target / name)


def try_mutation(mutation: Mutation, pristine: Path, folder: Path) -> str:
    """How the named test ended with the fault, in a line that is printed too."""
    begun = time.monotonic()
    copy_source(pristine, folder)
    target = folder / mutation.file
    source = target.read_text(encoding="utf-8")
    target.write_text(mutation.applied_to(source), encoding="utf-8")
    shutil.rmtree(target.parent / "__pycache__", ignore_errors=True)
    found = endings(folder, [mutation.test], patience_s=_PATIENCE_S, stop_early=True)
    ending = verdict(found, mutation.test)
    shutil.rmtree(folder)
    said = "caught" if ending == CAUGHT else f"SURVIVED: {mutation.test} {ending}"
    print(f"{mutation.name}: {said} ({time.monotonic() - begun:.0f} s)", flush=True)
    return ending


def main() -> None:
    """Prints a line for each fault; writes the page if all of them were tried and caught."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="faults with this in their name; writes no page")
    parser.add_argument("--jobs", type=int, default=1, help="faults side by side")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    guarantees, started = load_guarantees(), time.monotonic()
    chosen = [m for g in guarantees for m in g.mutations if arguments.only in m.name]
    nodes = sorted({mutation.test for mutation in chosen})  # by file
    with tempfile.TemporaryDirectory(prefix="mutations-") as temporary:
        folders = [Path(temporary) / str(number) for number in range(len(chosen))]
        pristine = Path(temporary) / "pristine"
        copy_source(ROOT, pristine)
        sound = endings(pristine, nodes, patience_s=_PATIENCE_S * len(nodes))
        unsound = {n: e for n in nodes if (e := verdict(sound, n)) != PASSED}
        for node, ending in unsound.items():
            print(f"WITHOUT A FAULT: {node} {ending}", flush=True)
        print(
            f"without a fault: {len(nodes)} tests, {time.monotonic() - started:.0f} s", flush=True
        )
        with ThreadPoolExecutor(arguments.jobs) as pool:
            tried = list(pool.map(try_mutation, chosen, [pristine] * len(chosen), folders))
    caught = tried.count(CAUGHT)
    minutes = (time.monotonic() - started) / 60
    print(f"{caught} of {len(chosen)} faults caught, {minutes:.0f} min")
    if unsound or caught != len(chosen):
        sys.exit(1)
    if not arguments.only:
        run = (
            f"The last run: {caught} of {len(chosen)} faults caught, "
            f"{datetime.now(UTC):%Y-%m-%d}, dp-ray {version('dp-ray')}, torch {version('torch')}, "
            f"Opacus {version('opacus')}, Python {platform.python_version()}."
        )
        DOCUMENT.write_text(render(guarantees, run), encoding="utf-8")


if __name__ == "__main__":
    main()
