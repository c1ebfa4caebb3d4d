"""Requests of a worker take turns: one is computed at a time; those that would wait too long are refused at once."""

from __future__ import annotations

import asyncio
import time
from collections import deque

RETRY_S = 1
_SHARE_OF_NEWEST = 0.05
"""The share of the newest request in the mean time of a request."""


class RefusedError(Exception):
    """A request that is not answered, with its status of HTTP. `retry_s`: the client may try again after so long."""

    def __init__(self, status: int, message: str, retry_s: int | None = None) -> None:
        super().__init__(message)
        self.status, self.retry_s = status, retry_s


class Turns:
    """The queue of requests, as long as the time that they will take. `mean_s` is the time that one takes."""

    def __init__(self) -> None:
        self.mean_s, self._begun = 0.0, 0.0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_taken = False

    async def take(self, patience_s: float) -> None:
        """Waits for those that came before; `end` must follow. Raises RefusedError where the wait is expected to take
        over `patience_s`."""
        if len(self._waiting) * self.mean_s > patience_s:
            raise RefusedError(503, "more requests than can be answered in time; try again", RETRY_S)
        own = asyncio.get_running_loop().create_future()
        self._waiting.append(own)
        if not self._is_taken:
            self._pass_on()
        try:
            await own
        except asyncio.CancelledError:  # by a client of gRPC
            if not own.cancelled():
                self._pass_on()
            raise
        self._begun = time.perf_counter()

    def end(self) -> None:
        """Ends the turn that was taken: the next one's comes."""
        self.mean_s += _SHARE_OF_NEWEST * (time.perf_counter() - self._begun - self.mean_s)
        self._pass_on()

    def _pass_on(self) -> None:
        # By the loop, which first reads what has come meanwhile: what is too much is refused now, and not after those
        # that wait.
        self._is_taken = True
        asyncio.get_running_loop().call_soon(self._next)

    def _next(self) -> None:
        while self._waiting:
            if not (one := self._waiting.popleft()).done():
                one.set_result(None)
                return
        self._is_taken = False
