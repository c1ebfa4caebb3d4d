"""Requests one after the other, in threads of the test, each on a new connection or always on the same."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import requests

_PAUSE_S = 0.01


@dataclass
class Load:
    """Answers, each with its end in seconds of the clock that never goes back, and with the result of `judge`."""

    answers: list[tuple[float, str]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@contextmanager
def load(
    url: str, body: bytes, judge: Callable[[requests.Response], str], threads: int = 2, *, keep: bool = True
) -> Iterator[Load]:
    """Sends requests during the block; `keep`: on one connection a thread. `judge` raises where an answer is wrong."""
    found, ended = Load(), threading.Event()

    def run() -> None:
        session = requests.Session()
        while not ended.is_set():
            try:
                headers = {} if keep else {"connection": "close"}
                answer = judge(session.post(url, data=body, headers=headers, timeout=30))
                found.answers.append((time.monotonic(), answer))
            except Exception as error:
                found.failures.append(f"{time.monotonic()}: {error!r}")
            time.sleep(_PAUSE_S)

    running = [threading.Thread(target=run) for _ in range(threads)]
    for one in running:
        one.start()
    try:
        yield found
    finally:
        ended.set()
        for one in running:
            one.join()
