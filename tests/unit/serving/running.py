"""A real `recloop serve`, in processes of its own."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import requests

from tests.environment import inherited
from tests.unit.serving.shop import Shop
from tests.waiting import awaited, runs


@dataclass
class Running:
    """A server. `log` is what it prints."""

    process: subprocess.Popen[bytes]
    log: Path
    temporary: Path
    url: str = ""
    grpc: str = ""

    @property
    def http(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def infer(self) -> str:
        return f"{self.url}/v2/models/shop/infer"

    @property
    def workers(self) -> list[int]:
        """Processes of the workers that run."""
        children = psutil.Process(self.process.pid).children()
        return [child.pid for child in children if child.status() != psutil.STATUS_ZOMBIE]

    @property
    def metrics(self) -> dict[str, float]:
        """Values by name and labels, as the text has them."""
        lines = requests.get(f"{self.url}/metrics", timeout=5).text.splitlines()
        pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
        return {name: float(value) for name, value in pairs}

    def said(self, pattern: str, times: int = 1) -> list[str]:
        """Waits until it has printed this so often."""
        return awaited(
            lambda: found if len(found := re.findall(pattern, self.log.read_text())) >= times else [],
            60,
            lambda: f"not {times} times {pattern!r}: {self.log.read_text()}",
        )

    def end(self, number: int = signal.SIGTERM) -> int:
        """Ends it by a signal, waits for it and its workers, and returns its exit code."""
        workers = self.workers
        self.process.send_signal(number)
        code = self.process.wait(60)
        awaited(lambda: not any(map(runs, workers)), 30, lambda: f"still there: {workers}")
        return code


@contextlib.contextmanager
def server(shop: Shop, workers: int = 2) -> Iterator[Running]:
    """Serves a shop until the end of the block."""
    folder = shop.file.parent
    (temporary := folder / "tmp").mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tasks", "serve", "-s", str(shop.file), "--store", str(folder / "store")]
    command += ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--workers", str(workers)]
    environment = {**inherited(), "TMPDIR": str(temporary)}
    with (log := folder / "serve.log").open("wb") as stream:
        process = subprocess.Popen(command, stderr=stream, env=environment, cwd=Path(__file__).parents[3])
    running = Running(process, log, temporary)
    try:
        (running.url,), (running.grpc,) = running.said("http=(http://[^ ]+)"), running.said("grpc=([^ \n]+)")
        running.said("serve: (serves|refused)", workers)
        awaited(lambda: _answers(running.url), 20)
        yield running
    finally:
        if process.poll() is None:
            children = psutil.Process(process.pid).children()
            process.kill()
            process.wait()
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()


def _answers(url: str) -> bool:
    with contextlib.suppress(requests.ConnectionError):
        return requests.get(f"{url}/v2/health/live", timeout=5).ok
    return False
