"""Guesses features: what each column is good for, and what earlier events tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from feature_jobs.proposals.labels import Guessed, Label
from feature_jobs.proposals.profiles import Profile, Table
from feature_jobs.proposals.roles import FoundEntity, Log, words

_NUMBERS = set(
    words(
        "age price cost count num number size duration length len width height days hours minutes amount weight "
        "distance rank rating score total avg mean sum ratio rate popularity budget bid income salary ms sec seconds"
    )
)
_IDS = set(words("id uid code zip type category cat level status class kind group segment version year feat feature"))
_CLOCK = set(words("date dt day hour hourmin minute second month year week weekday quarter timestamp ts datetime time"))
_HISTORY = set(words("seq sequence history hist past recent list"))
MAX_VALUES = 200_000


@dataclass(frozen=True)
class Proposed:
    """A feature's name and fields, or, without fields, a column left out; `why` is a comment."""

    name: str
    fields: dict[str, Any] | None
    why: str = ""


def guess_features(log: Log, entities: list[FoundEntity], guessed: Guessed) -> list[Proposed]:
    """Ids, columns of the log, of entities, then what earlier events of the user and the item tell."""
    names = _Names({name.lower() for name in log.table.columns})
    user, item = (names.of_column(column.name) for column in (log.user, log.item))
    features = [_of(user, log.user.name, {"kind": "id"}), _of(item, log.item.name, {"kind": "id"})]
    answers = {label.column for label in guessed.labels} | guessed.outcomes.keys()
    for column in log.table.columns.values():
        if column not in (log.user, log.item, log.time) and column.name not in answers:
            features.append(_column(names, log.table, column, column.name, log))
    features.append(Proposed(names.take("hour"), {"kind": "id", "of": "hour(event_time)"}))
    features.append(Proposed(names.take("weekday"), {"kind": "id", "of": "weekday(event_time)"}))
    for entity in entities:
        for column in entity.table.columns.values():
            if column not in (entity.key, entity.time):
                features.append(_column(names, entity.table, column, f"{entity.name}.{column.name}", log))
    return features + _trailing(names, log, guessed.labels, item, _category(log, entities))


class _Names:
    """Feature names: small letters, each once. `reserved` are columns of the log, for whose features they are kept."""

    def __init__(self, reserved: set[str]) -> None:
        self.taken = set(reserved)

    def of_column(self, name: str) -> str:
        """The name of the feature that a column of the log is."""
        return name.lower()

    def take(self, *wanted: str) -> str:
        """The first of the names that is free, else the last with a number."""
        lowered = [name.lower() for name in wanted]
        free = [name for name in [*lowered, *(f"{lowered[-1]}_{n}" for n in range(2, 100))] if name not in self.taken]
        self.taken.add(free[0])
        return free[0]


def _of(name: str, of: str, fields: dict[str, Any], why: str = "") -> Proposed:
    if name != of:
        fields = {"kind": fields["kind"], "of": of} | fields
    return Proposed(name, fields, why)


def _column(names: _Names, table: Table, column: Profile, of: str, log: Log) -> Proposed:
    """The feature of a column, or why there is none."""
    why = _left_out(table, column, is_log=table is log.table)
    if why is not None:
        return Proposed(column.name, None, why)
    fields: dict[str, Any] = {"kind": "id"}
    if column.type.startswith("list"):
        fields = {"kind": "ids"}
        if column.words & _HISTORY and column.type == f"list[{log.item.type}]":
            fields["table"] = log.item.name.lower()
    elif column.is_number and not (column.type == "int" and _is_category(column)):
        fields = {"kind": "number", "buckets": 2} if column.distinct > 20 else {"kind": "number"}
    entity = of.rpartition(".")[0]
    name = names.take(column.name, f"{entity}_{column.name}") if entity else names.of_column(column.name)
    return _of(name, of, fields)


def _is_category(column: Profile) -> bool:
    return bool(column.words & _IDS) or (column.distinct <= 200 and not column.words & _NUMBERS)


def _left_out(table: Table, column: Profile, *, is_log: bool) -> str | None:
    """Why a column makes no feature, or None."""
    share = column.distinct / max(column.known, 1)
    is_named = column.type == "string" or bool(column.words & _IDS)
    why = None
    if column.distinct <= 1:
        why = "always the same" if column.known else "empty"
    elif is_log and column.words & _CLOCK and not column.words & (_NUMBERS - {"number"}):
        why = "told by event_time"
    elif column.type.startswith("list"):
        why = None
    elif is_named and column.distinct > (100 if is_log else 20) and share > (0.5 if column.type == "string" else 0.9):
        why = "nearly another one in each row"
    elif is_named and (column.distinct > MAX_VALUES or max(map(len, column.top)) > 80):
        why = "a text"
    elif not is_named and column.is_number and (column.high or 0) > 1e8 and column.distinct > 200:
        why = "a time, or an id that is not named one?"
    return why


def _category(log: Log, entities: list[FoundEntity]) -> str | None:
    """A column that groups items: of an entity of the item, with few values."""
    groups = [
        (
            bool(column.words & set(words("category cat genre brand author topic publisher type"))),
            f"{e.name}.{column.name}",
        )
        for e in entities
        for column in e.table.columns.values()
        if e.event_key is log.item
        and column.type in ("int", "string")
        and 3 <= column.distinct <= 0.3 * log.item.distinct
        if column not in (e.key, e.time) and not (column.words & _NUMBERS)
    ]
    return max(groups, key=lambda group: group[0])[1] if groups else None


def _trailing(names: _Names, log: Log, labels: list[Label], item: str, category: str | None) -> list[Proposed]:
    user_key, item_key = log.user.name, log.item.name
    features = [
        Proposed(names.take("user_events"), {"kind": "count", "by": [user_key]}),
        Proposed(names.take("item_events"), {"kind": "count", "by": [item_key]}),
        Proposed(names.take("user_item_events"), {"kind": "count", "by": [user_key, item_key]}),
        Proposed(names.take("user_recency"), {"kind": "recency", "by": [user_key]}),
    ]
    for label in labels:
        prior = {"prior": round(min(max(label.mean, 0.001), 0.999), 4)}
        of = {"of": label.expression}
        for who, by in (("user", user_key), ("item", item_key)):
            features.append(
                Proposed(names.take(f"{who}_{label.name}_rate"), {"kind": "rate", "by": [by], **of, **prior})
            )
    first = labels[0]
    if category is not None:
        fields = {"kind": "rate", "by": [user_key, category], "of": first.expression, "prior": round(first.mean, 4)}
        features.append(Proposed(names.take(f"user_{category.rpartition('.')[2]}_{first.name}_rate"), fields))
    sequence = {
        "kind": "sequence",
        "of": item_key,
        "by": user_key,
        "where": first.expression,
        "length": 20,
        "table": item,
    }
    return [*features, Proposed(names.take(f"{first.name}_items"), sequence, "the last of these, newest first")]
