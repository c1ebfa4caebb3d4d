"""Drift of a day against the days before it: population stability index of columns, shift of label means.

A day's profile is small and mergeable, so that the trailing days travel from one validation to the next as JSON and no
old samples are read.

Two changes are ordinary and give no warning. A column that differs from all trailing days drifts only if it differs
from the same weekday too; before the window holds one, from the same kind of day (Saturday and Sunday, or the others),
unless each day differs from each other day. A number whose days lie one beyond the other is a growing counter or a
clock and is left out. Columns that the scenario names in `drift_columns` are always judged: against the same weekday
where the window holds one, else against all days.
"""

from __future__ import annotations

import datetime
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypedDict

import numpy as np

from feature_jobs.errors import BadInputError
from feature_jobs.expressions.compiler import EVENT_TIME, columns_of
from feature_jobs.schema import Scenario
from feature_jobs.schema.days import ONE_DAY, day_start, parse_ds
from feature_jobs.validation.files import PROFILE_FILE
from feature_jobs.validation.hours import Hours
from feature_jobs.validation.sketches import MAX_IDS, Kind, Sketch, merge, psi, sketch

if TYPE_CHECKING:
    import pandas as pd


class LabelCounts(TypedDict):
    """Number of rows whose label is known, and of those whose label is 1."""

    known: int
    positives: int


class DayProfile(TypedDict):
    """Summary of a day, kept for comparison with later days. `middle`: the quartiles of each number, exact, because a
    sketch rounds a counter's steps away; `own_rows`: the events of the day itself; `own_hours`: by log their hours
    (feature_jobs.validation.hours). Profiles that an older release wrote lack these."""

    rows: int
    labels: dict[str, LabelCounts]
    columns: dict[str, Sketch]
    middle: NotRequired[dict[str, list[float]]]
    own_rows: NotRequired[float | None]
    own_hours: NotRequired[dict[str, Hours]]


class Judged(TypedDict):
    """A limit, the severity of passing it (`blocking` or `warning`), and `ok`, true where it was kept."""

    limit: float
    severity: str
    ok: bool


class ColumnDrift(Judged):
    """`psi` is None below 200 rows on either side, where each day has one value of its own, and where the column
    differs from all days and none of them is comparable. `against` says which days it was compared with."""

    psi: float | None
    against: str


class LabelShift(Judged):
    """`shift` is |mean / trailing mean - 1|, None where fewer than 20 positives came or were expected."""

    mean: float | None
    trailing_mean: float | None
    shift: float | None


class Drift(TypedDict):
    """A day against `days`, the trailing ones; `note` says why there is nothing to compare with, `left_out` why a
    column is not judged."""

    note: str | None
    days: list[str]
    left_out: dict[str, str]
    columns: dict[str, ColumnDrift]
    labels: dict[str, LabelShift]


MIN_ROWS = 200  # by chance alone the index is about bins / rows
MIN_POSITIVES = 20  # by chance alone a count of 20 varies by a fifth of itself
_SATURDAY = 5
ALL_DAYS = "all trailing days"
SAME_WEEKDAY = "the same weekday"
GROWING = "a growing counter or a clock: the middle half of each day lies beyond that of the day before"
UNDECIDED = "lies beyond the only day before: whether it grows or jumped, the next day shows"


def profile_days(ds: str, frame: pd.DataFrame, scenario: Scenario) -> dict[str, DayProfile]:
    """The profile of the day `ds`, and on the first day those of the newest days of its warm-up, by ds.

    One profile of the whole warm-up would be no weekday's. Raises BadInputError where `validate.drift_columns` names a
    column that is missing.
    """
    kinds = _columns(frame, scenario)
    first, warm_up_from = parse_ds(ds), scenario.data.days.warm_up_from
    if first != scenario.data.days.first or warm_up_from is None:
        return {ds: _profile(frame, kinds, scenario)}
    profiles = {}
    for back in range(min(scenario.validate_.trailing_days, (first - warm_up_from).days + 1)):
        day = str(first - back * ONE_DAY)
        begin, end = (day_start(scenario, d) for d in (day, str(first - (back - 1) * ONE_DAY)))
        rows = frame[(frame["key.event_time"] >= begin) & (frame["key.event_time"] < end)]
        # Days of the warm-up may be empty; the day itself always has a profile, which the next day needs.
        if len(rows) or day == ds:
            profiles[day] = _profile(rows, kinds, scenario)
    return profiles


