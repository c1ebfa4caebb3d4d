"""Checks a scenario before compute is spent on it: columns, types, leaks, expectations, search space, data."""

from __future__ import annotations

import keyword
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from feature_jobs.checks.facts import Facts
from feature_jobs.checks.features import check_features, check_labels, check_segments
from feature_jobs.checks.problems import Problems, closest
from feature_jobs.errors import BadInputError, listed
from feature_jobs.expressions.compiler import EVENT_TIME
from feature_jobs.joins.rules import OUTCOME_AS_KEY, delay_problems, sampler_problems
from feature_jobs.schema import Column, Scenario, SearchRange, Table, Time, load_scenario, name_taken, same_name
from feature_jobs.schema.data import WEEKDAYS, Entity, Events, Log, Moment
from feature_jobs.schema.processor import slow_precision
from feature_jobs.schema.yaml_file import setting, setting_at
from feature_jobs.validation.expectations import (
    expectable_columns,
    load_suite,
    read_suite,
    sample_columns,
    unknown_columns,
)

SAMPLED = "join.negative_sampler"  # once for all trials
FIXED = ("name", "description", "data", "labels", "tune", "schedule", "deploy")  # a trial may not change these


def check(scenario: Scenario, with_data: bool = True) -> Facts:
    """Checks the scenario and, `with_data`, its expectations in full and a sample of its files.

    Returns facts found on the way and warnings, a line each. Raises BadInputError with a line for each problem.
    """
    problems = _check_all(scenario)
    facts = Facts(warnings=problems.warnings)
    messages = problems.messages
    if with_data and not messages:
        from feature_jobs.checks.data import check_data

        messages, found = check_data(scenario)
        facts = Facts(**{**found, "warnings": problems.warnings + found["warnings"]})
        # Last, and only where all else is right: importing Great Expectations takes 3 to 9 seconds.
        messages += _expectation_problems(scenario)
    elif with_data and any(line.startswith(str(scenario.suite_file)) for line in messages):
        messages = [*messages, *_expectation_problems(scenario)]  # all mistakes of the suite at once
    if messages:
        raise BadInputError(listed(messages))
    if warning := slow_precision(scenario.train.precision, scenario.train.device):
        facts["warnings"].append(warning)
    return facts


def check_scenario(scenario: Scenario) -> list[str]:
    """A line for each problem that shows without data: FILE:LINE: field: value: problem; remedy."""
    return _check_all(scenario).messages


def _check_all(scenario: Scenario) -> Problems:
    problems = Problems(scenario)
    _check_sources(problems)
    _check_days(problems)
    outcomes = check_labels(problems)
    for name, entity in scenario.data.entities.items():
        for key in sorted(outcomes.intersection(entity.keys)):
            problems.say(("data", "entities", name, "key"), key, *OUTCOME_AS_KEY)
    feature_types = check_features(problems, outcomes)
    check_segments(problems, feature_types)
    for problem in sampler_problems(scenario):
        problems.say(*problem)
    # A label that does not read was reported, and says nothing of its columns.
    for problem in delay_problems(scenario) if not problems.messages else ():
        problems.say(*problem)
    _check_names(problems)
    _check_suite(problems)
    _check_sharding(problems)
    for path, search in scenario.tune.space.items():
        _check_search(problems, path, search)
    for field, cron in (("schedule.daily", scenario.schedule.daily), ("tune.schedule", scenario.tune.schedule)):
        if what := cron_problem(cron):
            problems.say(tuple(field.split(".")), cron, what, CRON_REMEDY)
    _check_zone(problems, ("schedule", "zone"), scenario.schedule.zone)
    problems.messages = list(dict.fromkeys(problems.messages))
    return problems


def _check_sources(problems: Problems) -> None:
    data = problems.scenario.data
    _check_table(problems, ("data", "events"), data.events)
    _check_known_time(problems, ("data", "events"), data.events, data.events.time)
    for field, name in (("user", data.user), ("item", data.item), ("request", data.request)):
        if name is None:
            continue
        column = data.events.columns.get(name)
        if column is None:
            problems.say(("data", field), name, "no such column of events", closest(name, data.events.columns))
        elif column.type not in ("int", "string"):
            problems.say(("data", field), name, f"is of type {column.type}, not an id", "declare it as int or string")
    _check_anonymous(problems)
    for name, log in data.logs.items():
        location = ("data", "logs", name)
        _check_table(problems, location, log)
        _check_known_time(problems, location, log, log.time)
        if log.arrival is not None:
            _check_moment(problems, location, log, "arrival", log.arrival)
        if name == "events" or name in data.entities:
            problems.say(location, name, "is the name of another table", "choose another")
    for entity_name, entity in data.entities.items():
        location = ("data", "entities", entity_name)
        _check_table(problems, location, entity)
        if entity.time is not None:
            _check_known_time(problems, location, entity, entity.time)
        for key in entity.keys:
            _check_key(problems, (*location, "key"), entity, key)


