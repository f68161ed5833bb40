"""Work that is shared out among threads, where it spends its time outside of the interpreter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_threads(work: Callable[[T], R], items: Sequence[T], threads: int) -> list[R]:
    """Apply a function to each item, in several threads.

    Args:
        work: called once with each item, in any order; releases the interpreter's lock.
        items: what to work on; each should take about a millisecond or more.
        threads: at most.

    Returns:
        The results, in the order of the items.
    """
    threads = min(threads, len(items))
    if threads <= 1:
        return [work(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, items))
