"""Whatever a configuration holds: it is valid, or one line says what is wrong with it.

``test_config`` says which line for the mistakes that people make.
"""

from __future__ import annotations

import copy
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.support import key_of
from hypothesis import given, settings
from hypothesis import strategies as st

from dp_ray import cli
from dp_ray.config.files import describe_fields, load_config, parse_config, set_field
from dp_ray.config.run import Config
from dp_ray.config.search import TuneConfig, load_sweep, parse_sweep
from dp_ray.config.yaml_text import MOST_CHARACTERS, read_yaml, write_yaml
from dp_ray.errors import ConfigError, DpRayError
from dp_ray.privacy.accounting import epsilon_of
from dp_ray.privacy.plan import solve_budget
from dp_ray.search.search import Search
from dp_ray.training.preparation import make_plan

FIXED = settings(derandomize=True, deadline=None, database=None, max_examples=60)
LONGEST = 4_000

VALID: dict[str, Any] = {
    "data": {"name": "fake", "num_examples": 1000, "image_size": 8, "expected_batch_size": 20},
    "privacy": {"noise_multiplier": 1.0, "steps": 4, "delta": 1e-4, "accountant": "rdp"},
    "optimizer": {"lr": 0.5},
    "cluster": {"num_workers": 0},
}
SEARCH: dict[str, Any] = {
    **VALID,
    "name": "search",
    "data": {**VALID["data"], "evaluation": "public"},
    "privacy": {"epsilon": 2, "delta": 1e-4},
    "tune": {"space": {"privacy.steps": {"choice": [2, 4]}}},
}
FIELDS = [path for path, _ in describe_fields(Config)]
TUNE_FIELDS = [path for path, _ in describe_fields(TuneConfig, "tune.")]

WRONG: list[Any] = [
    *(None, True, -1, 0, 1, 10**9, 2**63, 10**400, -(10**400)),
    *(0.5, 1e308, 1e-320, math.inf, -math.inf, math.nan),
    *("", "x" * 10_000, "\0", "\ud800", "a\nb", "\x1b[2J", "💥", "../..", "nowhere:nothing", ":"),
    *([], [0], [1], [0, 1], [1, 0], [math.nan], ["\0"], [[]], {}, {"a": 1}, {"lr": math.nan}),
    *({1: 2}, {None: None}, {"final": 0.5}, {"widths": [10**9]}, {"widths": "a"}, b"\xff"),
]
"""Of each kind, and more than any field takes."""

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=9),
    st.sampled_from(WRONG),
)
keys = st.one_of(
    st.sampled_from([part for path in FIELDS for part in path.split(".")]), st.text(max_size=5)
)
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=12,
)


def refused_in_one_line(error: DpRayError) -> None:
    message = str(error)
    assert message
    assert len(message.splitlines()) == 1
    assert len(message) < LONGEST


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "hostile.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@FIXED
@given(text=st.one_of(st.text(), st.text(alphabet=":-[]{}&*!<>|?,#'\"%@ \n\t0aexb_.~")))
def test_text_is_yaml_or_not(text: str) -> None:
    try:
        read_yaml(text)
    except ValueError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017 (either outcome is right)


