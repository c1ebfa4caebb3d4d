"""What to predict, and which columns would give the answer away."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import duckdb

from feature_jobs.expressions.compiler import to_sql
from feature_jobs.proposals import vocabulary
from feature_jobs.proposals.profiles import Profile
from feature_jobs.proposals.roles import Log, is_row_id
from feature_jobs.sources.casts import quote
from feature_jobs.validation.leaks import leak_score

MAX_LABELS = 4
MIN_POSITIVES = 50
LEAK_AUC, CERTAIN_LEAK_AUC = 0.9, 0.98  # as `check` and `validate` judge: a warning, and a stop


@dataclass(frozen=True)
class Label:
    """A proposed label: expression, share of rows for which it holds, why."""

    name: str
    expression: str
    column: str
    mean: float
    why: str


@dataclass(frozen=True)
class Answers:
    """Labels; columns that are outcomes, with the reason for each; how late labels are known, and why that is said."""

    labels: list[Label]
    outcomes: Mapping[str, str]
    delay_s: int = 0
    why_delay: str = ""


def find_answers(connection: duckdb.DuckDBPyConnection, log: Log) -> Answers:
    """At most four labels; behaviours left over and columns that give a label away become outcomes."""
    columns = [column for column in log.table.columns.values() if column not in log.keys]
    found = [label for column in columns for label in _of_column(column)]
    found = [measured for label in found if (measured := _measured(connection, log, label))]
    if not found:
        found = [
            label
            for c in columns
            if c.is_number and c.words & vocabulary.AFTERWARDS
            for label in _high(connection, log, c)
        ]
    labels = _chosen(log, found)
    outcomes = {label.column: "a behaviour too, but not predicted" for label in found if label not in labels}
    for column in columns:
        if column.is_number and column.words & vocabulary.AFTERWARDS and not column.is_flag and column not in log.keys:
            outcomes[column.name] = "known only afterwards, by its name"
    used = {label.column for label in labels}
    for column in columns:
        if column.name not in used | outcomes.keys():
            why = next((why for label in labels if (why := _leak(connection, log, column, label))), None)
            if why:
                outcomes[column.name] = why
    outcomes = {name: why for name, why in outcomes.items() if name not in used}
    return Answers(labels, outcomes, *_delay(log, labels, outcomes)) if labels else Answers([], {})


def _of_column(column: Profile) -> list[Label]:
    if column.is_flag and column.words & vocabulary.ACTIONS and not column.words & vocabulary.NOT_ACTIONS:
        expression = column.name if column.type == "bool" else f"{column.name} == 1"
        return [Label(_label_name(column.name), expression, column.name, 0.0, "a behaviour")]
    if (
        column.is_number
        and column.words & vocabulary.RATINGS
        and 2 < column.distinct <= 101
        and column.high is not None
    ):
        return _of_rating(column, column.high)
    if column.type == "string" and column.words & vocabulary.EVENT_TYPE and 2 <= column.distinct <= 12:
        actions = [value for value in column.top if set(re.findall(r"[a-z]+", value.lower())) & vocabulary.ACTIONS]
        return [
            Label(_label_name(value), f"{column.name} == {value!r}", column.name, 0.0, f"a value of {column.name}")
            for value in actions
            if value.lower() not in vocabulary.PASSIVE or len(actions) == 1
        ]
    return []


def _of_rating(column: Profile, high: float) -> list[Label]:
    """`like` from four fifths of the scale on, `love` at its top."""
    scale = next((top for top in (1, 5, 10, 100) if high <= top), high)
    shown, top = (int(v) if float(v).is_integer() else v for v in (0.8 * scale, scale))
    labels = [Label("like", f"{column.name} >= {shown}", column.name, 0.0, f"a rating, scale up to {top}")]
    if column.distinct > 3:
        labels.append(Label("love", f"{column.name} >= {top}", column.name, 0.0, "the highest rating"))
    return labels


def _high(connection: duckdb.DuckDBPyConnection, log: Log, column: Profile) -> list[Label]:
    """More than usual of what a row says was bought or watched: all that a log without refusals can teach."""
    sql = f"SELECT median({quote(column.name)}) FROM {log.table.relation}"
    usual = float(connection.execute(sql).fetchall()[0][0] or 0)
    shown = int(usual) if usual.is_integer() else round(usual, 3)
    why = "more than usual; nothing says what was shown and refused"
    label = Label(f"high_{_label_name(column.name)}", f"{column.name} > {shown}", column.name, 0.0, why)
    measured = _measured(connection, log, label)
    return [measured] if measured else []


def _label_name(name: str) -> str:
    text = re.sub(r"\W+", "_", name.lower(), flags=re.ASCII).strip("_")
    return text if text[:1].isalpha() else f"label_{text}"


def _measured(connection: duckdb.DuckDBPyConnection, log: Log, label: Label) -> Label | None:
    """The label with its share of positives, or None where it has too few of either kind."""
    sql = to_sql(label.expression, quote)
    num, positives = connection.execute(
        f"SELECT count({sql}), count(*) FILTER ({sql}) FROM {log.table.relation}"
    ).fetchall()[0]
    enough = min(MIN_POSITIVES, max(2, log.table.num_sampled // 20))
    if num < 0.5 * log.table.num_sampled or not enough <= positives <= num - enough:
        return None
    return replace(label, mean=positives / num)


def _chosen(log: Log, found: list[Label]) -> list[Label]:
    """At most four labels: wanted behaviours before unwanted, often before seldom; never a weak one beside others."""

    def order(label: Label) -> tuple[bool, float]:
        return bool(log.table.columns[label.column].words & vocabulary.NEGATIVE), -min(label.mean, 0.5)

    unique = {label.name: label for label in sorted(found, key=order, reverse=True)}
    ranked = sorted(unique.values(), key=order)
    often = [label for label in ranked if label.mean >= 0.005] or ranked[:1]
    return often[:MAX_LABELS]


def _leak(connection: duckdb.DuckDBPyConnection, log: Log, column: Profile, label: Label) -> str | None:
    """Why the column gives the label away, judged by its values and by where it has none."""
    if column.type.startswith("list") or is_row_id(column):
        return None
    name = quote(column.name)
    value = f"CAST({name} AS DOUBLE)" if column.is_number else f"CAST({name} AS VARCHAR)"
    rows = connection.execute(
        f"SELECT {value} AS v, CAST({to_sql(label.expression, quote)} AS DOUBLE) AS y FROM {log.table.relation}"
    ).df()
    score = leak_score(rows["v"], rows["y"].to_numpy(float, na_value=math.nan), is_id=not column.is_number)
    if score is None or score < LEAK_AUC:
        return None
    certain = "it knows the answer" if score >= CERTAIN_LEAK_AUC else "take it out of here if it is known beforehand"
    return f"predicts {label.name} alone with an AUC of {score:.3f}: {certain}"


def _delay(log: Log, labels: list[Label], outcomes: Mapping[str, str]) -> tuple[int, str]:
    """How long after a row its outcome is known, and the reason: a duration among the outcomes, or the labels' kind."""
    columns = log.table.columns
    if all(
        columns[label.column].type == "string" or columns[label.column].words & vocabulary.RATINGS for label in labels
    ):
        return 0, "each row is itself the outcome, at its own time"
    spans = []
    for name in outcomes:
        column = columns[name]
        if column.is_number and column.words & vocabulary.DURATIONS and column.high and column.high > 0:
            scale = 1000 if column.words & {"ms", "millis"} or column.high > 100_000 else 1
            spans.append((math.ceil(column.high / scale / 60) * 60, name))
    if spans:
        longest, name = max(spans)
        return min(longest, 86_400), f"{name} lasts up to {longest} s, and the outcome is known after it"
    if any(columns[label.column].words & vocabulary.LATE_ACTIONS for label in labels):
        return 3600, "a guess: an hour until it is logged; ask those who write the log"
    return 300, "a guess: five minutes until it is logged; ask those who write the log"
