"""Messages of a Kafka topic, each a JSON object, as the lines of a file.

A day's messages are those that were stamped from an hour before the day begins, up to the end that the topic has when
the copy begins. Which of them are the day's is decided by the time in the message, as for every other source. So a
message that came late belongs to its day, if it came before the day was read.

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
        RetryLaterError where the brokers do not answer.
        """
        since_ms = max(window[0] - CLOCKS_DIFFER_US, 0) // 1000
        with self._consumer() as consumer, ExitStack() as stack:
            begins, ends = self._offsets(consumer, since_ms)
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

        found = consumer.list_topics(self.name, timeout=ANSWER_WITHIN_S).topics[self.name]
        if found.error:
            raise self._explained(found.error)
        begins, ends = [], dict[int, int]()
        for number in sorted(found.partitions):
            low, high = consumer.get_watermark_offsets(TopicPartition(self.name, number), timeout=ANSWER_WITHIN_S)
            if low < high:
                ends[number] = high
                begins.append(TopicPartition(self.name, number, low))
                if low > 0:
                    self._refuse_removed(consumer, begins[-1], since_ms)
        asked = [TopicPartition(self.name, one.partition, since_ms) for one in begins]
        answers = consumer.offsets_for_times(asked, timeout=ANSWER_WITHIN_S) if asked else []
        for begin, answer in zip(begins, answers, strict=True):
            if answer.error:
                raise self._explained(answer.error)
            if answer.offset >= 0:  # else no message is so new, or the broker does not know; then all are looked at
                begin.offset = answer.offset
        return begins, ends

    def _refuse_removed(self, consumer: Consumer, oldest: TopicPartition, since_ms: int) -> None:
        """The oldest message that is left must be older than what is asked for: else some of it may be gone."""
        consumer.assign([oldest])
        first = next(self._messages(consumer, {oldest.partition: oldest.offset + 1}))
        if first.timestamp()[1] >= since_ms:
            raise BadInputError(
                f"{self}: partition {oldest.partition}: messages of this time are removed already; choose a later day,"
                f" or raise retention.ms of the topic and bring them again"
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
            if message.value() and (kind == TIMESTAMP_NOT_AVAILABLE or stamp_ms >= since_ms):
                # One line each: a line break in JSON is between its parts, or it is not JSON.
                line = message.value().replace(b"\n", b" ").replace(b"\r", b" ")
                files[message.partition()].write(line + b"\n")

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
    def _consumer(self) -> Iterator[Consumer]:
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
                    "isolation.level": "read_committed",
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
