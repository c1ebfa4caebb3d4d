"""Waiting for other processes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import psutil

T = TypeVar("T")


def awaited(
    found: Callable[[], T],
    within_s: float = 20.0,
    said: Callable[[], str] = lambda: "it did not come",
    every_s: float = 0.05,
) -> T:
    """Waits until `found` returns a true value, and returns it. Fails after `within_s` seconds."""
    deadline = time.monotonic() + within_s
    while not (value := found()):
        assert time.monotonic() < deadline, said()
        time.sleep(every_s)
    return value


def runs(pid: int) -> bool:
    """Says if a process has not ended yet."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
