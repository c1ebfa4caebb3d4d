"""Topics of a broker that speaks Kafka's protocol (librdkafka's): the bytes of a file, or an error by name."""

from __future__ import annotations

import datetime
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from feature_jobs.checks.check import check
from feature_jobs.errors import BadInputError, RetryLaterError
from feature_jobs.sources.ingest import ingest_day
from feature_jobs.sources.readers import kafka
from feature_jobs.sources.readers.kafka import CLOCKS_DIFFER_US, KafkaTopic
from tests.unit.feature_jobs.small_source import DAY_S, scenario_in
from tests.unit.feature_jobs.sources.equal_rows import (
    DS,
    EMPTY_DS,
    FILES,
    in_order,
    landed,
    landed_from_files,
    scenario_of,
    tables,
)

SECRET = "geheim-4711"
VARIABLE = "SHOP_KAFKA"
STAMPS = {"events": ("t",), "orders": ("ordered", "came"), "item": ("since",)}


@dataclass(frozen=True)
class Broker:
    """A running broker; its topics have four partitions."""

    producer: Any
    address: str
    names: Iterator[int] = field(default_factory=itertools.count)

    def topic(self, *messages: tuple[bytes | None, int, int]) -> str:
        """A topic with messages: value, time in ms, and partition."""
        name = f"topic-{next(self.names)}"
        for value, at_ms, partition in messages:
            self.producer.produce(name, value, timestamp=at_ms, partition=partition)
        assert self.producer.flush(10) == 0
        return name


@pytest.fixture(scope="module")
def broker() -> Broker:
    producer = Producer({"bootstrap.servers": "", "test.mock.num.brokers": 1, "log_level": 0})
    (one,) = producer.list_topics(timeout=10).brokers.values()
    return Broker(producer, f"{one.host}:{one.port}")


@pytest.fixture(autouse=True)
def _login(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f"kafka://{broker.address}?client.id=tests")
    monkeypatch.setattr(kafka, "SETTINGS_WITHIN_S", 0.01)  # this broker never answers


def as_json(row: dict[str, Any]) -> bytes:
    """A row as a message; what JSON has no form for is text."""
    plain = (int, bool, list, type(None))
    texts = {key: cell if isinstance(cell, plain) else str(cell) for key, cell in row.items()}
    return json.dumps(texts, indent=1, ensure_ascii=False).encode()


def stamped_ms(name: str, row: dict[str, Any]) -> int:
    """The time at which the message of a row was sent: after all of its times, or on the day where it lacks one."""
    times = [row[column] for column in STAMPS[name]]
    at = datetime.datetime(1970, 1, 3, tzinfo=datetime.UTC) if None in times else max(times)
    return int(at * 1000 if isinstance(at, int) else at.timestamp() * 1000)


def test_equal_rows_land_as_equal_bytes(broker: Broker, tmp_path: Path) -> None:
    here = landed_from_files(tmp_path)
    topics = {
        name: broker.topic(
            *((as_json(row), stamped_ms(name, row), 1) for row in in_order(name, table).to_pylist()),
        )
        for name, table in tables().items()
    }

    def place(name: str) -> dict[str, str]:
        return {"format": "kafka", "path": topics[name], "server": VARIABLE}

    there = landed(scenario_of(tmp_path / "s", place), tmp_path / "there")
    assert json.loads(there["counts.json"]) == json.loads(here["counts.json"])
    assert {name: there[name] for name in FILES} == {name: here[name] for name in FILES}
    facts = check(scenario_of(tmp_path / "c", place, {"data.days.first": DS}))
    assert facts["log"] == f"Kafka topic {topics['events']} ({VARIABLE}): read by day"
    with pytest.raises(BadInputError, match=f"no events on {EMPTY_DS} in Kafka topic .* none of the messages"):
        landed(scenario_of(tmp_path / "s", place), tmp_path / "never", EMPTY_DS)


def scenario(folder: Path, topic: str, **changes: Any) -> Any:
    place = {"data.events.format": "kafka", "data.events.path": topic, "data.events.server": VARIABLE}
    return scenario_in(folder, {**place, **changes})


