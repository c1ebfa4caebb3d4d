"""Proposes a first scenario for log files that nobody has described, for their owner to read and edit.

Each choice is written with its reason beside it: the log (time, user, item), entity tables, types, labels, columns that
would give the answer away, days and features. In doubt a column is left out of the features.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import duckdb

from feature_jobs.errors import BadInputError
from feature_jobs.proposals.days import choose_days, count_days
from feature_jobs.proposals.discover import find_tables
from feature_jobs.proposals.features import Proposed, parts_taken, propose_features
from feature_jobs.proposals.ids import useless_ids
from feature_jobs.proposals.labels import Answers, find_answers
from feature_jobs.proposals.profiles import Table, clean, connect, profile
from feature_jobs.proposals.roles import FoundEntity, Log, clock_of, entities_of, keys_of, near_times
from feature_jobs.proposals.yaml_text import Proposal, to_yaml
from feature_jobs.schema import Scenario, load_scenario
from feature_jobs.validation.expectations import Suite

_EXISTS = "{}: exists already, and is left as it is; give another --name"


def write_proposal(path: Path, out: Path, name: str | None = None) -> list[str]:
    """Writes NAME.yaml and NAME.expectations.json into `out`; returns lines for a person on what was chosen and why.

    Raises BadInputError where the scenario exists already, no table can be the log, or no column of it a label; then
    nothing is written.
    """
    name = name or clean(path.resolve().name.split(".")[0]).lower()
    file, suite_file = out / f"{name}.yaml", out / f"{name}.expectations.json"
    if file.exists():
        raise BadInputError(_EXISTS.format(file))
    text, lines = propose(path, name, out)
    # Innermost first: they are removed again if the proposal fails.
    missing = [folder for folder in (out, *out.parents) if not folder.exists()]
    written: list[Path] = []
    out.mkdir(parents=True, exist_ok=True)
    try:
        scenario, suite = _checked(path, file, text)
        if not suite_file.exists():  # before the scenario, so that the scenario is never without it
            _put_if_absent(suite_file, json.dumps(suite, indent=1, sort_keys=True) + "\n")
            written.append(suite_file)
            lines.append(f"wrote {suite_file}: {len(suite['expectations'])} expectations")
        if not _put_if_absent(file, text):
            raise BadInputError(_EXISTS.format(file))
    except BaseException:
        for done in written:
            done.unlink(missing_ok=True)
        for folder in missing:
            if not any(folder.iterdir()):
                folder.rmdir()
        raise
    lines.append(f"wrote {file}: {len(text.splitlines())} lines")
    short = name if out.resolve() == Path("scenarios").resolve() else file
    first = scenario.data.days.first
    run = f"  recloop run -s {short} --from {first} --to {first}"
    return [*lines, f"next: read and edit {file}, then copy:", f"  recloop check -s {short}", run]


def _checked(path: Path, file: Path, text: str) -> tuple[Scenario, Suite]:
    """The proposal as a scenario, read from a file aside that is removed again, and its expectations.

    Raises BadInputError where the proposal fails the check.
    """
    from feature_jobs.checks.check import check_scenario
    from feature_jobs.validation.expectations import propose_suite

    # In the same folder, as paths are relative to it; not named .yaml, as every .yaml file there is a scenario.
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        aside.write_text(text, encoding="utf-8")
        scenario = load_scenario(aside)
        if problems := check_scenario(scenario):
            raise BadInputError("\n".join(problems))
        return scenario, propose_suite(scenario)
    except BadInputError as error:
        remedy = "nothing was written; give another --name if the file named here is one of yours, else report a defect"
        listed = str(error).replace(str(aside.resolve()), str(file))
        raise BadInputError(f"{path}: the proposal fails its own check; {remedy}:\n{listed}") from None
    finally:
        aside.unlink(missing_ok=True)


def _put_if_absent(file: Path, text: str) -> bool:
    """Writes a file whole, or returns False where it exists already."""
    aside = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        aside.write_text(text, encoding="utf-8")
        os.link(aside, file)  # unlike a rename, it never replaces a file that came meanwhile
    except FileExistsError:
        return False
    finally:
        aside.unlink(missing_ok=True)
    return True


def propose(path: Path, name: str, out: Path) -> tuple[str, list[str]]:
    """The scenario that would stand in `out`, as YAML, and lines for a person."""
    groups, notes = find_tables(path)
    tables: list[Table] = []
    with tempfile.TemporaryDirectory() as scratch, connect(Path(scratch)) as connection:
        for number, group in enumerate(groups):
            try:
                tables.append(profile(connection, group, number))
                notes += tables[-1].notes
            except duckdb.Error as error:
                notes.append(f"left out {group.path}: not readable ({str(error).splitlines()[0][:120]})")
        log, answers = _log_of(connection, path, tables)
        entities = entities_of(connection, [t for t in tables if t is not log.table], log)
        useless = useless_ids(connection, log, parts_taken(log, answers))
        counts = count_days(connection, log)
    is_daily = log.table.group.is_daily and counts.is_aligned
    days = choose_days(counts.rows, partitioned=is_daily)
    features = propose_features(log, entities, answers, useless)
    root = path.parent if path.is_file() else path  # paths in the scenario are relative: folders can be moved together
    relative = Path(os.path.relpath(root.resolve(), out.resolve())).as_posix()
    events_path = log.table.group.path if is_daily else log.table.group.glob
    text = to_yaml(Proposal(name, relative, events_path, log, entities, answers, counts, days, features))
    lines = [*_summary(log, entities, answers, features), *days.why]
    if log.table.group.is_daily and not is_daily:
        lines.append("the days in the paths are not the days of the rows (in UTC), so the files are read as one table")
    return text, [*lines, *_left_out(tables, log, entities), *notes]


def _log_of(connection: duckdb.DuckDBPyConnection, path: Path, tables: list[Table]) -> tuple[Log, Answers]:
    """The table that is a log with something to predict; of several the one with most rows."""
    why = []
    logs: list[tuple[Log, Answers]] = []
    for table in tables:
        clock = clock_of(table)
        keys = keys_of(table, clock) if clock else None
        if clock is None:
            problem = "; ".join(["no column of times", *near_times(table)])
        elif keys is None:
            problem = "no columns that identify a user and an item"
        else:
            log = Log(table, clock, *keys)
            logs.append((log, find_answers(connection, log)))
            problem = "no column that says what became of a row (click, rating, ...)"
        why.append(f"  {table.group.path}: {problem}")
    # A table without outcomes may have the most rows: impressions beside a log of clicks.
    logs = [found for found in logs if found[1].labels]
    if not logs:
        remedy = "a log needs a time, a user, an item and an outcome in one table; join them, or write the scenario"
        raise BadInputError("\n".join([f"{path}: no table can be the log; {remedy}", *why]))
    return max(logs, key=lambda one: one[0].table.num_rows)


def _summary(log: Log, entities: list[FoundEntity], answers: Answers, features: Sequence[Proposed]) -> list[str]:
    path = log.table.group.path
    lines = [f"log: {path}: {log.table.size}", f"time: {log.clock.column.name}, {log.clock.text}", *log.notes]
    for one in entities:
        known = f"{one.table.group.path}: {one.table.size}; knows {one.matched:.0%} of {one.event_key.name}"
        lines.append(f"entity {one.name}: {known}")
        if one.is_log:
            seen = "an event sees the user's last row in it; counts and sequences are over"
            lines.append(f"entity {one.name} is a second log: {seen} {path} alone")
    lines += [f"label {one.name}: {one.expression} ({one.mean:.1%} of rows; {one.why})" for one in answers.labels]
    lines.append(f"label_delay_s: {answers.delay_s}, {answers.why_delay}")
    lines += [f"never a feature: {name}, {why}" for name, why in answers.outcomes.items()]
    left = [f"{feature.name} ({feature.why})" for feature in features if feature.fields is None]
    return lines + ([f"not proposed as features: {', '.join(left)}"] if left else [])


def _left_out(tables: list[Table], log: Log, entities: list[FoundEntity]) -> list[str]:
    used = {log.table.group.path, *(entity.table.group.path for entity in entities)}
    lines = []
    for table in tables:
        why = "neither the log, nor a table with one row per key (or per key and time) of it"
        if {log.user.name, log.item.name} <= table.columns.keys():
            why = "its rows repeat those of the log, or have no time of their own; join it to the log if it has answers"
        if table.group.path not in used:
            lines.append(f"left out {table.group.path}: {why}")
    return lines
