"""Where Ray is not installed: a test that imports it is skipped, and says why."""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.util import find_spec
from typing import Any

import pytest


class _SkipsTests(MetaPathFinder):
    """Skips the test, or the module of tests, that imports Ray, by itself or through dp_ray."""

    def find_spec(self, fullname: str, *_: Any) -> None:
        """See :class:`importlib.abc.MetaPathFinder`."""
        if fullname.partition(".")[0] == "ray":
            pytest.skip("needs Ray, which is not installed", allow_module_level=True)


def skip_tests_that_need_ray() -> None:
    """Skip them if Ray is missing; the product has parts that need none (``make test-core``)."""
    if find_spec("ray") is None:
        sys.meta_path.insert(0, _SkipsTests())
