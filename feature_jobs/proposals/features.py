"""Features: what each column is good for, and what earlier events of the user and the item say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from feature_jobs.proposals import vocabulary
from feature_jobs.proposals.labels import Answers, Label
from feature_jobs.proposals.profiles import Profile, Table
from feature_jobs.proposals.roles import FoundEntity, Log, is_row_id

MAX_VALUES = 200_000


@dataclass(frozen=True)
class Proposed:
    """A feature's name and fields, or, without fields, a column left out; `why` is a comment."""

    name: str
    fields: Mapping[str, Any] | None
    why: str = ""


def propose_features(log: Log, entities: list[FoundEntity], answers: Answers) -> list[Proposed]:
    """Ids, columns of the log, of entities, then what earlier events of the user and the item say."""
    names = _Names({name.lower() for name in log.table.columns})
    user, item = (column.name.lower() for column in (log.user, log.item))
    features = [_of(user, log.user.name, {"kind": "id"}), _of(item, log.item.name, {"kind": "id"})]
    known = {label.column for label in answers.labels} | answers.outcomes.keys()
    for column in log.table.columns.values():
        if column not in log.keys and column.name not in known:
            features.append(_column(names, log.table, column, None, log))
    for part in ("hour", "weekday"):
        features.append(Proposed(names.take(part), {"kind": "id", "of": f"{part}(event_time)"}))
    for entity in entities:
        for column in entity.table.columns.values():
            if column is not entity.key and (entity.clock is None or column is not entity.clock.column):
                features.append(_column(names, entity.table, column, entity, log))
    return features + _trailing(names, log, answers.labels, item, _category(log, entities))


class _Names:
    """Feature names: small letters, each once. `reserved` are columns of the log, for whose features they are kept."""

    def __init__(self, reserved: set[str]) -> None:
        self.taken = set(reserved)

    def take(self, *wanted: str) -> str:
        """The first of the names that is free, else the last with a number."""
        lowered = [name.lower() for name in wanted]
        names = [*lowered, *(f"{lowered[-1]}_{n}" for n in range(2, 100))]
        free = next(name for name in names if name not in self.taken)
        self.taken.add(free)
        return free


def _of(name: str, of: str, fields: dict[str, Any], why: str = "") -> Proposed:
    return Proposed(name, fields if name == of else {"kind": fields["kind"], "of": of} | fields, why)


def _column(names: _Names, table: Table, column: Profile, entity: FoundEntity | None, log: Log) -> Proposed:
    """The feature of a column, or why there is none."""
    why = _left_out(column, is_log=entity is None)
    if why is not None:
        return Proposed(column.name, None, why)
    fields: dict[str, Any] = {"kind": "id"}
    comment = ""
    if column.type == "time" and entity is not None:
        name = names.take(f"{column.name}_age", f"{entity.name}_{column.name}_age")
        of = f"event_time - {entity.name}.{column.name}"
        return _of(name, of, {"kind": "number", "buckets": 2}, "seconds since then")
    if column.type.startswith("list"):
        fields = {"kind": "ids"}
        if column.words & vocabulary.HISTORY and column.type == f"list[{log.item.type}]":
            fields["table"] = log.item.name.lower()
    elif entity is not None and entity.is_log and column.name.lower() == log.item.name.lower():
        fields["table"] = log.item.name.lower()
        comment = f"of the user's last row in {entity.name}"
    elif column.is_number and not (column.type == "int" and _is_category(column)):
        fields = {"kind": "number", "buckets": 2} if column.distinct > 20 else {"kind": "number"}
    if entity is None:
        return _of(column.name.lower(), column.name, fields)
    wanted = (column.name,) if not entity.is_log else ()
    return _of(names.take(*wanted, f"{entity.name}_{column.name}"), f"{entity.name}.{column.name}", fields, comment)


def _is_category(column: Profile) -> bool:
    return bool(column.words & vocabulary.CATEGORIES) or (
        column.distinct <= 200 and not column.words & vocabulary.NUMBERS
    )


def _left_out(column: Profile, *, is_log: bool) -> str | None:
    """Why a column makes no feature, or None."""
    share = column.distinct / max(column.known, 1)
    is_named = column.type == "string" or bool(column.words & vocabulary.CATEGORIES)
    why = None
    if column.distinct <= 1:
        why = "always the same" if column.known else "empty"
    elif column.words & vocabulary.SPLIT and column.distinct <= 12:
        why = "says how somebody split the rows; it is unknown when serving"
    elif is_log and column.type == "time":
        why = "a second time of the row; perhaps known only afterwards"
    elif is_log and is_row_id(column):
        why = "an id of a row or a visit: it never comes again"
    elif is_log and column.words & vocabulary.CLOCK and not column.words & (vocabulary.NUMBERS - {"number"}):
        why = "event_time says it"
    elif column.type.startswith("list"):
        why = None
    elif column.is_text:
        why = "a text"
    elif is_named and column.distinct > (100 if is_log else 20) and share > (0.5 if column.type == "string" else 0.9):
        why = "nearly another one in each row"
    elif is_named and (column.distinct > MAX_VALUES or column.mean_length > 80):
        why = "a text"
    elif not is_named and column.is_number and (column.high or 0) > 1e8 and column.distinct > 200:
        why = "a time, or an id that is not named one?"
    return why


def _category(log: Log, entities: list[FoundEntity]) -> str | None:
    """A column that groups items: of an entity of the item, with few values."""
    groups = [
        (bool(column.words & vocabulary.GROUPS), f"{entity.name}.{column.name}")
        for entity in entities
        for column in entity.table.columns.values()
        if entity.event_key is log.item
        and column.type in ("int", "string")
        and 3 <= column.distinct <= 0.3 * log.item.distinct
        and column is not entity.key
        and not (column.words & vocabulary.NUMBERS)
    ]
    return max(groups, key=lambda group: group[0])[1] if groups else None


def _trailing(names: _Names, log: Log, labels: list[Label], item: str, category: str | None) -> list[Proposed]:
    user_key, item_key, first = log.user.name, log.item.name, labels[0]
    features = [
        Proposed(names.take("user_events"), {"kind": "count", "by": [user_key]}),
        Proposed(names.take("item_events"), {"kind": "count", "by": [item_key]}),
        Proposed(names.take("user_item_events"), {"kind": "count", "by": [user_key, item_key]}),
        Proposed(names.take("user_recency"), {"kind": "recency", "by": [user_key]}),
    ]
    rates = [(label, who, [by]) for label in labels for who, by in (("user", user_key), ("item", item_key))]
    if category is not None:
        rates.append((first, f"user_{category.rpartition('.')[2]}", [user_key, category]))
    for label, who, keys in rates:
        prior = round(min(max(label.mean, 0.001), 0.999), 4)
        fields = {"kind": "rate", "by": keys, "of": label.expression, "prior": prior}
        features.append(Proposed(names.take(f"{who}_{label.name}_rate"), fields))
    last = {"kind": "sequence", "of": item_key, "by": user_key, "where": first.expression, "length": 20, "table": item}
    return [*features, Proposed(names.take(f"{first.name}_items"), last, "the last of these, newest first")]
