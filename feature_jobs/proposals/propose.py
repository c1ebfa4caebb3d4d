"""Proposes a first scenario for log files that nobody has described, for their owner to read and edit.

What it guesses is written with the reason beside it: the log (time, user, item), entity tables, types, labels, columns
that would leak the answer, days and features. It errs to the side of leaving a column out of the features.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import duckdb

from feature_jobs.errors import BadInputError
from feature_jobs.proposals.discover import find_tables
from feature_jobs.proposals.features import guess_features
from feature_jobs.proposals.labels import Guessed, guess_labels
from feature_jobs.proposals.profiles import Table, connect, profile
from feature_jobs.proposals.roles import (
    DayChoice,
    FoundEntity,
    Log,
    choose_days,
    count_days,
    entities_of,
    keys_of,
    time_of,
)
from feature_jobs.proposals.yaml_text import Proposal, to_yaml
from feature_jobs.schema import Scenario, load_scenario


def write_proposal(path: Path, out: Path, name: str | None = None) -> list[str]:
    """Writes NAME.yaml and NAME.expectations.json into `out`; returns lines for a person.

    Raises BadInputError where the scenario exists already or the files don't make a log.
    """
    name = name or _scenario_name(path)
    file = out / f"{name}.yaml"
    if file.exists():
        raise BadInputError(f"{file}: exists already, and is left as it is; give another --name")
    text, suite, notes = propose(path, name, out)
    out.mkdir(parents=True, exist_ok=True)
    _write_new(file, text)
    lines = [f"{file}: {len(text.splitlines())} lines"]
    if suite is not None and not (suite_file := out / f"{name}.expectations.json").exists():
        _write_new(suite_file, json.dumps(suite, indent=1, sort_keys=True) + "\n")
        lines.append(f"{suite_file}: {len(suite['expectations'])} expectations")
    return [*lines, *notes, f"next: read and edit {file}, then recloop check --scenario {file}"]


def propose(path: Path, name: str, out: Path = Path("scenarios")) -> tuple[str, dict[str, Any] | None, list[str]]:
    """The scenario as YAML to stand in `out`, its expectations, and what was found.

    Raises BadInputError where no table can be the log, or no column of it a label.
    """
    groups, notes = find_tables(path)
    with tempfile.TemporaryDirectory() as scratch, connect(Path(scratch)) as connection:
        tables: list[Table] = []
        for number, group in enumerate(groups):
            try:
                tables.append(profile(connection, group, number))
                notes += tables[-1].notes
            except duckdb.Error as error:
                notes.append(f"left out {group.path}: not readable ({str(error).splitlines()[0][:120]})")
        log, guessed = _log_of(connection, path, tables)
        entities = entities_of(connection, [t for t in tables if t is not log.table], log)
        counts, is_aligned = count_days(connection, log)
    is_daily = bool(log.table.group.days) and is_aligned
    days = choose_days(counts, partitioned=is_daily)
    features = guess_features(log, entities, guessed)
    events_path = log.table.group.path if is_daily or not log.table.group.days else log.table.group.glob
    root = path.parent if path.is_file() else path
    relative = Path(os.path.relpath(root.resolve(), out.resolve())).as_posix()
    text = to_yaml(Proposal(name, relative, events_path, log, entities, guessed, days, features))
    scenario = _loaded(text, name)
    from feature_jobs.validation.expectations import propose_suite

    return (
        text,
        propose_suite(scenario),
        [*_summary(log, entities, guessed, days), *_left_out(tables, log, entities), *notes],
    )


def _log_of(connection: duckdb.DuckDBPyConnection, path: Path, tables: list[Table]) -> tuple[Log, Guessed]:
    """The table that is a log with something to predict; of several the one with most rows."""
    why = []
    logs: list[tuple[Log, Guessed]] = []
    for table in tables:
        time = time_of(connection, table)
        keys = keys_of(table, time[0]) if time else None
        if time is None or keys is None:
            what = "no column of times" if time is None else "no columns that identify a user and an item"
            why.append(f"  {table.group.path}: {what}")
            continue
        log = Log(table, *time, *keys)
        guessed = guess_labels(connection, log)
        if guessed.labels:
            logs.append((log, guessed))
        else:
            why.append(f"  {table.group.path}: no column that says what became of a row (click, rating, ...)")
    if not logs:
        remedy = "a log needs a time, a user, an item and an outcome in one table; write the scenario by hand otherwise"
        raise BadInputError("\n".join([f"{path}: no table can be the log; {remedy}", *why]))
    return max(logs, key=lambda one: one[0].table.num_rows)


def _summary(log: Log, entities: list[FoundEntity], guessed: Guessed, days: DayChoice) -> list[str]:
    table = log.table
    lines = [
        f"log: {table.group.path}, {table.num_rows} rows; time {log.time.name} ({log.unit}), user {log.user.name}, "
        f"item {log.item.name}"
    ]
    lines += [
        f"entity {entity.name}: {entity.table.group.path}, knows {entity.matched:.0%} of {entity.event_key.name}"
        for entity in entities
    ]
    lines += [f"label {label.name}: {label.expression} ({label.mean:.1%} of rows)" for label in guessed.labels]
    if guessed.outcomes:
        lines.append(f"never features: {', '.join(guessed.outcomes)}")
    total = sum(days.counts.values())
    lines.append(f"days: {min(days.counts)} to {max(days.counts)}, {total} rows; chosen {days.first} to {days.last}")
    return lines


def _left_out(tables: list[Table], log: Log, entities: list[FoundEntity]) -> list[str]:
    used = [log.table, *(entity.table for entity in entities)]
    return [
        f"left out {table.group.path}: neither the log nor a table with one row per key of it"
        for table in tables
        if all(table is not other for other in used)
    ]


def _scenario_name(path: Path) -> str:
    resolved = path.resolve()
    name = re.sub(r"\W+", "_", (resolved.stem if resolved.is_file() else resolved.name).lower(), flags=re.ASCII).strip(
        "_"
    )
    return name if name[:1].isalpha() else f"log_{name}".rstrip("_")


def _write_new(file: Path, text: str) -> None:
    """Writes a file whole, and never over another."""
    part = file.with_name(f".{file.name}.part")
    part.write_text(text, encoding="utf-8")
    try:
        os.link(part, file)
    except FileExistsError:
        raise BadInputError(f"{file}: exists already, and is left as it is; give another --name") from None
    finally:
        part.unlink()


def _loaded(text: str, name: str) -> Scenario:
    """The proposal as a scenario, checked; a mistake in it is ours."""
    from feature_jobs.checks.check import check_scenario

    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / f"{name}.yaml"
        file.write_text(text, encoding="utf-8")
        scenario = load_scenario(file)
        mistakes = check_scenario(scenario)
    if mistakes:
        raise AssertionError("the proposal has mistakes:\n" + "\n".join(mistakes))
    return scenario
