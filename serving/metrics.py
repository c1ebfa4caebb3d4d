"""Measures for Prometheus, of all workers together.

The server gives its workers a folder (PROMETHEUS_MULTIPROC_DIR) and each a slot in it: files carry the slot and not the
process, so that counts go on when a worker is started again, and their number stays small.
"""

from __future__ import annotations

import datetime
import functools
import os
import time
from typing import TYPE_CHECKING, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess, values

from serving.protocol import Answer

if TYPE_CHECKING:
    from serving.release import Loaded

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_Mode = Literal["livesum", "livemin", "livemax"]
_SECONDS = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 3e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0)
_SCORES = tuple(n / 20 for n in range(1, 20))


def use_slot(slot: int) -> None:
    """Lets this process measure as the worker of a slot."""
    values.ValueClass = values.MultiProcessValue(lambda: slot)


def free_slot(slot: int, folder: str) -> None:
    """Removes what held only as long as the worker of the slot ran."""
    multiprocess.mark_process_dead(slot, folder)


class Metrics:
    """The measures of a worker."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"recloop_{name}", text, labels, registry=self._registry)

        def gauge(name: str, text: str, mode: _Mode, *labels: str) -> Gauge:
            return Gauge(f"recloop_{name}", text, labels, registry=self._registry, multiprocess_mode=mode)

        self._requests = counter(
            "requests",
            "Requests by version, the way they came, and status.",
            "version",
            "way",
            "code",
        )
        self.in_flight = gauge("in_flight", "Requests that wait or are computed.", "livesum")
        self._swaps = counter("swaps", "Releases that came: now they serve, or they were refused.", "outcome")
        self.alarm = gauge("alarm", "1 while the version or the state that should serve does not.", "livemax")
        self._items = counter("items", "Items that were scored.", "version")
        self._unknown = counter("unknown", "Users and items that no row of their entity has.", "version", "kind")
        self._seconds = Histogram(
            "recloop_stage_seconds", "Seconds of a request: read, features, score, write, and all.",
            ("version", "stage"), registry=self._registry, buckets=_SECONDS,
        )  # fmt: skip
        self._scores = Histogram(
            "recloop_scores", "Scores by task: of each request one, in turn.", ("version", "task"),
            registry=self._registry, buckets=_SCORES,
        )  # fmt: skip
        self._serving = gauge("serving", "Workers that a version serves in.", "livesum", "version")
        # The oldest of all workers: an age is `time() - value`.
        self._learned = gauge("learned_until_seconds", "Time up to which the version has learned.", "livemin")
        self._features = gauge("features_from_seconds", "Time of the state that features come from.", "livemin")
        self._swapped = gauge("swapped_at_seconds", "Time of the last swap.", "livemin")
        self._count, self._version = 0, ""
        # To find a series by its labels takes longer than to add to it.
        self._requests_of = functools.cache(self._requests.labels)
        self._seconds_of = functools.cache(self._seconds.labels)
        self._items_of = functools.cache(self._items.labels)
        self._scores_of = functools.cache(self._scores.labels)

    def refused(self) -> None:
        """A release came that does not serve."""
        self._swaps.labels("refused").inc()
        self.alarm.set(1)

    def swapped(self, loaded: Loaded, *, alarm: bool) -> None:
        """Another release serves now; `alarm`: it is not the newest one."""
        if self._version:
            self._serving.labels(self._version).set(0)
            for series in (self._requests_of, self._seconds_of, self._items_of, self._scores_of):
                series.cache_clear()
        self._version = loaded.facts.version
        self._serving.labels(self._version).set(1)
        day = datetime.datetime.fromisoformat(loaded.facts.ds).replace(tzinfo=datetime.UTC)
        self._learned.set((day + datetime.timedelta(days=1)).timestamp())
        self._features.set(loaded.begin.timestamp())
        self._swapped.set(time.time())
        self._swaps.labels("serves").inc()
        self.alarm.set(alarm)

    def ended(self, version: str, way: str, status: int) -> None:
        """A request has ended, with a status of HTTP."""
        self._requests_of(version, way, str(status)).inc()

    def answered(self, answer: Answer, times: list[float], num_items: int) -> None:
        """A request was answered. `times` are when it began, was read, was answered and was written, in s."""
        begun, read, scored, written = times
        stages = {"read": read - begun, **answer.seconds, "write": written - scored, "all": written - begun}
        for stage, seconds in stages.items():
            self._seconds_of(answer.version, stage).observe(seconds)
        self._items_of(answer.version).inc(num_items)
        for kind, num in answer.unknown.items():
            if num:
                self._unknown.labels(answer.version, kind).inc(num)
        self._count += 1
        for task, scores in answer.outputs.items():
            if len(scores) and not hasattr(scores, "to_pylist"):
                self._scores_of(answer.version, task).observe(float(scores[self._count % len(scores)]))

    def text(self) -> bytes:
        """All of them in the format of Prometheus."""
        if FOLDER not in os.environ:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)
        return generate_latest(registry)
