"""A small log with two entities, as ingest would have written it, and the scenario that joins it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq

from feature_jobs.joins.join import join_day
from feature_jobs.joins.outcomes import days_maturing, days_of_outcomes
from feature_jobs.joins.summaries import days_of_entities, days_of_windows, days_to_merge, days_to_read_again
from feature_jobs.joins.summarize import summarize_day
from feature_jobs.schema import Scenario
from feature_jobs.windows import keys, stretches
from feature_jobs.windows.query import Answers, InThisProcess, answers
from tests.unit.feature_jobs.small_source import DAY_S

US = 1_000_000
DS = "1970-01-04"
DELAY_S = 3600
RATED = "rating >= 4"

CHANGES: dict[str, Any] = {
    "data.events.columns.rating": {"type": "float"},
    "data.events.columns.tag": {"type": "string"},
    "data.entities": {
        "who": {
            "path": "who.csv",
            "format": "csv",
            "key": "user",
            "columns": {"user": {"type": "int"}, "group": {"type": "string"}, "seen": {"type": "list[int]"}},
        },
        "state": {
            "path": "state.csv",
            "format": "csv",
            "key": "user",
            "time": {"column": "since"},
            "columns": {"user": {"type": "int"}, "since": {"type": "int"}, "level": {"type": "int"}},
        },
    },
    "join": {"lookback_days": 2, "label_delay_s": DELAY_S},
    "features": {
        "user": {"kind": "id"},
        "group": {"kind": "id", "of": "who.group"},
        "level": {"kind": "number", "of": "state.level", "scale": "none"},
        "group_item": {"kind": "cross", "of": ["who.group", "item"]},
        "user_events": {"kind": "count", "by": ["user"]},
        "user_item_day": {"kind": "count", "by": ["user", "item"], "window_days": 1},
        "tagged": {"kind": "count", "by": ["item"], "where": "tag == 'a'"},
        "level_events": {"kind": "count", "by": ["state.level"]},
        "user_liked": {"kind": "count", "by": ["user"], "where": RATED},
        "group_rate": {"kind": "rate", "by": ["who.group"], "of": RATED, "prior": 0.25, "prior_weight": 2},
        "item_seen": {"kind": "recency", "by": ["item"]},
        "item_liked": {"kind": "recency", "by": ["item"], "where": RATED},
        "last": {"kind": "sequence", "of": "item", "by": "user", "length": 3},
        "tags": {"kind": "sequence", "of": "tag", "by": "item", "length": 2},
        "liked": {"kind": "sequence", "of": "item", "by": "user", "where": RATED, "length": 3, "history": "who.seen"},
    },
    "evaluate": {"segments": {"known": "user_events >= 1 and who.group == 'x'", "rare": "tagged < 1"}},
}


@dataclass
class Event:
    time_s: int
    user: int
    item: int
    rating: float | None
    tag: str | None
    level: int | None = field(default=None)


def folder_of(root: Path, ds: str, events: list[Event], entities: dict[str, pa.Table] | None = None) -> Path:
    """Writes the folder of a day as ingest would have written it."""
    folder = root / ds / "events"
    (folder / "entities").mkdir(parents=True, exist_ok=True)
    times = pa.array([e.time_s * US for e in events], pa.int64())
    columns = {
        "user": pa.array([e.user for e in events], pa.int64()),
        "item": pa.array([e.item for e in events], pa.int64()),
        "rating": pa.array([e.rating for e in events], pa.float64()),
        "t": pa.array([e.time_s for e in events], pa.int64()),
        "tag": pa.array([e.tag for e in events], pa.string()),
        "key.event_time": times,
        "key.event_row": pa.array(range(len(events)), pa.int64()),
    }
    pq.write_table(pa.table(columns), folder / "events.parquet", row_group_size=5)
    for name, table in (entities or entities_of()).items():
        pq.write_table(table, folder / "entities" / f"{name}.parquet")
    return folder


WHO = {1: ("x", [1, 2]), 2: ("y", [3, 1, 2, 3]), 3: (None, None)}


def entities_of(
    states: list[tuple[int, int]] | None = None, rows: list[tuple[int, int, int]] | None = None
) -> dict[str, pa.Table]:
    rows = sorted(rows or [])
    return {
        "who": pa.table(
            {
                "user": pa.array(list(WHO), pa.int64()),
                "group": pa.array([g for g, _ in WHO.values()], pa.string()),
                "seen": pa.array([s for _, s in WHO.values()], pa.list_(pa.int64())),
            }
        ),
        "state": pa.table(
            {
                "user": pa.array([u for u, _, _ in rows], pa.int64()),
                "since": pa.array([t for _, t, _ in rows], pa.int64()),
                "level": pa.array([v for _, _, v in rows], pa.int64()),
                "key.valid_from": pa.array([t * US for _, t, _ in rows], pa.int64()),
            }
        ),
    }


def two_days(root: Path, **kwargs: Any) -> tuple[Path, dict[str, Path]]:
    past = [Event(2 * DAY_S + i * 600, 1 + i % 3, 1 + i % 2, float(3 + i % 3), "a") for i in range(100)]
    today = [Event(3 * DAY_S + i * 600, 1 + i % 3, 1 + i % 2, float(3 + i % 3), "a") for i in range(100)]
    entities = entities_of(rows=[(1, 2 * DAY_S, 1), (1, 3 * DAY_S + 1200, 2)])
    return folder_of(root, DS, today, entities), {"1970-01-03": folder_of(root, "1970-01-03", past)}


@contextlib.contextmanager
def some_rows_at_once(rows: int) -> Iterator[None]:
    """Computes so many rows at a time, as if the day were larger than the memory."""
    with patch.object(stretches, "ROWS_AT_ONCE", rows), patch.object(keys, "_ROWS_TO_SORT", rows):
        yield


def _a_tenth(events: Path) -> int:
    return max(pq.read_metadata(events / "events.parquet").num_rows // 10, 3)


class Carried:
    """Days summarized one after the other, each from the day before, and joined. A day is given only the outputs and
    events that it chooses, and its files have the same bytes made at once and a few rows at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.outputs: dict[str, Path] = {}
        self.read_again: list[str] = []

    def reader(self, ds: str) -> Callable[[str], bytes | None]:
        """Reads files of a day's summaries."""
        return lambda name: (self.outputs[ds] / name).read_bytes()

    def add(self, scenario: Scenario, ds: str, events: Path, folders: Mapping[str, Path] | None = None) -> None:
        """Adds a day. `folders` are the events of earlier days."""
        before = max(self.outputs, default=None)
        merged, again, carried = (
            choose(scenario, ds, self.reader(before)) if before else []
            for choose in (days_to_merge, days_to_read_again, days_of_entities)
        )
        self.read_again += [ds] if again else []

        def summarize(output: Path) -> dict[Path, bytes]:
            summarize_day(
                scenario,
                ds,
                events,
                yesterday=self.outputs[before] if before else None,
                past={day: self.outputs[day] for day in merged},
                past_events={day: (folders or {})[day] for day in again},
                carried={day: self.outputs[day] for day in carried},
                output=output,
            )
            return {file.relative_to(output): file.read_bytes() for file in output.rglob("*") if file.is_file()}

        with some_rows_at_once(4 * _a_tenth(events)), TemporaryDirectory() as name:
            in_parts = summarize(Path(name))
        self.outputs[ds] = self.root / "summaries" / ds
        assert summarize(self.outputs[ds]) == in_parts

    def samples(
        self,
        scenario: Scenario,
        ds: str,
        events: Path,
        folders: Mapping[str, Path] | None = None,
        how: Answers = answers,
    ) -> Path:
        """The day's samples. `folders` are the events of earlier days, for labels of other logs."""
        rows = _a_tenth(events)
        with some_rows_at_once(rows + 1):
            in_parts = self._samples(scenario, ds, events, folders, InThisProcess(rows_at_once=rows)).read_bytes()
        samples = self._samples(scenario, ds, events, folders, how)
        assert samples.read_bytes() == in_parts
        return samples

    def _samples(
        self, scenario: Scenario, ds: str, events: Path, folders: Mapping[str, Path] | None, how: Answers
    ) -> Path:
        past = {day: self.outputs[day] for day in days_of_windows(scenario, ds, self.reader(ds))}
        samples = self.root / "samples"
        join_day(
            scenario,
            ds,
            events,
            summaries=self.outputs[ds],
            past=past,
            output=samples / ds,
            past_events={day: folders[day] for day in days_of_outcomes(scenario, ds)} if folders else {},
            matured={day: samples / day for day in days_maturing(scenario, ds)} if folders else None,
            answers=how,
        )
        return samples / ds / "samples.parquet"
