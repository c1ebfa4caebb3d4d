"""Features: what each column is good for. `templates/scenario.yaml.j2` adds what earlier events say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from feature_jobs.proposals import vocabulary
from feature_jobs.proposals.labels import Answers
from feature_jobs.proposals.profiles import Profile
from feature_jobs.proposals.roles import FoundEntity, Log
from feature_jobs.sources.casts import quote

MIN_ROWS = 50  # below this, chance alone looks like a relation
MIN_SHARE = 0.95
MAX_BITS = 0.3  # about what one row in twenty leaves to learn, if it goes with another value
Fields = dict[str, Any]
"""A feature as a scenario declares it."""


@dataclass(frozen=True)
class Proposed:
    """A feature's name and fields, or, without fields, a column left out; `why` is a comment."""

    name: str
    fields: Fields | None
    why: str = ""


def propose_features(
    log: Log, entities: list[FoundEntity], answers: Answers
) -> tuple[list[Proposed], Callable[..., str]]:
    """Ids, columns of the log and of entities; and a function that returns a free name, for the template's features."""
    take = partial(_take, {name.lower() for name in log.table.columns})
    features = [_of(column.name.lower(), column.name, {"kind": "id"}) for column in (log.user, log.item)]
    known = {label.column for label in answers.labels} | answers.outcomes.keys() | {key.name for key in log.keys}
    features += [_of_event(log, column, answers) for name, column in log.table.columns.items() if name not in known]
    parts = ("hour", "weekday") if log.has_clock else ("weekday",)
    features += [_of(take(part), f"{part}(event_time)", {"kind": "id"}) for part in parts]
    for entity in entities:
        columns = entity.table.columns.values()
        features += [_of_entity(take, log, entity, c) for c in columns if c not in (entity.key, entity.time)]
    return features, take


def null_shares(in_log: Mapping[str, float], entities: list[FoundEntity], features: list[Proposed]) -> dict[str, float]:
    """The largest share of nulls that an id or a number has on a day, from those of the log's columns. Of an entity's
    column without gaps it is that of the key; 1 where it is unknown, as the entity lacks keys or has gaps."""
    shares = dict(in_log)
    for one in (one for one in entities if one.matched == 1 and not one.time):
        full = (name for name, column in one.table.columns.items() if not one.table.missing(column))
        shares |= {f"{one.name}.{name}": in_log[one.event_key.name] for name in full}
    kept = [(one.name, one.fields) for one in features if one.fields and one.fields["kind"] in ("id", "number")]
    of = {name: str(fields.get("of", name)) for name, fields in kept}
    return {name: shares.get(column, float("." in column)) for name, column in of.items()}


def _take(taken: set[str], *wanted: str) -> str:
    """The first of the names that is free, else the last with a number; small letters."""
    name = next((name.lower() for name in wanted if name.lower() not in taken), wanted[-1].lower())
    name = vocabulary.unique(name, taken)
    taken.add(name)
    return name


def _of(name: str, of: str, fields: Fields, why: str = "") -> Proposed:
    return Proposed(name, fields if name == of else {"kind": fields["kind"], "of": of} | fields, why)


def _of_event(log: Log, column: Profile, answers: Answers) -> Proposed:
    if why := _left_out(column, log) or answers.doubtful.get(column.name) or _useless_id(log, column):
        return Proposed(column.name, None, why)
    is_id = column in log.passed_over and not column.words & vocabulary.QUANTITIES
    fields = {"kind": "id"} if is_id else _fields(log, column)
    return _of(column.name.lower(), column.name, fields, answers.scores.get(column.name, ""))


