"""The command that removes what runs left behind."""

from __future__ import annotations

from typing import Annotated

import typer

from dp_ray.cli.options import Json, can_answer, print_json, print_text


def clean(
    checkpoints: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RUN",
            help="Also the checkpoints of this finished run, which then cannot be given more "
            "steps; may be repeated.",
        ),
    ] = None,
    cache: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER", help="Where decoded copies are, if data.cache names another folder."
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove without a question.")] = False,
    as_json: Json = False,
) -> None:
    """List what runs left on this machine, with sizes, and remove it after a question.

    Decoded copies of data, compiled graphs, and the sessions of Rays that have ended: all can be
    made again. Releases, ledgers and keys stay, and so does what a process of this machine uses.
    """
    from dp_ray.api.clean import Leftover, find_leftovers, size_in_words
    from dp_ray.data.cache import DEFAULT
    from dp_ray.storage import user_path

    found = find_leftovers(user_path(cache or DEFAULT).absolute(), checkpoints or ())
    for left in found:
        print_text(f"{left.kind:15} {size_in_words(left.size):>9}  {left.path}  ({left.cost})")
    total = size_in_words(sum(left.size for left in found))
    removed: list[Leftover] = []
    if not found:
        print_text("nothing is left to remove")
    elif yes or (can_answer() and typer.confirm(f"Remove {total}?")):
        for left in found:
            if left.remove():
                removed.append(left)
            else:
                print_text(f"kept          {left.path}: a process uses it, or it cannot be removed")
        print_text(f"removed       {size_in_words(sum(left.size for left in removed))}")
    else:
        print_text(f"removed       nothing; --yes removes {total}")
    listed = [
        {"kind": left.kind, "path": str(left.path), "bytes": left.size, "removed": left in removed}
        for left in found
    ]
    print_json({"leftovers": listed}, as_json)