def _profile(frame: pd.DataFrame, kinds: Mapping[str, Kind], scenario: Scenario) -> DayProfile:
    labels = {}
    for task in scenario.tasks:
        known = frame[f"label.{task}"].dropna()
        labels[task] = LabelCounts(known=len(known), positives=int(known.sum()))
    columns = {name: sketch(frame[name], kind) for name, kind in kinds.items()}
    middle = {
        name: [float(q) for q in np.quantile(frame[name].dropna().to_numpy(np.float64), (0.25, 0.75))]
        for name, kind in kinds.items()
        if kind == "number" and frame[name].notna().any()
    }
    return {"rows": len(frame), "labels": labels, "columns": columns, "middle": middle}


def _columns(frame: pd.DataFrame, scenario: Scenario) -> dict[str, Kind]:
    """The columns to watch, each a number or an id."""
    forms = {name: feature.form for name, feature in scenario.features.items()}
    named = scenario.validate_.drift_columns
    for name in named:
        # A name that is not there would silently watch nothing, for ever.
        if name not in frame.columns:
            close = f"{name}.length" if f"{name}.length" in frame.columns else None
            remedy = f"did you mean {close}?" if close else f"the samples hold {', '.join(map(str, frame.columns))}"
            raise BadInputError(f"{scenario.file}: validate.drift_columns: no column {name!r} in the samples; {remedy}")
    if named:
        return {
            name: "id" if forms.get(name) == "id" or frame[name].dtype.kind not in "iufb" else "number"
            for name in named
        }
    return _default_columns(frame, scenario)


def _default_columns(frame: pd.DataFrame, scenario: Scenario) -> dict[str, Kind]:
    """Numbers and ids of few values that are read from the row itself.

    Left out: users and items, of which each day has its own; trailing counts, rates and recencies, which move as
    history grows; and features of the time of the event, such as the weekday.
    """
    keys = (scenario.data.user, scenario.data.item)
    found: dict[str, Kind] = {}
    for name, feature in scenario.features.items():
        if feature.kind not in ("number", "id", "cross") or name in keys:
            continue
        parts = feature.of if feature.kind == "cross" else (feature.of or name,)
        if feature.kind != "cross" and parts[0] in keys:
            continue
        if any(EVENT_TIME in columns_of(part) for part in parts):
            continue
        if feature.kind == "number":
            found[name] = "number"
        elif frame[name].nunique() <= MAX_IDS:
            found[name] = "id"
    return found


def compare(ds: str, day: DayProfile, trailing: Mapping[str, DayProfile], scenario: Scenario) -> Drift:
    """The day `ds` against the trailing days, by ds."""
    if not trailing:
        return Drift(note="first day: nothing to compare with", days=[], left_out={}, columns={}, labels={})
    columns: dict[str, ColumnDrift] = {}
    labels: dict[str, LabelShift] = {}
    left_out: dict[str, str] = {}
    for name, today in day["columns"].items():
        if reason := _moves_on(name, day, trailing, scenario):
            left_out[name] = reason
            continue
        past = {d: profile["columns"][name] for d, profile in trailing.items() if name in profile["columns"]}
        # An id that only some days watched had too many values on the others.
        whole = len(past) == len(trailing) and {p["kind"] for p in past.values()} == {today["kind"]}
        columns[name] = _column_drift(ds, today, past if whole else {}, scenario)
    for task, counts in day["labels"].items():
        earlier = [d["labels"][task] for d in trailing.values() if task in d["labels"]]
        labels[task] = _label_shift(counts, earlier, scenario)
    return Drift(note=None, days=sorted(trailing), left_out=left_out, columns=columns, labels=labels)


def _moves_on(name: str, day: DayProfile, trailing: Mapping[str, DayProfile], scenario: Scenario) -> str | None:
    """Returns the reason not to judge a number whose days lie one beyond the other; None where it is judged."""
    rules = scenario.validate_
    days = [*(trailing[ds] for ds in sorted(trailing)), day]
    middles = [profile.get("middle", {}).get(name) for profile in days]
    known = [middle for middle in middles if middle is not None]
    # A person who names columns wants them judged; a day without a value breaks the row of days.
    if rules.drift_columns or len(known) < len(days):
        return None
    steps = list(itertools.pairwise(known))
    # [0] and [1] are the quartiles: the middle halves of two days have nothing in common.
    if not (all(b[0] > a[1] for a, b in steps) or all(b[1] < a[0] for a, b in steps)):
        return None
    if len(steps) > 1:
        return GROWING
    # With a window of one day there is never a second step to wait for.
    return UNDECIDED if rules.trailing_days > 1 else None


