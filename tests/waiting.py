"""Waiting for what other processes do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def awaited(found: Callable[[], T], within_s: float = 20.0, said: Callable[[], str] = lambda: "it did not come") -> T:
    """What `found` returns as soon as that is true. Fails after `within_s` seconds with what `said` tells."""
    deadline = time.monotonic() + within_s
    while not (value := found()):
        assert time.monotonic() < deadline, said()
        time.sleep(0.05)
    return value
