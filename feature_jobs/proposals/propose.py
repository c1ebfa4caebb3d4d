"""Proposes a first scenario for log files that nobody has described, for their owner to read and edit.

Each choice is written with its reason beside it: the log (time, user, item), entity tables, types, labels, columns that
would give the answer away, days and features. In doubt a column is left out of the features.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import duckdb

from feature_jobs.errors import BadInputError
from feature_jobs.proposals.days import choose_days, count_days
from feature_jobs.proposals.discover import find_tables
from feature_jobs.proposals.features import Proposed, null_shares, propose_features
from feature_jobs.proposals.labels import Answers, find_answers, no_label
from feature_jobs.proposals.profiles import Table, profile
from feature_jobs.proposals.roles import FoundEntity, Log, entities_of, log_of
from feature_jobs.proposals.vocabulary import clean
from feature_jobs.proposals.yaml_text import to_yaml
from feature_jobs.schema import Scenario, load_scenario
from feature_jobs.sources.tables import connect
from feature_jobs.validation.expectations import Suite, suite_text


def write_proposal(
    path: Path, out: Path, name: str | None = None, labels: Mapping[str, str] = MappingProxyType({})
) -> list[str]:
    """Writes NAME.yaml and NAME.expectations.json into `out`; returns lines for a person on what was chosen and why.

    `labels`: the conditions to predict, by name, where the columns' names do not say them.
    Raises BadInputError where the scenario exists already, no table can be the log, or no column of it a label; then
    nothing is written.
    """
    name = name or clean(path.resolve().name.split(".")[0]).lower()
    file, suite_file = out / f"{name}.yaml", out / f"{name}.expectations.json"
    exists = BadInputError(f"{file}: exists already, and is left as it is; give another --name")
    if file.exists():
        raise exists
    text, lines, null_shares = propose(path, name, out, labels)
    out.mkdir(parents=True, exist_ok=True)
    # In the same folder, as paths are relative to it; not named .yaml, as every .yaml file there is a scenario.
    aside, has_suite = out / f".{file.name}.{os.getpid()}", suite_file.exists()
    try:
        aside.write_text(text, encoding="utf-8")
        scenario, suite = _checked(path, file, aside, null_shares)
        if not has_suite:  # before the scenario, so that the scenario is never without it
            suite_file.write_text(suite_text(suite), encoding="utf-8")
            lines.append(f"wrote {suite_file}: {len(suite['expectations'])} expectations")
        os.link(aside, file)  # unlike a rename, it never replaces a file that came meanwhile
    except FileExistsError:
        if not has_suite:
            suite_file.unlink()
        raise exists from None
    finally:
        aside.unlink(missing_ok=True)
    # `-s NAME` looks in scenarios/ below the current folder, and nowhere else.
    short = name if out.resolve() == Path("scenarios").resolve() else file
    first = scenario.data.days.first
    return [
        *lines,
        f"wrote {file}: {len(text.splitlines())} lines",
        f"next: read and edit {file}, then copy:",
        f"  recloop check -s {short}",
        f"  recloop run -s {short} --from {first} --to {first}",
    ]


def _checked(path: Path, file: Path, aside: Path, null_shares: Mapping[str, float]) -> tuple[Scenario, Suite]:
    """The proposal in `aside` as a scenario, and its expectations. Raises BadInputError where it fails the check."""
    from feature_jobs.checks.check import check_scenario
    from feature_jobs.validation.expectations import propose_suite

    try:
        scenario = load_scenario(aside)
        if problems := check_scenario(scenario):
            raise BadInputError("\n".join(problems))
        return scenario, propose_suite(scenario, null_shares)
    except BadInputError as error:
        remedy = "nothing was written; give another --name if the file named here is one of yours, else report a defect"
        listed = str(error).replace(str(aside.resolve()), str(file))
        raise BadInputError(f"{path}: the proposal fails its own check; {remedy}:\n{listed}") from None


def propose(path: Path, name: str, out: Path, given: Mapping[str, str]) -> tuple[str, list[str], dict[str, float]]:
    """The scenario that would stand in `out`, as YAML; lines for a person; the features' shares of nulls."""
    groups, notes = find_tables(path)
    tables: list[Table] = []
    with tempfile.TemporaryDirectory() as scratch, connect(Path(scratch)) as connection:
        for number, group in enumerate(groups):
            try:
                tables.append(profile(connection, group, number))
                notes += tables[-1].notes
            except duckdb.Error as error:
                notes.append(f"left out {group.path}: not readable ({str(error).splitlines()[0][:120]})")
        log, answers = _log_of(path, tables, given)
        entities = entities_of([table for table in tables if table.name != log.table.name], log)
        features = propose_features(log, entities, answers)
        counts, null_shares_of = count_days(log), null_shares(log, entities, features)
    group = log.table.group
    is_daily = group.is_daily and counts.is_aligned
    days = choose_days(counts.rows, partitioned=is_daily)
    root = path.resolve() if path.is_dir() else path.resolve().parent
    text = to_yaml(
        name=name,
        # Relative to the scenario's file, so that both can be moved together.
        data_path=os.path.relpath(root, out.resolve()),
        events_path=group.path if is_daily else group.glob,
        log=log,
        entities=entities,
        answers=answers,
        features=features,
        counts=counts,
        days=days,
    )
    lines = [*_summary(log, entities, answers, features), *(f"days: {line}" for line in days.why)]
    if group.is_daily and not is_daily:
        lines.append("the days in the paths are not the days of the rows (in UTC), so the files are read as one table")
    return text, [*lines, *_left_out(tables, log, entities), *notes], null_shares_of


def _log_of(path: Path, tables: list[Table], given: Mapping[str, str]) -> tuple[Log, Answers]:
    """The table that is a log with something to predict; of several the one with most rows."""
    why = []
    found: list[tuple[Log, Answers]] = []
    for table in tables:
        log, leaks, answers = log_of(table), set[str](), Answers([], {})
        while isinstance(log, Log):
            answers = find_answers(log, given)
            if not (new := answers.outcomes.keys() & {log.user.name, log.item.name}):
                break
            leaks |= new
            log = log_of(table, leaks)
        if isinstance(log, Log) and answers.labels:
            found.append((log, answers))
        else:
            why.append(f"  {table.group.path}: {log if isinstance(log, str) else no_label(path, log, given)}")
    if not found:
        remedy = "a log needs a time, a user, an item and an outcome in one table; join them, or write the scenario"
        raise BadInputError("\n".join([f"{path}: no table can be the log; {remedy}", *why]))
    return max(found, key=lambda one: one[0].table.num_rows)


def _summary(log: Log, entities: list[FoundEntity], answers: Answers, features: list[Proposed]) -> list[str]:
    path, time = log.table.group.path, log.time.column
    written = time.date_format or (f"in {time.unit} since 1970" if time.unit != "iso" else "times")
    lines = [f"log: {path}: {log.table.size}", f"time: {log.time.name}, {written}", *log.notes]
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
    used = {log.table.name, *(entity.table.name for entity in entities)}
    lines = []
    for table in tables:
        why = "neither the log, nor a table with one row per key (or per key and time) of it"
        if {log.user.name, log.item.name} <= table.columns.keys():
            why = "its rows repeat those of the log, or have no time of their own; join it to the log if it has answers"
        if table.name not in used:
            lines.append(f"left out {table.group.path}: {why}")
    return lines
