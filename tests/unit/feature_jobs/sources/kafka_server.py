"""A server of one topic in Kafka's protocol, for what librdkafka's broker lacks: search by time, markers of
transactions, compaction, removed records, times of the broker.

The bytes follow Kafka's protocol guide: ApiVersions 0, Metadata 1, ListOffsets 2, Fetch 4, DescribeConfigs 1, record
batches of version 2. A fetch gets one batch of each partition.
"""

from __future__ import annotations

import itertools
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

TOPIC = "shop"
_PRODUCE, _FETCH, _LIST_OFFSETS, _METADATA, _API_VERSIONS, _CONFIGS = 0, 1, 2, 3, 18, 32
_VERSIONS = {_PRODUCE: (3, 3), _FETCH: (4, 4), _LIST_OFFSETS: (2, 2), _METADATA: (1, 1), _API_VERSIONS: (0, 0)}
_VERSIONS[_CONFIGS] = (1, 1)
_UNSUPPORTED_VERSION, _UNKNOWN_TOPIC, _OUT_OF_RANGE = 35, 3, 1
_BY_BROKER, _TRANSACTIONAL, _CONTROL = 8, 16, 32
_ABORT, _COMMIT = 0, 1


@dataclass
class Batch:
    """Records of one write: offset, time in ms, key, value."""

    records: list[tuple[int, int, bytes | None, bytes | None]]
    attributes: int = 0
    producer: int = -1
    base: int = field(init=False)
    last: int = field(init=False)

    def __post_init__(self) -> None:
        # Compaction removes records, but a batch keeps its offsets.
        self.base, self.last = self.records[0][0], self.records[-1][0]

    def encoded(self) -> bytes:
        first = self.records[0][1] if self.records else 0
        newest = max((stamp for _, stamp, _, _ in self.records), default=0)
        body = b"".join(self._record(first, *one) for one in self.records)
        head = struct.pack(">hiqqqhii", self.attributes, self.last - self.base, first, newest, self.producer, 0, -1,
                           len(self.records))  # fmt: skip
        # Clients do not look at the checksum unless they are asked to (check.crcs).
        rest = struct.pack(">ibI", 0, 2, 0) + head + body
        return struct.pack(">qi", self.base, len(rest)) + rest

    def _record(self, first: int, offset: int, stamp: int, key: bytes | None, value: bytes | None) -> bytes:
        parts = b"\0" + _varint(stamp - first) + _varint(offset - self.base) + _varbytes(key) + _varbytes(value)
        parts += _varint(0)
        return _varint(len(parts)) + parts


@dataclass
class Partition:
    """A partition's log. Times are in seconds."""

    batches: list[Batch] = field(default_factory=list)
    start: int = 0
    end: int = 0
    open_since: int | None = None
    aborted: list[tuple[int, int]] = field(default_factory=list)

    def add(self, *records: tuple[float, bytes | None], attributes: int = 0, producer: int = -1) -> None:
        """One batch."""
        numbered = [(self.end + i, int(at_s * 1000), None, value) for i, (at_s, value) in enumerate(records)]
        self._append(Batch(numbered, attributes, producer))

    def add_at(self, broker_s: float, *values: bytes) -> None:
        """One batch in a topic with message.timestamp.type=LogAppendTime: all have the time of the broker."""
        self.add(*((broker_s, value) for value in values), attributes=_BY_BROKER)

    def begin(self, producer: int, *records: tuple[float, bytes]) -> None:
        """Records of a transaction that stays open."""
        self.open_since = self.end
        self.add(*records, attributes=_TRANSACTIONAL, producer=producer)

    def close(self, producer: int, at_s: float, commit: bool) -> None:
        """Ends the open transaction with its marker."""
        assert self.open_since is not None
        if not commit:
            self.aborted.append((producer, self.open_since))
        self.open_since = None
        key, value = struct.pack(">hh", 0, _COMMIT if commit else _ABORT), struct.pack(">hi", 0, 0)
        marker = [(self.end, int(at_s * 1000), key, value)]
        self._append(Batch(marker, _TRANSACTIONAL | _CONTROL, producer))

    def compact(self, *offsets: int) -> None:
        """Removes single records, as compaction does; those before and after keep their offsets."""
        for batch in self.batches:
            batch.records = [one for one in batch.records if one[0] not in offsets]

    def remove_until(self, offset: int) -> None:
        """Removes the oldest records, as retention and DeleteRecords do; batches go whole."""
        self.start = offset
        self.batches = [batch for batch in self.batches if batch.last >= offset]

    @property
    def stable(self) -> int:
        """The end for readers of committed records only."""
        return self.end if self.open_since is None else self.open_since

    def offset_at(self, stamp_ms: int, end: int) -> int:
        """As ListOffsets answers: -1 the end, -2 the start, else the first record that is as new."""
        if stamp_ms < 0:
            return end if stamp_ms == -1 else self.start
        records = itertools.chain.from_iterable(batch.records for batch in self.batches)
        found = (offset for offset, stamp, _, _ in records if self.start <= offset < end and stamp >= stamp_ms)
        return next(found, -1)

    def _append(self, batch: Batch) -> None:
        self.batches.append(batch)
        self.end = batch.last + 1


