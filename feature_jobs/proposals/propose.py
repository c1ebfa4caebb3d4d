"""Proposes a first scenario for log files that nobody has described, for their owner to read and edit.

Each choice is written with its reason beside it. Each module decides one thing, in this order:

    encodings  in which encoding a file that is not UTF-8 may be
    discover  which files are one table, and how a path names days
    profiles  how each column is read (its type, the unit or format of its times), and what it holds
    roles     which table is the log, its time, user and item; which tables are joined to it, by which key
    outcome_logs  which other logs follow its rows, and so decide labels
    labels    what is predicted, which columns would give the answer away, how late an answer is known
    features  what each other column is good for
    days      which days are run, skipped, or learned as a warm-up
    yaml_text the text of the scenario, with what earlier events say, and of the summary, from templates/

Guesses by name use the words in `vocabulary`. In doubt a column is left out of the features.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import duckdb

from feature_jobs.errors import BadInputError
from feature_jobs.proposals.days import choose_days, count_days
from feature_jobs.proposals.discover import find_tables
from feature_jobs.proposals.features import null_shares, propose_features
from feature_jobs.proposals.labels import Answers, answers_of, find_answers, no_label
from feature_jobs.proposals.outcome_logs import EVENTS, outcome_logs
from feature_jobs.proposals.profiles import Table, profile
from feature_jobs.proposals.roles import FoundEntity, Log, entities_of, log_of, request_of
from feature_jobs.proposals.vocabulary import clean
from feature_jobs.proposals.yaml_text import render
from feature_jobs.schema import Scenario, load_scenario
from feature_jobs.schema.bounded_yaml import MAX_BYTES
from feature_jobs.sources.tables import connect
from feature_jobs.validation.expectations import Suite, suite_text


class Port(Protocol):
    """A config of another system that is carried over; `easyrec.Port` is one."""

    file: Path
    labels: Mapping[str, str]
    """The conditions to predict, by name."""

    def choices(self, log: Log | None, entities: list[FoundEntity], answers: Answers | None) -> dict[str, Any]:
        """The values of the template ported.yaml.j2, for columns of the log that was found, or as the config has them;
        among them `features`, and `lost`: lines on what was not carried over."""


def write_proposal(
    path: Path | None,
    out: Path,
    name: str | None = None,
    labels: Mapping[str, str] = MappingProxyType({}),
    port: Port | None = None,
) -> list[str]:
    """Writes NAME.yaml and NAME.expectations.json into `out`; returns lines for a person on what was chosen and why.

    `labels`: the conditions to predict, by name, where the columns' names do not say them. `port`: the config that says
    labels, features, model and training; then `path` may be None, where there are no files yet.
    Raises BadInputError where the scenario exists already, no table can be the log, or no column of it a label; then
    nothing is written.
    """
    source = path or (port.file if port else out)
    name = name or clean(source.resolve().name.split(".")[0]).lower()
    file, suite_file = out / f"{name}.yaml", out / f"{name}.expectations.json"
    exists = BadInputError(f"{file}: exists already, and is left as it is; give another --name")
    if file.exists():
        raise exists
    if path is None and port is not None:
        text, lines, null_shares = _ported(
            port, name, {"log": None, "counts": None, "answers": None}, port.choices(None, [], None)
        )
    else:
        text, lines, null_shares = propose(source, name, out, labels, port)
    out.mkdir(parents=True, exist_ok=True)
    # In the same folder, as paths are relative to it; not named .yaml, as every .yaml file there is a scenario.
    aside, has_suite = out / f".{file.name}.{os.getpid()}", suite_file.exists()
    try:
        aside.write_text(text, encoding="utf-8")
        scenario, suite = _checked(source, file, aside, null_shares)
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
        f"wrote {file}: {len(text.splitlines()):,} lines",
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


def propose(
    path: Path, name: str, out: Path, given: Mapping[str, str], port: Port | None = None
) -> tuple[str, list[str], dict[str, float]]:
    """The scenario that would stand in `out`, as YAML; lines for a person; the features' shares of nulls."""
    groups, notes = find_tables(path)
    tables, names = list[Table](), dict[str, str]()
    with tempfile.TemporaryDirectory() as scratch, connect(Path(scratch)) as connection:
        for number, group in enumerate(groups):
            try:
                utf8 = group.in_utf8(Path(scratch) / f"utf8-{number}")
                tables.append(profile(connection, utf8, number, names))
                notes += tables[-1].notes
            except BadInputError as error:
                notes.append(f"left out {group.path}: {error}")
            except duckdb.Error as error:
                notes.append(f"left out {group.path}: not readable ({str(error).splitlines()[0][:120]})")
        log, answers = _log_of(path, tables, given, notes)
        logs = [log.table, *(one.table for one in answers.logs)]
        others = [table for table in tables if not any(table is other for other in logs)]
        entities = entities_of(others, log, [EVENTS, *(one.name for one in answers.logs)])
        ported = port.choices(log, entities, answers) if port else {}
        features, take = (ported["features"], None) if port else propose_features(log, entities, answers)
        counts = count_days(log)
    group = log.table.group
    is_daily = group.is_daily and counts.is_aligned
    root = path.resolve() if path.is_dir() else path.resolve().parent
    used = [*logs, *(entity.table for entity in entities)]
    choices = {
        "name": name,
        # Relative to the scenario's file, so that both can be moved together.
        "data_path": os.path.relpath(root, out.resolve()),
        "events_path": group.path if is_daily else group.glob,
        "log": log,
        "entities": entities,
        "answers": answers,
        "features": features,
        "take": take,
        "counts": counts,
        "days": choose_days(counts.rows, partitioned=is_daily),
        "left_out": [table for table in tables if not any(table is other for other in used)],
        "notes": notes,
    }
    if port:
        text, lines, shares = _ported(port, name, choices | {"outcomes": answers.outcomes}, ported)
        return text, [*render("summary.txt.j2", choices).splitlines(), *lines], shares
    shares = null_shares(counts.null_shares, entities, features)
    return render("scenario.yaml.j2", choices), render("summary.txt.j2", choices).splitlines(), shares


