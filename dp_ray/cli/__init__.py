"""The commands; each hands over to the part that does the work."""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Callable
from typing import Any

import typer
from rich.console import Console

from dp_ray.cli.leftovers import clean
from dp_ray.cli.options import STOPPED
from dp_ray.cli.reading import config, data, evaluate, export, ledger, plan, predict, report
from dp_ray.cli.training import audit, train, tune
from dp_ray.errors import DpRayError

app = typer.Typer(
    help="Differentially private training of image classifiers on Ray.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_COMMANDS = (
    *(plan, data, train, tune, audit),
    *(evaluate, predict, export, ledger, report, clean, config),
)


def _told_when_interrupted(command: Callable[..., None]) -> Callable[..., None]:
    """Have a command that is stopped at once end in one line, and not in typer's own way."""

    @functools.wraps(command)
    def told(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except KeyboardInterrupt as interrupt:
            text = str(interrupt) or "stopped; what was not finished is not there"
            Console(stderr=True).print(f"dp-ray: {text}", markup=False, soft_wrap=True)
            raise typer.Exit(STOPPED) from None

    return told


for _command in _COMMANDS:
    app.command()(_told_when_interrupted(_command))


def _in_one_line(text: str) -> str:
    """Without line breaks, and without what would steer a terminal, as a file's name could."""
    from dp_ray.errors import printable

    return printable(" ".join(part.strip() for part in text.splitlines()))


def main() -> None:
    """The console script: a user's mistake ends in one message and exit code 2.

    So do Ctrl-C and SIGTERM where a command does not stop by itself, with exit code 130.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        app(prog_name="dp-ray")
    except DpRayError as error:
        from dp_ray.on_ray.job import message_of

        text = _in_one_line(f"dp-ray: {message_of(error)}")
        Console(stderr=True).print(text, style="bold", markup=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(STOPPED)
