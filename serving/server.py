"""The server: a process that holds the socket and the workers, and hands them the releases that should serve.

A worker that ends is started again on the same socket, so connections that wait are not lost. SIGTERM and SIGINT let
workers finish; SIGHUP replaces them one after the other.
"""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from feature_jobs.errors import BadInputError, RecloopError
from serving.release import Release

_EVERY_S = 0.25
_END_S = 30.0
_AGAIN_S = 1.0
"""A worker that ended is started again at most this often, so that one that can't start does not fill the machine."""
_BACKLOG = 2_048
Event = dict[str, Any]


@dataclass
class _Worker:
    """A worker's process; `began` in seconds of the clock that never goes back; `serves`: it has said so."""

    process: subprocess.Popen[bytes]
    began: float
    serves: threading.Event = field(default_factory=threading.Event)

    def give(self, release: Release) -> None:
        """Hands it a release. Nothing where it has ended: it is started again."""
        assert self.process.stdin is not None  # noqa: S101 (a pipe was asked for)
        with contextlib.suppress(OSError):
            self.process.stdin.write(release.to_json() + b"\n")
            self.process.stdin.flush()

    def drain(self) -> None:
        """Lets it finish what it has begun."""
        assert self.process.stdin is not None  # noqa: S101
        with contextlib.suppress(OSError):
            self.process.stdin.close()


class Server:
    """Serves on `address` (host, port) with so many workers. `newest` returns the release that should serve now;
    `say` takes what happens, one event at a time."""

    def __init__(
        self, address: tuple[str, int], num_workers: int, newest: Callable[[], Release], say: Callable[[Event], None]
    ) -> None:
        self._address, self._num, self._newest, self._say = address, num_workers, newest, say
        self._events: queue.SimpleQueue[tuple[_Worker, Event]] = queue.SimpleQueue()
        self._workers: list[_Worker] = []
        self._given: Release | None = None
        self._good: Release | None = None
        self._problem = ""
        self._ended, self._replace = threading.Event(), False

    def run(self) -> None:
        """Serves until SIGTERM or SIGINT. Raises BadInputError where the address can't be used, and what `newest`
        raises where there is nothing to serve at the start."""
        self._given = self._newest()
        with _listening(self._address) as listener, self._signals():
            self._workers = [self._start(listener) for _ in range(self._num)]
            while not self._ended.wait(_EVERY_S):
                self._hear()
                self._follow()
                self._keep(listener)
            for worker in self._workers:
                worker.drain()
            deadline = time.monotonic() + _END_S
            for worker in self._workers:
                _await_end(worker, deadline)
            self._hear()

    def _start(self, listener: socket.socket) -> _Worker:
        assert self._given is not None  # noqa: S101 (set before the first worker)
        command = [sys.executable, "-P", "-m", "serving.worker", str(listener.fileno()), self._given.model]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[listener.fileno()], start_new_session=True
        )
        worker = _Worker(process, time.monotonic())
        threading.Thread(target=self._listen, args=(worker,), daemon=True).start()
        # First the one that is known to serve: the newest may be one that workers refuse.
        if self._good not in (None, self._given):
            worker.give(self._good)
        worker.give(self._given)
        return worker

    def _listen(self, worker: _Worker) -> None:
        assert worker.process.stdout is not None  # noqa: S101
        for line in worker.process.stdout:
            with contextlib.suppress(ValueError):
                self._events.put((worker, json.loads(line)))

    def _hear(self) -> None:
        """Takes what the workers have said."""
        while not self._events.empty():
            worker, event = self._events.get()
            self._say(event)
            if event["event"] == "serves":
                worker.serves.set()
                if self._given is not None and event["version"] == self._given.version:
                    self._good = self._given

    def _follow(self) -> None:
        """Hands on a newer release. What is wrong is said once; the release before goes on."""
        try:
            newest = self._newest()
        except RecloopError as error:
            if str(error) != self._problem:
                self._problem = str(error)
                self._say({"event": "problem", "reason": self._problem})
            return
        self._problem = ""
        if newest != self._given:
            self._given = newest
            for worker in self._workers:
                worker.give(newest)

    def _keep(self, listener: socket.socket) -> None:
        """Starts workers again that have ended, and replaces all of them where this was asked for."""
        for at, worker in enumerate(self._workers):
            if worker.process.poll() is not None and time.monotonic() - worker.began > _AGAIN_S:
                self._say({"event": "died", "pid": worker.process.pid, "code": worker.process.returncode})
                self._workers[at] = self._start(listener)
        if self._replace:
            self._replace = False
            for at, worker in enumerate(self._workers):
                newer = self._start(listener)
                # Only one that serves may take the place of another.
                deadline = time.monotonic() + _END_S
                while not newer.serves.is_set() and newer.process.poll() is None and time.monotonic() < deadline:
                    self._hear()
                    time.sleep(0.05)
                self._workers[at] = newer
                worker.drain()
                _await_end(worker, time.monotonic() + _END_S)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def replace(*_: object) -> None:
            self._replace = True

        def end(*_: object) -> None:
            self._ended.set()

        handlers = {signal.SIGTERM: end, signal.SIGINT: end, signal.SIGHUP: replace}
        before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            # Whatever happened: no worker stays behind.
            for worker in self._workers:
                if worker.process.poll() is None:
                    worker.process.kill()
                worker.process.wait()


def _await_end(worker: _Worker, deadline: float) -> None:
    """Waits until it ends, and ends it where it takes too long."""
    try:
        worker.process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        worker.process.kill()
        worker.process.wait()


@contextlib.contextmanager
def _listening(address: tuple[str, int]) -> Iterator[socket.socket]:
    """The socket that all workers inherit."""
    host, port = address
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(_BACKLOG)
            listener.set_inheritable(True)
            yield listener
    except (OSError, OverflowError) as error:
        raise BadInputError(f"--http {host}:{port}: {error}; choose another address") from None
