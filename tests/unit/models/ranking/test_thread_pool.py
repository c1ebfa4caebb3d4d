import ctypes
import threading
from functools import partial
from pathlib import Path

import pytest
import torch

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


def test_kernels_of_a_helper_use_as_many_threads_as_those_of_the_caller():
    [openmp] = Path(torch.__file__).parent.glob("lib/libgomp*.so*")
    threads_of_a_kernel = ctypes.CDLL(str(openmp)).omp_get_max_threads
    before, meeting, seen = torch.get_num_threads(), threading.Barrier(3, timeout=20), []

    def look():
        seen.append(threads_of_a_kernel())
        meeting.wait()

    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            with ThreadPool(3) as thread_pool:
                thread_pool.run([look] * 3)
    finally:
        torch.set_num_threads(before)
    assert seen == [1] * 3 + [2] * 3
