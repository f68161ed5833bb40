"""Hostile files of a run: refused in one line, run as no code, and nothing is charged or released.

Damage to the ledger itself is generated in ``test_ledger_damage``; here it meets the commands.
"""

from __future__ import annotations

import io
import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers.support import charged, folder, start
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from dp_ray import cli
from dp_ray.artifacts.checkpoint import Checkpoint
from dp_ray.artifacts.journal import Journal
from dp_ray.artifacts.run_directory import RunDirectory
from dp_ray.config.files import parse_config
from dp_ray.config.run import Config
from dp_ray.config.yaml_text import write_yaml

FIXED = settings(derandomize=True, deadline=None, database=None)
STOPPED_AT = 3
ABSENT = b"(not there)"

Files = dict[str, bytes]


class Evil:
    """What a pickle may hold: a call."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (sys.exit, ("code was run",))


def archive(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


PICKLES = {"pickle": pickle.dumps(Evil()), "archive": archive({"step": Evil()})}


class Case:
    """A run that was stopped and one that finished, and their files to put back."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.stopped, self.finished = self._config("stopped"), self._config("finished")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Journal, "stop_requested", lambda journal: journal._step >= STOPPED_AT)
            start(self.stopped)
        start(self.finished)
        self.files = {name: files_below(root / "runs" / name) for name in ("stopped", "finished")}
        self.file = root / "stopped.yaml"
        self.file.write_text(write_yaml(self.stopped.dump()))

    def _config(self, name: str) -> Config:
        return parse_config(
            {
                "data": {
                    "name": "fake",
                    "num_examples": 60,
                    "num_classes": 3,
                    "image_size": 8,
                    "channels": 1,
                    "expected_batch_size": 10,
                    "cache": str(self.root / "cache"),
                },
                "model": {"arguments": {"widths": [8, 8]}},
                "privacy": {"noise_multiplier": 1.0, "steps": 5, "delta": 1e-3},
                "optimizer": {"lr": 0.1, "arguments": {"momentum": 0.9}, "ema_decay": 0.5},
                "train": {"storage_path": str(self.root / "runs"), "checkpoint_every": 1},
                "cluster": {"num_workers": 0, "threads_per_worker": 1},
                "seed": 7 if name == "stopped" else 8,
                "name": name,
            }
        )

    def put_back(self, name: str, changes: Files) -> None:
        """The run as it was, and then some."""
        run = self.root / "runs" / name
        shutil.rmtree(run)
        for file, data in {**self.files[name], **changes}.items():
            path = run / file
            if data == ABSENT:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        (run / "private").chmod(0o700)

    def checkpoint_names(self) -> list[str]:
        return sorted(name for name in self.files["stopped"] if "checkpoint_" in name)


def files_below(root: Path) -> Files:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dp_ray.training.opening.OWNER_ENDS_S", 0.0)


def command(*arguments: str | Path) -> int:
    """The exit code of a command; any other end is a traceback."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["dp-ray", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as end:
            return int(end.code or 0)  # that of Evil is no number
    return 0


def told(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a refusal."""
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.startswith("dp-ray: ")
    assert errors.count("\n") == 1
    return errors


def check_refused(case: Case, capsys: pytest.CaptureFixture[str]) -> str:
    """Resuming is, with nothing charged and nothing released."""
    run = folder(case.stopped)
    ledger = files_below(run / "private/ledger") if (run / "private/ledger").is_dir() else {}
    capsys.readouterr()
    assert command("train", case.file, "--resume") == 2
    message = told(capsys)
    after = files_below(run / "private/ledger") if (run / "private/ledger").is_dir() else {}
    assert {k: v for k, v in after.items() if k != "lock"} == {
        k: v for k, v in ledger.items() if k != "lock"
    }
    assert not (run / "release").exists()
    return message


# Each file of a run, replaced by each kind of rubbish

RUBBISH = {
    "lost": ABSENT,
    "empty": b"",
    "a list": b"[]",
    "a number": b"3",
    "text": b"nothing of the kind",
    "no UTF-8": bytes(range(128, 256)),
    "deep": b"[" * 20_000,
    "laughs": b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
    **PICKLES,
}
NEEDED = ("private/config.yaml", "private/run_key", "private/ledger/records.jsonl")