def _of_entity(take: Callable[..., str], log: Log, entity: FoundEntity, column: Profile) -> Proposed:
    if why := _left_out(column, None):
        return Proposed(column.name, None, why)
    of, names = f"{entity.name}.{column.name}", [column.name, f"{entity.name}_{column.name}"]
    if column.type == "time":
        age: Fields = {"kind": "number", "buckets": 2}
        return _of(take(*(f"{name}_age" for name in names)), f"event_time - {of}", age, "seconds since then")
    if not entity.is_log:
        return _of(take(*names), of, _fields(log, column))
    item = log.item.name.lower()
    fields = {"kind": "id", "table": item} if column.name.lower() == item else _fields(log, column)
    return _of(take(names[1]), of, fields, f"of the user's last row in {entity.name}")


def _fields(log: Log, column: Profile) -> Fields:
    if column.type == "list[float]":
        return {"kind": "vector", "width": column.column.width}
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
        (column.is_split, "a split into rows to train and to test on, unknown when serving"),
        (is_log and column.type == "time", "a second time of the row; perhaps known only afterwards"),
        (is_log and column.row_id, column.row_id),
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
    if column.type.startswith("list") or known < MIN_ROWS:
        return None
    found = _relations(log, column)
    grows = "its numbers grow with the event time: an id of rows or requests, or a counter"
    visits = f"{distinct:,} values in {known:,} rows, each of one user: an id of requests or visits"
    rules = [
        (not found.is_whole, None),
        (found.num_runs <= distinct <= 12, "its values follow each other in time, and none comes back: a split, say"),
        (column.is_flag, None),
        (is_number and found.growth >= MIN_SHARE, grows),
        (is_number and column.words & vocabulary.QUANTITIES, None),  # a price may be another one for each item
        (found.bits_to_user <= MAX_BITS, f"one-to-one with {log.user.name}, which is a feature already"),
        (found.bits_to_item <= MAX_BITS, f"one-to-one with {log.item.name}, which is a feature already"),
        (distinct <= 100, None),
        (is_number and distinct >= 0.9 * known, f"{distinct:,} whole numbers in {known:,} rows: an id of rows"),
        (known <= 20 * distinct and found.num_repeats >= MIN_ROWS and found.same_user >= MIN_SHARE, visits),
    ]
    return next((why for holds, why in rules if holds), None)


def _relations(log: Log, column: Profile) -> Any:
    """Relations of the values to the other columns, over the sampled rows that have the column, a user and an item.

    `growth`: Spearman's correlation with the event time. `num_runs`: rows whose value is not that of the row before, in
    order of time. `bits_to_user`, `bits_to_item`: what is left to learn of one column from the other, 0 where they are
    one-to-one. `same_user`: of the rows that repeat a value, the share that brings no new user.
    """
    v, t, u, i = (quote(one.name) for one in (column, *log.keys))
    # By value too: rows of one moment have no order, and each reading would count another number of changes.
    order = (
        f"rank() OVER (ORDER BY {v}) AS _v, rank() OVER (ORDER BY {t}) AS _t, lag({v}) OVER (ORDER BY {t}, {v}) AS _p"
    )
    known = f"(SELECT *, {order} FROM {log.table.name} WHERE {v} IS NOT NULL AND {u} IS NOT NULL AND {i} IS NOT NULL)"
    figures = {
        "is_whole": f"bool_and({v} = floor({v}))" if column.is_number else "true",
        "growth": "abs(corr(_v, _t))",
        "num_runs": f"count(*) FILTER ({v} IS DISTINCT FROM _p)",
        "bits_to_user": f"entropy(({v}, {u})) - least(entropy({v}), entropy({u}))",
        "bits_to_item": f"entropy(({v}, {i})) - least(entropy({v}), entropy({i}))",
        "num_repeats": f"count(*) - count(DISTINCT {v})",
        "same_user": f"(count(*) - count(DISTINCT ({v}, {u}))) / (count(*) - count(DISTINCT {v}))",
    }
    named = ", ".join(f"{sql} AS {name}" for name, sql in figures.items())
    return log.table.connection.execute(f"SELECT {named} FROM {known}").df().iloc[0]
