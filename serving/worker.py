"""A worker: one process that answers requests on a socket which it inherits.

    python -m serving.worker SOCKET MODEL < releases

A release a line comes on its standard input. It is loaded beside the one that serves, in a thread of its own, and then
takes its place; one that fails never serves. What happens is said on the standard output, one JSON object a line. The
end of the input, or SIGTERM, lets the worker finish what it has begun and end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

import uvicorn

from feature_jobs.errors import RecloopError
from serving.app import App
from serving.release import Loaded, Release

# A request that still uses the release before takes at most this long.
_GRACE_S = 30.0
_DRAIN_S = 20


def main(arguments: list[str]) -> None:
    """Runs until the input ends or SIGTERM comes."""
    descriptor, model = arguments
    app = App(model)
    config = uvicorn.Config(
        app,
        http="httptools",
        loop="uvloop",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_DRAIN_S,
        limit_concurrency=None,
    )
    server = uvicorn.Server(config)

    def stop(*_: object) -> None:
        app.draining, server.should_exit = True, True

    # Not uvicorn's own: a second signal would cut the requests that are open.
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    threading.Thread(target=_follow, args=(app, stop), daemon=True).start()
    asyncio.run(server.serve([socket.socket(fileno=int(descriptor))]))
    _say("ended")


def _follow(app: App, stop: Callable[[], None]) -> None:
    """Loads the releases that come on the standard input, the newest one where several wait."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)  # on Linux that of this thread alone
    for line in sys.stdin.buffer:
        release = Release.from_json(line)
        try:
            loaded = Loaded(release)
        except RecloopError as error:
            app.alarm = f"version {release.version} does not serve: {error}"
            _say("refused", version=release.version, state=release.state, reason=str(error))
            continue
        former, app.current, app.alarm = app.current, loaded, None
        _say("serves", version=release.version, state=release.state)
        if former is not None:
            threading.Timer(_GRACE_S, former.close).start()
    stop()


def _say(event: str, **facts: Any) -> None:
    with contextlib.suppress(OSError):  # the server has ended
        print(json.dumps({"event": event, "pid": os.getpid(), **facts}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
