"""A stand-in for a Kubernetes API server, not a cluster: it checks pods strictly against the published schemas, and
runs a script where a kubelet would run the container; containers/node_double.py runs the container. It answers the
requests of Airflow's pod operator, over HTTP."""

from __future__ import annotations

import contextlib
import datetime
import json
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kubernetes_validate

VERSION = "1.37.0"


class ClusterDouble:
    """`program` is started with the container's arguments; `reason` is the reported reason of the container's end."""

    def __init__(self, program: Sequence[str], reason: str = "Completed") -> None:
        self.program = program
        self.reason = reason
        self.created: list[dict[str, Any]] = []
        self.pods: dict[str, dict[str, Any]] = {}
        self.deleted: list[str] = []
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.lines: dict[str, list[str]] = {}
        self.on_follow: Callable[[], object] = lambda: None  # called when someone reads a pod's log

    def create(self, pod: dict[str, Any]) -> dict[str, Any]:
        """Raises kubernetes_validate.ValidationError for a pod that is none."""
        kubernetes_validate.validate(pod, VERSION, strict=True)
        name = pod["metadata"]["name"]
        self.created.append(json.loads(json.dumps(pod)))
        command = self.command(pod)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.processes[name], self.lines[name] = process, []
        self.pods[name] = pod
        self._state(pod, {"running": {"startedAt": _now()}}, "Running")
        threading.Thread(target=self._watch, args=(name,), daemon=True).start()
        return pod

    def delete(self, name: str) -> dict[str, Any] | None:
        """Returns the deleted pod, or None."""
        pod = self.pods.pop(name, None)
        if pod is not None:
            self.deleted.append(name)
            self.end(pod)
        return pod

    def command(self, pod: dict[str, Any]) -> list[str]:
        """The command that runs in place of the container."""
        return [*self.program, *pod["spec"]["containers"][0]["args"]]

    def end(self, pod: dict[str, Any]) -> None:
        """Ends the process of `command`."""
        self.processes[pod["metadata"]["name"]].kill()

    def reason_of(self, pod: dict[str, Any]) -> str:
        """The reported reason of the end of the pod's container."""
        return self.reason

    def _watch(self, name: str) -> None:
        process = self.processes[name]
        assert process.stdout is not None
        for line in process.stdout:
            self.lines[name].append(f"{_now()} {line}")
        code = process.wait()
        code = 128 - code if code < 0 else code
        pod = self.pods.get(name)
        if pod is not None:
            state = {"terminated": {"exitCode": code, "reason": self.reason_of(pod), "finishedAt": _now()}}
            self._state(pod, state, "Failed" if code else "Succeeded")

    def _state(self, pod: dict[str, Any], state: dict[str, Any], phase: str) -> None:
        container = pod["spec"]["containers"][0]
        status = {"name": container["name"], "state": state, "ready": False, "restartCount": 0}
        pod["status"] = {
            "phase": phase,
            "containerStatuses": [{**status, "image": container["image"], "imageID": "sha256:0"}],
        }


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z")


def _handler(double: ClusterDouble) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, value: dict[str, Any] | None, status: int = 200) -> None:
            missing = {"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound"}
            body = json.dumps(missing if value is None else value).encode()
            self.send_response(404 if value is None else status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            pod = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                self.answer(double.create(pod), 201)
            except kubernetes_validate.ValidationError as error:
                self.answer({"kind": "Status", "status": "Failure", "code": 422, "message": error.message}, 422)

        def do_DELETE(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.answer(double.delete(urlsplit(self.path).path.rsplit("/", 1)[-1]))

        def do_PATCH(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(double.pods.get(urlsplit(self.path).path.rsplit("/", 1)[-1]))

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            kind, _, rest = parts.path.partition("/pods")[2].strip("/").partition("/")
            if "/events" in parts.path:
                self.answer({"kind": "EventList", "metadata": {"resourceVersion": "1"}, "items": []})
            elif not kind:
                wanted = parse_qs(parts.query).get("labelSelector", [""])[0].split(",")
                equal = dict(term.split("=", 1) for term in wanted if "=" in term and "!=" not in term)
                found = [p for p in double.pods.values() if equal.items() <= p["metadata"]["labels"].items()]
                self.answer({"kind": "PodList", "metadata": {}, "items": found})
            elif rest == "log":
                self.follow(kind)
            else:
                self.answer(double.pods.get(kind))

        def follow(self, name: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            double.on_follow()
            sent, process = 0, double.processes[name]
            while True:
                over = (
                    process.poll() is not None and double.pods.get(name, {}).get("status", {}).get("phase") != "Running"
                )
                for line in double.lines[name][sent:]:
                    self.wfile.write(f"{len(line.encode()):x}\r\n{line}\r\n".encode())
                    sent += 1
                if over:
                    self.wfile.write(b"0\r\n\r\n")
                    return
                threading.Event().wait(0.02)

    return Handler


@contextlib.contextmanager
def serving(double: ClusterDouble, folder: Path) -> Iterator[Path]:
    """Serves the double on a free port of the loopback; gives a kubeconfig that leads to it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(double))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    kubeconfig = folder / "kubeconfig"
    cluster = {"server": f"http://127.0.0.1:{server.server_address[1]}"}
    kubeconfig.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "double",
                "clusters": [{"name": "double", "cluster": cluster}],
                "users": [{"name": "double", "user": {}}],
                "contexts": [{"name": "double", "context": {"cluster": "double", "user": "double"}}],
            }
        )
    )
    try:
        yield kubeconfig
    finally:
        server.shutdown()
        server.server_close()
