"""Trailing features of a day's events, from the summaries of the days before and of the day itself."""

from __future__ import annotations

import functools
from collections import defaultdict

import numpy as np
import pyarrow as pa

from feature_jobs.joins.aggregations import ROW, Aggregation, KeySet, aggregations, key_sets, name_of, operation_name
from feature_jobs.joins.day_events import DayEvents
from feature_jobs.joins.feature_values import feature_values
from feature_jobs.joins.summaries import Summaries, ordinal_of
from feature_jobs.joins.values import key_column
from feature_jobs.windows.days import Window
from feature_jobs.windows.keys import Groups, Ints, group_rows, keys_of
from feature_jobs.windows.query import Asked, aggregate
from feature_jobs.windows.runs import Run


def trailing_columns(
    log: DayEvents, summaries: Summaries
) -> tuple[dict[str, pa.Array], dict[str, Ints], dict[str, int]]:
    """Columns of trailing features, the newest source time behind each value, and the least age of each source (µs)."""
    grouped: dict[str, dict[Window, dict[str, Aggregation]]] = defaultdict(lambda: defaultdict(dict))
    sets = {one.name: one for one in key_sets(log.scenario)}
    for name, aggregation in aggregations(log.scenario).items():
        grouped[name_of(aggregation.source, aggregation.key)][aggregation.window][name] = aggregation
    columns, sources, delays = {}, {}, {}
    ordinal = ordinal_of(log.ds)
    for key, by_window in grouped.items():
        # Each once for all windows of the key; dropped with it.
        run = functools.cache(functools.partial(summaries.run, key))
        tile = functools.cache(functools.partial(summaries.tile, key))
        asked = _asked(log, sets[key], run(ordinal))
        for window, wanted in by_window.items():
            operations = {operation_name(op): op for one in wanted.values() for op in one.operations.values()}
            pieces = window.pieces(summaries.partitions, ordinal, sets[key].max_level)
            found = aggregate(
                asked,
                window,
                pieces,
                operations=operations,
                stored={name: operation_name(operation.stored) for name, operation in operations.items()},
                runs={day: run(day) for day in (*pieces.old, *pieces.new)},
                tiles={one: tile(one) for one in pieces.tiles},
            )
            for name, aggregation in wanted.items():
                of_feature = {role: found[operation_name(op)] for role, op in aggregation.operations.items()}
                sources[name] = np.asarray(of_feature["newest"]["time"])
                columns[name] = feature_values(log, name, aggregation, of_feature, asked.codes_N >= 0)
                delays[name] = window.delay_us
    # In the order of the scenario, so that the audit names its first feature.
    return columns, {name: sources[name] for name in log.scenario.features if name in sources}, delays


def _asked(log: DayEvents, one: KeySet, run: Run) -> Asked:
    """The day's events by key; `run` is that of the day."""
    if one.source is None:  # which has the events sorted already
        return Asked(Groups(run.keys, np.asarray(run.rows.columns[ROW]), run.offsets), log.known_at)
    places = {f"{log.scenario.file}: key of {one.name}: {text}": text for text in one.key}
    values = log.evaluate(places)
    keys = [key_column(values[place], place) for place in places]
    return Asked(group_rows(*keys_of(keys)), log.known_at)
