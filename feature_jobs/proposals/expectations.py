"""Expectations proposed from days that were seen, and their place in a suite that people edit.

What a column or a fact was on these days, with a margin around it, is what is expected of later days. There are two
margins. Beyond the near one is a warning; beyond the far one the day is blocked. The far one is wide, as a day that is
blocked by mistake costs more than a warning.

| seen | expected, near (warning) | expected, far (critical) |
|---|---|---|
| a share of bad rows, at most w | at most 1.5 w + 2 % | at most 3 w + 10 % |
| a number, mean or count above 0, from a to b | a / 1.5 to 1.5 b | a / 3 to 3 b |
| a mean label from a to b: also | at most 1 - (1 - b) / 1.5 | at most 1 - (1 - b) / 3 |
| values from a to b | all within one more width on both sides | 99 % of them |
| few values of an id | 99 % of the values are known ones | 90 % |
"""

from __future__ import annotations

import difflib
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from feature_jobs.schema import Scenario
from feature_jobs.validation.day_facts import PREFIX, DayFacts, fact_names
from feature_jobs.validation.day_samples import DaySamples
from feature_jobs.validation.expectations import (
    Expectation,
    Suite,
    columns_named,
    is_as_proposed,
    propose_suite,
    proposed,
    suite_text,
)

if TYPE_CHECKING:
    import pandas as pd

MAX_VALUES = 50
MIN_DAYS = 3
ROWS_PER_VALUE = 20  # with fewer, the next day has others by chance
_OF_THE_ROW = ("id", "cross", "number", "ids", "vector", "request")  # kinds of features that need no history


@dataclass(frozen=True)
class _Margin:
    severity: str
    factor: float
    share: float
    known: float  # share of values that were seen before
    inside: float  # share of values that lie in the range
    pause_s: float


NEAR = _Margin("warning", 1.5, 0.02, 0.99, 1.0, 600)
FAR = _Margin("critical", 3.0, 0.1, 0.9, 0.99, 3_600)


@dataclass(frozen=True)
class SeenColumn:
    """A column on one day. `low`, `high` and `mean` of numbers, `values` where there are few of them."""

    nulls: float
    low: float | None = None
    high: float | None = None
    mean: float | None = None
    values: frozenset[Any] | None = None


@dataclass(frozen=True)
class SeenDay:
    """Facts and columns of one day of `num_rows`, from which expectations are proposed."""

    ds: str
    num_rows: int
    facts: DayFacts
    columns: dict[str, SeenColumn]


def see_day(scenario: Scenario, ds: str, day: DaySamples, facts: DayFacts) -> SeenDay:
    """Describes the features and labels of a day."""
    names = [str(name) for name in day.frame.columns if not str(name).startswith(("key.", "segment."))]
    columns = {name: _see(day.with_extremes(name)[name], day.frame[name]) for name in names}
    return SeenDay(ds, day.num_rows, facts, columns)


def _see(values: pd.Series[Any], sample: pd.Series[Any]) -> SeenColumn:
    """`sample` without the extremes, which are no part of a share or a mean."""
    import numpy as np

    known = values.dropna()
    nulls = float(sample.isna().mean()) if len(sample) else 0.0
    distinct = known.unique() if known.nunique() <= MAX_VALUES else None
    seen = SeenColumn(nulls, values=None if distinct is None else frozenset(_plain(one) for one in distinct))
    if values.dtype.kind not in "iuf":
        return seen
    numbers, of_sample = (one[np.isfinite(one)] for one in map(_numbers, (known, sample)))
    if not len(numbers) or not len(of_sample):
        return seen
    return replace(seen, low=float(numbers.min()), high=float(numbers.max()), mean=float(of_sample.mean()))


def _numbers(values: pd.Series[Any]) -> Any:
    return values.to_numpy("float64", na_value=math.nan)


def _plain(value: Any) -> Any:
    """A value as JSON holds it; a frame turns whole numbers beside nulls into floats."""
    plain = value.item() if hasattr(value, "item") else value
    return int(plain) if isinstance(plain, float) and plain.is_integer() else plain


def propose_expectations(scenario: Scenario, days: Sequence[SeenDay], present: Suite | None) -> Suite:
    """The suite with expectations of the scenario and of the days, in place of those proposed before.

    An expectation that a person wrote or changed stays as it is, and nothing is proposed beside it that has its type
    and its columns.
    """
    found = {_place(one): one for one in [*propose_suite(scenario)["expectations"], *_of_days(scenario, days)]}
    present = present or Suite(name=scenario.name, expectations=[], meta={})
    own = {_subject(one) for one in present["expectations"] if isinstance(one, dict) and not is_as_proposed(one)}
    found = {place: one for place, one in found.items() if _subject(one) not in own}
    # Each stays at its line, and as it is where only the days have changed: so the diff shows what matters.
    kept = []
    for one in present["expectations"]:
        new = found.pop(_place(one), None) if is_as_proposed(one) else one
        if new is not None:
            kept.append(one if new is one or _rule(new) == _rule(one) else new)
    columns = list(dict.fromkeys(_subject(one)[1:] for one in found.values()))
    return {**present, "expectations": kept + sorted(found.values(), key=lambda one: columns.index(_subject(one)[1:]))}


