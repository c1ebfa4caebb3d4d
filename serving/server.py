"""The server: a process that holds the socket and the workers, and hands them the releases that should serve.

A worker that ends is started again on the same socket, so connections that wait are not lost. SIGTERM and SIGINT let
workers finish; SIGHUP replaces them one after the other.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any, cast

from feature_jobs.errors import BadInputError, RecloopError
from serving.metrics import FOLDER, free_slot
from serving.release import ALARM, Release

_EVERY_S = 0.25
_END_S = 30.0
_AGAIN_S = 1.0
"""A worker that ended is started again at most this often, so that one that can't start does not fill the machine."""
_BACKLOG = 2_048
_UNREADABLE = "the newest release can't be read; see the log of the server"
Event = dict[str, Any]


@dataclass(eq=False)
class _Worker:
    """A worker's process. `slot` is its place in the metrics, `serves`: it has said so. `began` is when it was started,
    `deadline` when it is killed; both in seconds of the clock that never goes back. `lines` is what it has yet to read,
    None for the end: a thread writes it, because a worker that loads does not read."""

    process: subprocess.Popen[bytes]
    slot: int
    began: float = field(default_factory=time.monotonic)
    serves: bool = False
    deadline: float = math.inf
    lines: queue.SimpleQueue[bytes | None] = field(default_factory=queue.SimpleQueue)

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def give(self, release: Release) -> None:
        """Hands it a release."""
        self.lines.put(release.to_json())

    def warn(self, alarm: str | None) -> None:
        """Hands it an alarm, or the end of one."""
        self.lines.put(json.dumps({ALARM: alarm}).encode())

    def drain(self) -> None:
        """Lets it finish what it has begun."""
        self.deadline = time.monotonic() + _END_S
        self.lines.put(None)
        self.process.terminate()  # one that loads reads the end of its input much later

    def write(self) -> None:
        """Writes its lines as they come, until the last one."""
        stdin = cast(IO[bytes], self.process.stdin)  # a pipe was asked for
        with contextlib.suppress(OSError), stdin:  # it has ended, and is started again
            while (line := self.lines.get()) is not None:
                stdin.write(line + b"\n")
                stdin.flush()


@dataclass(frozen=True)
class Addresses:
    """The addresses of a server: host and port of HTTP, and of gRPC where it is wanted."""

    http: tuple[str, int]
    grpc: tuple[str, int] | None = None


