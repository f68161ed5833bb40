"""The deliberate faults of ``make verify`` still fit the source, its tests and their page.

Whether each test fails for its fault is what ``make verify`` shows; it takes minutes.
"""

from __future__ import annotations

import ast
from functools import cache

import pytest
from mutations.catalogue import (
    ROOT,
    Exercised,
    Mutation,
    OutOfDateError,
    load_exercised,
    load_guarantees,
)
from mutations.judge import CAUGHT, PASSED, verdict
from mutations.table import DOCUMENT, render, run_line

GUARANTEES = load_guarantees()
MUTATIONS = [mutation for guarantee in GUARANTEES for mutation in guarantee.mutations]


@cache
def functions(file: str) -> set[str]:
    """Names of a file's test functions."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_guarantee_has_faults_of_its_own() -> None:
    assert [guarantee.number for guarantee in GUARANTEES] == list(range(1, 12))
    assert all(len(guarantee.mutations) >= 3 for guarantee in GUARANTEES)
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_fault_fits_the_source_and_its_test_exists(mutation: Mutation) -> None:
    source = (ROOT / mutation.file).read_text(encoding="utf-8")
    changed = mutation.applied_to(source)
    assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source))
    file, _, function = mutation.test.partition("::")
    assert function.partition("[")[0] in functions(file)


@pytest.mark.parametrize("part", load_exercised(), ids=lambda part: part.test)
def test_what_is_exercised_before_the_first_charge_has_its_test(part: Exercised) -> None:
    file, _, function = part.test.partition("::")
    assert function in functions(file)


def test_the_page_is_of_this_list() -> None:
    page = DOCUMENT.read_text(encoding="utf-8")
    line = run_line(page)
    assert page == render(GUARANTEES, line)
    assert line.startswith(f"The last run: {len(MUTATIONS)} of {len(MUTATIONS)} faults caught, ")


SOURCE = """\
def outer(x):
    # what it does
    if x:
        total = add(x, x)  # twice
        return total
"""


def mutation(piece: str, becomes: str = "return 0\nreturn 1") -> Mutation:
    return Mutation(name="n", file="f", piece=piece, becomes=becomes, test="t")


@pytest.mark.parametrize(
    "piece",
    [
        "total = add(x, x)\nreturn total",
        "total = add(\n    x,\n    x,\n)  # by way of black\nreturn total",
        "    total=add( x,x )\n    return total\n",
    ],
)
def test_a_piece_is_found_however_it_is_laid_out(piece: str) -> None:
    expected = SOURCE[: SOURCE.index("total")] + "return 0\n        return 1\n"
    assert mutation(piece).applied_to(SOURCE) == expected


@pytest.mark.parametrize("piece", ["total = add(x, y)", "x", "total = add(x, x)\nreturn x"])
def test_a_piece_that_is_not_there_once_is_refused(piece: str) -> None:
    with pytest.raises(OutOfDateError, match="bring tests/mutations/guarantees up to date"):
        mutation(piece).applied_to(SOURCE)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"a::t": PASSED}, PASSED),
        ({"a::t": CAUGHT}, CAUGHT),
        ({"a::t[1]": PASSED, "a::t[2]": CAUGHT}, CAUGHT),
        ({"a::t[1]": CAUGHT, "a::t[2]": "failed at call: KeyError"}, "failed at call: KeyError"),
        ({"a::t2": CAUGHT}, "there is no such test"),
        ({"a": "could not be collected: ImportError"}, "could not be collected: ImportError"),
        ({}, "there is no such test"),
    ],
)
def test_only_a_failed_assertion_counts(found: dict[str, str], expected: str) -> None:
    assert verdict(found, "a::t") == expected
