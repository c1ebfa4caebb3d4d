"""Summarize: a day's events by the keys of features, added to the summaries of the days before."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TypedDict

import pyarrow as pa

from feature_jobs.expressions.compiler import columns_of
from feature_jobs.joins.aggregations import ROW, KeySet, summarized_key_sets
from feature_jobs.joins.day_events import DayEvents
from feature_jobs.joins.entities import FOLDER, carry_entities, see_more
from feature_jobs.joins.rules import logs_read, refuse_leaks, sampler_expressions, summarized_expressions
from feature_jobs.joins.sample_negatives import sample_negatives
from feature_jobs.joins.summaries import (
    INDEX_FILE,
    DayFacts,
    Index,
    Summaries,
    facts_of,
    is_enough,
    ordinal_of,
    parse_index,
    reach,
    run_name,
    tile_name,
)
from feature_jobs.joins.values import key_column
from feature_jobs.schema import Scenario
from feature_jobs.schema.days import check_day, log_window
from feature_jobs.windows.blocks import block_table, digest_of_blocks, write_blocks
from feature_jobs.windows.days import TileId, completed
from feature_jobs.windows.keys import Bools, Keys, collect_keys, group_rows, keys_of
from feature_jobs.windows.rows import Column, Rows, concat_columns, take_columns
from feature_jobs.windows.runs import Run
from feature_jobs.windows.tiles import Tile, merge, tile_of


class SummaryFacts(TypedDict):
    """Report of a day: its rows, the key sets of its features, days whose events were read again, bytes written."""

    rows: int
    key_sets: int
    days_read_again: int
    bytes: int


def summarize_day(
    scenario: Scenario,
    ds: str,
    events: Path,
    *,
    yesterday: Path | None,
    past: Mapping[str, Path],
    past_events: Mapping[str, Path],
    carried: Mapping[str, Path],
    output: Path,
) -> SummaryFacts:
    """Writes the rows of entities that the day's events may see, the day's blocks, the index of all that later days can
    reach, and where the scenario has them the day's negatives.

    `yesterday` is the output of the day before, None on the first day; `past` those of the days that `days_to_merge`
    names, `past_events` the ingested days that `days_to_read_again` names, `carried` the outputs of the days that
    `days_of_entities` names, all by ds.
    Raises BadInputError where a feature would see an outcome of its own row, and where an expression does not fit.
    """
    output.mkdir(parents=True, exist_ok=True)
    before = parse_index((yesterday / INDEX_FILE).read_bytes(), str(yesterday / INDEX_FILE)) if yesterday else None
    known = before["entities"] if before else {}
    entities = carry_entities(scenario, ds, events, yesterday=known, folders=carried, output=output)
    usable = before if before and is_enough(scenario, before) else None
    folders, again = {**past, ds: output}, {day: (folder, past[day]) for day, folder in past_events.items()}
    log = summarize_events(scenario, ds, {**again, ds: (events, output)}, index=usable, folders=folders)
    index: Index = {**log.index, "entities": entities}
    if sampler := scenario.join.negative_sampler:
        negatives = sample_negatives(scenario, sampler, ds, (events, output), Summaries(index, folders), output=output)
        # The items of negatives need not be in the day's logs, whose keys alone were looked up so far.
        see_more(scenario, events, negatives, yesterday=known, folders=carried, output=output)
    # Sorted, because the order in which a scenario declares its features must not change the digest.
    (output / INDEX_FILE).write_text(json.dumps(index, sort_keys=True) + "\n", encoding="utf-8")
    return {
        "rows": log.rows,
        "key_sets": len(index["key_sets"]),
        "days_read_again": len(past_events),
        "bytes": sum(path.stat().st_size for path in output.rglob("*") if path.is_file()),
    }


@dataclass(frozen=True)
class Summarized:
    """The index after a day, and the number of its rows."""

    index: Index
    rows: int


def summarize_events(
    scenario: Scenario,
    ds: str,
    days: Mapping[str, tuple[Path, Path]],
    *,
    index: Index | None,
    folders: Mapping[str, Path],
) -> Summarized:
    """Adds days up to `ds` to an index of windows, and writes their blocks to the folder of `ds`.

    `days`: by ds the folder of its events, and the one that has the rows of entities that they see. `folders`: the
    outputs of earlier days that `days_to_merge` names, and the one to write.
    """
    check_day(scenario, ds)
    refuse_leaks(scenario)
    num_rows, index = 0, index or _no_days(scenario, min(days))
    for day, (events, seen) in sorted(days.items()):
        logs = dict[str | None, DayEvents]()
        for source in logs_read(scenario):
            names = set().union(*map(columns_of, _expressions(scenario, source)))
            # `later`: a day that is read again may lack columns that were declared since.
            logs[source] = DayEvents(
                scenario, day, events, names, entities=seen / FOLDER, source=source, later=ds if day < ds else None
            )
        num_rows = sum(map(len, logs.values()))
        index = _add(scenario, Summaries(index, folders), day, logs, ds)
    # A day that nothing reaches any more leaves the index, so that its correction changes no later day.
    index["days"] = [day for day in index["days"] if day["end"] > reach(scenario, ds)]
    return Summarized(index, num_rows)


def _add(scenario: Scenario, before: Summaries, ds: str, logs: Mapping[str | None, DayEvents], holder: str) -> Index:
    """The index with one more day, of these logs, whose blocks are written to the folder of `holder`."""
    sets, index = summarized_key_sets(scenario), before.index
    file = before.file(holder, ds)
    # One is made when the one before it is written: the rows of one key set are in memory, not those of all.
    places = write_blocks(chain.from_iterable(_blocks(one, logs[one.source], before) for one in sets), file)
    # Rows of other logs also come on days that the chain passes over: windows must read them with this day.
    begin, end = log_window(scenario, ds)
    day: DayFacts = {
        "ds": ds,
        "ordinal": ordinal_of(ds),
        "begin": begin,
        "end": end,
        "holder": holder,
        "digest": digest_of_blocks(file),
        "blocks": places,
    }
    return {
        "genesis": index["genesis"],
        "lookback_days": scenario.join.lookback_days,
        "key_sets": facts_of(scenario, sets),
        "days": [*index["days"], day],
        "entities": index["entities"],
    }


def _blocks(one: KeySet, log: DayEvents, before: Summaries) -> Iterator[tuple[str, pa.Table]]:
    """The run of a key set, and the tiles that the day completes."""
    index, ordinal = before.index, ordinal_of(log.ds)
    last = index["days"][-1]["ordinal"] if index["days"] else index["genesis"] - 1
    run, added = _run(log, one), dict[TileId, Tile]()
    yield run_name(one.name), block_table(run)
    for tile in completed(last, ordinal, index["genesis"], one.max_level):
        # Days without data get empty tiles, of which longer ones can then be merged.
        added[tile] = _tile(one, tile, run if tile.first == ordinal else run.without_rows(), added, before)
        yield tile_name(one.name, tile), block_table(added[tile])


def _no_days(scenario: Scenario, genesis: str) -> Index:
    lookback, ordinal = scenario.join.lookback_days, ordinal_of(genesis)
    return {"genesis": ordinal, "lookback_days": lookback, "key_sets": {}, "days": [], "entities": {}}


def _tile(one: KeySet, tile: TileId, run: Run, added: Mapping[TileId, Tile], before: Summaries) -> Tile:
    """A tile of one day, of its `run`; or of more days, merged of its halves."""
    if not tile.level:
        return tile_of(run, one.operations)
    older, newer = (added[half] if half in added else before.tile(one.name, half) for half in tile.halves())
    return merge(older, newer, one.operations)


def _expressions(scenario: Scenario, source: str | None) -> dict[str, str]:
    """All expressions that summaries of a log are made of, with their first places."""
    return {**sampler_expressions(scenario, source), **summarized_expressions(scenario, source)}


def _run(log: DayEvents, one: KeySet) -> Run:
    """The run of a key set of a log."""
    scenario = log.scenario
    places = _expressions(scenario, log.source)
    full = {expression: f"{scenario.file}: {place}" for expression, place in places.items()}
    parts: dict[str, list[Column]] = {name: [] for name in one.columns}

    def keys() -> Iterator[tuple[Keys, Bools]]:
        """The keys of some rows at a time, after whose columns they leave memory."""
        for _, part in log.parts():

            def values_of(expressions: Iterable[str], part: DayEvents = part) -> dict[str, pa.Array]:
                asked = {places[expression]: expression for expression in expressions}
                found = part.evaluate(asked)
                return {expression: found[place] for place, expression in asked.items()}

            values = values_of(one.key)
            yield keys_of([key_column(values[e], full[e]) for e in one.key])
            for name, column in one.columns.items():
                parts[name].append(column.of(values_of(column.expressions), full))
            # After all columns: an entity has times only when it was looked at.
            part.audit_entities()

    groups = group_rows(*collect_keys(keys(), len(log)))
    columns: dict[str, Column] = {ROW: groups.order}
    # One column after the other: the values of all rows by row and by key are in memory of one only.
    for name in one.columns:
        columns[name] = take_columns({name: concat_columns(parts.pop(name))}, groups.order)[name]
    return Run(groups.keys, groups.offsets, Rows(log.times[groups.order], columns))
