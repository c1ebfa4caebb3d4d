"""Logs of a Kafka topic as real brokers have them: transactions, gaps, removed records, times out of order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from feature_jobs.errors import BadInputError, RetryLaterError
from feature_jobs.sources.readers import kafka
from feature_jobs.sources.readers.kafka import KafkaTopic
from tests.unit.feature_jobs.sources.kafka_server import TOPIC, Partition, serving

VARIABLE = "SHOP_KAFKA"
DAY = 1_700_006_400  # 2023-11-15 00:00 UTC, in seconds
WINDOW = (DAY * 10**6, (DAY + 86_400) * 10**6)
LONG_AGO = DAY - 90_000
PRODUCER = 7


def lines(
    folder: Path, monkeypatch: pytest.MonkeyPatch, partitions: Sequence[Partition], *, policy: str = "delete"
) -> list[bytes]:
    """The lines that a day brings, which are the same when it is read again."""
    with serving(*partitions, policy=policy) as server:
        monkeypatch.setenv(VARIABLE, server.url)
        target = folder / "copy"
        found = []
        for _ in range(2):
            KafkaTopic(TOPIC, VARIABLE).copy_to(target, WINDOW)
            found.append(target.read_bytes().splitlines())
    assert found[0] == found[1]
    return found[0]


def log(*records: tuple[float, bytes | None]) -> Partition:
    """A partition with a batch for each record."""
    made = Partition()
    for record in records:
        made.add(record)
    return made


def with_transaction(end: str, at_s: float = DAY + 2, before: tuple[tuple[float, bytes], ...] = ()) -> Partition:
    """A partition: `before`, two records of a transaction, and one behind it."""
    made = log(*before)
    made.begin(PRODUCER, (at_s, b"x"), (at_s + 1, b"y"))
    if end != "open":
        made.close(PRODUCER, at_s + 2, commit=end == "commit")
    made.add((DAY + 5, b"behind"))
    return made


def without_first(made: Partition, start: int) -> Partition:
    """A partition whose records before an offset were removed."""
    made.remove_until(start)
    return made


def compacted(made: Partition, *offsets: int) -> Partition:
    """A partition that has lost some records within its batches."""
    made.compact(*offsets)
    return made


def by_broker() -> Partition:
    made = Partition()
    made.add_at(DAY + 5, b"a", b"b")
    return made


OLD = (LONG_AGO, b"old")
IN_DAY = (DAY + 1, b"in")
BROUGHT: dict[str, tuple[list[Partition], list[bytes]]] = {
    "nothing, and an empty partition": ([Partition(), Partition()], []),
    "partitions in order": ([log(IN_DAY), Partition(), log((DAY + 90_000, b"later"))], [b"in", b"later"]),
    "the hour before": ([log(OLD, (DAY - 3601, b"no"), (DAY - 3600, b"hour"), IN_DAY)], [b"hour", b"in"]),
    "stamps out of order": (
        [log(OLD, (DAY + 9, b"nine"), (LONG_AGO, b"no"), (DAY + 3, b"three"))],
        [b"nine", b"three"],
    ),
    "times of the broker": ([by_broker()], [b"a", b"b"]),
    "a committed transaction": ([with_transaction("commit")], [b"x", b"y", b"behind"]),
    "an aborted transaction": ([with_transaction("abort")], [b"behind"]),
    "a transaction after the day that is open": ([with_transaction("open", DAY + 90_000, (IN_DAY,))], [b"in"]),
    "gaps at both ends": ([compacted(log(OLD, IN_DAY, (DAY + 2, b"gone")), 0, 2)], [b"in"]),
    "older ones removed": ([without_first(log(OLD, OLD, IN_DAY), 1)], [b"in"]),
    "a start without a record": ([without_first(compacted(log(OLD, OLD, OLD, IN_DAY), 1), 1)], [b"in"]),
    "a start at a marker": ([without_first(with_transaction("commit", LONG_AGO, (OLD, OLD)), 1)], [b"behind"]),
    "another partition without any": (
        [without_first(log(OLD), 1), without_first(log(OLD, OLD, IN_DAY), 1)],
        [b"in"],
    ),
    "a message of no bytes, and a deletion": (
        [log((DAY, b""), (DAY, None), (DAY, b" \n"), IN_DAY)],
        [b'""', b'""', b"in"],
    ),
}


@pytest.mark.parametrize("name", BROUGHT)
def test_what_a_day_brings(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partitions, wanted = BROUGHT[name]
    assert lines(tmp_path, monkeypatch, partitions) == wanted


REMOVED = {
    "the oldest that is left is of the day": [without_first(log(OLD, IN_DAY), 1)],
    "a marker, then one of the day": [without_first(with_transaction("commit", LONG_AGO), 2)],
    "an aborted transaction, then one of the day": [without_first(with_transaction("abort", LONG_AGO, (OLD,)), 1)],
    "a marker alone": [without_first(with_transaction("commit", LONG_AGO), 4)],
    "one partition has none, and no other has lost any": [without_first(log(OLD), 1), log(IN_DAY)],
}


@pytest.mark.parametrize("name", REMOVED)
def test_messages_that_may_have_been_removed_refuse_the_day(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInputError, match="partition 0: messages of this time are removed already"):
        lines(tmp_path, monkeypatch, REMOVED[name])


@pytest.mark.parametrize("before", [(), (IN_DAY,)])
def test_an_open_transaction_hides_messages_of_the_day(
    before: tuple[tuple[float, bytes], ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RetryLaterError, match=f"partition 0: a transaction .* is open since offset {len(before)}"):
        lines(tmp_path, monkeypatch, [with_transaction("open", before=before)])


def test_a_compacted_topic_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInputError, match=r"is compacted \(cleanup\.policy: compact,delete\)"):
        lines(tmp_path, monkeypatch, [log(IN_DAY)], policy="compact,delete")


def test_a_broker_that_goes_away_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka, "ANSWER_WITHIN_S", 1.0)

    def fail(number: int) -> None:
        if number > 2:
            raise ConnectionResetError

    with serving(log(*((DAY + i, b"x" * 100_000) for i in range(20)))) as server:
        server.before_fetch = fail
        monkeypatch.setenv(VARIABLE, server.url)
        with pytest.raises(RetryLaterError, match="cannot be reached or are busy"):
            KafkaTopic(TOPIC, VARIABLE).copy_to(tmp_path / "copy", WINDOW)
    assert not (tmp_path / "copy").exists()