def _check_key(problems: Problems, location: tuple[str, ...], entity: Entity, key: str) -> None:
    shown = problems.scenario.data.events.columns
    mine, theirs = entity.columns.get(key), shown.get(key)
    if mine is None:
        problems.say(location, key, f"no such column of {location[-2]}", closest(key, entity.columns))
    # An event looks its row up by the column of the same name.
    elif theirs is None:
        remedy = f"name both columns alike, with `from` where the files differ ({', '.join(shown)})"
        problems.say(location, key, "no such column of events to join by", remedy)
    elif mine.type != theirs.type:
        problems.say(location, key, f"is {mine.type} here and {theirs.type} in events", "declare both alike")


def _check_anonymous(problems: Problems) -> None:
    data = problems.scenario.data
    column = data.events.columns.get(data.user)
    wanted = {"int": int, "string": str}.get(column.type) if column else None
    for value in data.anonymous or ():
        if column and wanted and (not isinstance(value, wanted) or isinstance(value, bool)):
            what = f"is not of the type of {data.user} ({column.type})"
            problems.say(("data", "anonymous"), value, what, "write it as the log does")


def _check_table(problems: Problems, location: tuple[str, ...], table: Table) -> None:
    if table.format == "csv" and len(table.delimiter) != 1:
        problems.say((*location, "delimiter"), table.delimiter, "is not one character", 'write ",", ";" or "\\t"')
    if isinstance(table, Events | Log) and table.deduplicate is not None:
        for name in table.deduplicate.on:
            column = table.columns.get(name)
            if column is None:
                problems.say((*location, "deduplicate", "on"), name, "no such column", closest(name, table.columns))
            elif column.type.startswith("list"):
                what = f"is of type {column.type}, which names nothing"
                problems.say((*location, "deduplicate", "on"), name, what, "name columns of one value, such as ids")
    if table.where is not None:
        types: dict[str, str] = {name: column.type for name, column in table.columns.items()}
        for name in sorted(problems.condition((*location, "where"), table.where, types) - types.keys()):
            if name == EVENT_TIME or name in problems.types:
                problems.say((*location, "where"), name, "no column of this table", closest(name, types))
    seen: dict[str, str] = {}
    for name, column in table.columns.items():
        where = (*location, "columns", name)
        if not name.isidentifier() or keyword.iskeyword(name):
            remedy = "name it in letters, digits and _, and put the file's name in `from`"
            problems.say(where, name, "can't stand in an expression", remedy)
        # An entity's column is written ENTITY.event_time, so only a column of the log can be mistaken for the time.
        if name == EVENT_TIME and isinstance(table, Events | Log) and name != table.time.column:
            what = "is the name of the event's time in expressions, in microseconds"
            problems.say(where, None, what, "give the column another name, with `from`")
        # DuckDB's names ignore case.
        if (other := seen.setdefault(name.lower(), name)) != name:
            problems.say(where, name, f"differs from {other} only in capital letters", "rename it, with `from`")
        _check_column(problems, where, column, table.format)


def _check_column(problems: Problems, location: tuple[str, ...], column: Column, file_format: str) -> None:
    is_list = column.type.startswith("list")
    if is_list and file_format == "csv" and not column.separator:
        problems.say(location, column.type, "a list in a CSV cell needs a separator", 'add separator: ","')
    if column.separator is not None and not is_list:
        what = f"is of no use with type {column.type}"
        problems.say((*location, "separator"), column.separator, what, 'declare type: "list[string]"')
    if column.width is not None and column.type != "list[float]":
        problems.say((*location, "width"), column.width, f"is of no use with type {column.type}", "leave it out")
    if column.decimal == "," and column.type != "float":
        problems.say((*location, "decimal"), column.decimal, f"is of no use with type {column.type}", "leave it out")
    if column.type != "time" and {"unit", "date_format"} & column.model_fields_set:
        problems.say(location, column.type, "unit and date_format are for columns of times", "declare type: time")
    element = column.type[5:-1] if is_list else column.type
    wanted = {"int": int, "string": str}.get(element)
    for value in column.values or ():
        # In Python True is an int, too.
        if wanted is None or not isinstance(value, wanted) or isinstance(value, bool):
            problems.say((*location, "values"), value, f"is not of type {element}", "list values of the column's type")
    if (column.min is not None or column.max is not None) and element not in ("int", "float"):
        problems.say(location, column.type, "min and max are for numbers", "use `values`, or leave them out")
    if column.min is not None and column.max is not None and column.min > column.max:
        problems.say((*location, "min"), column.min, f"is above max ({column.max})", "swap them")


