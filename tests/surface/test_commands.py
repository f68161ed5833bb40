"""Each command is a shell over the function of its name: what it does, the function does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.pages import ROOT
from typer.testing import CliRunner

import dp_ray
from dp_ray import cli
from dp_ray.reporting.run_progress import TerminalProgress

DIGITS = str(ROOT / "configs/digits.yaml")
SEARCH = str(ROOT / "configs/sweeps/digits.yaml")

COMMANDS: dict[str, tuple[list[str], str, dict[str, Any]]] = {
    "plan": (
        [DIGITS, "--workers", "4,1", "--latency-us", "9", "--bandwidth-gbit", "25"],
        "dp_ray.plan",
        {"workers": [1, 4], "latency_us": 9.0, "bandwidth_gbit": 25.0},
    ),
    "train": (
        [DIGITS, "--resume", "--break-lock", "--profile"],
        "dp_ray.train",
        {"resume": True, "break_lock": True, "profile": True, "replay_key": None},
    ),
    "train again": (
        [DIGITS, "--replay-key", "run_key"],
        "dp_ray.train",
        {"resume": False, "break_lock": False, "replay_key": Path("run_key")},
    ),
    "tune": (
        [SEARCH, "--resume", "--break-lock"],
        "dp_ray.tune",
        {"resume": True, "break_lock": True},
    ),
    "audit": (
        [DIGITS, "--kind", "mislabelled", "--canaries", "7", "--significance", "0.1"],
        "dp_ray.audit",
        {"kind": "mislabelled", "canaries": 7, "significance": 0.1, "resume": False},
    ),
    "evaluate": (["runs/a", "--set", "data.root=x"], "dp_ray.evaluate", {}),
    "report": (
        ["runs/a", "--public", "--format", "markdown", "--output", "a.md"],
        "dp_ray.report",
        {"public": True, "form": "markdown", "output": "a.md"},
    ),
    "predict": (
        ["runs/a", "x.png", "--own-code"],
        "dp_ray.api.predict.predict",
        {"own_code": True},
    ),
    "export": (["runs/a", "--output", "a.pt2"], "dp_ray.api.export.export", {"own_code": False}),
    "ledger": (["runs/a", "--repair"], "dp_ray.open_run", {}),
    "clean": (["--cache", "there"], "dp_ray.api.clean.find_leftovers", {}),
    "data": ([DIGITS, "--out", "there"], "dp_ray.api.data.look_at_data", {}),
    "config": ([DIGITS, "--set", "privacy.epsilon=1"], "dp_ray.load_config", {}),
}
"""Command, its words → the function that does it, and the arguments that it is given."""


class CalledError(Exception):
    """The function was reached; nothing else may be done by the command itself."""


def recorder(calls: list[tuple[tuple[Any, ...], dict[str, Any]]]) -> Callable[..., Any]:
    def record(*args: Any, **options: Any) -> Any:
        calls.append((args, options))
        raise CalledError

    return record


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_calls_its_function(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, function, expected = COMMANDS[name]
    there = tmp_path / "runs/a/result.json"
    there.parent.mkdir(parents=True)
    there.touch()
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(function, recorder(calls), raising=False)
    result = CliRunner().invoke(cli.app, [name.split(maxsplit=1)[0], *words])
    assert isinstance(result.exception, CalledError), result.output
    ((args, options),) = calls
    assert expected.items() <= options.items()
    callbacks = options.get("callbacks", ())
    assert [type(callback) for callback in callbacks] == [TerminalProgress] * len(callbacks)
    assert len(callbacks) == (1 if name.split(maxsplit=1)[0] in ("train", "tune", "audit") else 0)
    first = {DIGITS: dp_ray.Config, SEARCH: dp_ray.SweepConfig}.get(words[0], str)
    assert isinstance(args[0], first) or args[0] in (Path(words[0]), Path("there").absolute())
    assert sorted(tmp_path.rglob("*")) == [*there.parents[1::-1], there]


def test_every_command_is_among_them() -> None:
    names = {command.callback.__name__ for command in cli.app.registered_commands}  # type: ignore[union-attr]
    assert names == {name.split()[0] for name in COMMANDS}
