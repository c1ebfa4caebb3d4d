"""Messages of a Kafka topic, each a JSON object, as the lines of a file.

A day's messages are those that were stamped from an hour before the day begins, up to the end that the topic has when
the copy begins. Which of them are the day's is decided by the time in the message, as for every other source. So a
message that came late belongs to its day, if it came before the day was read. Of a transaction the messages count once
it is committed: while one of the day is open, nothing behind it can be read.

The lines are in the order of partition and offset, whatever the order in which the brokers send them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

from feature_jobs.errors import BadInputError, RecloopError, RetryLaterError

if TYPE_CHECKING:
    from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

CLOCKS_DIFFER_US = 3_600_000_000
"""A message may be stamped that much before the time in it, by a clock that is behind."""
ANSWER_WITHIN_S = 30.0
SETTINGS_WITHIN_S = 5.0
"""Brokers that do not know the question do not answer it."""
_MESSAGES_AT_ONCE = 10_000
_PERSON = ("AUTHENTICATION", "AUTHORIZATION", "SSL", "SASL", "INVALID_ARG", "UNSUPPORTED")


@dataclass(frozen=True)
class KafkaTopic:
    """A topic by its name. `variable` names the environment variable with the brokers."""

    name: str
    variable: str

    def __str__(self) -> str:
        return f"Kafka topic {self.name} ({self.variable})"

    def copy_to(self, target: Path, window: tuple[int, int]) -> None:
        """Writes the messages for a window of time (µs since 1970 UTC) as JSON lines.

        Raises BadInputError where a person must change something, or where messages of the window were removed already;
        RetryLaterError where the brokers do not answer, or where a transaction of the window is open.
        """
        since_ms = max(window[0] - CLOCKS_DIFFER_US, 0) // 1000
        with self._consumer() as consumer, ExitStack() as stack:
            self._refuse_open(consumer, window[1] // 1000)
            begins, ends = self._offsets(consumer, since_ms)
            self._refuse_compacted()
            parts = {number: target.with_name(f"{target.name}-{number}") for number in ends}
            files = {number: stack.enter_context(part.open("wb")) for number, part in parts.items()}
            self._copy(consumer, begins, ends, files, since_ms)
        with target.open("wb") as whole:
            for _, part in sorted(parts.items()):
                with part.open("rb") as file:
                    while block := file.read(1 << 20):
                        whole.write(block)
                part.unlink()

    def _offsets(self, consumer: Consumer, since_ms: int) -> tuple[list[TopicPartition], dict[int, int]]:
        """The first offset to read of each partition that has messages, and the end of each of them."""
        from confluent_kafka import TopicPartition

        begins, ends, lows = [], dict[int, int](), dict[int, int]()
        for number in self._partitions(consumer):
            lows[number], high = self._watermarks(consumer, number)
            if lows[number] < high:
                ends[number] = high
                begins.append(TopicPartition(self.name, number, lows[number]))
        self._refuse_removed(consumer, {number: low for number, low in lows.items() if low > 0}, ends, since_ms)
        asked = [TopicPartition(self.name, one.partition, since_ms) for one in begins]
        answers = consumer.offsets_for_times(asked, timeout=ANSWER_WITHIN_S) if asked else []
        for begin, answer in zip(begins, answers, strict=True):
            if answer.error:
                raise self._explained(answer.error)
            if answer.offset >= 0:  # else no message is so new, or the broker does not know; then all are looked at
                begin.offset = answer.offset
        return begins, ends

    def _partitions(self, consumer: Consumer) -> list[int]:
        found = consumer.list_topics(self.name, timeout=ANSWER_WITHIN_S).topics[self.name]
        if found.error:
            raise self._explained(found.error)
        return sorted(found.partitions)

    def _watermarks(self, consumer: Consumer, number: int) -> tuple[int, int]:
        """The first offset of a partition, and the end of what the consumer may read."""
        from confluent_kafka import TopicPartition

        low, high = consumer.get_watermark_offsets(TopicPartition(self.name, number), timeout=ANSWER_WITHIN_S)
        return low, high

    def _first(self, consumer: Consumer, number: int, offset: int, end: int) -> Message | None:
        """The first message from an offset on. There may be none: markers of transactions and what compaction has
        removed have offsets too."""
        from confluent_kafka import TopicPartition

        if offset >= end:
            return None
        consumer.assign([TopicPartition(self.name, number, offset)])
        return next(self._messages(consumer, {number: end}), None)

    def _refuse_removed(
        self, consumer: Consumer, lows: Mapping[int, int], ends: Mapping[int, int], since_ms: int
    ) -> None:
        """Of a partition that begins at a later offset than 0, the oldest message that is left must be older than what
        is asked for: else some of it may be gone. One without messages is judged by the others."""
        oldest = {number: self._first(consumer, number, low, ends.get(number, low)) for number, low in lows.items()}
        stamps = {number: first.timestamp()[1] for number, first in oldest.items() if first}
        lost = [number for number, stamp_ms in stamps.items() if stamp_ms >= since_ms]
        if not stamps:
            lost = list(lows)
        if lost:
            raise BadInputError(
                f"{self}: partition {lost[0]}: messages of this time are removed already; choose a later day, or raise"
                f" retention.ms of the topic and bring them again"
            )

    def _refuse_open(self, consumer: Consumer, until_ms: int) -> None:
        """No transaction that began in the window, or before it, may be open."""
        with self._consumer("read_uncommitted") as every:
            for number in self._partitions(every):
                _, high = self._watermarks(every, number)  # first: what is committed meanwhile is not open
                _, end = self._watermarks(consumer, number)
                first = self._first(every, number, end, high)
                if first and first.timestamp()[1] < until_ms:
                    raise RetryLaterError(
                        f"{self}: partition {number}: a transaction of this time is open since offset {end}, and no"
                        f" message behind it can be read; try again when it is committed or aborted, and see to its"
                        f" producer if this repeats"
                    )

    def _refuse_compacted(self) -> None:
        """A compacted topic has lost events, and what was known of an entity before its newest message."""
        from confluent_kafka import KafkaException
        from confluent_kafka.admin import AdminClient, ConfigResource

        topic = ConfigResource(ConfigResource.Type.TOPIC, self.name)
        try:
            admin = AdminClient({**_settings(self.variable), "log_level": 0})
            settings = admin.describe_configs([topic], request_timeout=SETTINGS_WITHIN_S)[topic].result()
        except KafkaException:  # not allowed to ask, or not answered: what is wrong is said by what follows
            return
        policy = settings["cleanup.policy"].value if "cleanup.policy" in settings else ""
        if "compact" in policy:
            raise BadInputError(
                f"{self}: is compacted (cleanup.policy: {policy}): it keeps only the newest message of each key, and a"
                f" day would have other rows tomorrow; choose a topic with cleanup.policy: delete"
            )

    def _copy(
        self,
        consumer: Consumer,
        begins: Sequence[TopicPartition],
        ends: dict[int, int],
        files: Mapping[int, IO[bytes]],
        since_ms: int,
    ) -> None:
        from confluent_kafka import TIMESTAMP_NOT_AVAILABLE

        consumer.assign(begins)
        for message in self._messages(consumer, dict(ends)):
            kind, stamp_ms = message.timestamp()
            if message.value() is not None and (kind == TIMESTAMP_NOT_AVAILABLE or stamp_ms >= since_ms):
                # One line each: a line break in JSON is between its parts, or it is not JSON.
                line = message.value().replace(b"\n", b" ").replace(b"\r", b" ")
                # A blank line would count as nothing.
                files[message.partition()].write((line if line.strip() else b'""') + b"\n")

    def _messages(self, consumer: Consumer, ends: dict[int, int]) -> Iterator[Message]:
        """The messages of the assigned partitions before `ends`, which it empties."""
        from confluent_kafka import KafkaError

        until = time.monotonic() + ANSWER_WITHIN_S
        while ends:
            for message in consumer.consume(_MESSAGES_AT_ONCE, timeout=0.2):
                until = time.monotonic() + ANSWER_WITHIN_S
                number, end = message.partition(), ends.get(message.partition())
                if message.error() and message.error().code() != KafkaError._PARTITION_EOF:
                    raise self._explained(message.error())
                if end is None:
                    continue
                if (
                    message.error() or message.offset() >= end - 1
                ):  # the last one may be missing: transactions, compaction
                    del ends[number]
                if not message.error() and message.offset() < end:
                    yield message
            if ends and time.monotonic() > until:
                raise self._away()

    @contextmanager
    def _consumer(self, isolation: str = "read_committed") -> Iterator[Consumer]:
        from confluent_kafka import Consumer, KafkaException

        given = _settings(self.variable)
        try:
            consumer = Consumer(
                {
                    **given,
                    # It is in no group: it commits nothing, and no other consumer gets fewer messages.
                    "group.id": "recloop",
                    "enable.auto.commit": False,
                    "enable.partition.eof": True,
                    "isolation.level": isolation,
                    "log_level": 0,
                }
            )
        except KafkaException:
            raise BadInputError(f"{self.variable}: holds a setting that the client does not know; correct it") from None
        try:
            yield consumer
        except KafkaException as error:
            raise self._explained(error.args[0]) from None
        finally:
            with suppress(KafkaException):
                consumer.close()

    def _explained(self, error: KafkaError) -> RecloopError:
        """The error without the client's text, which can hold addresses and names of users."""
        name = error.name()
        if name in ("UNKNOWN_TOPIC_OR_PART", "_UNKNOWN_TOPIC", "TOPIC_EXCEPTION"):
            return BadInputError(f"{self}: no such topic there; correct the path, or create the topic")
        if any(part in name for part in _PERSON):
            return BadInputError(
                f"{self}: the brokers refuse access ({name}); correct {self.variable}, or allow it there"
            )
        return self._away(f" ({name})")

    def _away(self, said: str = "") -> RetryLaterError:
        return RetryLaterError(
            f"{self}: the brokers of {self.variable} cannot be reached or are busy{said}; try again later, and check"
            f" their addresses and the network if this repeats"
        )


def _settings(variable: str) -> dict[str, str]:
    """The client's settings out of kafka://HOST:PORT,HOST:PORT?NAME=VALUE&NAME=VALUE."""
    url = os.environ.get(variable, "")
    parts = urlsplit(url)
    if parts.scheme != "kafka" or not parts.netloc or parts.path.strip("/"):
        what = "is not the URL of Kafka's brokers" if url else "is not set"
        raise BadInputError(
            f"{variable}: {what}; set it to kafka://HOST:PORT,HOST:PORT, and other settings behind ?, such as"
            f" ?security.protocol=SASL_SSL"
        )
    return {**dict(parse_qsl(parts.query)), "bootstrap.servers": parts.netloc}
