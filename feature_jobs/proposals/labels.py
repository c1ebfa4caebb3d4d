"""What to predict, and which columns would give the answer away."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import duckdb

from feature_jobs.expressions.compiler import to_sql
from feature_jobs.proposals import vocabulary
from feature_jobs.proposals.profiles import Profile, clean, row_of
from feature_jobs.proposals.roles import Log, is_row_id
from feature_jobs.sources.casts import quote
from feature_jobs.validation.leaks import BLOCKING_AUC, WARNING_AUC, leak_score

MAX_LABELS = 4
MIN_POSITIVES = 50


@dataclass(frozen=True)
class Label:
    """A proposed label: expression, its column, why, and the share of rows for which it holds."""

    name: str
    expression: str
    column: str
    why: str
    mean: float = 0.0


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
    late = [column for column in columns if column.is_number and column.words & vocabulary.AFTERWARDS]
    found = _measured(connection, log, [label for column in columns for label in _of_column(column)])
    # Only where nothing else is there: how much was bought says less than whether.
    found = found or _measured(connection, log, [_high(connection, log, column) for column in late])
    labels = _chosen(log, found)
    if not labels:
        return Answers([], {})
    outcomes = {label.column: "a behaviour too, but not predicted" for label in found}
    outcomes |= {column.name: "known only afterwards, by its name" for column in late if not column.is_flag}
    judged = [c for c in columns if c.name not in outcomes and not c.type.startswith("list") and not is_row_id(c)]
    outcomes |= _leaks(connection, log, judged, labels)
    outcomes = {name: why for name, why in outcomes.items() if name not in {label.column for label in labels}}
    return Answers(labels, outcomes, *_delay(log, labels, outcomes))


def _of_column(column: Profile) -> list[Label]:
    name, words = column.name, column.words
    if column.is_flag and words & vocabulary.ACTIONS and not words & vocabulary.NOT_ACTIONS:
        return [Label(clean(name).lower(), name if column.type == "bool" else f"{name} == 1", name, "a behaviour")]
    if column.is_number and words & vocabulary.RATINGS and 2 < column.distinct <= 101 and column.high is not None:
        # `like` from four fifths of the scale on, `love` at its top.
        scale = next((top for top in (1, 5, 10, 100) if column.high <= top), column.high)
        like = Label("like", f"{name} >= {0.8 * scale:.10g}", name, f"a rating, scale up to {scale:.10g}")
        love = Label("love", f"{name} >= {scale:.10g}", name, "the highest rating")
        return [like, love] if column.distinct > 3 else [like]
    if column.type == "string" and words & vocabulary.EVENT_TYPE and 2 <= column.distinct <= 12:
        actions = [value for value in column.top if {*re.findall(r"[a-z]+", value.lower())} & vocabulary.ACTIONS]
        wanted = [value for value in actions if value.lower() not in vocabulary.PASSIVE or len(actions) == 1]
        return [Label(clean(value).lower(), f"{name} == {value!r}", name, f"a value of {name}") for value in wanted]
    return []


def _high(connection: duckdb.DuckDBPyConnection, log: Log, column: Profile) -> Label:
    """More than usual of what a row says was bought or watched: all that a log without refusals can teach."""
    usual = row_of(connection, f"SELECT median({quote(column.name)}) FROM {log.table.relation}")[0] or 0
    why = "more than usual; nothing says what was shown and refused"
    return Label(f"high_{column.name.lower()}", f"{column.name} > {round(usual, 3):.10g}", column.name, why)


def _measured(connection: duckdb.DuckDBPyConnection, log: Log, labels: list[Label]) -> list[Label]:
    """The labels with their shares of positives, without those that have too few of either kind."""
    measured, rows = [], log.table.num_sampled
    enough = min(MIN_POSITIVES, max(2, rows // 20))  # a small sample may have fewer
    for label in labels:
        sql = to_sql(label.expression, quote)
        num, positives = row_of(connection, f"SELECT count({sql}), count_if({sql}) FROM {log.table.relation}")
        # A condition that is unknown on most rows, or nearly always true, teaches nothing.
        if num >= 0.5 * rows and enough <= positives <= num - enough:
            measured.append(replace(label, mean=positives / num))
    return measured


def _chosen(log: Log, found: list[Label]) -> list[Label]:
    """At most four labels: wanted behaviours before unwanted, often before seldom; never a weak one beside others."""

    def order(label: Label) -> tuple[bool, float]:
        return bool(log.table.columns[label.column].words & vocabulary.NEGATIVE), -min(label.mean, 0.5)

    unique = {label.name: label for label in sorted(found, key=order, reverse=True)}
    ranked = sorted(unique.values(), key=order)
    often = [label for label in ranked if label.mean >= 0.005] or ranked[:1]
    return often[:MAX_LABELS]


def _leaks(
    connection: duckdb.DuckDBPyConnection, log: Log, columns: list[Profile], labels: list[Label]
) -> dict[str, str]:
    """Columns that give a label away by their values or by where they have none, with the reason."""
    truths = ", ".join(f"CAST({to_sql(label.expression, quote)} AS DOUBLE) AS y{i}" for i, label in enumerate(labels))
    values = ", ".join(
        f"CAST({quote(c.name)} AS {'DOUBLE' if c.is_number else 'VARCHAR'}) AS v{i}" for i, c in enumerate(columns)
    )
    rows = connection.execute(f"SELECT {', '.join(filter(None, (truths, values)))} FROM {log.table.relation}").df()
    found = {}
    for (i, column), (j, label) in ((c, y) for c in enumerate(columns) for y in enumerate(labels)):
        if column.name in found:
            continue
        truth_N = rows[f"y{j}"].to_numpy(float, na_value=math.nan)
        score = leak_score(rows[f"v{i}"], truth_N, is_id=not column.is_number) or 0.0
        if score >= WARNING_AUC:
            certain = score >= BLOCKING_AUC
            advice = "it knows the answer" if certain else "take it out of here if it is known beforehand"
            found[column.name] = f"predicts {label.name} alone with an AUC of {score:.3f}: {advice}"
    return found


def _delay(log: Log, labels: list[Label], outcomes: Mapping[str, str]) -> tuple[int, str]:
    """How long after a row its outcome is known, and the reason: a duration among the outcomes, or the labels' kind."""
    answers = [log.table.columns[label.column] for label in labels]
    if all(column.type == "string" or column.words & vocabulary.RATINGS for column in answers):
        return 0, "each row is itself the outcome, at its own time"
    spans = [(0, "")]
    for name in outcomes:
        column = log.table.columns[name]
        if column.is_number and column.words & vocabulary.DURATIONS and column.high:
            # Over a day of seconds: milliseconds.
            scale = 1000 if column.words & {"ms", "millis"} or column.high > 100_000 else 1
            spans.append((math.ceil(column.high / scale / 60) * 60, name))
    longest, name = max(spans)
    if longest > 0:
        return min(longest, 86_400), f"{name} lasts up to {longest} s, and the outcome is known after it"
    if any(column.words & vocabulary.LATE_ACTIONS for column in answers):
        return 3600, "a guess: an hour until it is logged; ask those who write the log"
    return 300, "a guess: five minutes until it is logged; ask those who write the log"
