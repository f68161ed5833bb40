"""What several commands share: options, and how they print."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dp_ray.json_text import write_json

if TYPE_CHECKING:
    from dp_ray.reporting.callbacks import Callback

STOPPED = 130
"""Exit code of a run that was stopped by the user and can be resumed."""

ConfigFile = Annotated[
    Path,
    typer.Argument(help="A YAML file, or a built-in configuration by name, such as digits."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=VALUE", help="Overrides a field; may be repeated."),
]
Name = Annotated[
    str | None, typer.Option(help="Name of the run; default the configuration file's name.")
]
BreakLock = Annotated[
    bool,
    typer.Option(
        "--break-lock",
        help="With --resume: take what is resumed over from a process that is known to be gone.",
    ),
]
AcceptCharges = Annotated[
    int | None,
    typer.Option(
        "--accept-charges",
        metavar="N",
        min=0,
        help="With --resume: how many steps on record may be charged again, if their sums cannot "
        "be repeated bit for bit; default a few. For more, a terminal asks.",
    ),
]
OwnCode = Annotated[
    bool,
    typer.Option(
        "--own-code",
        help="Run code that the files name (network, objective, data, mechanism), though you have "
        "not trained with it on this machine: only if you trust who wrote them.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]


def print_text(text: str) -> None:
    """Print a text as it is."""
    typer.echo(text)


def can_answer() -> bool:
    """Whether somebody is at the terminal, who can answer a question."""
    return sys.stdin.isatty()


def terminal_progress() -> Callback:
    """Return what shows progress on the standard error stream."""
    from rich.console import Console

    from dp_ray.reporting.run_progress import TerminalProgress

    return TerminalProgress(Console(stderr=True))


def check_break_lock(break_lock: bool, resume: bool) -> None:
    """Refuse ``--break-lock`` without ``--resume``."""
    if break_lock and not resume:
        raise typer.BadParameter("--break-lock goes with --resume")


def print_json(value: dict[str, Any], wanted: bool) -> None:
    """Print one line of JSON, if ``--json`` was given."""
    if wanted:
        typer.echo(write_json(value))