def diff_of(before: str, suite: Suite, file: str) -> str:
    """A unified diff of the suite's file; empty where nothing changes."""
    after = suite_text(suite)
    lines = difflib.unified_diff(before.splitlines(keepends=True), after.splitlines(keepends=True), file, file, n=0)
    return "".join(lines)


def _subject(expectation: Mapping[str, Any]) -> tuple[Any, ...]:
    return expectation.get("type"), *map(str, columns_named(expectation))


def _place(expectation: Mapping[str, Any]) -> tuple[Any, ...]:
    # An expectation of every row and one of most rows stand beside each other.
    return *_subject(expectation), expectation.get("severity", "critical"), "mostly" in expectation.get("kwargs", {})


def _rule(expectation: Mapping[str, Any]) -> tuple[Any, ...]:
    return *_place(expectation), expectation.get("kwargs", {})


def _of_days(scenario: Scenario, days: Sequence[SeenDay]) -> Iterator[Expectation]:
    for name in fact_names(scenario):
        seen = [value for day in days if (value := day.facts.get(name)) is not None]
        yield from _of_fact(name, seen, days)
    for name in dict.fromkeys(name for day in days for name in day.columns):
        columns = {day.ds: day.columns[name] for day in days if name in day.columns}
        if name.startswith("label."):
            # Labels of other logs are unknown on the first days, so these have a fact.
            if name.removeprefix("label.") in scenario.own_labels:
                yield from _of_label(name, columns, days)
        elif (feature := scenario.features.get(name.removesuffix(".length"))) is not None:
            yield from _of_feature(name, feature.kind, columns, days)


def _of_fact(name: str, seen: list[float], days: Sequence[SeenDay]) -> Iterator[Expectation]:
    kind = name.removeprefix(PREFIX).partition(".")[0]
    if kind == "rows_by_weekday":
        seen = [*seen, 1.0]  # also where no day has a same weekday before it
    if not seen:
        return
    low, high = min(seen), max(seen)
    if kind == "out_of_order_rows":
        yield _expect("column_values_to_be_between", FAR, name, days, (low, high), max_value=_number(high))
        return
    for margin in _margins(days):
        bounds: dict[str, Any] = {}
        if kind == "hit_share":
            least = _down(1 - _most(1 - low, margin))
            bounds = {"min_value": least} if least > 0 else {}
        elif kind == "label_mean":
            bounds = _around_share(low, high, margin)
        elif kind in ("rows", "rows_by_weekday", "attributed_share"):
            bounds = _around(low, high, margin)
        elif kind == "longest_gap_s":
            bounds = {"max_value": _up(margin.factor * high + margin.pause_s)}
        elif kind == "age_days":
            bounds = {"max_value": _number(high)} if margin is NEAR else {}
        elif (most := _most(high, margin)) < 1:
            bounds = {"max_value": _up(most)}
        if bounds:
            yield _expect("column_values_to_be_between", margin, name, days, (low, high), **bounds)


def _of_label(name: str, columns: Mapping[str, SeenColumn], days: Sequence[SeenDay]) -> Iterator[Expectation]:
    yield from _known(name, columns, days, _margins(days))
    means = [column.mean for column in columns.values() if column.mean]
    if not means:
        return
    for margin in _margins(days):
        bounds = _around_share(min(means), max(means), margin)
        strict = {"strict_min": True, "strict_max": True} if margin is NEAR else {}  # one class alone teaches nothing
        yield _expect("column_mean_to_be_between", margin, name, days, (min(means), max(means)), **bounds, **strict)


def _of_feature(
    name: str, kind: str, columns: Mapping[str, SeenColumn], days: Sequence[SeenDay]
) -> Iterator[Expectation]:
    is_list = name.endswith(".length")
    # A first day has no history: what depends on it can't block a day, or no chain could be computed again.
    margins = _margins(days) if kind in _OF_THE_ROW else (NEAR,)
    if not is_list:
        yield from _known(name, columns, days, margins)
    if kind == "id":
        yield from _in_set(name, columns, days)
    numbers = [columns[ds] for ds in sorted(columns) if columns[ds].mean is not None]
    if not numbers or kind in ("id", "cross", "first", "last", "vector") or _moves_on(numbers):
        return
    low, high = min(one.low or 0.0 for one in numbers), max(one.high or 0.0 for one in numbers)
    means = [one.mean or 0.0 for one in numbers]
    if kind in _OF_THE_ROW and not is_list:
        width = (high - low) or max(abs(high), 1.0)
        bounds = {"min_value": 0 if low >= 0 else _down(low - width), "max_value": _up(high + width)}
        for margin in margins:
            mostly = {"mostly": margin.inside} if margin.inside < 1 else {}
            yield _expect("column_values_to_be_between", margin, name, days, (low, high), **bounds, **mostly)
    for margin in margins:
        if low >= 0 and max(means) > 0:
            bounds = _around(min(means), max(means), margin)
            if kind not in _OF_THE_ROW:  # counts and lists grow with their history
                bounds.pop("max_value")
        elif kind in _OF_THE_ROW:
            room = margin.factor * (high - low) / 10
            bounds = {"min_value": _down(min(means) - room), "max_value": _up(max(means) + room)}
        else:
            continue
        yield _expect("column_mean_to_be_between", margin, name, days, (min(means), max(means)), **bounds)


