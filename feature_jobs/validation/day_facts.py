"""Facts of a day that are not a column of its samples, each a number under a name such as `day.rows`.

Great Expectations sees them as a table of one row, so a suite expects them as it expects a column. A fact is null, and
then breaks no expectation, where a day does not have it: the first days have no same weekday before them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_jobs.schema import Scenario
from feature_jobs.schema.days import ONE_DAY, day_start, parse_ds
from feature_jobs.schema.files import JOIN_FILE
from feature_jobs.sources.new_columns import read_columns
from feature_jobs.validation.day_samples import DaySamples
from feature_jobs.validation.hours import Hours, shifts

if TYPE_CHECKING:
    from feature_jobs.validation.drift import DayProfile

PREFIX = "day."
NEW_COLUMNS, SHIFTED = "new_columns", "shifted_hours"
ROWS = f"{PREFIX}rows"
_WEEK = ONE_DAY * 7

DayFacts = dict[str, float | None]


def fact_names(scenario: Scenario) -> dict[str, str]:
    """The facts of a scenario's days, each with its meaning."""
    names = {
        "rows": "events of the day",
        "rows_by_weekday": "events of the day for each event of the same weekday a week before",
        "repeated_share": "share of events with user, item and time of another one",
        "out_of_order_rows": "events that are older than the one before them",
        "longest_gap_s": "longest time of the day without an event, in seconds",
        NEW_COLUMNS: "columns of the sources that no earlier day had, and that the scenario does not declare",
    }
    for of, table in (("", "the events"), *((f".{name}", name) for name in scenario.data.logs)):
        names[f"{SHIFTED}{of}"] = f"hours by which the rows of {table} lie later than on the days before"
    for of, table in _tables(scenario):
        names[f"quarantined_share{of}"] = f"share of malformed rows of {table}"
        names[f"duplicate_share{of}"] = f"share of exact duplicates among the rows of {table}"
    for name, log in scenario.data.logs.items():
        names[f"rows.{name}"] = f"rows of the log {name}"
        if log.arrival:
            names[f"late_share.{name}"] = f"share of rows of the log {name} that arrived on a later day"
    for name, entity in scenario.data.entities.items():
        names[f"hit_share.{name}"] = f"share of events that find a row of {name}"
        if entity.max_age_days:
            names[f"age_days.{name}"] = f"days since the partition of {name} that was read"
    for task, label in scenario.outcome_labels.items():
        names[f"label_mean.{task}"] = f"mean of the label {task} where it is known, which it is not on the first days"
        names[f"attributed_share.{task}"] = f"events that got the label 1 on this day, for each row of {label.source}"
    return {f"{PREFIX}{name}": meaning for name, meaning in names.items()}


def _tables(scenario: Scenario) -> Iterator[tuple[str, str]]:
    """End of the names of a table's facts, and the table in words."""
    yield "", "the events"
    yield from ((f".{name}", name) for name in (*scenario.data.logs, *scenario.data.entities))


def day_facts(
    scenario: Scenario,
    ds: str,
    day: DaySamples,
    counts: Mapping[str, Any],
    rows_of_days: Mapping[str, float],
    *,
    of_sources: DayFacts | None = None,
) -> DayFacts:
    """The facts of `ds` under the names of `fact_names`.

    `counts` is the counts.json of the day's ingest, `rows_of_days` the events of earlier days, by ds. `of_sources`: see
    `facts_of_sources`.
    """
    found = {**_of_events(scenario, ds, day), **_of_ingest(scenario, counts), **_of_labels(scenario, day, counts)}
    joined = json.loads(file.read_text(encoding="utf-8")) if (file := day.file.parent / JOIN_FILE).is_file() else {}
    found |= of_sources or {}
    found |= {f"hit_share.{name}": share for name, share in joined.get("entities", {}).items()}
    week_before = rows_of_days.get(str(parse_ds(ds) - _WEEK))
    found["rows_by_weekday"] = found["rows"] / week_before if week_before and found["rows"] is not None else None
    return {name: _rounded(found.get(name.removeprefix(PREFIX))) for name in fact_names(scenario)}


def facts_of_sources(events: Path, hours: Mapping[str, Hours], past: Mapping[str, DayProfile]) -> DayFacts:
    """Facts, without their prefix, of a day's sources beside the days before. `events` is the folder that ingest wrote,
    `hours` are those of its logs (feature_jobs.validation.hours)."""
    found = shifts(hours, [day.get("own_hours", {}) for day in past.values()])
    shifted = {f"{SHIFTED}.{name}" if name else SHIFTED: num for name, num in found.items()}
    return {NEW_COLUMNS: sum(map(len, read_columns(events)["new"].values())), **shifted}


def rows_of_days(days: Mapping[str, DayProfile]) -> dict[str, float]:
    """The events of each day, where its profile has them: those of a warm-up do not."""
    return {ds: rows for ds, day in days.items() if (rows := day.get("own_rows"))}


def own_rows(scenario: Scenario, ds: str, day: DaySamples) -> Any:
    """User, item and time (µs) of the events of the day itself, in the order of the samples: these hold rows of earlier
    days too, of a warm-up or whose labels matured."""
    rows = day.shown(["key.event_time", "key.user", "key.item"])
    begin, end = (day_start(scenario, str(parse_ds(ds) + ONE_DAY * days)) for days in (0, 1))
    return rows[(rows["key.event_time"] >= begin) & (rows["key.event_time"] < end)]


def _of_events(scenario: Scenario, ds: str, day: DaySamples) -> dict[str, float | None]:
    import numpy as np

    rows = own_rows(scenario, ds, day)
    times = rows["key.event_time"].to_numpy(np.int64)
    edges = [day_start(scenario, str(parse_ds(ds) + ONE_DAY * days)) for days in (0, 1)]
    steps = np.diff(times)
    return {
        "rows": len(rows),
        "repeated_share": float(rows.duplicated().mean()) if len(rows) else None,
        "out_of_order_rows": int((steps < 0).sum()),
        # With the day's edges: a log that ends at noon has a gap of twelve hours.
        "longest_gap_s": float(np.diff(np.sort(np.concatenate([times, edges]))).max() / 1e6),
    }


def _of_ingest(scenario: Scenario, counts: Mapping[str, Any]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    tables = {"": counts}
    for name in scenario.data.logs:
        tables[f".{name}"] = of_log = counts.get("logs", {}).get(name, {})
        if "rows" in of_log:
            found[f"rows.{name}"] = of_log["rows"]
            found[f"late_share.{name}"] = _share(of_log.get("late", 0), of_log["rows"])
    for name in scenario.data.entities:
        tables[f".{name}"] = of_entity = counts.get("entities", {}).get(name, {})
        if "rows" in of_entity:
            found[f"age_days.{name}"] = of_entity.get("age_days", 0)
    for of, table in tables.items():
        for kind, key in (("quarantined", "quarantined"), ("duplicate", "duplicates")):
            if key in table:
                found[f"{kind}_share{of}"] = _share(table[key], table["rows_read"])
    return found


def _of_labels(scenario: Scenario, day: DaySamples, counts: Mapping[str, Any]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for task, label in scenario.outcome_labels.items():
        known = day.whole([f"label.{task}"])[f"label.{task}"].dropna()
        num_rows = counts.get("logs", {}).get(label.source, {}).get("rows")
        if not len(known):  # on the first days no label has matured yet
            continue
        found[f"label_mean.{task}"] = float(known.mean())
        if num_rows:
            found[f"attributed_share.{task}"] = float(known.sum() / num_rows)
    return found


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 6)
