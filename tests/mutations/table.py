"""docs/verification.md: what is guaranteed, and the faults by which each test was tried."""

from __future__ import annotations

from mutations.catalogue import ROOT, Exercised, Guarantee, Mutation, load_exercised

DOCUMENT = ROOT / "docs" / "verification.md"

_HEAD = """\
# What is guaranteed, and by which test

Each guarantee stands beside the faults that break it, and each fault beside a test that fails for
it. `make verify` shows that: it puts one fault after the other into a copy of the source, runs the
named test there, and counts a fault as caught if the test passes without it and fails an assertion
with it. An error on import, in a fixture or by a timeout does not count. This page is written by a
run in which every fault was caught; `make test` checks that the page is of this list, and that
every fault still fits the source.

The list is `tests/mutations/guarantees/`. mutmut and cosmic-ray change operators and constants
wherever they find them, for a whole test suite; what matters here are mistakes of meaning, each
written by hand, with the one test that must see it, which neither of them can express.

"""


_EXERCISED = """
## What is exercised before the first charge

Whatever a user supplies is tried as the run will use it, on made-up inputs, before anything is
charged. A fault ends the run in one line; the test of each row shows one.

| supplied | exercised | where | test |
| --- | --- | --- | --- |
"""


def render(guarantees: list[Guarantee], run: str) -> str:
    """The page.

    Args:
        guarantees: all of them.
        run: one line about the run that it comes from.
    """
    parts = [_HEAD, f"{run}\n"]
    for guarantee in guarantees:
        parts.append(
            f"\n## {guarantee.number}. {guarantee.title}\n\n{guarantee.statement.strip()}\n\n"
        )
        parts.append("| fault | put into | caught by |\n| --- | --- | --- |\n")
        parts += [_row(mutation) for mutation in guarantee.mutations]
    parts.append(_EXERCISED)
    parts += [_row_of(part) for part in load_exercised()]
    return "".join(parts)


def run_line(page: str) -> str:
    """The line about the run, from a page.

    Raises:
        ValueError: it is not the page that :func:`render` makes.
    """
    if not page.startswith(_HEAD):
        raise ValueError("its beginning is another one")
    return page.removeprefix(_HEAD).partition("\n")[0]


def _row(mutation: Mutation) -> str:
    file, _, test = mutation.test.partition("::")
    place = mutation.file.removeprefix("dp_ray/")
    return f"| {mutation.name} | `{place}` | `{file.removeprefix('tests/')}` `{test}` |\n"


def _row_of(part: Exercised) -> str:
    file, _, test = part.test.partition("::")
    shown = f"`{file.removeprefix('tests/')}` `{test}`"
    return f"| {part.supplied} | {part.exercised.strip()} | {part.where} | {shown} |\n"
