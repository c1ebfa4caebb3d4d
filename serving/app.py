"""The HTTP server as an ASGI application: routes, limits and errors. It computes a request where it reads it: one
worker is one process with one thread for requests."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import orjson

from feature_jobs.errors import BadInputError, RecloopError
from serving import invocations, page, protocol
from serving.release import ITEMS, USER, Loaded

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
_JSON, _BINARY, _TEXT, _HTML = "application/json", "application/octet-stream", "text/plain", "text/html; charset=utf-8"
_EXTENSIONS = ["binary_tensor_data"]


@dataclass(frozen=True)
class Limits:
    """Limits of a request: bytes of its body, and items."""

    body: int = 16 << 20
    items: int = 5_000


@dataclass(frozen=True)
class Reply:
    """A reply to send. `headers` are those beside the type and the length."""

    status: int
    body: bytes
    kind: str = _JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()


class HttpError(Exception):
    """A request that is refused, with its status."""

    def __init__(self, status: int, message: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers


class App:
    """Answers requests with the release that serves. `current` is None before the first one is loaded."""

    def __init__(self, model: str, limits: Limits | None = None) -> None:
        self.model, self.limits = model, limits or Limits()
        self.current: Loaded | None = None
        self.alarm: str | None = None
        """Why the newest release does not serve, if it does not."""
        self.draining = False
        self._pages: dict[str, Callable[[], Reply]] = {
            "": lambda: Reply(200, page.HTML, _HTML),
            "v2": lambda: _json({"name": "recloop", "version": version("recloop"), "extensions": _EXTENSIONS}),
            "v2/health/live": self._live,
            "v2/health/ready": self._ready,
            "ping": self._ready,
            "health": self._live,
            "version": lambda: Reply(200, (self.current.facts.version if self.current else "").encode(), _TEXT),
            "status": lambda: _json(self.status()),
        }
        self.started, self.requests, self.refused, self.seconds = time.time(), 0, 0, 0.0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        try:
            body = await self._body(scope, receive)
            reply = self._reply(scope["method"], scope["path"], dict(scope["headers"]), body)
        except HttpError as error:
            reply = _error(error.status, str(error), error.headers)
        except BadInputError as error:
            self.refused += 1
            # Where the scenario lies on this machine is nothing that a client should know.
            place = f"{self.current.scenario.file}: " if self.current else ""
            reply = _error(400, str(error).removeprefix(place))
        except RecloopError as error:
            reply = _error(503, str(error), ((b"retry-after", b"1"),))
        headers = [(b"content-type", reply.kind.encode()), (b"content-length", str(len(reply.body)).encode())]
        closing = [(b"connection", b"close")] if self.draining else []
        await send(
            {"type": "http.response.start", "status": reply.status, "headers": [*headers, *reply.headers, *closing]}
        )
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else reply.body})

    async def _body(self, scope: Message, receive: Receive) -> bytes:
        parts, size = list[bytes](), 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise HttpError(400, "the client has closed the connection")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.limits.body:
                raise HttpError(413, f"the body has more than {self.limits.body:,} bytes; send fewer items")
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    def _reply(self, method: str, path: str, headers: dict[bytes, bytes], body: bytes) -> Reply:
        parts = path.strip("/").split("/")
        match method, parts:
            case "POST", ["v2", "models", name, *rest, "infer"]:
                return self._infer(self._serving(name, rest), headers, body)
            case "POST", ["invocations"]:
                return self._invocations(headers, body)
            case "GET" | "HEAD", _:
                return self._read(parts)
        raise HttpError(405 if method != "POST" else 404, f"{method} {path[:200]}: nothing here; see GET /")

    def _read(self, parts: list[str]) -> Reply:
        if parts[:2] == ["v2", "models"] and len(parts) > 2:
            is_ready = parts[-1] == "ready"
            serving = self._serving(parts[2], parts[3:-1] if is_ready else parts[3:])
            return _json({"name": self.model, "ready": self._is_ready} if is_ready else self._metadata(serving))
        if page := self._pages.get("/".join(parts)):
            return page()
        raise HttpError(404, f"/{'/'.join(parts)[:200]}: nothing here; see GET /")

    def _live(self) -> Reply:
        return _json({"live": True})

    def _ready(self) -> Reply:
        return _json({"ready": self._is_ready}, 200 if self._is_ready else 503)

    @property
    def _is_ready(self) -> bool:
        return self.current is not None and not self.draining

    def _serving(self, name: str, rest: list[str]) -> Loaded:
        """The release of a path .../NAME[/versions/VERSION]."""
        if name != self.model:
            raise HttpError(404, f"the model {name[:80]!r} is not here; this server has {self.model}")
        if self.current is None:
            raise HttpError(503, "no version is loaded yet; try again", ((b"retry-after", b"1"),))
        if rest and (len(rest) != 2 or rest[0] != "versions"):
            raise HttpError(404, f"{'/'.join(rest)[:80]}: nothing here; see GET /")
        if rest and rest[1] != self.current.facts.version:
            raise HttpError(
                404, f"version {rest[1][:40]} does not serve; version {self.current.facts.version} of {name} does"
            )
        return self.current

    def _infer(self, serving: Loaded, headers: dict[bytes, bytes], body: bytes) -> Reply:
        begun = time.perf_counter()
        length = headers.get(protocol.HEADER.encode())
        asked = protocol.read(body, None if length is None else length.decode("latin-1"))
        if (num := len(asked.inputs.get(ITEMS, ()))) > self.limits.items:
            raise BadInputError(f"{ITEMS}: {num:,} items; give at most {self.limits.items:,} a request")
        answer = serving.answer(asked, time.time_ns() // 1_000)
        content, head = protocol.write(asked, answer)
        self.requests += 1
        self.seconds += time.perf_counter() - begun
        if head is None:
            return Reply(200, content)
        return Reply(200, content, _BINARY, ((protocol.HEADER.encode(), str(head).encode()),))

    def _invocations(self, headers: dict[bytes, bytes], body: bytes) -> Reply:
        serving = self._serving(self.model, [])
        content = invocations.answer(serving, headers.get(b"content-type", b"").decode("latin-1"), body)
        self.requests += 1
        return Reply(200, content)

    def _metadata(self, serving: Loaded) -> dict[str, Any]:
        ids = {"datatype": "INT64 or BYTES"}
        return {
            "name": self.model,
            "versions": [serving.facts.version],
            "platform": "recloop",
            "inputs": [
                {"name": USER, "shape": [1], **ids},
                {"name": ITEMS, "shape": [-1], **ids},
                *({"name": name, "shape": [-1], "datatype": str(type_)} for name, type_ in serving.columns.items()),
            ],
            "outputs": [{"name": task, "datatype": "FP32", "shape": [-1]} for task in serving.tasks],
        }

    def status(self) -> dict[str, Any]:
        """What the page shows."""
        serving = self.current
        return {
            "model": self.model,
            "version": serving and serving.facts.version,
            "learned_up_to": serving and serving.facts.ds,
            "features_from": serving and serving.begin.isoformat(),
            "checkpoint": serving and serving.facts.checkpoint,
            "tasks": list(serving.tasks) if serving else [],
            "example": serving and dict(zip(("user", "items"), serving.example, strict=True)),
            "alarm": self.alarm,
            "worker": {
                "up_s": round(time.time() - self.started, 1),
                "requests": self.requests,
                "refused": self.refused,
                "mean_ms": round(1e3 * self.seconds / self.requests, 3) if self.requests else None,
            },
        }


def _json(document: Any, status: int = 200) -> Reply:
    return Reply(status, orjson.dumps(document))


def _error(status: int, message: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Reply:
    return Reply(status, orjson.dumps({"error": message}), headers=headers)


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