def _column_drift(ds: str, today: Sketch, past: Mapping[str, Sketch], scenario: Scenario) -> ColumnDrift:
    """Against all trailing days, and where that fails against those that are comparable with `ds`."""
    rules = scenario.validate_
    index, against = _index(list(past.values()), today), ALL_DAYS
    if index is not None and index > rules.max_psi:
        # A named column stays judged by all days where its weekday is not in the window; a default one is then not.
        named = bool(rules.drift_columns)
        if not named:
            index, against = None, "no day: none of this kind (weekend or not) in the window"
        for words, days in _comparable(ds, past, only_weekday=named):
            narrower = _index([past[d] for d in days], today)
            if narrower is not None:
                index, against = narrower, words
                if words != SAME_WEEKDAY and _all_differ([*past.values(), today], rules.max_psi):
                    index, against = None, "no day: each day differs from each other day, as where the weekday decides"
                break
    return ColumnDrift(psi=index, against=against, **_judged(index, rules.max_psi, rules.drift_severity))


def _comparable(ds: str, days: Iterable[str], *, only_weekday: bool) -> Iterator[tuple[str, list[str]]]:
    """The days to compare `ds` with if it differs from all, best first, each with its words."""
    weekday_of = {d: datetime.date.fromisoformat(d).weekday() for d in [*days, ds]}
    weekday = weekday_of.pop(ds)
    yield SAME_WEEKDAY, [d for d, other in weekday_of.items() if other == weekday]
    if not only_weekday:
        weekend = weekday >= _SATURDAY
        words = "days of a weekend" if weekend else "days from Monday to Friday"
        yield words, [d for d, other in weekday_of.items() if (other >= _SATURDAY) == weekend]


def _index(past: list[Sketch], today: Sketch) -> float | None:
    """The index against days together; None where there is too little to judge."""
    if not past or min(_rows(merge(past)), _rows(today)) < MIN_ROWS or _differs_by_day(past, today):
        return None
    return round(psi(merge(past), today), 6)


def _all_differ(days: Sequence[Sketch], limit: float) -> bool:
    """True where each of three or more days differs from each other. After a jump, the days on one side are alike."""
    return len(days) > 2 and all((_index([a], b) or 0) > limit for a, b in itertools.combinations(days, 2))


def _differs_by_day(past: list[Sketch], today: Sketch) -> bool:
    """True where the column has one value a day, and other days another: a weekday or date says nothing about drift."""
    days = [*past, today]
    if any(len(day["counts"]) != 1 or day["other"] for day in days):
        return False
    return len(past) == 1 or len({day["counts"][0][0] for day in past}) > 1


def _judged(value: float | None, limit: float, severity: str) -> Judged:
    # Too little to judge is not drift.
    return Judged(limit=limit, severity=severity, ok=value is None or value <= limit)


def _rows(sketched: Sketch) -> int:
    return int(sum(rows for _, rows in sketched["counts"]) + sketched["nulls"] + sketched["other"])


def _label_shift(today: LabelCounts, past: list[LabelCounts], scenario: Scenario) -> LabelShift:
    rules = scenario.validate_
    known, positives = sum(d["known"] for d in past), sum(d["positives"] for d in past)
    mean = today["positives"] / today["known"] if today["known"] else None
    trailing_mean = positives / known if known else None
    shift = None
    # The larger of both counts: a label that vanished has no positives today, but many were expected.
    if mean is not None and trailing_mean and max(today["positives"], trailing_mean * today["known"]) >= MIN_POSITIVES:
        shift = round(abs(mean / trailing_mean - 1), 6)
    judged = _judged(shift, rules.max_label_shift, rules.drift_severity)
    return LabelShift(mean=mean, trailing_mean=trailing_mean, shift=shift, **judged)


def read_profile(validation: Path | None) -> dict[str, DayProfile]:
    """The days that yesterday's validation passed on, by ds; none on the first day."""
    if validation is None:
        return {}
    days: dict[str, DayProfile] = json.loads((validation / PROFILE_FILE).read_text(encoding="utf-8"))["days"]
    return days


def window(days: Mapping[str, DayProfile], num_days: int) -> dict[str, DayProfile]:
    """The newest `num_days` of them."""
    return {ds: days[ds] for ds in sorted(days)[-num_days:]}
