"""The HTTP server as an ASGI application: routes, bodies and errors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import orjson
from prometheus_client import CONTENT_TYPE_LATEST

from serving import invocations, page, protocol
from serving.protocol import Answer, Asked
from serving.release import Loaded
from serving.service import EXTENSIONS, NAME, Service
from serving.turns import RefusedError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
_JSON, _BINARY, _TEXT, _HTML = "application/json", "application/octet-stream", "text/plain", "text/html; charset=utf-8"
_HEADER = protocol.HEADER.encode()


@dataclass(frozen=True)
class Reply:
    """A reply to send. `headers` are those beside the type and the length."""

    status: int
    body: bytes
    kind: str = _JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()


class App:
    """Routes of requests over HTTP."""

    def __init__(self, service: Service) -> None:
        self._service, self._bodies = service, 0
        self._pages: dict[str, Callable[[], Reply]] = {
            "": lambda: Reply(200, page.HTML, _HTML),
            "v2": lambda: _json({"name": NAME, "version": version("recloop"), "extensions": EXTENSIONS}),
            "v2/health/live": self._live,
            "v2/health/ready": self._ready,
            "ping": self._ready,
            "health": self._live,
            "version": lambda: Reply(200, (service.current.facts.version if service.current else "").encode(), _TEXT),
            "status": lambda: _json(service.status()),
            "metrics": lambda: Reply(200, service.metrics.text(), CONTENT_TYPE_LATEST),
        }

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            return
        try:
            reply = await self._reply(scope, receive)
        except Exception as error:
            refused = self._service.refusal(error)
            again = ((b"retry-after", str(refused.retry_s).encode()),) if refused.retry_s else ()
            # What is left of a body that is too large is not read.
            close = ((b"connection", b"close"),) if refused.status == 413 else ()
            reply = Reply(refused.status, orjson.dumps({"error": str(refused)}), headers=again + close)
        headers = [(b"content-type", reply.kind.encode()), (b"content-length", str(len(reply.body)).encode())]
        closing = [(b"connection", b"close")] if self._service.draining else []
        await send(
            {"type": "http.response.start", "status": reply.status, "headers": [*headers, *reply.headers, *closing]}
        )
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else reply.body})

    async def _reply(self, scope: Message, receive: Receive) -> Reply:
        method, path = scope["method"], scope["path"].strip("/")
        headers, parts = dict(scope["headers"]), path.split("/")
        match method, parts:
            case "POST", ["v2", "models", name, *rest, "infer"]:
                serving = self._serving(name, rest)
                return await self._infer(serving, headers, await self._body(headers, receive))
            case "POST", ["invocations"]:
                serving = self._service.serving(self._service.model)
                return await self._invocations(serving, headers, await self._body(headers, receive))
            case "GET" | "HEAD", ["v2", "models", name, *rest, "ready"]:
                self._serving(name, rest)
                return _json({"name": name, "ready": self._service.is_ready})
            case "GET" | "HEAD", ["v2", "models", name, *rest]:
                return _json(self._service.metadata(self._serving(name, rest)))
            case "GET" | "HEAD", _ if path in self._pages:
                return self._pages[path]()
        raise RefusedError(404 if method in ("GET", "HEAD", "POST") else 405, f"{method} /{path[:80]}: see GET /")

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """The body of a request. Raises RefusedError where it is too large, and does not come whole."""
        limits, parts, size = self._service.limits, list[bytes](), 0
        too_large = RefusedError(413, f"the body has more than {limits.body:,} bytes; send fewer items")
        if headers.get(b"content-length", b"0").zfill(20) > str(limits.body).encode().zfill(20):
            raise too_large
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise RefusedError(400, "the body did not come whole; send it again")
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                self._bodies += len(parts[-1])
                if size > limits.body:
                    raise too_large
                if self._bodies > limits.bodies:
                    raise RefusedError(503, "too many large bodies at a time; try again", 1)
                if not message.get("more_body", False):
                    return parts[0] if len(parts) == 1 else b"".join(parts)
        finally:
            self._bodies -= size

    def _serving(self, name: str, rest: list[str]) -> Loaded:
        """The release of a path .../NAME[/versions/VERSION]."""
        match rest:
            case []:
                return self._service.serving(name)
            case ["versions", wanted]:
                return self._service.serving(name, wanted)
        raise RefusedError(404, f"/{'/'.join(rest)[:80]}: see GET /")

    def _live(self) -> Reply:
        return _json({"live": True})

    def _ready(self) -> Reply:
        is_ready = self._service.is_ready
        return _json({"ready": is_ready}, 200 if is_ready else 503)

    async def _infer(self, serving: Loaded, headers: dict[bytes, bytes], body: bytes) -> Reply:
        length = headers.get(_HEADER)

        def read(most: int) -> Asked:
            return protocol.read(body, None if length is None else length.decode("latin-1"), most)

        def write(asked: Asked, answer: Answer) -> Reply:
            content, head = protocol.write(asked, answer)
            if head is None:
                return Reply(200, content)
            return Reply(200, content, _BINARY, ((_HEADER, str(head).encode()),))

        return await self._service.infer(serving, "json" if length is None else "binary", read, write)

    async def _invocations(self, serving: Loaded, headers: dict[bytes, bytes], body: bytes) -> Reply:
        kind, most = headers.get(b"content-type", b"").decode("latin-1"), self._service.limits.items

        def work() -> Reply:
            return Reply(200, invocations.answer(serving, kind, body, most))

        return await self._service.run(serving, "invocations", work)


def _json(document: Any, status: int = 200) -> Reply:
    return Reply(status, orjson.dumps(document))
