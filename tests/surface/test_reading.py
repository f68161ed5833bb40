"""Reading what somebody else wrote: no code that its files name runs without its reader's word."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import two_bands
from helpers.support import config_maker, folder, start
from typer.testing import CliRunner

from dp_ray import cli, imports
from dp_ray.errors import OwnCodeError, RunError
from dp_ray.imports import import_object, may_import, reading
from dp_ray.reporting.ledger import ledger_facts
from dp_ray.reporting.make import write_report
from dp_ray.training.evaluate_run import evaluate_run

MODULE = "code_of_the_run"
NETWORK = """
from torch import nn

def build(*, num_classes, channels, image_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, num_classes))
"""
RAN = "\nopen('ran', 'a').close()\n"


@pytest.fixture(autouse=True)
def code_is_imported_anew() -> Iterator[None]:
    """Tests import different files by one name."""
    sys.modules.pop(MODULE, None)
    yield
    sys.modules.pop(MODULE, None)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with code, and with a run whose network and mechanism that code is."""
    root = tmp_path_factory.mktemp("trained")
    code = Path(two_bands.__file__).read_text() + NETWORK + RAN
    (root / f"{MODULE}.py").write_text(code)
    config = config_maker(root)(
        name="theirs",
        privacy={"mechanism": f"{MODULE}:TwoBands", "steps": 2},
        augment={"views": 1, "rotation": 0.0, "shift": 0.0},
        model={"name": f"{MODULE}:build"},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert start(config)["status"] == "finished"
    assert folder(config) == root / "runs/theirs"
    return root


@pytest.fixture
def received(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run, with its private part and its code, where it was never trained."""
    place = tmp_path / "received"
    shutil.copytree(trained, place, ignore=shutil.ignore_patterns("ran"))
    monkeypatch.chdir(place)
    forget_the_code(monkeypatch)
    return place


def forget_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another process, in the current folder, would not know."""
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    elsewhere = [p for p in sys.path if (Path(p) / f"{MODULE}.py").exists()]
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in elsewhere])


Read = Callable[..., Any]

READERS: dict[str, Read] = {
    "ledger": lambda run, **own: ledger_facts(run, **own)["charges"],
    "evaluate": lambda run, **own: evaluate_run(run, [], **own).figures["test_accuracy"],
    "release": lambda run, **own: evaluate_run(f"{run}/release", [], **own).figures[
        "test_accuracy"
    ],
}


@pytest.mark.parametrize("reader", READERS)
def test_code_of_a_run_from_elsewhere_is_refused_until_its_reader_agrees(
    received: Path, reader: str
) -> None:
    run = str(received / "runs/theirs")
    with pytest.raises(OwnCodeError, match=rf"= '{MODULE}:\w+': is code that .*--own-code \("):
        READERS[reader](run)
    assert not (received / "ran").exists()
    READERS[reader](run, own_code=True)
    assert (received / "ran").exists()
    with pytest.raises(OwnCodeError):  # it was agreed to once
        READERS[reader](run)


@pytest.mark.parametrize("public", [False, True])
def test_a_report_of_a_run_from_elsewhere_calls_no_mechanism_of_its_own(
    received: Path, public: bool
) -> None:
    run = str(received / "runs/theirs")
    if public:
        with pytest.raises(RunError, match=r"cannot be reported on in public.*--own-code"):
            write_report(run, public=True, form="html", output=None)
    else:
        told = write_report(run, public=False, form="html", output=None)
        page = Path(told["report"]).read_text()
        assert "nothing bears the numbers out" in page
        assert "--own-code" in page
    assert not (received / "ran").exists()
    told = write_report(run, public=public, form="html", output=None, own_code=True)
    assert "nothing bears" not in Path(told["report"]).read_text()