@FIXED
@given(data=st.binary(max_size=200))
def test_a_file_of_any_bytes(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = write(tmp_path_factory.getbasetemp(), data)
    for load in (load_config, load_sweep):
        with pytest.raises(DpRayError) as refused:  # no bytes by chance have all sections
            load(path)
        refused_in_one_line(refused.value)


@FIXED
@given(tree=trees, path=st.sampled_from(FIELDS), section=st.booleans())
def test_any_tree_in_any_place(tree: Any, path: str, section: bool) -> None:
    values = copy.deepcopy(VALID)
    set_field(values, path.split(".", maxsplit=1)[0] if section else path, tree)
    try:
        found = parse_config(values)
    except ConfigError as error:
        refused_in_one_line(error)
    else:
        assert parse_config(found.dump()) == found or math.isnan(tree)


@FIXED
@given(tree=trees, path=st.sampled_from([*TUNE_FIELDS, *FIELDS, "tune", "tune.space.model.name"]))
def test_any_tree_in_any_place_of_a_search(tree: Any, path: str) -> None:
    values = copy.deepcopy(SEARCH)
    set_field(values, path, tree)
    try:
        parse_sweep(values)
    except ConfigError as error:
        refused_in_one_line(error)


@FIXED
@given(path=st.sampled_from([*FIELDS, *TUNE_FIELDS]) | st.text(max_size=9), text=st.text())
def test_any_override(path: str, text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = write(tmp_path_factory.getbasetemp(), write_yaml(VALID))
    try:
        load_config(file, [f"{path}={text}"])
    except DpRayError as error:
        refused_in_one_line(error)


DOMAINS: list[dict[str, Any]] = [
    {"choice": [None]},
    {"choice": [10**400]},
    {"choice": [math.nan, "\0"]},
    {"integer": [1, 10**400]},
    {"integer": [1, 10**12]},
    {"uniform": [-1e308, 1e308]},
    {"uniform": [math.nan, 1.0]},
    {"log_uniform": [1e-320, 1e308]},
]


@pytest.mark.parametrize("domain", DOMAINS, ids=str)
@pytest.mark.parametrize("path", ["privacy.noise_multiplier", "augment.views", "optimizer.lr"])
def test_a_search_of_anything_is_drawn_or_refused(path: str, domain: dict[str, Any]) -> None:
    values = copy.deepcopy(SEARCH)
    values["tune"]["space"] = {path: domain}
    values["privacy"] |= {"accountant": "rdp", "steps": 4 if path[0] != "p" else None}
    try:
        search = Search.draw(parse_sweep(values), key_of(1))
    except DpRayError as error:
        refused_in_one_line(error)
    else:
        for point in search.points or []:
            parse_config(search.trial("0000", point)[0].dump())


@pytest.mark.parametrize("field", ["num_samples", "budget_levels", "search_batch_size"])
def test_a_search_without_end_is_refused(field: str) -> None:
    values = copy.deepcopy(SEARCH)
    values["tune"][field] = 10**13
    with pytest.raises(ConfigError, match=rf"tune\.{field} = 10000000000000: it should be less"):
        parse_sweep(values)


CHEAP = [p for p in FIELDS if not p.startswith(("model.", "optimizer.", "train.", "name", "seed"))]


@pytest.mark.parametrize("path", CHEAP)
def test_each_field_with_each_wrong_value_is_planned_or_refused(path: str) -> None:
    """As far as the budget: nothing is divided by zero, overflows or takes for ever."""
    for value in WRONG:
        values = copy.deepcopy(VALID)
        if path.startswith("privacy.noise_schedule."):
            values["privacy"]["noise_schedule"] = {"final": 0.5}
        if path == "privacy.epsilon":
            del values["privacy"]["steps"]
        set_field(values, path, value)
        try:
            solve_budget(parse_config(values))
        except DpRayError as error:
            refused_in_one_line(error)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("augment.views", 10**12),
        ("train.microbatch_size", 10**12),
        ("cluster.num_workers", 10**6),
        ("model.arguments", {"widths": [0]}),
        ("model.arguments", {"widths": [10**9]}),
        ("model.pretrained", "a" * 9_000 + ".pt"),
        ("model.pretrained", "~nobody-has-this-name/a.pt"),
        ("optimizer.arguments", {"momentum": math.nan, "betas": [5]}),
        ("optimizer.scheduler_arguments", {"step_size": "a"}),
    ],
)
def test_what_no_machine_can_do_is_refused(path: str, value: Any) -> None:
    values = copy.deepcopy(VALID)
    set_field(values, path, value)
    if path == "optimizer.scheduler_arguments":
        values["optimizer"]["scheduler"] = "StepLR"
    with pytest.raises(ConfigError) as refused:
        make_plan(parse_config(values))
    assert refused.value.field in (path, "model.arguments", "train.microbatch_size")


BUDGETS: list[dict[str, Any]] = [
    {"noise_multiplier": 1.0, "steps": 10_000_000},
    {"noise_multiplier": 0.01, "steps": 10},
    {"noise_multiplier": 1e-7, "steps": 1},
    {"noise_multiplier": 1.0, "steps": 10, "delta": 1e-300},
    {"epsilon": 1e6, "steps": 10},
    {"epsilon": 1e6, "noise_multiplier": 1.0},
    {"epsilon": 3.0, "noise_multiplier": 1e-9},
]


@pytest.mark.parametrize("accountant", ["prv", "pld"])
@pytest.mark.parametrize("budget", BUDGETS, ids=str)
def test_what_an_accountant_cannot_count_is_refused_with_the_way_out(
    accountant: str, budget: dict[str, Any]
) -> None:
    """They convolve on grids, which would fill the memory: told before, and never too small."""
    values = {**VALID, "privacy": {"delta": 1e-4, "accountant": accountant, **budget}}
    if budget.get("delta") == 1e-300 and accountant == "pld":
        values["privacy"]["delta"] = 1e-23
    with pytest.raises(ConfigError, match=r"rdp|single step"):
        solve_budget(parse_config(values))


def test_what_cannot_be_counted_is_infinite_and_what_can_is_not() -> None:
    for name in ("prv", "pld"):
        assert epsilon_of(name, ((1.0, 0.02, 10**7),), 1e-5) == math.inf
        assert epsilon_of(name, ((1.0, 0.02, 100),), 1e-5) < 2
    assert epsilon_of("rdp", ((1.0, 0.02, 10**7),), 1e-5) < math.inf


