"""A worker: one process that answers requests on a socket which it inherits.

    python -m serving.worker --socket 3 --slot 0 --model movielens [--grpc HOST:PORT] < releases

A release a line comes on its standard input, or an alarm. A release is loaded beside the one that serves, in a thread
of its own, and then takes its place; one that fails never serves. What happens is said on the standard output, one JSON
object a line. The end of the input, or SIGTERM, lets the worker finish what it has begun and end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import threading
from collections.abc import Generator, Iterator
from typing import IO, Any

import uvicorn
import uvloop

from feature_jobs.errors import RecloopError
from serving import metrics
from serving.app import App
from serving.connection import Connection
from serving.release import ALARM, Loaded, Release
from serving.service import Service

# A request that still uses the release before takes at most this long.
_GRACE_S = 30.0
_DRAIN_S = 20
_KEEP_ALIVE_S = 75
"""Longer than proxies keep their connections, so that none sends a request into one that ends."""


def main() -> None:
    """Runs until the input ends or SIGTERM comes."""
    parser, server = argparse.ArgumentParser(), os.getppid()
    parser.add_argument("--socket", type=int, required=True)
    parser.add_argument("--slot", type=int, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--grpc")
    given = parser.parse_args()
    metrics.use_slot(given.slot)
    uvloop.run(_serve(Service(given.model), socket.socket(fileno=given.socket), given.grpc))
    _say("ended")
    if os.getppid() != server:  # it was killed, and can't do this itself
        shutil.rmtree(os.environ[metrics.FOLDER], ignore_errors=True)


class _HttpServer(uvicorn.Server):
    """Leaves signals to the worker: with uvicorn's own a second one would cut the requests that are open."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """See uvicorn."""
        yield


def http_server(service: Service) -> uvicorn.Server:
    """The server of HTTP, to run on a socket that listens."""
    Connection.limits = service.limits
    config = uvicorn.Config(
        App(service),
        http=Connection,
        ws="none",
        lifespan="off",
        # What clients send wrong is answered to them, and fills no log.
        log_level="error",
        access_log=False,
        server_header=False,
        limit_concurrency=service.limits.connections,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_DRAIN_S,
    )
    return _HttpServer(config)


async def _serve(service: Service, listener: socket.socket, grpc: str | None) -> None:
    server, loop = http_server(service), asyncio.get_running_loop()
    ending, decided = asyncio.Event(), asyncio.Event()

    def stop() -> None:
        service.draining = server.should_exit = True
        ending.set()
        decided.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)

    def follow() -> None:
        # Without a buffer, whose lock would stop the end of the process.
        try:
            with open(0, "rb", buffering=0) as lines:
                for _ in _releases(service, lines):
                    loop.call_soon_threadsafe(decided.set)
        finally:
            loop.call_soon_threadsafe(stop)

    threading.Thread(target=follow, daemon=True).start()
    # Connections go to the other workers, or wait, until this one can answer them.
    await decided.wait()
    serving = [server.serve([listener])]
    if grpc is not None:
        from serving.grpc import serve

        serving.append(serve(service, grpc, ending, _DRAIN_S))
    await asyncio.gather(*serving)


def _releases(service: Service, lines: IO[bytes]) -> Iterator[None]:
    """Loads the releases that come, one after the other."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)  # on Linux that of this thread alone
    for line in lines:
        if ALARM in (said := json.loads(line)):
            service.warn(said[ALARM])
            continue
        release = Release.from_json(line)
        try:
            loaded = Loaded(release)
        except Exception as error:  # also a defect must not end this thread, and with it the way to later releases
            service.refuse(release.version)
            reason = str(error) if isinstance(error, RecloopError) else repr(error)
            _say("refused", version=release.version, state=release.state, reason=reason)
        else:
            if former := service.swap(loaded):
                timer = threading.Timer(_GRACE_S, former.close)
                timer.daemon = True
                timer.start()
            _say("serves", version=release.version, state=release.state)
        yield


def _say(event: str, **facts: Any) -> None:
    with contextlib.suppress(OSError):  # the server has ended
        print(json.dumps({"event": event, "pid": os.getpid(), **facts}), flush=True)


if __name__ == "__main__":
    main()
