"""The labels to predict, and the columns that would give the answer away."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb

from feature_jobs.errors import BadInputError
from feature_jobs.expressions.compiler import columns_of, to_sql
from feature_jobs.proposals import vocabulary
from feature_jobs.proposals.profiles import Profile, Table
from feature_jobs.proposals.roles import Log
from feature_jobs.proposals.vocabulary import clean
from feature_jobs.sources.casts import quote
from feature_jobs.validation.leaks import BLOCKING_AUC, judge

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


def find_answers(log: Log, given: Mapping[str, str]) -> Answers:
    """The given labels, or at most four that the columns suggest; behaviours left over and columns that give a label
    away become outcomes."""
    columns = [column for column in log.table.columns.values() if column not in log.keys]
    late = [column for column in columns if column.is_number and column.words & vocabulary.AFTERWARDS]
    known = [(name, text) for name, text in given.items() if columns_of(text) <= log.table.columns.keys()]
    asked = [Label(name, text, min(columns_of(text), default=""), "given by --label") for name, text in known]
    found = _measured(log.table, asked if given else [label for column in columns for label in _of_column(column)])
    if not found and not given:
        found = _measured(log.table, [_high(log.table, column) for column in late])
    if not found:
        return Answers([], {})
    labels = found if given else _chosen(log, found)
    outcomes = {label.column: "a behaviour too, but not predicted" for label in found}
    outcomes |= {column.name: "known only afterwards, by its name" for column in late if not column.is_flag}
    outcomes |= _leaks(log, outcomes, labels)
    outcomes = {name: why for name, why in outcomes.items() if name not in {label.column for label in labels}}
    return Answers(labels, outcomes, *_delay(log, labels, outcomes))


def no_label(path: Path, log: Log, given: Mapping[str, str]) -> str:
    """The reason why the log has no label, and the way to give one."""
    for name, condition in given.items():
        if unknown := columns_of(condition) - log.table.columns.keys():
            return f"--label {name} names {', '.join(unknown)}, but its columns are {', '.join(log.table.columns)}"
    if given:
        return f"--label: these hold in too few rows, or in nearly all: {', '.join(given.values())}"
    pairs = [c for c in log.table.columns.values() if c.distinct == 2 and c not in log.keys]
    why = "no column that says what became of a row (click, rating, ...)"
    if not pairs:
        return f"{why}; add one, or name a condition: --label 'NAME=CONDITION'"
    first, (_, seldom) = pairs[0], pairs[0].top
    condition = {"bool": "", "string": f" == {seldom!r}"}.get(first.type, f" == {seldom}")
    command = f"recloop init {path} --label {shlex.quote(f'{first.name.lower()}={first.name}{condition}')}"
    seen = ", ".join(f"{c.name} ({' or '.join(map(repr, c.top))})" for c in pairs)
    return f"{why}; if one of these is it, give it, as here: {seen}\n  {command}"


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


def _high(table: Table, column: Profile) -> Label:
    """More than usual of what a row says was bought or watched: all that a log without refusals can teach."""
    usual = table.row(f"median({quote(column.name)})")[0] or 0
    why = "more than usual; nothing says what was shown and refused"
    return Label(f"high_{column.name.lower()}", f"{column.name} > {round(usual, 3):.10g}", column.name, why)


def _measured(table: Table, labels: list[Label]) -> list[Label]:
    """The labels with their shares of positives, without those that have too few of either kind."""
    enough = min(MIN_POSITIVES, max(2, table.num_sampled // 20))
    truths = [to_sql(label.expression, quote) for label in labels]
    try:
        # 0: without any label there must still be a column to select.
        counts = table.row("0", *(f"(count({sql}), count_if({sql}))" for sql in truths))[1:]
    except duckdb.Error as error:
        shown = " | ".join(label.expression for label in labels)
        raise BadInputError(f"label {shown}: not a condition on these columns: {str(error).splitlines()[0]}") from None
    return [
        replace(label, mean=positives / num)
        for label, (num, positives) in zip(labels, counts, strict=True)
        if num >= 0.5 * table.num_sampled and enough <= positives <= num - enough
    ]


def _chosen(log: Log, found: list[Label]) -> list[Label]:
    """At most four labels: wanted behaviours before unwanted, often before seldom; never a weak one beside others."""

    def order(label: Label) -> tuple[bool, float]:
        return bool(log.table.columns[label.column].words & vocabulary.NEGATIVE), -min(label.mean, 0.5)

    # Reversed, so that of several labels with one name the best is the last, which stays.
    unique = {label.name: label for label in sorted(found, key=order, reverse=True)}
    ranked = sorted(unique.values(), key=order)
    often = [label for label in ranked if label.mean >= 0.005] or ranked[:1]
    return often[:MAX_LABELS]


def _leaks(log: Log, outcomes: Mapping[str, str], labels: list[Label]) -> dict[str, str]:
    """Columns that give a label away by their values or by where they have none, with the reason: the user or the item
    too, but only where it is certain."""
    columns = [c for c in log.table.columns.values() if c.name not in outcomes and c is not log.time]
    truths = [f"CAST({to_sql(label.expression, quote)} AS DOUBLE) AS y{i}" for i, label in enumerate(labels)]
    values = [f"{quote(c.name) + '::DOUBLE' * c.is_number} AS v{i}" for i, c in enumerate(columns)]
    rows = log.table.connection.execute(f"SELECT {', '.join(truths + values)} FROM {log.table.name}").df()
    by_label = {label.name: rows[f"y{i}"].to_numpy(float, na_value=math.nan) for i, label in enumerate(labels)}
    found = {}
    for i, column in enumerate(columns):
        leak = max(judge(column.name, rows[f"v{i}"], by_label), key=lambda leak: leak.auc, default=None)
        if leak and (leak.auc >= BLOCKING_AUC or column not in log.keys):
            advice = "it knows the answer" if leak.auc >= BLOCKING_AUC else "take it out of here if known beforehand"
            found[column.name] = f"predicts {leak.label} alone with an AUC of {leak.auc:.3f}, by {leak.way}: {advice}"
    return found


def _delay(log: Log, labels: list[Label], outcomes: Mapping[str, str]) -> tuple[int, str]:
    """The time from a row to its outcome, and the reason: a duration among the outcomes, or the labels' kind."""
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
    return 300, "a guess: five minutes until it is logged; ask those who write the log"
