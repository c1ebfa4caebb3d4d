"""A few threads that share the tasks of a phase. Tasks spend their time in kernels that release the GIL."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable

import torch

Task = Callable[[], object]


class ThreadPool:
    """The calling thread and `num_threads - 1` helpers.

    `run(tasks, first)` returns when all are done. A helper begins with `first`, while the calling thread begins with
    `tasks`. Which thread runs which task is not fixed, so the result of a task must not depend on it: kernels of a
    helper use as many threads as those of the thread that makes the pool.
    """

    def __init__(self, num_threads: int) -> None:
        self.num_threads = num_threads
        self._threads_of_a_kernel = torch.get_num_threads()
        self._tasks: deque[Task] = deque()
        self._first: deque[Task] = deque()
        self._begin = [threading.Semaphore(0) for _ in range(num_threads - 1)]
        self._done = threading.Semaphore(0)
        self._error: BaseException | None = None
        self._closed = False
        self._threads = [threading.Thread(target=self._help, args=(s,), daemon=True) for s in self._begin]
        for thread in self._threads:
            thread.start()

    def run(self, tasks: Iterable[Task], first: Task | None = None) -> None:
        """Runs all tasks. Raises the first error."""
        self._tasks.extend(tasks)
        if first is not None:
            (self._first if self._threads else self._tasks).append(first)
        for begin in self._begin:
            begin.release()
        self._drain(self._tasks)
        # All helpers, also those that found no task: each must wait again before the next run begins.
        for _ in self._begin:
            self._done.acquire()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def close(self) -> None:
        """Ends the helpers."""
        self._closed = True
        for begin in self._begin:
            begin.release()
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> ThreadPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _help(self, begin: threading.Semaphore) -> None:
        # OpenMP has the number by thread. A matrix product that another number of threads shares sums in another order.
        torch.set_num_threads(self._threads_of_a_kernel)
        while True:
            begin.acquire()
            if self._closed:
                return
            self._drain(self._first)
            self._drain(self._tasks)
            self._done.release()

    def _drain(self, tasks: deque[Task]) -> None:
        while tasks:
            try:
                task = tasks.popleft()
            except IndexError:  # another thread took the last one
                return
            try:
                task()
            except BaseException as error:  # handed to the caller of `run`
                self._error = self._error or error
                tasks.clear()
