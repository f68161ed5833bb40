"""Whoever follows a page of the documentation: writes its files, runs its commands, one by one."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dp_ray import cli
from dp_ray.artifacts.journal import Journal
from dp_ray.cli import options
from helpers.pages import ROOT, Page

STOPPED = re.compile(r"# Ctrl-C$")
"""How a page says that a run is stopped."""

LEFT_OUT = "…"
"""A line that stands for those of an output that a page does not show."""

SMALL: dict[str, tuple[str, ...]] = {
    "train": ("cluster.num_workers=0", "cluster.threads_per_worker=1", "augment.views=1"),
    "audit": ("cluster.num_workers=0", "cluster.threads_per_worker=1", "augment.views=1"),
    "tune": (
        *("privacy.accountant=rdp", "tune.budget_levels=2", "tune.num_samples=1"),
        *("tune.distribution=geometric", "tune.space.augment.views={choice: [1]}"),
    ),
}
"""Options of each command besides those that the page gives, which come later and win."""

OWN_DATA = ("data.num_examples=60", "data.image_size=16", "data.expected_batch_size=16")
FASTER: dict[str, tuple[str, ...]] = {
    "my_images.yaml": (*OWN_DATA, "model.name=gn_cnn", "privacy.steps=2"),
    "my_arrays.yaml": (*OWN_DATA, "privacy.steps=2"),
}
"""Likewise for configurations that are too large to be run as they are."""


def masked(text: str) -> str:
    """Return a text without the values of its digits, which are others each time."""
    return re.sub(r"\d", "0", text)


class Reader:
    """Follows pages in a folder that looks like the repository, at home in it.

    Commands of dp-ray run in this process, which has the libraries loaded; all others in a shell,
    beside an environment of one command in ``.venv``.

    Args:
        folder: an empty one.
        monkeypatch: of the test.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        for name in ("Makefile", "pyproject.toml", "constraints.txt", "configs", "benchmarks"):
            (folder / name).symlink_to(ROOT / name)
        venv = folder / ".venv/bin"
        venv.mkdir(parents=True)
        options = " ".join(f"--set {shlex.quote(option)}" for option in SMALL["train"])
        self._script(
            venv / "dp-ray",
            f'case $1 in train) set -- "$@" {options};; esac\n'
            f'exec {shlex.quote(sys.executable)} -m dp_ray "$@"',
        )
        self._script(venv / "python", f'exec {shlex.quote(sys.executable)} "$@"')
        (venv / "activate").touch()
        (folder / ".venv/.installed").touch()
        monkeypatch.chdir(folder)
        monkeypatch.setenv("HOME", str(folder))
        monkeypatch.setenv("PATH", os.pathsep.join([str(venv), os.environ["PATH"]]))
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        monkeypatch.setattr(sys, "path", list(sys.path))
        for name in ("MAKEFLAGS", "VENV"):  # of the make that may have started the tests
            monkeypatch.delenv(name, raising=False)

    @staticmethod
    def _script(path: Path, body: str) -> None:
        path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        path.chmod(0o755)

    def follow(self, page: Page, *, skip: Callable[[str], object]) -> None:
        """Does what a page says, from top to bottom.

        Args:
            page: which.
            skip: tells of the commands that are to be left out.

        Raises:
            AssertionError: a command fails, or prints other things than the page shows.
        """
        printed = ""
        for block in page.blocks():
            if block.file is not None:
                (self._folder / block.file).write_text(block.content, encoding="utf-8")
            elif block.info == "python":
                exec(compile(block.content, page.name, "exec"), {})
            elif block.info == "text" and printed:
                for line in block.content.splitlines():
                    if line != LEFT_OUT:
                        assert masked(line[:13].strip()) in masked(printed), f"{page.name}: {line}"
            elif block.commands:
                commands = [
                    (re.sub(r"\s+# .*", "", c), bool(STOPPED.search(c))) for c in block.commands
                ]
                printed = "".join(self.run(c, stop=stop) for c, stop in commands if not skip(c))

    @staticmethod
    def run(command: str, *, stop: bool = False) -> str:
        """What a command prints.

        Args:
            command: one line.
            stop: it is stopped after some steps, as by Ctrl-C.

        Raises:
            AssertionError: it fails.
        """
        if not command.startswith("dp-ray "):
            done = subprocess.run(
                ["bash", "-ec", command],
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
            return done.stdout
        _, name, *words = shlex.split(command)
        if words and name in ("plan", "data", *SMALL):
            given = (*SMALL.get(name, ()), *FASTER.get(words[0], ()))
            words[1:1] = [word for option in given for word in ("--set", option)]
        with pytest.MonkeyPatch.context() as patch:
            if stop:
                asked = iter([False] * 5 + [True] * 1000)
                patch.setattr(Journal, "stop_requested", lambda _: next(asked))
            result = CliRunner().invoke(cli.app, [name, *words])
        assert result.exit_code == (options.STOPPED if stop else 0), (
            f"{command}: {result.output}{result.exception!r}"
        )
        return result.output