def message(user: int, at_s: int) -> bytes:
    return json.dumps({"user": user, "item": 1, "rating": 3, "t": at_s}).encode()


def test_messages_of_the_window_in_the_order_of_the_partitions(broker: Broker, tmp_path: Path) -> None:
    early_s = DAY_S - CLOCKS_DIFFER_US // 10**6
    topic = broker.topic(
        (message(1, DAY_S), DAY_S * 1000, 2),
        (message(2, DAY_S), DAY_S * 1000, 0),
        (b"not\nJSON", DAY_S * 1000, 0),
        (None, DAY_S * 1000, 0),
        (message(3, DAY_S), early_s * 1000, 0),
        (message(4, DAY_S), early_s * 1000 - 1, 0),
        (message(5, 9 * DAY_S), 9 * DAY_S * 1000, 2),
    )
    target = tmp_path / "copy"
    window = (DAY_S * 10**6, 2 * DAY_S * 10**6)
    for _ in range(2):
        KafkaTopic(topic, VARIABLE).copy_to(target, window)
        lines = target.read_bytes().splitlines()
        wanted = [message(2, DAY_S), b"not JSON", message(3, DAY_S), message(1, DAY_S), message(5, 9 * DAY_S)]
        assert lines == wanted
    assert [file.name for file in tmp_path.iterdir()] == ["copy"]
    counts = ingest_day(scenario(tmp_path / "s", topic), "1970-01-02", tmp_path / "out")
    assert (counts["rows"], counts["undated"]) == (3, 1)
    assert counts["reasons"] == {"line: not a JSON object": 1}


def test_what_a_person_must_change_is_said_without_a_secret(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(topic: str, **changes: Any) -> str:
        with pytest.raises(BadInputError) as caught:
            ingest_day(scenario(tmp_path, topic, **changes), "1970-01-02", tmp_path / "out")
        assert SECRET not in str(caught.value) and "\n" not in str(caught.value)
        return str(caught.value)

    topic = broker.topic((message(1, DAY_S), DAY_S * 1000, 0))
    assert "Kafka topic nothing (SHOP_KAFKA): no such topic there" in refusal("nothing")
    assert "no column 'score'" in refusal(topic, **{"data.events.columns.rating.from": "score"})
    assert "is not the name of a topic" in refusal("a b")
    for url, problem in {
        f"kafka://{broker.address}?no.such.setting={SECRET}": "a setting that the client does not know",
        f"postgresql://user:{SECRET}@host": "is not the URL of Kafka's brokers",
        "": "SHOP_KAFKA: is not set",
    }.items():
        monkeypatch.setenv(VARIABLE, url)
        assert problem in refusal(topic)


def test_brokers_that_are_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f"kafka://127.0.0.1:1?sasl.password={SECRET}")
    monkeypatch.setattr(kafka, "ANSWER_WITHIN_S", 1.0)
    with pytest.raises(RetryLaterError, match="cannot be reached or are busy") as caught:
        ingest_day(scenario(tmp_path, "topic"), "1970-01-02", tmp_path / "out")
    assert SECRET not in str(caught.value)


def test_messages_that_were_removed_refuse_their_day(broker: Broker, tmp_path: Path) -> None:
    """The broker keeps about 5 MB of a partition, and removes the oldest messages."""
    large = [json.dumps({"t": 2 * DAY_S + i, "user": i, "more": "x" * 500_000}).encode() for i in range(30)]
    later = [(value, (2 * DAY_S + i) * 1000, 0) for i, value in enumerate(large)]
    first = (message(1, DAY_S), DAY_S * 1000, 0)
    with pytest.raises(BadInputError, match="partition 0: messages of this time are removed already"):
        ingest_day(scenario(tmp_path, broker.topic(first, *later)), "1970-01-02", tmp_path / "out")
    assert ingest_day(scenario(tmp_path, broker.topic(first)), "1970-01-02", tmp_path / "whole")["rows"] == 1
