"""Runs a long property test in a process of its own.

Hypothesis adds the constants of the loaded modules to its examples. In a worker they depend on the test files that ran
before; here only on the code, so that a commit that passed once passes again.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any


def in_own_process(call: Callable[..., None], *arguments: Any) -> None:
    """Calls a function of a test module. Its traceback, and the example that failed, are in the captured stderr."""
    process = multiprocessing.get_context("spawn").Process(target=_with_profile, args=(call, arguments))
    process.start()
    try:
        process.join()
    finally:
        process.kill()
    assert process.exitcode == 0, f"{call.__qualname__} failed in a process of its own: see the captured stderr"


def _with_profile(call: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    from tests.conftest import load_profile

    load_profile()
    call(*arguments)