def _known(
    name: str, columns: Mapping[str, SeenColumn], days: Sequence[SeenDay], margins: Sequence[_Margin]
) -> Iterator[Expectation]:
    """Of shares of nulls: nothing where nearly all rows may be null."""
    shares = [column.nulls for column in columns.values()]
    for margin in margins:
        mostly = _down(1 - _most(max(shares), margin))
        if mostly >= 0.05:
            kind = "column_values_to_not_be_null"
            yield _expect(kind, margin, name, days, (min(shares), max(shares)), mostly=mostly)


def _in_set(name: str, columns: Mapping[str, SeenColumn], days: Sequence[SeenDay]) -> Iterator[Expectation]:
    """Of a column of few values that come again: the date of the day, or a weekday not seen yet, would be a new one."""
    num_days = Counter(value for column in columns.values() for value in column.values or ())
    fewest = min(day.num_rows for day in days)
    if any(column.values is None for column in columns.values()) or not num_days:
        return
    again = sum(num > 1 for num in num_days.values())
    if len(num_days) > min(MAX_VALUES, fewest / ROWS_PER_VALUE) or again < 0.8 * len(num_days):
        return
    # Numbers and texts can't be compared, so that a set of both needs an order of its own.
    ordered = sorted(num_days, key=lambda value: (isinstance(value, str), value))
    for margin in _margins(days):
        kwargs = {"value_set": ordered, "mostly": margin.known}
        yield _expect("column_values_to_be_in_set", margin, name, days, (), **kwargs)


def _moves_on(days: Sequence[SeenColumn]) -> bool:
    """Says if the days lie one beyond the other by more than half of what a day holds, as those of a clock do."""
    means = [day.mean or 0.0 for day in days]
    steps = {later > earlier for earlier, later in itertools.pairwise(means)}
    widest = max((day.high or 0.0) - (day.low or 0.0) for day in days)
    return len(steps) == 1 and abs(means[-1] - means[0]) > widest / 2


def _margins(days: Sequence[SeenDay]) -> tuple[_Margin, ...]:
    # Fewer days do not show what moves from day to day, so that a bound of theirs must not block the next one.
    return (NEAR, FAR) if len(days) >= MIN_DAYS else (NEAR,)


def _expect(
    kind: str, margin: _Margin, column: str, days: Sequence[SeenDay], seen: Iterable[float], **kwargs: Any
) -> Expectation:
    why = {"from": f"{len(days)} days, {days[0].ds} to {days[-1].ds}", "seen": [_number(value) for value in seen]}
    return proposed(f"expect_{kind}", margin.severity, {"column": column, **kwargs}, why)


def _most(share: float, margin: _Margin) -> float:
    """The largest share of bad rows that is allowed where `share` was the worst."""
    return min(1.0, margin.factor * share + margin.share)


def _around(low: float, high: float, margin: _Margin) -> dict[str, float]:
    return {"min_value": _down(low / margin.factor), "max_value": _up(high * margin.factor)}


def _around_share(low: float, high: float, margin: _Margin) -> dict[str, float]:
    """As far from all rows as from none."""
    bounds = _around(low, high, margin)
    return {**bounds, "max_value": min(bounds["max_value"], _up(1 - (1 - high) / margin.factor))}


def _down(value: float) -> float:
    return _cut(value, math.floor)


def _up(value: float) -> float:
    return _cut(value, math.ceil)


def _cut(value: float, to_whole: Any) -> float:
    """Three significant digits, as a bound is read by people; to the side that allows more."""
    if value == 0:
        return 0
    # Rounded first: 0.1 * 3 is a little more than 0.3, and would become 0.301.
    places = 2 - math.floor(math.log10(abs(value)))
    return _number(round(to_whole(round(value * 10.0**places, 6)) * 10.0**-places, max(places, 0)))


def _number(value: float) -> float:
    """A whole number without a fraction; others with six digits."""
    return int(value) if float(value).is_integer() else float(f"{value:.6g}")