@dataclass
class Server:
    """A broker that is listening; `before_fetch` is called with the number of each fetch before its answer."""

    partitions: Sequence[Partition]
    policy: str = "delete"
    port: int = 0
    before_fetch: Callable[[int], None] = lambda _: None
    num_fetches: int = 0

    @property
    def url(self) -> str:
        return f"kafka://127.0.0.1:{self.port}"

    def answer(self, api: int, version: int, body: _Reader) -> bytes:
        least, most = _VERSIONS[api]
        if api == _API_VERSIONS:
            error = 0 if least <= version <= most else _UNSUPPORTED_VERSION
            listed = [struct.pack(">hhh", one, *versions) for one, versions in sorted(_VERSIONS.items())]
            return struct.pack(">h", error) + _array(listed)
        assert least <= version <= most
        answers = {_METADATA: self._metadata, _LIST_OFFSETS: self._list_offsets, _FETCH: self._fetch}
        return {**answers, _CONFIGS: self._configs}[api](body)

    def _metadata(self, body: _Reader) -> bytes:
        names = [body.text() for _ in range(body.number(">i"))] or [TOPIC]
        topics = []
        for name in names:
            known = name == TOPIC
            parts = [
                struct.pack(">hiiiiii", 0, number, 1, 1, 1, 1, 1) for number in range(len(self.partitions) * known)
            ]
            topics.append(struct.pack(">h", 0 if known else _UNKNOWN_TOPIC) + _text(name) + b"\0" + _array(parts))
        broker = struct.pack(">i", 1) + _text("127.0.0.1") + struct.pack(">ih", self.port, -1)
        return _array([broker]) + struct.pack(">i", 1) + _array(topics)

    def _list_offsets(self, body: _Reader) -> bytes:
        body.number(">i")
        committed = body.number(">b")

        def offset(partition: Partition) -> bytes:
            end = partition.stable if committed else partition.end
            return struct.pack(">hqq", 0, -1, partition.offset_at(body.number(">q"), end))

        return struct.pack(">i", 0) + self._each(body, offset)

    def _fetch(self, body: _Reader) -> bytes:
        self.before_fetch(self.num_fetches)
        self.num_fetches += 1
        _, wait_ms, _, _ = (body.number(">i") for _ in range(4))
        committed = body.number(">b")
        sent = 0

        def records(partition: Partition) -> bytes:
            nonlocal sent
            offset, _ = body.number(">q"), body.number(">i")
            end = partition.stable if committed else partition.end
            is_inside = partition.start <= offset <= partition.end
            found = [batch for batch in partition.batches if batch.last >= offset and batch.base < end]
            data = found[0].encoded() if found and is_inside else b""
            sent += len(data)
            aborted = [struct.pack(">qq", *one) for one in partition.aborted] if committed else []
            error = 0 if is_inside else _OUT_OF_RANGE
            head = struct.pack(">hqq", error, partition.end, partition.stable)
            return head + _array(aborted) + struct.pack(">i", len(data)) + data

        found = self._each(body, records)
        if not sent:
            time.sleep(min(wait_ms, 20) / 1000)
        return struct.pack(">i", 0) + found

    def _configs(self, body: _Reader) -> bytes:
        policy = _text("cleanup.policy") + _text(self.policy) + struct.pack(">bbb", 0, 1, 0) + _array([])
        topic = struct.pack(">hhb", 0, -1, 2) + _text(TOPIC) + _array([policy])
        return struct.pack(">i", 0) + _array([topic])

    def _each(self, body: _Reader, answer: Callable[[Partition], bytes]) -> bytes:
        topics = []
        for _ in range(body.number(">i")):
            name, parts = body.text(), []
            for _ in range(body.number(">i")):
                number = body.number(">i")
                parts.append(struct.pack(">i", number) + answer(self.partitions[number]))
            topics.append(_text(name) + _array(parts))
        return _array(topics)


@contextmanager
def serving(*partitions: Partition, policy: str = "delete") -> Iterator[Server]:
    """A server on this machine; `policy` is the topic's cleanup.policy."""
    server = Server(partitions, policy)

    class Connection(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            with suppress(ConnectionError):
                while size := self.rfile.read(4):
                    body = _Reader(self.rfile.read(struct.unpack(">i", size)[0]))
                    api, version, number = body.number(">h"), body.number(">h"), body.number(">i")
                    body.text()
                    answer = struct.pack(">i", number) + server.answer(api, version, body)
                    self.wfile.write(struct.pack(">i", len(answer)) + answer)

    class Listener(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Listener(("127.0.0.1", 0), Connection) as listener:
        server.port = listener.server_address[1]
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            listener.shutdown()
            thread.join()


@dataclass
class _Reader:
    data: bytes
    place: int = 0

    def number(self, form: str) -> Any:
        (found,) = struct.unpack_from(form, self.data, self.place)
        self.place += struct.calcsize(form)
        return found

    def text(self) -> str:
        size = self.number(">h")
        self.place += max(size, 0)
        return self.data[self.place - max(size, 0) : self.place].decode()


def _text(text: str) -> bytes:
    return struct.pack(">h", len(text)) + text.encode()


def _array(parts: Sequence[bytes]) -> bytes:
    return struct.pack(">i", len(parts)) + b"".join(parts)


def _varbytes(value: bytes | None) -> bytes:
    return _varint(-1) if value is None else _varint(len(value)) + value


def _varint(value: int) -> bytes:
    rest, found = (value << 1) ^ (value >> 63), bytearray()
    while rest > 127:
        found.append(rest & 127 | 128)
        rest >>= 7
    return bytes([*found, rest])
