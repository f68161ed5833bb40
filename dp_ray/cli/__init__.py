"""The commands; each hands over to the part that does the work."""

from __future__ import annotations

import sys

import typer
from rich.console import Console

from dp_ray.cli.leftovers import clean
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
for _command in _COMMANDS:
    app.command()(_command)


def _in_one_line(text: str) -> str:
    """Without line breaks, and without what would steer a terminal, as a file's name could."""
    from dp_ray.reporting.words import printable

    return printable(" ".join(part.strip() for part in text.splitlines()))


def main() -> None:
    """The console script: a user's mistake ends in one message and exit code 2."""
    try:
        app(prog_name="dp-ray")
    except DpRayError as error:
        from dp_ray.on_ray.job import message_of

        text = _in_one_line(f"dp-ray: {message_of(error)}")
        Console(stderr=True).print(text, style="bold", markup=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
