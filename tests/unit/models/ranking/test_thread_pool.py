import threading
from functools import partial

import pytest

from models.ranking.thread_pool import ThreadPool


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_all_tasks_are_done_once_when_run_returns(threads):
    with ThreadPool(threads) as thread_pool:
        for _ in range(50):
            done = []
            thread_pool.run([partial(done.append, n) for n in range(7)], first=partial(done.append, "first"))
            assert sorted(map(str, done)) == [*map(str, range(7)), "first"]


def test_tasks_run_side_by_side():
    meeting = threading.Barrier(3, timeout=20)
    with ThreadPool(3) as thread_pool:
        thread_pool.run([meeting.wait] * 3)


def test_the_caller_is_not_kept_from_its_tasks_by_what_goes_first():
    reached = threading.Event()
    with ThreadPool(2) as thread_pool:
        thread_pool.run([reached.set], first=lambda: reached.wait(20))
    assert reached.is_set()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("place", ["task", "first"])
def test_an_error_is_raised_to_the_caller_and_the_pool_works_on(threads, place):
    def fail():
        raise ValueError("broken")

    with ThreadPool(threads) as thread_pool:
        for _ in range(5):
            with pytest.raises(ValueError, match="broken"):
                thread_pool.run([fail if place == "task" else str] * 4, first=fail if place == "first" else None)
            done = []
            thread_pool.run([partial(done.append, 1)] * 5)
            assert len(done) == 5


def test_a_closed_pool_leaves_no_thread():
    before = threading.active_count()
    with ThreadPool(3) as thread_pool:
        thread_pool.run([str])
        assert threading.active_count() == before + 2
    assert threading.active_count() == before
