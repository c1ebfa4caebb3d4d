"""A connection of HTTP: uvicorn's, with limits of the time and the head of a request."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.service import Limits

_REASONS = {408: "Request Timeout", 431: "Request Header Fields Too Large"}


_UPGRADE = re.compile(rb"\r\nupgrade(?=[ \t]*:)", re.IGNORECASE)


class Connection(HttpToolsProtocol):
    """Reads requests. A client that sends too slowly, or a head that does not end, is cut off."""

    limits = Limits()

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._timer: asyncio.TimerHandle | None = None
        self._head = 0
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._wait_no_more()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        if self._head == 0 and b"pgrade" in data:
            data = _without_upgrade(data)
        self._head += len(data)
        super().data_received(data)
        if self._head > self.limits.head and not self.transport.is_closing():
            self._refuse(431, f"the head of the request has more than {self.limits.head} bytes; send fewer headers")

    def on_message_begin(self) -> None:
        """See httptools."""
        self._wait()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """See httptools."""
        super().on_headers_complete()
        # What comes now is the body, which the application limits.
        self._head = -(1 << 62)

    def on_message_complete(self) -> None:
        """See httptools."""
        self._wait_no_more()
        self._head = 0
        super().on_message_complete()

    def shutdown(self) -> None:
        """Ends an idle connection. One that is new may have a request on its way, which is answered first."""
        if self.cycle is not None:
            super().shutdown()

    def timeout_keep_alive_handler(self) -> None:
        """Ends an idle connection, also where its client does not read what was answered."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        super().timeout_keep_alive_handler()

    def _wait(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.limits.read_s, self._is_slow)

    def _wait_no_more(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _is_slow(self) -> None:
        self._refuse(408, f"the request did not come within {self.limits.read_s:g} s; send it again")

    def _refuse(self, status: int, message: str) -> None:
        """Answers before the application does, and closes."""
        if self.cycle is None or self.cycle.response_complete:
            body = f'{{"error":"{message}"}}'
            head = f"HTTP/1.1 {status} {_REASONS[status]}\r\ncontent-type: application/json\r\nconnection: close\r\n"
            self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
        self.transport.close()


def _without_upgrade(data: bytes) -> bytes:
    """A request without the wish for another protocol, as Java's client has it in each first request: with it httptools
    reads no body."""
    head, end, body = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(b"\r\nx-upgrade", head) + end + body