def test_one_s_own_code_needs_no_option(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    for command in ("evaluate", "ledger", "report"):
        done = CliRunner().invoke(cli.app, [command, "runs/theirs", "--json"])
        assert done.exit_code == 0, (command, done.output)
    assert json.loads(done.output.splitlines()[-1])["report"]


@pytest.fixture
def agreed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], bool]:
    """Whether an object of a folder's module may be imported; nothing was agreed to yet."""
    monkeypatch.setattr(imports, "_AGREED", str(tmp_path / "state/own_code"))

    def ask(place: str, name: str) -> bool:
        monkeypatch.chdir(tmp_path / place)
        forget_the_code(monkeypatch)
        with reading(own_code=False):
            return may_import(f"{MODULE}:{name}")

    return ask


def write_code(place: Path, text: str) -> None:
    place.mkdir()
    (place / f"{MODULE}.py").write_text(text)


def test_agreement_is_to_code_at_its_place(
    tmp_path: Path, agreed: Callable[[str, str], bool]
) -> None:
    write_code(tmp_path / "mine", "def f(): pass\ndef g(): pass\n")
    write_code(tmp_path / "theirs", "def f(): print()\ndef g(): pass\n")
    assert not agreed("mine", "f")
    import_object(f"{MODULE}:f", "model.name")
    assert [agreed("mine", "f"), agreed("mine", "g"), agreed("theirs", "f")] == [True, False, False]
    (tmp_path / "mine" / f"{MODULE}.py").write_text("def f(): return 1\n")  # edited
    assert agreed("mine", "f")
    assert (tmp_path / "state/own_code").stat().st_mode & 0o777 == 0o600


@pytest.mark.usefixtures("agreed")
def test_agreement_does_not_depend_on_the_order_in_which_python_searches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package without __init__.py is wherever one of its files is."""
    for place, file in (("mine", "code.py"), ("also", "other.py")):
        (tmp_path / place / MODULE).mkdir(parents=True)
        (tmp_path / place / MODULE / file).write_text("f = 1\n")
    monkeypatch.chdir(tmp_path / "mine")
    before = [p for p in sys.path if p not in ("", str(tmp_path / "mine"))]
    monkeypatch.setattr(sys, "path", ["", str(tmp_path / "also"), *before])
    imports.agree_to(f"{MODULE}.code:f")
    with reading(own_code=False):
        assert may_import(f"{MODULE}.code:f")
    monkeypatch.setattr(sys, "path", [*before, str(tmp_path / "mine"), str(tmp_path / "also")])
    with reading(own_code=False):
        assert may_import(f"{MODULE}.code:f")
        assert not may_import(f"{MODULE}.code:g")


@pytest.mark.parametrize(
    ("text", "elsewhere"),
    [
        ("import math\nfrom torch import nn\nf = 1\n", True),
        ("f = 1\n", True),
        ("import beside\nf = 1\n", False),  # another file, which may be another there
        ("def f():\n    from beside import g\n", False),
        ("from . import beside\nf = 1\n", False),
        ("def f():\n    import not_there\n", False),
        ("import importlib\nf = importlib.import_module('beside')\n", False),
        ("f = __import__('beside')\n", False),
        ("f = exec(open('beside.py').read())\n", False),
        ("from runpy import run_path as f\n", False),
    ],
    ids=[
        *("installed", "nothing", "beside", "inside", "relative", "missing"),
        *("importlib", "__import__", "exec", "runpy"),
    ],
)
def test_the_same_file_elsewhere_is_agreed_to_if_it_stands_alone(
    text: str, elsewhere: bool, tmp_path: Path, agreed: Callable[[str, str], bool]
) -> None:
    for place in ("mine", "moved"):
        write_code(tmp_path / place, text)
        (tmp_path / place / "beside.py").write_text("g = 1\n")
    assert not agreed("mine", "f")
    imports.agree_to(f"{MODULE}:f")
    assert agreed("mine", "f")
    assert agreed("moved", "f") == elsewhere
    assert not agreed("moved", "g")
    (tmp_path / "moved" / f"{MODULE}.py").write_text(f"{text}h = 1\n")
    assert not agreed("moved", "f")
