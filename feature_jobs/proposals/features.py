"""Features: what each column is good for, and what earlier events of the user and the item say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from feature_jobs.proposals import vocabulary
from feature_jobs.proposals.labels import Answers, Label
from feature_jobs.proposals.profiles import Profile, Sample
from feature_jobs.proposals.roles import FoundEntity, Log, is_row_id
from feature_jobs.sources.casts import quote

MIN_ROWS = 50  # below this, chance alone looks like a relation
MIN_SHARE = 0.95


@dataclass(frozen=True)
class Proposed:
    """A feature's name and fields, or, without fields, a column left out; `why` is a comment."""

    name: str
    fields: Mapping[str, Any] | None
    why: str = ""


def propose_features(log: Log, entities: list[FoundEntity], answers: Answers) -> list[Proposed]:
    """Ids, columns of the log, of entities, then what earlier events of the user and the item say."""
    features = [_of(column.name.lower(), column.name, {"kind": "id"}) for column in (log.user, log.item)]
    known = {label.column for label in answers.labels} | answers.outcomes.keys() | {key.name for key in log.keys}
    features += [_of_event(log, column) for name, column in log.table.columns.items() if name not in known]
    names, parts = {name.lower() for name in log.table.columns}, ("hour", "weekday")[not log.has_clock :]
    features += [_of(_take(names, part), f"{part}(event_time)", {"kind": "id"}) for part in parts]
    for entity in entities:
        keys = (entity.key, entity.time)
        features += [_of_entity(names, log, entity, c) for c in entity.table.columns.values() if c not in keys]
    return features + _trailing(names, log, answers.labels)


def null_shares(log: Log, entities: list[FoundEntity], features: list[Proposed]) -> dict[str, float]:
    """The largest share of nulls that an id or a number has on a day of the sample; 1 where an entity decides it."""
    kept = [(one.name, one.fields) for one in features if one.fields and one.fields["kind"] in ("id", "number")]
    of = {name: str(fields.get("of", name)) for name, fields in kept}
    whole = [one for one in entities if one.matched == 1 and not one.time]
    full = {f"{one.name}.{c.name}" for one in whole for c in one.table.columns.values() if not one.table.missing(c)}
    names = [name for name in log.table.columns if name in of.values()]
    gaps = ", ".join(f"avg(CAST({quote(name)} IS NULL AS INT)) AS {quote(name)}" for name in names)
    keys = f"{quote(log.user.name)} IS NOT NULL AND {quote(log.item.name)} IS NOT NULL"
    days = f"(SELECT {gaps} FROM {log.table.name} WHERE {keys} GROUP BY {quote(log.time.name)} // 86_400_000_000)"
    worst = dict(zip(names, Sample(log.table.connection, days).row(*(f"max({quote(n)})" for n in names)), strict=True))
    return {name: worst.get(column, float("." in column and column not in full)) for name, column in of.items()}


def _take(taken: set[str], *wanted: str) -> str:
    """The first of the names that is free, else the last with a number; small letters."""
    name = next((name.lower() for name in wanted if name.lower() not in taken), wanted[-1].lower())
    name = vocabulary.unique(name, taken)
    taken.add(name)
    return name


def _of(name: str, of: str, fields: dict[str, Any], why: str = "") -> Proposed:
    return Proposed(name, fields if name == of else {"kind": fields["kind"], "of": of} | fields, why)


def _of_event(log: Log, column: Profile) -> Proposed:
    why = _left_out(column, log) or _useless_id(log, column)
    if why:
        return Proposed(column.name, None, why)
    fields = {"kind": "id"} if column.name in log.passed_over else _fields(log, column)
    return _of(column.name.lower(), column.name, fields)


def _of_entity(taken: set[str], log: Log, entity: FoundEntity, column: Profile) -> Proposed:
    if why := _left_out(column, None):
        return Proposed(column.name, None, why)
    of, fields = f"{entity.name}.{column.name}", _fields(log, column)
    names, note = [column.name, f"{entity.name}_{column.name}"], ""
    if column.type == "time":
        names, of = [f"{name}_age" for name in names], f"event_time - {of}"
        fields, note = {"kind": "number", "buckets": 2}, "seconds since then"
    elif entity.is_log:
        names, note = names[1:], f"of the user's last row in {entity.name}"
        is_item = column.name.lower() == log.item.name.lower()
        fields = {"kind": "id", "table": log.item.name.lower()} if is_item else fields
    return _of(_take(taken, *names), of, fields, note)


def _fields(log: Log, column: Profile) -> dict[str, Any]:
    if column.type.startswith("list"):
        is_history = column.words & vocabulary.HISTORY and column.type == f"list[{log.item.type}]"
        return {"kind": "ids"} | ({"table": log.item.name.lower()} if is_history else {})
    # A small set of integers is mostly codes; one with a word for a quantity has an order to learn from.
    is_small = column.distinct <= 200 and not column.words & vocabulary.NUMBERS
    is_category = column.type == "int" and (column.words & vocabulary.CATEGORIES or is_small)
    if column.is_number and not is_category:
        return {"kind": "number"} | ({"buckets": 2} if column.distinct > 20 else {})
    return {"kind": "id"}


