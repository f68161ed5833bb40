"""Packs the GPU bundle: one folder that runs where there is a GPU and nothing can be fetched.

    python benchmarks/gpu/bundle.py --out build/gpu --data cifar10_jpeg.tar.xz

It holds src/ (what is committed), wheels/ (for CPython 3.12 on x86-64 Linux, and only what such a
machine lacks: it has PyTorch, SciPy, scikit-learn, PyArrow and the like), reference.npz (random
numbers as this machine draws them) and, with --data, CIFAR-10 as JPEG.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

PACKAGES = (
    "annotated-types",
    "cffi",
    "cryptography",
    "dm-tree",
    "dp-accounting",
    "opacus",
    "pycparser",
    "pydantic",
    "pydantic_core",
    "tensorboardX",
    "typing-inspection",
    "typing_extensions",
)
"""At the versions of constraints.txt."""

PLATFORMS = ("2_34", "2_28", "2_27", "2_24", "2_17")

MOST_MIB = 50

ARCHIVE = "cifar10_jpeg.tar.xz"


def pack(out: Path, data: Path | None) -> float:
    """Makes the folder anew; returns its size in MiB."""
    shutil.rmtree(out, ignore_errors=True)
    (out / "src").mkdir(parents=True)
    pathspec = [":!docs/*.png", ":!docs/*.svg", ":!tests"]
    archive = subprocess.run(
        ["git", "archive", "HEAD", "--", ".", *pathspec], cwd=ROOT, check=True, capture_output=True
    )
    subprocess.run(["tar", "x", "-C", str(out / "src")], input=archive.stdout, check=True)
    fetch_wheels(out / "wheels", out / "src")
    reference = out / "src" / "benchmarks" / "gpu" / "reference.py"
    environment = {**os.environ, "PYTHONPATH": str(out / "src")}
    command = [sys.executable, "-B", str(reference), str(out / "reference.npz")]
    subprocess.run(command, check=True, env=environment)
    if data is not None:
        shutil.copyfile(data, out / ARCHIVE)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file()) / 2**20
    if size > MOST_MIB:
        raise SystemExit(f"{out} has {size:.1f} MiB, more than the {MOST_MIB} that can travel")
    return size


def fetch_wheels(folder: Path, source: Path) -> None:
    """Downloads what is missing there, and builds this project's own wheel for its metadata."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    platforms = [f"--platform=manylinux_{version}_x86_64" for version in PLATFORMS]
    platforms += ["--platform=manylinux2014_x86_64", "--platform=manylinux1_x86_64"]
    versions = {
        name.lower(): line
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
        for name in [line.split("==")[0]]
    }
    wanted = [versions[name.lower()] for name in PACKAGES]
    only = ["--only-binary=:all:", "--python-version=3.12", "--implementation=cp", *platforms]
    command = [*pip, "download", "-q", "--no-deps", *only, f"--dest={folder}", *wanted]
    subprocess.run(command, check=True)
    build = source.parent / "build"
    shutil.copytree(source, build)  # building leaves files behind
    subprocess.run([*pip, "wheel", "-q", "--no-deps", f"-w{folder}", str(build)], check=True)
    shutil.rmtree(build)


def main() -> None:
    """Packs, and says how large it came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu")
    parser.add_argument("--data", type=Path, help=f"{ARCHIVE}, or the folder that holds it")
    options = parser.parse_args()
    data = options.data
    if data is not None and data.is_dir():
        data /= ARCHIVE
    if data is not None and not data.is_file():
        raise SystemExit(f"--data: there is no {data}")
    size = pack(options.out, data)
    print(f"{options.out}: {size:.1f} MiB; bash {options.out}/src/benchmarks/gpu/run.sh --out DIR")


if __name__ == "__main__":
    main()