def _ported(
    port: Port, name: str, choices: Mapping[str, Any], ported: Mapping[str, Any]
) -> tuple[str, list[str], dict[str, float]]:
    """The scenario of a port, lines on what was lost, and shares of nulls: all may be null, as none was counted."""
    values = {**choices, **ported, "name": name, "labels": port.labels}
    text = render("ported.yaml.j2", values)
    if len(text.encode()) > MAX_BYTES:  # of thousands of features; what was lost is printed too
        plain = [replace(one, why="") for one in ported["features"]]
        text = render("ported.yaml.j2", {**values, "features": plain, "lost": dict.fromkeys(ported["lost"], ())})
    if len(text.encode()) > MAX_BYTES:
        limit = f"a scenario has at most {MAX_BYTES:,} bytes, and this one would have {len(text.encode()):,}"
        raise BadInputError(f"{port.file}: {limit}; leave features out of the config")
    lost = [f"not carried over: {line}" for lines in ported["lost"].values() for line in lines]
    lines = [*lost, f"carried over: {ported['num_carried']} features of {port.file}"]
    return text, lines, {one.name: 1.0 for one in ported["features"]}


def _log_of(path: Path, tables: list[Table], given: Mapping[str, str], notes: list[str]) -> tuple[Log, Answers]:
    """The table that is a log with something to predict; of several the one with most rows. Without any, the one whose
    rows most other logs follow: these say what became of them.

    Raises BadInputError where there is none, with the reason of each table, and with `notes` on what was left out.
    """
    tried = [(table, _log_in(path, table, given)) for table in tables]
    if found := [one for _, one in tried if not isinstance(one, str)]:
        return max(found, key=lambda one: one[0].table.num_rows)
    logs = [log for table in tables if not given and isinstance(log := log_of(table), Log)]
    followed = [(log, outcomes) for log in logs if (outcomes := outcome_logs(log, tables))]
    if followed:
        log, outcomes = max(followed, key=lambda one: (len(one[1]), one[0].table.num_rows))
        return replace(log, request=request_of(log, {})), answers_of(log, outcomes)
    remedy = "a log needs a time, a user, an item and an outcome in one table; join them, or write the scenario"
    why = [f"  {line}" for line in [*(f"{table.group.path}: {one}" for table, one in tried), *notes[:10]]]
    raise BadInputError("\n".join([f"{path}: no table can be the log; {remedy}", *why]))


def _log_in(path: Path, table: Table, given: Mapping[str, str]) -> tuple[Log, Answers] | str:
    """The table as a log, whose user and item know no label, and its labels; or why it is not one."""
    leaks: set[str] = set()
    while isinstance(log := log_of(table, leaks), Log):
        answers = find_answers(log, given)
        if not answers.labels:
            return no_label(path, log, given)
        if not (new := answers.outcomes.keys() & {log.user.name, log.item.name}):
            return replace(log, request=request_of(log, answers.outcomes)), answers
        leaks |= new
    return log