@pytest.mark.parametrize("rubbish", RUBBISH)
@pytest.mark.parametrize("file", [*NEEDED, "private/ledger/head"])
def test_a_run_without_what_it_needs_is_not_gone_on_with(
    file: str, rubbish: str, case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    case.put_back("stopped", {file: RUBBISH[rubbish]})
    message = check_refused(case, capsys)
    assert str(folder(case.stopped)) in message
    if file != "private/config.yaml":
        assert command("ledger", folder(case.stopped)) == 2
        told(capsys)


@pytest.mark.parametrize("rubbish", [name for name in RUBBISH if name != "lost"])
def test_a_result_that_is_none_is_not_passed_over(
    rubbish: str, case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    """It knows of charges that an older ledger would not."""
    case.put_back("stopped", {"result.json": RUBBISH[rubbish]})
    assert "result.json" in check_refused(case, capsys)


@pytest.mark.parametrize("charges", [None, "3", [3], {}, 3.5, 4, 10**400])
def test_a_result_that_tells_of_other_charges_is_refused(
    charges: Any, case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    result = json.loads(case.files["stopped"]["result.json"])
    case.put_back("stopped", {"result.json": json.dumps({**result, "charges": charges}).encode()})
    assert "result.json" in check_refused(case, capsys)


NOTES = (
    "private/progress.json",
    "private/engine.json",
    "private/metrics.jsonl",
    "private/ledger/lock",
    "private/stop",
)


@pytest.mark.parametrize("rubbish", RUBBISH)
def test_notes_of_a_run_decide_nothing(rubbish: str, case: Case) -> None:
    """The run goes on to its end as if they were not there, and pays for each step once."""
    case.put_back("stopped", dict.fromkeys(NOTES, RUBBISH[rubbish]))
    assert command("train", case.file, "--resume") == 0
    assert charged(case.stopped) == [(step, 0) for step in range(5)]
    released = load((folder(case.stopped) / "release/model.safetensors").read_bytes())
    assert all(tensor.isfinite().all() for tensor in released.values())


# The ledger


@settings(FIXED, max_examples=40)
@given(
    name=st.sampled_from(["records.jsonl", "head"]),
    start_at=st.integers(0, 2**20),
    length=st.integers(0, 300),
    inserted=st.binary(max_size=30) | st.just(b"\n"),
    copied=st.booleans(),
)
def test_no_damage_to_the_ledger_hides_what_was_spent(
    case: Case, name: str, start_at: int, length: int, inserted: bytes, copied: bool
) -> None:
    """Cut, written over, doubled: it is refused, to read and to write, or it is what it was."""
    file = f"private/ledger/{name}"
    data = case.files["stopped"][file]
    at = start_at % len(data)
    changed = data[:at] + (data[at : at + length] * 2 if copied else inserted) + data[at + length :]
    case.put_back("stopped", {file: changed})
    run = RunDirectory.of(case.stopped)
    expected = 0 if changed == data else 2
    assert command("ledger", folder(case.stopped)) == expected
    if expected:
        assert command("train", case.file, "--resume") == 2
        assert (folder(case.stopped) / file).read_bytes() == changed
        assert not (folder(case.stopped) / "release").exists()
    else:
        assert run.read_ledger().charges == STOPPED_AT


@pytest.mark.parametrize("order", ["swapped", "doubled", "reversed", "without the first"])
def test_records_in_another_order_are_refused(
    order: str, case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    file = "private/ledger/records.jsonl"
    lines = case.files["stopped"][file].splitlines(keepends=True)
    changed = {
        "swapped": [*lines[:2], lines[3], lines[2], *lines[4:]],
        "doubled": [*lines, lines[-1]],
        "reversed": lines[::-1],
        "without the first": lines[1:],
    }[order]
    case.put_back("stopped", {file: b"".join(changed)})
    assert "does not verify" in check_refused(case, capsys)


def test_files_beside_the_records_change_nothing(case: Case) -> None:
    records = case.files["stopped"]["private/ledger/records.jsonl"]
    beside = {f"private/ledger/{n}": records for n in ("more.jsonl", "records.jsonl~", ".head.1")}
    case.put_back("stopped", beside)
    assert RunDirectory.of(case.stopped).read_ledger().charges == STOPPED_AT
    assert command("train", case.file, "--resume") == 0
    assert len(charged(case.stopped)) == 5


def test_the_ledger_or_the_key_of_another_run_is_refused(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    other = case.files["finished"]
    ledger = {n: data for n, data in other.items() if n.startswith("private/ledger/")}
    for changes in (ledger, {"private/run_key": other["private/run_key"]}):
        case.put_back("stopped", changes)
        assert "does not verify" in check_refused(case, capsys)
    # Both together are the other run: its checkpoints are lost, and what it is differs.
    case.put_back("stopped", {**ledger, "private/run_key": other["private/run_key"]})
    check_refused(case, capsys)


# Checkpoints


def always(content: bytes) -> Callable[[bytes], bytes]:
    return lambda _: content


def changed_state(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    state = torch.load(io.BytesIO(data), weights_only=True)
    change(state)
    return archive(state)


CHECKPOINTS: dict[str, Callable[[bytes], bytes]] = {
    "lost": lambda _: ABSENT,
    "empty": lambda _: b"",
    "cut": lambda data: data[: len(data) // 2],
    "fewer parameters": lambda data: changed_state(data, lambda s: s.update(params=torch.ones(3))),
    "no numbers": lambda data: changed_state(data, lambda s: s["params"].fill_(float("nan"))),
    "whole numbers": lambda data: changed_state(
        data, lambda s: s.update(params=s["params"].to(torch.int8))
    ),
    "another step": lambda data: changed_state(data, lambda s: s.update(step=10**9)),
    "another norm": lambda data: changed_state(data, lambda s: s.update(max_grad_norm=1e9)),
    "a position that is none": lambda data: changed_state(
        data, lambda s: s.update(ledger_position=torch.ones(2))
    ),
    "the same, written again": lambda data: changed_state(data, lambda _: None) + b" ",
    **{name: always(content) for name, content in PICKLES.items()},
}


@pytest.mark.parametrize("damage", CHECKPOINTS)
def test_checkpoints_that_are_not_the_runs_own_are_never_gone_on_from(
    damage: str, case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {name: case.files["stopped"][name] for name in case.checkpoint_names()}
    case.put_back("stopped", {name: CHECKPOINTS[damage](data) for name, data in own.items()})
    assert "no readable checkpoint" in check_refused(case, capsys)


def test_checkpoints_of_another_run_are_never_gone_on_from(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    others = [data for name, data in case.files["finished"].items() if "checkpoint_" in name]
    case.put_back("stopped", dict.fromkeys(case.checkpoint_names(), others[-1]))
    assert "no readable checkpoint" in check_refused(case, capsys)


@pytest.mark.parametrize("damage", CHECKPOINTS)
def test_a_checkpoint_that_is_not_on_record_is_removed_unread(damage: str, case: Case) -> None:
    """Only what the run's key made could tell of a ledger that is newer; the rest is not parsed."""
    newest = case.files["stopped"][case.checkpoint_names()[-1]]
    orphan = "private/checkpoints/checkpoint_00000099_0123abcd.pt"
    case.put_back("stopped", {orphan: CHECKPOINTS[damage](newest)})
    with pytest.MonkeyPatch.context() as patch:
        read: list[tuple[bytes, ...]] = []
        original = Checkpoint.from_bytes
        patch.setattr(
            Checkpoint, "from_bytes", lambda *found: read.append(found) or original(*found)
        )
        assert command("train", case.file, "--resume") == 0
    assert [found[0] for found in read] == [newest]
    assert not (folder(case.stopped) / orphan).exists()
    assert len(charged(case.stopped)) == 5


@settings(FIXED, max_examples=60)
@given(
    start_at=st.integers(0, 2**20),
    length=st.integers(0, 200),
    inserted=st.binary(max_size=50),
)
def test_any_bytes_are_a_checkpoint_or_none(
    case: Case, start_at: int, length: int, inserted: bytes
) -> None:
    data = case.files["stopped"][case.checkpoint_names()[-1]]
    at = start_at % len(data)
    try:
        found = Checkpoint.from_bytes(data[:at] + inserted + data[at + length :])
    except ValueError:
        return
    assert isinstance(found, Checkpoint)


# What was released

MODEL, CONFIG = "release/model.safetensors", "release/config.yaml"


def changed_tensors(data: bytes, change: Callable[[dict[str, Tensor]], object]) -> bytes:
    tensors = load(data)
    change(tensors)
    return save(tensors)


def first(tensors: dict[str, Tensor]) -> str:
    return min(tensors)


MODELS: dict[str, Callable[[bytes], bytes]] = {
    **{name: always(content) for name, content in RUBBISH.items()},
    "cut": lambda data: data[:-9],
    "a head without end": lambda data: b"\xff" * 8 + data[8:],
    "a tensor less": lambda data: changed_tensors(data, lambda t: t.pop(first(t))),
    "a tensor more": lambda data: changed_tensors(data, lambda t: t.update(more=torch.ones(1))),
    "another shape": lambda data: changed_tensors(
        data, lambda t: t.update({first(t): torch.ones(2, 3)})
    ),
}


@pytest.mark.parametrize("damage", MODELS)
def test_a_released_model_that_is_damaged_is_refused(
    damage: str, case: Case, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """In the run, and where its release was copied to."""
    case.put_back("finished", {MODEL: MODELS[damage](case.files["finished"][MODEL])})
    run = folder(case.finished)
    copied = tmp_path / "copied"
    shutil.copytree(run / "release", copied)
    for place in (run, copied):
        capsys.readouterr()
        assert command("evaluate", place, "--picture", tmp_path / "a.png") == 2
        message = told(capsys)
        assert "model.safetensors cannot be loaded" in message
        assert len(message) < 1_000
    assert not (tmp_path / "a.png").exists()


@pytest.mark.parametrize("rubbish", RUBBISH)
def test_a_released_configuration_that_is_none_is_refused(
    rubbish: str, case: Case, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    case.put_back("finished", {CONFIG: RUBBISH[rubbish]})
    copied = tmp_path / "copied"
    shutil.copytree(folder(case.finished) / "release", copied)
    capsys.readouterr()
    cache = f"data.cache={tmp_path}"
    assert command("evaluate", copied, "--set", cache) == 2
    told(capsys)


def test_numbers_of_another_precision_are_converted(case: Case, tmp_path: Path) -> None:
    """A half-precision copy of a model is a model, and so is one that came to no numbers."""
    for change in (torch.Tensor.half, lambda tensor: tensor * float("nan")):
        data = case.files["finished"][MODEL]
        tensors = {name: change(tensor) for name, tensor in load(data).items()}
        case.put_back("finished", {MODEL: save(tensors)})
        picture = tmp_path / "a.png"
        assert command("evaluate", folder(case.finished), "--picture", picture, "--json") == 0


@pytest.mark.parametrize("place", ["a file", "nothing", "a name that is too long", "an empty one"])
@pytest.mark.parametrize("name", ["evaluate", "ledger"])
def test_what_is_no_run_is_refused(
    name: str, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = {
        "a file": tmp_path / "file",
        "nothing": tmp_path / "nothing",
        "a name that is too long": tmp_path / ("x" * 300),
        "an empty one": tmp_path,
    }[place]
    (tmp_path / "file").write_bytes(b"")
    assert command(name, path) == 2
    told(capsys)


def test_a_place_for_runs_that_is_none_is_refused(
    case: Case, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    values = yaml.safe_load(case.file.read_text())
    for place in (f"{tmp_path}/file", "x" * 5_000, "/proc/nothing", "nowhere://a"):
        values["train"]["storage_path"] = place
        file = tmp_path / "run.yaml"
        file.write_text(write_yaml(values))
        for more in ([], ["--resume"]):
            assert command("train", file, *more) == 2
            told(capsys)
