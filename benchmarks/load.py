"""A load generator over HTTP/1.1, in a process of its own: closed loop, or open loop at a rate.

    python -m benchmarks.load HOST:PORT BODIES --connections 16 --seconds 10 [--rate 1000]

BODIES is a folder of whole requests, one a file, which are sent by turns. Closed loop: each connection sends when its
answer has come. Open loop: requests are due at equal distances, whatever the server does, and the latency counts from
the time at which a request was due. The last line is a JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import time
from collections import Counter, deque
from pathlib import Path
from typing import cast

import numpy as np
import uvloop


class _Connection(asyncio.Protocol):
    """One connection, which has one request open at a time."""

    def __init__(self, load: _Load) -> None:
        self._load, self._received, self._wanted, self._due = load, bytearray(), 0, 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self._transport = cast(asyncio.Transport, transport)
        self._load.idle.append(self)
        self._load.start()

    def send(self, request: bytes, due: float) -> None:
        """Sends a request that was due at this time."""
        self._due = due
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        self._received += data
        if not self._wanted:
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self._received[:end]).lower()
            self._wanted = end + 4 + int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(self._received) >= self._wanted:
            status = int(self._received[9:12])
            del self._received[: self._wanted]
            self._wanted = 0
            self._load.answered(self, status, time.perf_counter() - self._due)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._load.lost(self)


class _Load:
    """All connections, and what came of their requests."""

    def __init__(self, requests: list[bytes], rate: float) -> None:
        self._requests, self._rate = itertools.cycle(requests), rate
        self.idle: deque[_Connection] = deque()
        self._due: deque[float] = deque()
        self.statuses: Counter[int] = Counter()
        self.latencies: list[tuple[float, float]] = []
        self.num_lost, self.running = 0, False

    async def run(self, seconds: float) -> None:
        """Sends requests for so long, and waits for the answers."""
        self.running, begun = True, time.perf_counter()
        if not self._rate:
            self.start()
            await asyncio.sleep(seconds)
        for number in range(int(self._rate * seconds)):
            due = begun + number / self._rate
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            self._due.append(due)
            self.start()
        self.running = False
        await asyncio.sleep(1.0)

    def start(self) -> None:
        """Gives requests to connections that have none open."""
        if self._rate:
            while self._due and self.idle:
                self.idle.popleft().send(next(self._requests), self._due.popleft())
        elif self.running:
            while self.idle:
                self.idle.popleft().send(next(self._requests), time.perf_counter())

    def answered(self, connection: _Connection, status: int, seconds: float) -> None:
        """Takes an answer."""
        self.statuses[status] += 1
        self.latencies.append((time.perf_counter(), seconds))
        self.idle.append(connection)
        self.start()

    def lost(self, connection: _Connection) -> None:
        """Takes the end of a connection."""
        self.num_lost += self.running
        if connection in self.idle:
            self.idle.remove(connection)


async def _measured(
    address: str, requests: list[bytes], connections: int, seconds: float, rate: float
) -> dict[str, object]:
    host, _, port = address.rpartition(":")
    load, loop = _Load(requests, rate), asyncio.get_running_loop()
    for _ in range(connections):
        await loop.create_connection(lambda: _Connection(load), host, int(port))
    began, cpu = time.perf_counter(), time.process_time()
    await load.run(seconds)
    times = np.array([latency for at, latency in load.latencies if at - began <= seconds])
    return {
        "rate": rate or None,
        "connections": connections,
        "answers_per_s": round(len(times) / seconds, 1),
        "statuses": {str(status): num for status, num in sorted(load.statuses.items())},
        "lost": load.num_lost,
        "latency_ms": {f"p{q:g}": round(float(np.percentile(times, q)) * 1e3, 3) for q in (50, 90, 99, 99.9)}
        if len(times)
        else {},
        "generator_cpu_us": round((time.process_time() - cpu) / max(len(load.latencies), 1) * 1e6, 1),
    }


def main() -> None:
    """Runs the load and prints what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address", metavar="HOST:PORT")
    parser.add_argument("bodies", type=Path)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=0.0)
    args = parser.parse_args()
    requests = [file.read_bytes() for file in sorted(args.bodies.iterdir())]
    found = uvloop.run(_measured(args.address, requests, args.connections, args.seconds, args.rate))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
