"""A probe in the place of a step, in its container; and networks that it may reach or lose."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from feature_jobs.schema import load_scenario
from tasks.contract import DayConfig
from tasks.run.container import ContainerLauncher, ContainerSettings
from tasks.run.launchers import Call
from tasks.steps import STEPS
from tasks.store.scenario_store import open_store
from tests.small import days


def probe_step(
    settings: ContainerSettings, scenario: Path, folder: Path, step: str = "join", **options: Any
) -> dict[str, Any]:
    """Returns the findings of a probe in the place of the step; it reads `folder`/events and writes `folder`/out."""
    declared = STEPS[step]
    resources = {name: options[name] for name in ("memory_gib", "cpus") if name in options}
    declared = replace(declared, resources=replace(declared.resources, **resources))
    events, out = folder / "events", folder / "out"
    for made in (events, out):
        made.mkdir(exist_ok=True)
    loaded = load_scenario(scenario)
    config = DayConfig(loaded, days(1)[0], open_store(folder / "store", loaded.name), options=options)
    ran = ContainerLauncher(settings).launch(declared, Call(config, {"events": events}, out))
    return dict(ran.metrics)


@contextmanager
def socket_server() -> Iterator[int]:
    """Listens on a port of this machine's loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@contextmanager
def relayed(target: str, place: Path) -> Iterator[Callable[[], None]]:
    """A socket at `place` that leads to the one at `target`; yields a function that cuts all its connections."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(place))
    listener.listen()
    ends: list[socket.socket] = [listener]

    def copy(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                near, far = listener.accept()[0], socket.socket(socket.AF_UNIX)
                far.connect(target)
                ends.extend([near, far])
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=copy, args=pair, daemon=True).start()

    def lose() -> None:
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield lose
    finally:
        lose()
        for end in ends:
            end.close()


def in_background(action: Any, errors: list[BaseException] | None = None) -> threading.Thread:
    def run() -> None:
        try:
            action()
        except BaseException as error:
            (errors if errors is not None else []).append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread
