"""Curves over a day's training: loss, learning rate and samples/s, in a bounded number of points."""

from __future__ import annotations

import time
from dataclasses import dataclass

MAX_POINTS = 256


@dataclass(frozen=True)
class _Point:
    """Some batches, one after another. `loss` is summed over their rows."""

    batches: int = 0
    rows: int = 0
    loss: float = 0.0
    seconds: float = 0.0

    def and_then(self, other: _Point) -> _Point:
        return _Point(
            self.batches + other.batches,
            self.rows + other.rows,
            self.loss + other.loss,
            self.seconds + other.seconds,
        )


class Series:
    """Collects a point per batch. When there are too many, neighbours are joined, and later points hold more batches.

    Its values are reported, never written to a file of the output: speed differs from run to run.
    """

    def __init__(self, learning_rate: float) -> None:
        self._learning_rate = learning_rate
        self._batches_per_point = 1
        self._points: list[_Point] = [_Point()]
        self.start_clock()

    def start_clock(self) -> None:
        """The next batch begins now."""
        self._clock = time.perf_counter()

    def add(self, num_rows: int, loss: float) -> None:
        """A batch was learned."""
        batch = _Point(1, num_rows, loss * num_rows, time.perf_counter() - self._clock)
        if self._points[-1].batches < self._batches_per_point:
            self._points[-1] = self._points[-1].and_then(batch)
        else:
            self._points.append(batch)
        if len(self._points) > MAX_POINTS:
            # An odd number of points: the last one is joined with an empty one.
            halves = zip(self._points[::2], [*self._points[1::2], _Point()], strict=True)
            self._points = [left.and_then(right) for left, right in halves]
            self._batches_per_point *= 2
        self.start_clock()

    def report(self) -> dict[str, list[list[float]]]:
        """Name → [[rows learned so far, value], …]."""
        series: dict[str, list[list[float]]] = {"loss": [], "learning_rate": [], "samples_per_s": []}
        rows = 0
        for point in self._points if self._points[0].rows else ():
            rows += point.rows
            series["loss"].append([rows, round(point.loss / point.rows, 6)])
            series["learning_rate"].append([rows, self._learning_rate])
            series["samples_per_s"].append([rows, round(point.rows / max(point.seconds, 1e-9))])
        return {f"training/{name}": points for name, points in series.items()}
