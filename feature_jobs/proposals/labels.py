"""The labels to predict, and the columns that would give the answer away."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import duckdb
import numpy as np

from feature_jobs.errors import BadInputError
from feature_jobs.expressions.compiler import columns_of, to_sql
from feature_jobs.proposals import vocabulary
from feature_jobs.proposals.outcome_logs import OutcomeLog
from feature_jobs.proposals.profiles import Profile, Table, figures
from feature_jobs.proposals.roles import Log
from feature_jobs.proposals.vocabulary import clean
from feature_jobs.sources.casts import quote
from feature_jobs.validation.leaks import BLOCKING_AUC, WARNING_AUC, Floats, judge

MAX_LABELS = 4
MIN_POSITIVES = 50
MIN_BY_CHANCE = 20  # so many expected positives are not absent by chance
QUANTITY_AUC = 0.8  # a quantity known before the event hardly reaches this, unless it is a model's score
MIN_INSIDE = 0.99  # share of rows where a score is a fraction between 0 and 1


@dataclass(frozen=True)
class Label:
    """A proposed label: expression, its column, why, and the share of rows for which it holds. A label that another log
    decides has that log, as `outcomes`, and the fields with which a scenario declares it."""

    name: str
    expression: str
    column: str
    why: str
    mean: float = 0.0
    outcomes: OutcomeLog | None = None
    fields: Mapping[str, object] = field(default_factory=dict)

    @property
    def declared(self) -> str | Mapping[str, object]:
        """As a scenario declares it."""
        return self.fields or self.expression


@dataclass(frozen=True)
class Answers:
    """Labels; columns that are outcomes, with the reason for each; how late labels are known, and why that is said.

    `scores` and `doubtful` predict a label as well as outcomes do, with the reason: the first look like a model's score
    and are features, the second may be one and are left out.
    """

    labels: list[Label]
    outcomes: Mapping[str, str]
    delay_s: int = 0
    why_delay: str = ""
    scores: Mapping[str, str] = field(default_factory=dict)
    doubtful: Mapping[str, str] = field(default_factory=dict)

    @property
    def logs(self) -> list[OutcomeLog]:
        """The logs that decide labels."""
        return [label.outcomes for label in self.labels if label.outcomes]


def find_answers(log: Log, given: Mapping[str, str]) -> Answers:
    """The given labels, or at most four that the columns suggest; behaviours left over and columns that give a label
    away become outcomes. Without a label there are no outcomes."""
    table, columns = log.table, [column for column in log.table.columns.values() if column not in log.keys]
    late = [column for column in columns if column.is_number and column.words & vocabulary.AFTERWARDS]
    if given:
        known = [(name, text) for name, text in given.items() if columns_of(text) <= table.columns.keys()]
        asked = [Label(name, text, min(columns_of(text), default=""), "given by --label") for name, text in known]
        labels = found = _measured(table, asked)
    else:
        found = _measured(table, [label for column in columns for label in _of_column(column)])
        found = found or _measured(table, [_high(table, column) for column in late])
        labels = _chosen(log, found)
    if not labels:
        return Answers([], {})
    outcomes = {label.column: "a behaviour too, but not predicted" for label in found}
    outcomes |= {column.name: "known only afterwards, by its name" for column in late if not column.is_flag}
    leaks = _leaks(log, outcomes, labels)
    outcomes |= leaks["outcome"]
    for label in labels:
        for columns_found in (outcomes, leaks["score"], leaks["doubtful"]):
            columns_found.pop(label.column, None)
    return Answers(labels, outcomes, *_delay(log, labels, outcomes), leaks["score"], leaks["doubtful"])


def answers_of(log: Log, outcomes: list[OutcomeLog]) -> Answers:
    """A label for each log of outcomes."""
    labels = [Label(one.label, "", "", one.why, one.mean, one, one.declared(log)) for one in outcomes]
    return Answers(labels, {}, 0, "no column of the log is an outcome")


def no_label(path: Path, log: Log, given: Mapping[str, str]) -> str:
    """The reason why the log has no label, and the way to give one."""
    columns = log.table.columns
    for name, condition in given.items():
        if unknown := columns_of(condition) - columns.keys():
            return f"--label {name} names {', '.join(unknown)}, but its columns are {', '.join(columns)}"
    if given:
        return f"--label: these hold in too few rows, or in nearly all: {', '.join(given.values())}"
    why = "no column that says what became of a row (click, rating, ...)"
    pairs = [c for c in columns.values() if c.distinct == 2 and c not in log.keys and not c.is_split]
    if not pairs:
        return f"{why}; add one, or name a condition: --label 'NAME=CONDITION'"
    first = pairs[0]
    value = next((value for value in first.top if value.lower() in vocabulary.YES), first.top[1])
    condition = {"bool": "", "string": f" == {json.dumps(value, ensure_ascii=False)}"}.get(first.type, f" == {value}")
    command = f"recloop init {path} --label {shlex.quote(f'{first.name.lower()}={first.name}{condition}')}"
    seen = ", ".join(f"{column.name} ({' or '.join(map(repr, column.top))})" for column in pairs)
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
    usual = figures(table.connection, table.name, f"median({quote(column.name)})")[0] or 0
    why = "more than usual; nothing says what was shown and refused"
    return Label(f"high_{column.name.lower()}", f"{column.name} > {round(usual, 3):.10g}", column.name, why)


def _measured(table: Table, labels: list[Label]) -> list[Label]:
    """The labels with their shares of positives, without those that have too few of either kind."""
    enough = min(MIN_POSITIVES, max(2, table.num_sampled // 20))
    truths = [to_sql(label.expression, quote) for label in labels]
    try:
        # 0: without any label there must still be a column to select.
        counts = figures(table.connection, table.name, "0", *(f"(count({sql}), count_if({sql}))" for sql in truths))[1:]
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

    ranked: dict[str, Label] = {}
    for label in sorted(found, key=order):
        ranked.setdefault(label.name, label)  # of several labels with one name the best
    often = [label for label in ranked.values() if label.mean >= 0.005]
    return (often or [*ranked.values()][:1])[:MAX_LABELS]


Suspicion = Literal["outcome", "score", "doubtful"]


def _leaks(log: Log, outcomes: Mapping[str, str], labels: list[Label]) -> dict[Suspicion, dict[str, str]]:
    """Columns that give a label away by their values or by where they have none, with the reason: the user or the item
    too, but only where it is certain."""
    columns = [c for c in log.table.columns.values() if c.name not in outcomes and c is not log.time]
    truths = [f"CAST({to_sql(label.expression, quote)} AS DOUBLE) AS y{i}" for i, label in enumerate(labels)]
    values = [f"{quote(c.name) + '::DOUBLE' * c.is_number} AS v{i}" for i, c in enumerate(columns)]
    rows = log.table.connection.execute(f"SELECT {', '.join(truths + values)} FROM {log.table.name}").df()
    by_label = {label.name: rows[f"y{i}"].to_numpy(float, na_value=math.nan) for i, label in enumerate(labels)}
    found: dict[Suspicion, dict[str, str]] = {"outcome": {}, "score": {}, "doubtful": {}}
    doubt = "take it out of here if known beforehand"
    for i, column in enumerate(columns):
        # A quantity is often an outcome, such as a time of viewing; a shop's item or a city explains much by itself.
        is_measured = column.is_number and column.distinct > 20 and not column.is_id
        least = QUANTITY_AUC if is_measured else WARNING_AUC
        leak = max(judge(column.name, rows[f"v{i}"], by_label, least=least), key=lambda leak: leak.auc, default=None)
        if leak and (leak.auc >= BLOCKING_AUC or column not in log.keys):
            is_weak = leak.auc < WARNING_AUC and leak.by != "nulls"
            kind, seems = _seems(column, rows[f"v{i}"], by_label[leak.label]) if is_weak else ("outcome", doubt)
            advice = "it knows the answer" if leak.auc >= BLOCKING_AUC else seems or doubt
            why = f"predicts {leak.label} alone with an AUC of {leak.auc:.3f}, by {leak.way}: {advice}"
            found[kind][column.name] = why
        elif is_measured and column not in log.keys:
            for name in (name for name, truth in by_label.items() if _is_needed(rows[f"v{i}"], truth)):
                found["outcome"][column.name] = f"where it is 0 or null, {name} hardly ever holds: {doubt}"
    return found


def _seems(column: Profile, values: Any, truth: Floats) -> tuple[Suspicion, str]:
    """Says what a column is that predicts a label well: a model's score, which is known before the event, or, as far as
    its values say, perhaps one; else an outcome. With advice."""
    numbers = values.to_numpy(float, na_value=math.nan)
    is_named = bool(column.words & vocabulary.SCORES)
    is_within, is_inside = (numbers >= 0) & (numbers <= 1), (numbers > 0) & (numbers < 1)
    # A share of an item that was watched or read is 0 or 1 in many rows, and a score only where it was rounded.
    has_ends = is_inside.mean() < MIN_INSIDE
    if column.type != "float" or is_within.mean() < MIN_INSIDE or (has_ends and not is_named):
        return "outcome", ""
    known = is_within & ~np.isnan(truth)
    if _says_how_often(numbers[known], truth[known]):
        return "score", "as often as it says, like the score of a model; leave it out if it is made after the event"
    if is_named and not has_ends:
        return "score", "by its name the score of a model; leave it out if it is made after the event"
    return "doubtful", "the score of a model, or an outcome? make it a feature if it is known before the event"


def _says_how_often(numbers: Floats, truth: Floats) -> bool:
    """Says if a label holds about as often as a number says, in all rows and in each tenth of them by the number's
    size: no outcome does that. Within a factor of two, as a score may be a month old."""
    order = np.argsort(numbers, kind="stable")
    parts = [order, *np.array_split(order, 10)]
    pairs = [(numbers[part].sum(), truth[part].sum()) for part in parts]
    return all(wanted / 2 <= got <= 2 * wanted for wanted, got in pairs if max(wanted, got) >= MIN_BY_CHANCE)


def _is_needed(values: Any, truth: Floats) -> bool:
    """Says if a label hardly ever holds where a number is 0 or null, though many such rows would have it by chance."""
    is_none = (values.fillna(0) == 0).to_numpy()
    by_chance = is_none[truth >= 0].mean() * np.nansum(truth)
    return bool(by_chance >= MIN_BY_CHANCE and np.nansum(truth[is_none]) <= 0.02 * by_chance)


def _delay(log: Log, labels: list[Label], outcomes: Mapping[str, str]) -> tuple[int, str]:
    """The time from a row to its outcome, and the reason: a duration among the outcomes, or the labels' kind."""
    columns = log.table.columns
    answers = [columns[label.column] for label in labels]
    if all(column.type == "string" or column.words & vocabulary.RATINGS for column in answers):
        return 0, "each row is itself the outcome, at its own time"
    spans = [(_seconds(column), name) for name, column in columns.items() if name in outcomes and column.is_number]
    longest, name = max(spans, default=(0, ""))
    if longest > 0:
        return min(longest, 86_400), f"{name} lasts up to {longest} s, and the outcome is known after it"
    return 300, "a guess: five minutes until it is logged; ask those who write the log"


def _seconds(column: Profile) -> int:
    """The longest of a column of durations, in full minutes; 0 for other columns."""
    if not column.words & vocabulary.DURATIONS or not column.high:
        return 0
    # Over a day of seconds: milliseconds.
    scale = 1000 if column.words & {"ms", "millis"} or column.high > 100_000 else 1
    return math.ceil(column.high / scale / 60) * 60