def laughs(levels: int, *, merge: bool = False) -> str:
    """10^levels values by aliases of aliases."""
    lines = ["a0: &a0 {x: 1}"]
    for level in range(1, levels + 1):
        aliases = ", ".join([f"*a{level - 1}"] * 10)
        inner = f"{{<<: [{aliases}]}}" if merge else f"[{aliases}]"
        lines.append(f"a{level}: &a{level} {inner}")
    return "\n".join(lines)


HOSTILE = {
    "empty": "",
    "nothing but space": " \n\n",
    "a list": "- a",
    "billion laughs": laughs(9),
    "billion laughs by merging": laughs(9, merge=True),
    "a long text, often": f"a: &a {'x' * 50_000}\nb: [{', '.join(['*a'] * 1000)}]",
    "a list in itself": "data: &a [*a]",
    "a section in itself": "data: &a {name: *a}",
    "deep lists": "[" * 500,
    "deep sections": "{a: " * 500,
    "deep blocks": "".join(f"{' ' * depth}a:\n" for depth in range(400)),
    "too long": "name: " + "x" * MOST_CHARACTERS,
    "a call": "name: !!python/object/apply:os.system [exit 1]",
    "an object": "name: !!python/object:pathlib.Path {}",
    "a module": "name: !!python/module:os",
    "an unknown tag": "name: !mine 3",
    "no whole number": "seed: !!int abc",
    "no number": "seed: !!float abc",
    "no truth": "seed: !!bool abc",
    "no time": "seed: !!timestamp abc",
    "no such day": "seed: 2024-02-30",
    "no digits": "seed: 0x_",
    "too many digits": "seed: " + "9" * 5_000,
    "a list as a key": "? [1]\n: 2",
    "a key twice": "name: a\nname: b",
    "a section twice": f"{write_yaml(VALID)}\nprivacy: {{delta: 1e-9}}",
    "a field twice": "privacy:\n  delta: 1e-5\n  delta: 1e-3",
    "two documents": "a: 1\n---\nb: 2",
    "NUL": 'name: "a\\0b"',
    "NUL in a path": f'{write_yaml(VALID)}\ntrain: {{storage_path: "a\\0b"}}',
    "a surrogate": f'{write_yaml(VALID)}\ntrain: {{storage_path: "a\\ud800b"}}',
    "no such anchor": "name: *a",
    "merging a number": "<<: 1",
    "a tab": "a:\n\tb: 1",
    "binary": bytes(range(256)),
    "UTF-16": "name: a".encode("utf-16"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_refused_in_one_line_by_every_command(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, HOSTILE[name])
    for command in ("plan", "tune"):
        assert str(path) in failed(capsys, command, path)


@pytest.mark.parametrize("place", ["", "/proc/self/mem", "/dev/zero", "a" * 5_000, "a/\n\x1b[2J"])
def test_what_is_no_file_of_text_is_refused(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failed(capsys, "plan", place or tmp_path)


@pytest.mark.parametrize(
    "override",
    [
        "data.name=!!python/name:os.system",
        "model.arguments={a: &a [*a]}",
        'train.storage_path="\\0"',
        "data.name=\x1b]0;title\x07",
        "privacy.steps=" + "9" * 5_000,
        "data=",
        "=",
        ".=1",
        "privacy..delta=1",
        "augment.views=1e99",
    ],
)
def test_hostile_overrides_are_refused_in_one_line(
    override: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, write_yaml(VALID))
    failed(capsys, "plan", path, "--set", override)


def test_aliases_and_merging_are_taken(tmp_path: Path) -> None:
    """What is refused is the size, not the feature."""
    text = "data: &d {name: fake, expected_batch_size: 20}\nother: {<<: *d, name: digits}"
    assert read_yaml(text)["other"] == {"name": "digits", "expected_batch_size": 20}
    assert read_yaml("a: &a [1, 2]\nb: [*a, *a]")["b"] == [[1, 2], [1, 2]]
    path = write(tmp_path, write_yaml(VALID))
    assert load_config(path).dump() == load_config(write(tmp_path, yaml.dump(VALID))).dump()


@FIXED
@given(tree=trees)
def test_what_is_written_is_read_again(tree: Any) -> None:
    """Unless it holds what no file can be named by, or no number."""
    text = repr(tree)
    if not any(part in text for part in ("nan", "\\x00", "\\ud", "\\x")):
        assert read_yaml(write_yaml(tree)) == tree


def failed(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The one line of a command that ends with exit code 2, and nothing on standard output."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["dp-ray", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
    output, errors = capsys.readouterr()
    assert end.value.code == 2
    assert output == ""
    assert errors.startswith("dp-ray: ")
    assert errors.count("\n") == 1
    assert errors.strip("\n").isprintable()
    assert len(errors) < LONGEST + 6_000  # a path is quoted whole
    return errors
