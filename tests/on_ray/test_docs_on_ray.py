"""The commands of the documentation that need Ray and nothing but this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers.documents import Reader
from helpers.pages import pages

SEARCH = "docs/how_to/sweep.md"


@pytest.mark.slow
@pytest.mark.usefixtures("no_ray")
def test_a_search_does_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [page] = [page for page in pages() if page.name == SEARCH]
    home = os.environ["HOME"]
    reader = Reader(tmp_path, monkeypatch)
    # A process looks for Ray's token once, in its home, and Ray's own processes must find the same.
    monkeypatch.setenv("HOME", home)
    reader.follow(page, skip=lambda _: False)
    assert (tmp_path / "runs/search/release/privacy.json").exists()
    assert (tmp_path / "runs/search-best/release/privacy.json").exists()
