"""Features: what each column is good for, and what earlier events of the user and the item say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from feature_jobs.proposals import vocabulary
from feature_jobs.proposals.labels import Answers, Label
from feature_jobs.proposals.profiles import Profile, unique
from feature_jobs.proposals.roles import FoundEntity, Log, is_row_id

MAX_VALUES = 200_000


@dataclass(frozen=True)
class Proposed:
    """A feature's name and fields, or, without fields, a column left out; `why` is a comment."""

    name: str
    fields: Mapping[str, Any] | None
    why: str = ""


def propose_features(
    log: Log, entities: list[FoundEntity], answers: Answers, useless: Mapping[str, str]
) -> list[Proposed]:
    """Ids, columns of the log, of entities, then what earlier events of the user and the item say. `useless` are
    columns of the log to leave out, with the reason."""
    names = _Names({name.lower() for name in log.table.columns})
    features = [_of(column.name.lower(), column.name, {"kind": "id"}) for column in (log.user, log.item)]
    known = parts_taken(log, answers)
    features += [_of_event(log, column, useless) for column in log.table.columns.values() if column.name not in known]
    features += [_of(names.take(part), f"{part}(event_time)", {"kind": "id"}) for part in ("hour", "weekday")]
    for entity in entities:
        keys = (entity.key, entity.clock.column if entity.clock else None)
        features += [_of_entity(names, log, entity, c) for c in entity.table.columns.values() if c not in keys]
    return features + _trailing(names, log, answers.labels, _category(log, entities))


def parts_taken(log: Log, answers: Answers) -> set[str]:
    """Columns of the log that are keys, labels or outcomes."""
    return {label.column for label in answers.labels} | answers.outcomes.keys() | {key.name for key in log.keys}


class _Names:
    """Feature names: small letters, each once. `reserved` are columns of the log, for whose features they are kept."""

    def __init__(self, reserved: set[str]) -> None:
        self.taken = set(reserved)

    def take(self, *wanted: str) -> str:
        """The first of the names that is free, else the last with a number."""
        free = next((name.lower() for name in wanted if name.lower() not in self.taken), None)
        name = free or unique(wanted[-1].lower(), self.taken)
        self.taken.add(name)
        return name


def _of(name: str, of: str, fields: dict[str, Any], why: str = "") -> Proposed:
    return Proposed(name, fields if name == of else {"kind": fields["kind"], "of": of} | fields, why)


def _of_event(log: Log, column: Profile, useless: Mapping[str, str]) -> Proposed:
    why = _left_out(column, is_log=True) or useless.get(column.name)
    if why:
        return Proposed(column.name, None, why)
    fields = {"kind": "id"} if column.name in log.passed_over else _fields(log, column)
    return _of(column.name.lower(), column.name, fields)


def _of_entity(names: _Names, log: Log, entity: FoundEntity, column: Profile) -> Proposed:
    why = _left_out(column, is_log=False)
    if why is not None:
        return Proposed(column.name, None, why)
    of, long_name, fields = f"{entity.name}.{column.name}", f"{entity.name}_{column.name}", _fields(log, column)
    if column.type == "time":
        name = names.take(f"{column.name}_age", f"{long_name}_age")
        return _of(name, f"event_time - {of}", {"kind": "number", "buckets": 2}, "seconds since then")
    if not entity.is_log:
        return _of(names.take(column.name, long_name), of, fields)
    if column.name.lower() != log.item.name.lower():
        return _of(names.take(long_name), of, fields)
    shared = {"kind": "id", "table": log.item.name.lower()}
    return _of(names.take(long_name), of, shared, f"of the user's last row in {entity.name}")


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


def _left_out(column: Profile, *, is_log: bool) -> str | None:
    """Why a column makes no feature, or None. The first rule that holds decides."""
    words, distinct, is_string = column.words, column.distinct, column.type == "string"
    share = distinct / max(column.known, 1)
    is_named = is_string or bool(words & vocabulary.CATEGORIES)
    # `num_days` and `hours_watched` are quantities, `hour` and `day` are not.
    is_clock = words & vocabulary.CLOCK and not words & (vocabulary.NUMBERS - {"number"})
    is_single = distinct > (100 if is_log else 20) and share > (0.5 if is_string else 0.9)
    is_large = column.is_number and (column.high or 0) > 1e8 and distinct > 200
    rules = [
        (not column.known, "empty"),
        (distinct <= 1, "always the same"),
        (words & vocabulary.SPLIT and distinct <= 12, "says how somebody split the rows; it is unknown when serving"),
        (is_log and column.type == "time", "a second time of the row; perhaps known only afterwards"),
        (is_log and is_row_id(column), "an id of a row or a visit: it never comes again"),
        (is_log and is_clock, "event_time says it"),
        (column.type.startswith("list"), None),
        (column.is_text, f"free text: {distinct:,} values, {column.mean_length:.0f} characters long on average"),
        (is_named and is_single, f"{distinct:,} values in {column.known:,} rows: nearly another one in each"),
        (is_named and distinct > MAX_VALUES, f"{distinct:,} values, more than {MAX_VALUES:,}"),
        (is_named and column.mean_length > 80, f"long text: {column.mean_length:.0f} characters on average"),
        (not is_named and is_large, f"{distinct:,} values up to {column.high or 0:.10g}: perhaps a time or an id"),
    ]
    return next((why for holds, why in rules if holds), None)


def _category(log: Log, entities: list[FoundEntity]) -> str | None:
    """A column that groups items: of an entity of the item, with few values."""
    groups = [
        (bool(column.words & vocabulary.GROUPS), f"{entity.name}.{column.name}")
        for entity in entities
        for column in entity.table.columns.values()
        if entity.event_key is log.item and column is not entity.key and column.type in ("int", "string")
        # More would group single items.
        if 3 <= column.distinct <= 0.3 * log.item.distinct and not column.words & vocabulary.NUMBERS
    ]
    return max(groups, key=lambda group: group[0])[1] if groups else None


def _trailing(names: _Names, log: Log, labels: list[Label], category: str | None) -> list[Proposed]:
    user, item, first = log.user.name, log.item.name, labels[0]
    counts = {"user_events": [user], "item_events": [item], "user_item_events": [user, item]}
    features = [Proposed(names.take(name), {"kind": "count", "by": by}) for name, by in counts.items()]
    features.append(Proposed(names.take("user_recency"), {"kind": "recency", "by": [user]}))
    rates = [(label, who, [by]) for label in labels for who, by in (("user", user), ("item", item))]
    if category is not None:
        rates.append((first, f"user_{category.rpartition('.')[2]}", [user, category]))
    for label, who, by in rates:
        prior = round(min(max(label.mean, 0.001), 0.999), 4)  # never 0 or 1, where a logit is infinite
        fields = {"kind": "rate", "by": by, "of": label.expression, "prior": prior}
        features.append(Proposed(names.take(f"{who}_{label.name}_rate"), fields))
    last = {"kind": "sequence", "of": item, "by": user, "where": first.expression, "length": 20, "table": item.lower()}
    return [*features, Proposed(names.take(f"{first.name}_items"), last, "the last of these, newest first")]
