"""Work in threads: each item once, results in order, errors passed on."""

from __future__ import annotations

import threading

import pytest

from dp_ray.parallel import in_threads


@pytest.mark.parametrize("threads", [0, 1, 3, 50])
def test_each_item_is_worked_on_once_and_results_keep_their_order(threads: int) -> None:
    seen: list[int] = []

    def work(item: int) -> int:
        seen.append(item)
        return item * item

    assert in_threads(work, range(20), threads) == [item * item for item in range(20)]
    assert sorted(seen) == list(range(20))
    assert in_threads(work, [], threads) == []


def test_threads_work_at_the_same_time_and_no_more_than_were_asked_for() -> None:
    all_here, names = threading.Barrier(3, timeout=20), set()

    def work(_item: int) -> None:
        names.add(threading.get_ident())
        all_here.wait()

    in_threads(work, range(9), 3)
    assert len(names) == 3


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_reaches_the_caller(threads: int) -> None:
    def work(item: int) -> int:
        return 1 // (item - 2)

    with pytest.raises(ZeroDivisionError):
        in_threads(work, range(4), threads)