def _check_known_time(problems: Problems, location: tuple[str, ...], table: Table, time: Time) -> None:
    _check_moment(problems, location, table, "time", time)
    _check_zone(problems, (*location, "time", "zone"), time.zone)


def _check_moment(problems: Problems, location: tuple[str, ...], table: Table, field: str, time: Moment) -> None:
    column = table.columns.get(time.column)
    where = (*location, field, "column")
    if column is None:
        problems.say(where, time.column, "no such column", closest(time.column, table.columns))
    elif column.type == "time":
        if "unit" in time.model_fields_set:
            what = f"{time.column} is of type time, whose unit belongs to the column"
            remedy = f"move it to columns.{time.column}.unit"
            problems.say((*location, field, "unit"), time.unit, what, remedy)
    elif time.unit == "iso" and column.type != "string":
        problems.say(where, time.column, f"is of type {column.type}, unit iso reads text", "declare it as string")
    elif time.unit != "iso" and column.type not in ("int", "float"):
        what = f"is of type {column.type}, unit {time.unit} reads numbers"
        problems.say(where, time.column, what, "declare it as int, or set unit: iso")


def _check_zone(problems: Problems, location: tuple[str, ...], zone: str) -> None:
    try:
        ZoneInfo(zone)
    # ZoneInfo opens a file by this name: "Europe" is a folder (OSError), "../x" is refused (ValueError).
    except (ZoneInfoNotFoundError, ValueError, OSError):
        problems.say(location, zone, "is not a time zone", "write a name such as UTC or Asia/Shanghai")


def _check_days(problems: Problems) -> None:
    days, where = problems.scenario.data.days, ("data", "days")
    if days.last is not None and days.last < days.first:
        problems.say((*where, "last"), str(days.last), f"is before first ({days.first})", "swap them")
    if days.warm_up_from is not None and days.warm_up_from > days.first:
        remedy = "name an earlier day, or leave it out"
        problems.say((*where, "warm_up_from"), str(days.warm_up_from), f"is after first ({days.first})", remedy)
    for field, day in (("first", days.first), ("last", days.last)):
        if day is not None and (name := WEEKDAYS[day.weekday()]) in days.closed:
            problems.say((*where, field), str(day), f"is a {name}, which is in data.days.closed", "choose another day")
    if len(set(days.closed)) == len(WEEKDAYS):
        problems.say((*where, "closed"), None, "leaves no day of the week", "name the days without data only")
    for day in days.skip:
        if day <= days.first or (days.last is not None and day >= days.last):
            remedy = "skip days between first and last only"
            problems.say((*where, "skip"), str(day), f"is not between {days.first} and {days.last}", remedy)


def _check_names(problems: Problems) -> None:
    """The scenario's own name, and sections that name labels or columns by key."""
    scenario = problems.scenario
    if others := same_name(scenario.file, scenario.name):
        problems.messages.append(name_taken(scenario.name, scenario.file, *others))
    for task in scenario.train.task_weights:
        if task not in scenario.labels:
            problems.say(("train", "task_weights", task), task, "no such label", closest(task, scenario.labels))
    for task in scenario.train.value_weights:
        if not getattr(scenario.labels.get(task), "value", None):
            valued = [name for name, label in scenario.outcome_labels.items() if label.value]
            problems.say(("train", "value_weights"), task, "no label with a `value`", closest(task, valued))
    known = sample_columns(scenario)
    for name in scenario.validate_.drift_columns:
        if name not in known:
            problems.say(("validate", "drift_columns"), name, "no such feature or label", closest(name, known))


def _check_suite(problems: Problems) -> None:
    """The expectations are of columns that the samples will have; their kinds need Great Expectations, see `check`."""
    scenario = problems.scenario
    try:
        suite = read_suite(scenario)
    except BadInputError as error:
        problems.messages.append(str(error))
        return
    if suite is not None:
        problems.messages += unknown_columns(suite, expectable_columns(scenario), str(scenario.suite_file))
    elif scenario.validate_.suite is not None:
        what = f"no such file ({scenario.suite_file})"
        problems.say(("validate", "suite"), scenario.validate_.suite, what, "write it, or leave suite out")


