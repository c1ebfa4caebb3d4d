"""A client of an ASGI application in the same process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from serving.app import App


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def send(
    app: App, method: str, path: str, parts: Iterable[bytes | None] = (b"",), headers: Mapping[str, str] = {}
) -> Reply:
    """Sends a request whose body comes in parts; None: the client is gone."""
    given = list(parts)
    messages = [
        {"type": "http.disconnect"} if part is None else {"body": part, "more_body": at + 1 < len(given)} | _REQUEST
        for at, part in enumerate(given)
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0)

    async def take(message: Any) -> None:
        sent.append(message)

    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    await app({"type": "http", "method": method, "path": path, "headers": encoded}, receive, take)
    start, *rest = sent
    names = {name.decode(): value.decode() for name, value in start["headers"]}
    return Reply(start["status"], names, b"".join(message["body"] for message in rest))


_REQUEST = {"type": "http.request"}


def ask(app: App, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] = {}) -> Reply:
    """Sends a request, and returns what comes back."""
    return asyncio.run(send(app, method, path, [body], headers))
