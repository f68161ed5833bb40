"""What ``dp-ray report`` does: finds out what a folder holds, and writes its page or card."""

from __future__ import annotations

from typing import Any, Literal

from dp_ray.artifacts.run_directory import RELEASE, RunDirectory
from dp_ray.artifacts.statement import Statement
from dp_ray.errors import RunError, no_run
from dp_ray.extras import require
from dp_ray.reporting.output import OutputFile
from dp_ray.reporting.run_facts import RunFacts, read_release, read_run
from dp_ray.reporting.run_page import model_card, run_page
from dp_ray.reporting.search_page import may_be_published, sweep_page
from dp_ray.search.directory import REPORT, SEARCH, SweepDirectory
from dp_ray.search.result import SearchResult
from dp_ray.storage import Folder, open_folder

PUBLIC_PAGE = "privacy-report.html"
CARD = "model-card.md"

Format = Literal["html", "markdown"]

_ENDINGS: dict[Format, tuple[str, ...]] = {"html": (".html",), "markdown": (".md",)}


def write_report(
    location: str, *, public: bool, form: Format, output: str | None, own_code: bool = False
) -> dict[str, Any]:
    """Writes the report of a run, a search, or a release folder that was copied elsewhere.

    Args:
        location: path or URI.
        public: leave out what is private.
        form: a page, or a model card, which is always public.
        output: where to; by default in the folder, what is private in its private part. A release
            folder stays as it was published: its report goes to the current folder.
        own_code: see :func:`~dp_ray.imports.reading`.

    Returns:
        ``report``, where it is, and ``public``, whether it may be published.

    Raises:
        DpRayError: there is nothing to report, or nothing that may be published; or the file
            cannot be written; or a page is wanted, and nothing can draw its charts.
    """
    if form == "html":
        require("report", "dp-ray report", "write a model card with --format markdown")
    given = None if output is None else OutputFile.given(output, "--output", _ENDINGS[form])
    folder, public = open_folder(location), public or form == "markdown"
    try:
        content, public, place = _content(folder, public=public, form=form, own_code=own_code)
    except OSError as error:
        raise RunError(f"{folder} cannot be read: {error}") from error
    return {"report": (given or place).write(content.encode()), "public": public}


def _content(
    folder: Folder, *, public: bool, form: Format, own_code: bool
) -> tuple[str, bool, OutputFile]:
    """The text, whether it may be published, and where it goes if nobody says."""
    run = RunDirectory(folder)
    searched, alone = run.private.exists(SEARCH), not run.exists()
    if searched and not public:
        return _of_search(SweepDirectory(folder))
    # Of a search its best trial's release is all that may be seen.
    released = searched or alone
    if released:
        facts = read_release(_release_of(folder), own_code=own_code)
    else:
        facts = read_run(folder, public=public, own_code=own_code)
    return _of_run(facts, folder, alone=alone, form=form)


def _of_run(
    facts: RunFacts, folder: Folder, *, alone: bool, form: Format
) -> tuple[str, bool, OutputFile]:
    public = facts.private is None
    if not public:
        place = OutputFile(folder / "private", REPORT, "--output")
        return run_page(facts), public, place
    text = model_card(facts) if form == "markdown" else run_page(facts)
    where = open_folder(".") if alone else folder
    return text, public, OutputFile(where, CARD if form == "markdown" else PUBLIC_PAGE, "--output")


def _of_search(directory: SweepDirectory) -> tuple[str, bool, OutputFile]:
    result = SearchResult.find(directory.private)
    if result is None:
        raise RunError(
            f"{directory.root} is a search that is not finished: go on with dp-ray tune … --resume"
        )
    place, text = search_report(directory, result)
    public = may_be_published(result.privacy_mode)
    return text, public, OutputFile(place, REPORT, "--output")


def search_report(directory: SweepDirectory, result: SearchResult) -> tuple[Folder, str]:
    """Return where the page of a search goes, and the page.

    Args:
        directory: of the search, its best trial released.
        result: of the search.
    """
    place = directory.private
    if may_be_published(result.privacy_mode):
        place, result = directory.root, result.with_rough_times()
    statement = None
    if result.best_trial is not None:
        statement = Statement.read(directory.root / RELEASE)
    return place, sweep_page(result, statement)


def _release_of(folder: Folder) -> Folder:
    if folder.exists(Statement.FILE):
        return folder
    if folder.exists(RELEASE):
        return folder / RELEASE
    if not folder.names():
        raise no_run(folder)
    raise RunError(
        f"{folder} holds no run, no search and no release, or nothing is released yet: give the "
        "folder of one that is finished"
    )