def _expectation_problems(scenario: Scenario) -> list[str]:
    try:
        load_suite(scenario)
    except BadInputError as error:
        return str(error).splitlines()
    return []


def _check_sharding(problems: Problems) -> None:
    scenario = problems.scenario
    if scenario.train.backend == "torchrec":
        # Only scenarios with this backend pay for these imports.
        from feature_jobs.schema.sharding_rules import NOT_SHARDED, sharding_problems
        from feature_jobs.transforms import Layout

        layout = Layout.from_scenario(scenario)
        for problem in sharding_problems(scenario.train, scenario.model.embedding_dim, layout.namespaces):
            problems.say(*problem)
        for bag in layout.bags:
            if bag.weighted or bag.pooling != "mean":
                problems.say(("features", bag.name), None, NOT_SHARDED, "leave both out, or set train.backend: native")


def _check_search(problems: Problems, path: str, search: SearchRange) -> None:
    location = ("tune", "space", path)
    ends = [end for end in (search.low, search.high) if end is not None]
    problem = None
    if search.choices is not None and ends:
        problem = ("has choices and a range", "keep one of them")
    elif search.choices is not None and not search.choices:
        problem = ("has no choice", "list some, or give low and high")
    elif search.choices is None and len(ends) < 2:
        problem = ("has no range", "give low and high, or choices")
    elif ends and ends[0] >= ends[1]:
        problem = (f"low {ends[0]} is not below high {ends[1]}", "swap them")
    elif search.log and ends and ends[0] <= 0:
        problem = (f"low {ends[0]} has no logarithm", "raise it above zero, or leave log out")
    elif search.step is not None and (search.log or search.step <= 0 or not ends):
        problem = ("step is for ranges without log, and above zero", "leave step or log out")
    elif path.partition(".")[0] in FIXED or path.startswith(SAMPLED):
        problem = ("a trial cannot change it", "search in model, train, features, join")
    if problem:
        problems.say(location, None, *problem)
        return
    for expanded in expand(problems.scenario, path):
        parts = expanded.split(".")
        features = problems.scenario.features
        if parts[0] == "features" and len(parts) > 1 and parts[1] not in features:
            problems.say(location, parts[1], "no such feature", closest(parts[1], features))
            return
        # The ends are enough: each limit of the schema is a bound, so a value between two allowed ends is allowed.
        whole_ends = [int(end) if end.is_integer() else end for end in ends]  # 8.0 is not a value of a whole number
        for value in search.choices if search.choices is not None else whole_ends:
            if (refusal := _refusal(problems.scenario, expanded, value)) is not None:
                problems.say(location, value, *refusal)
                return


def expand(scenario: Scenario, path: str) -> list[str]:
    """`features.*.enabled` as one path per feature; a path without * as it is."""
    # By alias, because the path is one of the file: `validate`, not our `validate_`.
    node: Any = scenario.model_dump(by_alias=True)
    paths: list[tuple[list[str], Any]] = [([], node)]
    for part in path.split("."):
        paths = [
            ([*done, name], inside.get(name) if isinstance(inside, dict) else None)
            for done, inside in paths
            for name in (list(inside) if part == "*" and isinstance(inside, dict) else [part])
        ]
    return [".".join(done) for done, _ in paths]


def _refusal(scenario: Scenario, path: str, value: Any) -> tuple[str, str] | None:
    """Returns (problem, remedy) where the schema refuses `value` at `path`, else None."""
    try:
        # The trial's own way to set the value, so that no rule of the schema is written here a second time.
        load_scenario(scenario.file, data=scenario.data.path, overrides={path: value})
    except BadInputError as error:
        line = str(error).splitlines()[0]
        # The line begins with a `--set` that nobody typed; only the problem and the remedy are kept.
        place = setting_at(setting(path, value), path.split(".")) or ""
        what, _, remedy = line.removeprefix(place).removeprefix(str(scenario.file)).partition(": ")[2].rpartition("; ")
        return (what, remedy) if what else (remedy, "name a config path and values that the scenario allows")
    return None


CRON_REMEDY = (
    "write five fields: minute 0-59, hour 0-23, day of month 1-31, month 1-12, day of week 0-7; "
    "0 3 * * * is daily at 03:00"
)


def cron_problem(cron: str) -> str | None:
    """Returns the problem of a cron line, or None."""
    from croniter import croniter

    fields = cron.split()
    if len(fields) != 5 and not cron.startswith("@"):  # croniter also reads seconds and years; Airflow's cron has none
        return f"has {len(fields)} fields, not five"
    try:
        croniter.expand(cron, strict=True)
    except ValueError as error:
        return f"is not a schedule ({error})"
    return None