def _left_out(column: Profile, log: Log | None) -> str | None:
    """Returns the reason why a column makes no feature, or None. The first rule that holds decides."""
    is_log = log is not None
    words, distinct, is_string = column.words, column.distinct, column.type == "string"
    share = distinct / max(column.known, 1)
    is_named = is_string or bool(words & vocabulary.CATEGORIES)
    is_clock = words & vocabulary.CLOCK and not words & vocabulary.QUANTITIES
    is_single = distinct > (100 if is_log else 20) and share > (0.5 if is_string else 0.9)
    is_large = column.is_number and (column.high or 0) > 1e8 and distinct > 200
    rules = [
        (not column.known, "empty"),
        (distinct <= 1, "always the same"),
        (words & vocabulary.SPLIT and distinct <= 12, "says how somebody split the rows; it is unknown when serving"),
        (is_log and column.type == "time", "a second time of the row; perhaps known only afterwards"),
        (is_log and is_row_id(column), "an id of a row or a visit: it never comes again"),
        (log and is_clock and (log.has_clock or words & vocabulary.DAYS), "event_time says it"),
        (log and is_clock and is_string, "a time of day, which event_time lacks: write both into one column"),
        (column.type.startswith("list"), None),
        (column.is_text, f"free text: {distinct:,} values, {column.mean_length:.0f} characters long on average"),
        (is_named and is_single, f"{distinct:,} values in {column.known:,} rows: nearly another one in each"),
        (is_named and column.mean_length > 80, f"long text: {column.mean_length:.0f} characters on average"),
        (not is_named and is_large, f"{distinct:,} values up to {column.high or 0:.10g}: perhaps a time or an id"),
    ]
    return next((why for holds, why in rules if holds), None)


def _useless_id(log: Log, column: Profile) -> str | None:
    """Returns the reason why a column of the log helps no other row, or None: it numbers rows or requests, counts
    something, or copies the user or the item. Its values show it; its name often does not."""
    is_number, distinct, known = column.is_number, column.distinct, column.known
    if not (is_number or column.type == "string") or column.is_flag or known < MIN_ROWS:
        return None
    whole, growth, like_user, like_item, of_one_user = _relations(log, column)
    grows = "its numbers grow with the event time: an id of rows or requests, or a counter"
    visits = f"{distinct:,} values in {known:,} rows, each of one user: an id of requests or visits"
    rules = [
        (not whole, None),
        (is_number and growth >= MIN_SHARE, grows),
        (is_number and column.words & vocabulary.QUANTITIES, None),  # a price may be another one for each item
        (like_user >= MIN_SHARE, f"one-to-one with {log.user.name}, which is a feature already"),
        (like_item >= MIN_SHARE, f"one-to-one with {log.item.name}, which is a feature already"),
        (distinct <= 100, None),
        (is_number and distinct >= 0.9 * known, f"{distinct:,} whole numbers in {known:,} rows: an id of rows"),
        (known <= 20 * distinct and of_one_user >= MIN_SHARE, visits),
    ]
    return next((why for holds, why in rules if holds), None)


def _relations(log: Log, column: Profile) -> tuple[Any, ...]:
    """Returns if the values are whole numbers or text; Spearman's correlation with the event time; how nearly they are
    one-to-one with the user and with the item; the share of repeated values that one user has alone."""
    parts = {"v": column, "t": log.time, "u": log.user, "i": log.item}
    seen = ", ".join(f"{quote(part.name)} AS {name}" for name, part in parts.items())
    ranks = "SELECT rank() OVER (ORDER BY v) AS a, rank() OVER (ORDER BY t) AS b FROM seen"
    users = "SELECT count(DISTINCT u) AS num FROM seen WHERE u IS NOT NULL GROUP BY v HAVING count(*) > 1"
    figures = [
        "(SELECT bool_and(v = floor(v)) FROM seen)" if column.is_number else "true",
        f"(SELECT abs(corr(a, b)) FROM ({ranks}))",
        f"least({_agreement('v', 'u')}, {_agreement('u', 'v')})",
        f"least({_agreement('v', 'i')}, {_agreement('i', 'v')})",
        f"(SELECT avg(CAST(num = 1 AS INT)) FROM ({users}) HAVING count(*) >= {MIN_ROWS})",
    ]
    known = f"(WITH seen AS (SELECT {seen} FROM {log.table.name} WHERE v IS NOT NULL) SELECT {', '.join(figures)})"
    return tuple(figure or 0 for figure in Sample(log.table.connection, known).row("*"))


def _agreement(a: str, b: str) -> str:
    """SQL of the share of rows whose `b` is the most frequent one beside their `a`."""
    pairs = f"SELECT {a} AS a, count(*) AS n FROM seen WHERE {a} IS NOT NULL AND {b} IS NOT NULL GROUP BY {a}, {b}"
    return f"(SELECT sum(most) / sum(num) FROM (SELECT max(n) AS most, sum(n) AS num FROM ({pairs}) GROUP BY a))"


def _trailing(taken: set[str], log: Log, labels: list[Label]) -> list[Proposed]:
    user, item, first = log.user.name, log.item.name, labels[0]
    wanted: dict[str, dict[str, Any]] = {
        "user_events": {"kind": "count", "by": [user]},
        "item_events": {"kind": "count", "by": [item]},
        "user_item_events": {"kind": "count", "by": [user, item]},
        "user_recency": {"kind": "recency", "by": [user]},
    }
    for label in labels:
        # The schema refuses a prior of 0 or 1, which a label that is always the same would give.
        rate = {"of": label.expression, "prior": round(min(max(label.mean, 0.001), 0.999), 4)}
        wanted[f"user_{label.name}_rate"] = {"kind": "rate", "by": [user]} | rate
        wanted[f"item_{label.name}_rate"] = {"kind": "rate", "by": [item]} | rate
    last = {"kind": "sequence", "of": item, "by": user, "where": first.expression, "length": 20, "table": item.lower()}
    features = [Proposed(_take(taken, name), fields) for name, fields in wanted.items()]
    return [*features, Proposed(_take(taken, f"{first.name}_items"), last, "the last of these, newest first")]
