"""``dp_ray.report``: a page about a run or a search."""

from __future__ import annotations

from dataclasses import dataclass

from dp_ray.reporting.make import Format, write_report


@dataclass(frozen=True)
class Report:
    """A report that was written.

    Attributes:
        path: of its file.
        public: whether it holds nothing private.
    """

    path: str
    public: bool


def report(
    run: str,
    *,
    public: bool = False,
    form: Format = "html",
    output: str | None = None,
    own_code: bool = False,
) -> Report:
    """Write one page about a run, a search, or a release folder that was copied elsewhere.

    The page says the privacy statement in plain words, then figures. It is one file, without
    scripts, and loads nothing.

    Args:
        run: path or URI of the folder. A :class:`dp_ray.Run` has a method of the same name.
        public: leave out what is private: a page that may be published.
        form: ``html``, a page; or ``markdown``, a model card, which is always public.
        output: the file; default ``report.html`` in the private part, or with ``public`` beside
            it. Of a release folder, which stays as it is, in the current one.
        own_code: run code that the files name, though you have not trained with it on this machine;
            only if you trust who wrote them.

    Returns:
        Where the page is.

    Raises:
        DpRayError: there is nothing to report, nothing that may be published, or the file cannot
            be written.
    """
    written = write_report(run, public=public, form=form, output=output, own_code=own_code)
    return Report(written["report"], written["public"])