class Server:
    """Serves at `addresses` with so many workers. `newest` returns the release that should serve now; `say` takes what
    happens, one event at a time. Raises what `newest` raises where there is nothing to serve at the start."""

    def __init__(
        self, addresses: Addresses, num_workers: int, newest: Callable[[], Release], say: Callable[[Event], None]
    ) -> None:
        self._addresses, self._num, self._newest, self._say = addresses, num_workers, newest, say
        self._events: queue.SimpleQueue[tuple[_Worker, Event]] = queue.SimpleQueue()
        # Those that serve, those that finish, those that wait to be replaced, and the one that comes next.
        self._workers, self._ending, self._old = list[_Worker](), list[_Worker](), list[_Worker]()
        self._newer: _Worker | None = None
        self._given = newest()
        self._good: Release | None = None
        self._problem = ""
        self._ended, self._replace = threading.Event(), threading.Event()

    def run(self) -> None:
        """Serves until SIGTERM or SIGINT. Raises BadInputError where an address can't be used."""
        with (
            _listening(self._addresses.http) as self._listener,
            _reserved(self._addresses.grpc) as self._grpc,
            tempfile.TemporaryDirectory(prefix="recloop-serve-", ignore_cleanup_errors=True) as self._folder,
            self._signals(),
        ):
            places = {"http": f"http://{_text(self._listener)}", **({"grpc": self._grpc} if self._grpc else {})}
            self._say({"event": "listens", "model": self._given.model, "version": self._given.version, **places})
            for _ in range(self._num):
                self._workers.append(self._start())
            while not self._ended.wait(_EVERY_S):
                self._hear()
                self._follow()
                self._keep()
                self._replace_one()
            self._listener.close()
            self._end([*self._workers, *([self._newer] if self._newer else [])])
            self._newer = None
            while self._ending:
                self._keep()
                time.sleep(_EVERY_S / 5)
            self._hear()

    def _all(self) -> list[_Worker]:
        return [*self._workers, *self._ending, *([self._newer] if self._newer else [])]

    def _start(self) -> _Worker:
        # Not that of one that has yet to end: both would write the same files.
        taken = {worker.slot for worker in self._all() if not worker.has_ended}
        slot = next(slot for slot in itertools.count() if slot not in taken)
        descriptor = self._listener.fileno()
        command = [sys.executable, "-P", "-m", "serving.worker", "--socket", str(descriptor), "--slot", str(slot)]
        command += ["--model", self._given.model, *(["--grpc", self._grpc] if self._grpc else [])]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, FOLDER: self._folder},
            pass_fds=[descriptor],
            start_new_session=True,
        )
        worker = _Worker(process, slot)
        threading.Thread(target=worker.write, daemon=True).start()
        threading.Thread(target=self._listen, args=(worker,), daemon=True).start()
        # First the one that is known to serve: the newest may be one that workers refuse.
        if self._good is not None and self._good != self._given:
            worker.give(self._good)
        worker.give(self._given)
        if self._problem:
            worker.warn(_UNREADABLE)
        return worker

    def _listen(self, worker: _Worker) -> None:
        for line in cast(IO[bytes], worker.process.stdout):
            with contextlib.suppress(ValueError):
                self._events.put((worker, json.loads(line)))

    def _hear(self) -> None:
        """Takes what the workers have said."""
        while not self._events.empty():
            worker, event = self._events.get()
            self._say(event)
            if event["event"] == "serves":
                worker.serves = True
                if (event["version"], event["state"]) == (self._given.version, self._given.state):
                    self._good = self._given

    def _follow(self) -> None:
        """Hands on a newer release. What is wrong is said once; the release before goes on."""
        try:
            newest, problem = self._newest(), ""
        except Exception as error:  # such as a store that can't be reached; what serves must go on
            newest, problem = self._given, str(error) if isinstance(error, RecloopError) else repr(error)
        if problem != self._problem:
            if problem:
                self._say({"event": "problem", "reason": problem})
            for worker in self._all():
                worker.warn(_UNREADABLE if problem else None)
            self._problem = problem
        if newest != self._given:
            self._given = newest
            for worker in self._all():
                worker.give(newest)

    def _keep(self) -> None:
        """Starts workers again that have ended, and ends those that do not finish."""
        for worker in self._ending:
            if time.monotonic() > worker.deadline:
                worker.process.kill()
        for worker in [one for one in self._ending if one.has_ended]:
            self._ending.remove(worker)
            self._forget(worker)
        for at, worker in enumerate(self._workers):
            if worker.has_ended and worker.deadline == math.inf and time.monotonic() - worker.began > _AGAIN_S:
                self._say({"event": "died", "pid": worker.process.pid, "code": worker.process.returncode})
                self._forget(worker)
                self._workers[at] = self._start()

    def _replace_one(self) -> None:
        """Replaces workers one after the other where this was asked for. Only one that serves takes another's place."""
        if self._replace.is_set():
            self._replace.clear()
            self._old = list(self._workers)
        if self._newer is None and self._old:
            self._newer = self._start()
        elif self._newer is not None and self._newer.serves:
            old = self._old.pop(0)
            if old in self._workers:
                self._workers[self._workers.index(old)] = self._newer
                self._newer = None
                self._end([old])
            else:  # it had ended, and was started again
                self._end([self._newer])
                self._newer = None
        elif self._newer is not None and (self._newer.has_ended or time.monotonic() - self._newer.began > _END_S):
            self._say({"event": "not_replaced", "pid": self._newer.process.pid, "code": self._newer.process.returncode})
            self._end([self._newer])
            self._newer, self._old = None, []

    def _end(self, workers: list[_Worker]) -> None:
        for worker in workers:
            worker.drain()
            self._ending.append(worker)
        self._workers = [worker for worker in self._workers if worker not in workers]

    def _forget(self, worker: _Worker) -> None:
        worker.process.wait()
        free_slot(worker.slot, self._folder)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def replace(*_: object) -> None:
            self._replace.set()

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
            for worker in self._all():
                if not worker.has_ended:
                    worker.process.kill()
                worker.process.wait()


@contextlib.contextmanager
def _listening(address: tuple[str, int]) -> Iterator[socket.socket]:
    """The socket that all workers inherit."""
    with _bound("--http", address) as listener:
        listener.listen(_BACKLOG)
        listener.set_inheritable(True)
        yield listener


@contextlib.contextmanager
def _reserved(address: tuple[str, int] | None) -> Iterator[str]:
    """HOST:PORT of gRPC, which can't inherit a socket: each worker listens there with SO_REUSEPORT. This one holds the
    port as long as the server runs."""
    if address is None:
        yield ""
        return
    with _bound("--grpc", address):  # alone: with SO_REUSEPORT it would share the port with another server
        pass
    with _bound("--grpc", address, share=True) as held:
        yield _text(held)


def _text(bound: socket.socket) -> str:
    """HOST:PORT of a socket."""
    host, port = bound.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@contextlib.contextmanager
def _bound(option: str, address: tuple[str, int], *, share: bool = False) -> Iterator[socket.socket]:
    host, port = address
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT if share else socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        raise BadInputError(f"{option} {host}:{port}: {error}; choose another address") from None
    with listener:
        yield listener
