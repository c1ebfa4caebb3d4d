"""A day against its suite: Great Expectations judges, on frames that fit into memory.

Each expectation gets the columns that it names. Of a large day shares, means and quantiles are those of the sample; an
expectation of every row sees the sample with the extremes of its column, so that one value out of range is not missed;
uniqueness, order, sums and pairs of columns are judged on all rows.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_jobs.errors import BadInputError, listed
from feature_jobs.validation.day_facts import PREFIX, DayFacts
from feature_jobs.validation.day_samples import DaySamples
from feature_jobs.validation.expectations import SEVERITIES, Suite, columns_named, import_gx, unknown_columns

if TYPE_CHECKING:
    import pandas as pd

_FACTS, _SAMPLE, _EXTREMES, _ALL = "facts", "sample", "extremes", "all rows"
_Part = tuple[str, tuple[str, ...]]
"""Rows, and the columns that expectations of them name; all columns where they name none."""
_ALL_ROWS = ("unique", "increasing", "decreasing", "sum")
"""Words in the type of an expectation of one column that needs all its rows."""
_OF_EDGES = ("expect_column_min_to_", "expect_column_max_to_", "expect_column_distinct_values_to_")


@dataclass(frozen=True)
class Failure:
    """An expectation that did not hold: its type, column, expected value and the value found."""

    expectation: str
    column: str | None
    severity: str
    expected: str
    value: Any

    def __str__(self) -> str:
        place = f"column {self.column}" if self.column else "the day"
        return f"{self.expectation}: {place}: expected {self.expected}, found {self.value}"


@dataclass(frozen=True)
class SuiteResult:
    """The failures, in the suite's order, and the number of expectations that saw a sample of the rows."""

    failures: list[Failure]
    num_sampled: int


def run_suite(
    day: DaySamples, facts: DayFacts, suite: Suite, source: str, *, ds: str, docs: Path | None = None
) -> SuiteResult:
    """Holds the day against the suite and builds Data Docs in `docs`, if given.

    `source`: the suite's file, for messages. Raises BadInputError where an expectation names a column that the
    samples lack, or can't be computed on the column's values.
    """
    if problems := unknown_columns(suite, [*map(str, day.frame.columns), *facts], source):
        raise BadInputError(listed(problems))
    gx = import_gx()
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
        ProgressBarsConfig,
    )

    from feature_jobs.validation.data_docs import write_docs

    # Everything in memory: Great Expectations' file store breaks on an expectation of quantiles.
    settings = DataContextConfig(
        store_backend_defaults=InMemoryStoreBackendDefaults(),
        progress_bars=ProgressBarsConfig(globally=False),
        analytics_enabled=False,
    )
    context = gx.get_context(project_config=settings, mode="ephemeral")
    known = context.suites.add(gx.ExpectationSuite(**suite))
    asset = context.data_sources.add_pandas("samples").add_dataframe_asset("samples")
    batches = asset.add_batch_definition_whole_dataframe(ds)
    parts: dict[_Part, list[Any]] = {}
    for given, expectation in zip(suite["expectations"], known.expectations, strict=True):
        parts.setdefault(_part_of(given, day), []).append(expectation)
    found = []
    for place, frame in _frames(day, facts, parts):
        part = gx.ExpectationSuite(name=known.name)
        part.expectations = parts[place]  # as an argument they would have to be copies, which lose their ids
        found.append(batches.get_batch(batch_parameters={"dataframe": frame}).validate(part))
    # Great Expectations returns results in an order of its own; messages follow the suite's.
    order = {expectation.id: i for i, expectation in enumerate(known.expectations)}
    results = sorted((one for part in found for one in part.results), key=lambda r: order[r.expectation_config.id])
    of_sample = [some for (rows, _), some in parts.items() if day.is_sampled and rows in (_SAMPLE, _EXTREMES)]
    sampled = {expectation.id for some in of_sample for expectation in some}
    seen = f"a sample: {rows_seen(day)}"
    if docs:
        write_docs(results, known, ds, docs, f"{len(sampled)} of them saw {seen}." if sampled else "")
    failures = [_failure(one, source, f" ({seen})" if one.expectation_config.id in sampled else "") for one in results]
    return SuiteResult([failure for failure in failures if failure is not None], len(sampled))


def rows_seen(day: DaySamples) -> str:
    """`200,000 of 10,000,000 rows`."""
    return f"{len(day.frame):,} of {day.num_rows:,} rows"


def _part_of(expectation: Mapping[str, Any], day: DaySamples) -> _Part:
    kind, kwargs, columns = expectation["type"], expectation.get("kwargs", {}), tuple(columns_named(expectation))
    if any(str(name).startswith(PREFIX) for name in columns):
        return _FACTS, ()
    if day.is_sampled and kind.startswith("expect_table_row_count"):
        return _ALL, ("key.event_row",)
    # These look at the table, and a condition may name any column.
    if kind.startswith("expect_table") or kind == "expect_column_to_exist" or kwargs.get("row_condition"):
        return _SAMPLE, ()
    if not day.is_sampled:
        return _SAMPLE, columns
    if len(columns) > 1 or any(word in kind.split("_") for word in _ALL_ROWS):
        return _ALL, columns
    is_of_every_row = kind.startswith("expect_column_value") and kwargs.get("mostly", 1) == 1
    return _EXTREMES if is_of_every_row or kind.startswith(_OF_EDGES) else _SAMPLE, columns


def _frames(day: DaySamples, facts: DayFacts, parts: Collection[_Part]) -> Iterator[tuple[_Part, pd.DataFrame]]:
    """The frames one by one, so that only one of all rows is in memory at a time."""
    import pandas as pd

    for rows, columns in parts:
        if rows == _FACTS:
            frame = pd.DataFrame({name: [value] for name, value in facts.items()}, dtype="float64")
        elif rows == _ALL:
            frame = day.whole(columns)
        elif rows == _EXTREMES:
            frame = day.with_extremes(columns[0])
        else:  # the columns alone, as Great Expectations copies a whole frame to filter one of them
            frame = day.frame[list(columns)] if columns else day.frame
        yield (rows, columns), frame


def _failure(result: Any, source: str, seen: str) -> Failure | None:
    """None where it held; `seen` says the rows it saw, if not all. Raises BadInputError where it can't be computed."""
    config, details = result.expectation_config, result.to_json_dict()["result"]
    kwargs = {key: value for key, value in config.kwargs.items() if key != "batch_id" and value is not None}
    column = kwargs.pop("column", None)
    # Before `success`: it is false here too, and a mistake in the suite would count as bad data.
    trouble = _trouble(result.exception_info or {})
    if trouble:
        raise BadInputError(
            f"{source}: {config.type}: column {column}: can't be computed: {trouble}; change the expectation"
        )
    if result.success:
        return None
    severity = SEVERITIES[config.severity.value]
    # Great Expectations reports this one as a table of all quantiles, without saying which are wrong.
    if "quantile_ranges" in kwargs:
        broken = _broken_quantiles(str(column), kwargs["quantile_ranges"], details["observed_value"]["values"])
        return Failure(config.type, column, severity, "each quantile in its range", f"{broken}{seen}")
    if (column or "").startswith(PREFIX):  # one number, not "1 of 1 rows failing"
        found = details["partial_unexpected_list"][0] if details.get("partial_unexpected_list") else _observed(details)
        return Failure(config.type, column, severity, _expected(kwargs), found)
    observed = _observed(details)
    return Failure(config.type, column, severity, _expected(kwargs), f"{observed}{seen}" if seen else observed)


def _broken_quantiles(column: str, ranges: dict[str, Any], values: list[float | None]) -> str:
    """The quantiles out of their ranges: `0.5-quantile of price is 17.02, expected 10 to 11`."""
    lines = []
    for quantile, (low, high), value in zip(ranges["quantiles"], ranges["value_ranges"], values, strict=True):
        if value is None or (low is not None and value < low) or (high is not None and value > high):
            found = "unknown" if value is None else f"{value:.6g}"
            lines.append(f"{quantile}-quantile of {column} is {found}, expected {_range(low, high)}")
    return "; ".join(lines)


def _range(low: float | None, high: float | None) -> str:
    if low is None:
        return f"at most {high:g}"
    return f"at least {low:g}" if high is None else f"{low:g} to {high:g}"


def _expected(kwargs: dict[str, Any]) -> str:
    """The arguments in words: `at least 0, at most 1`."""
    words = []
    for key, value in kwargs.items():
        if key in ("min_value", "max_value"):
            edge = ("above", "below") if kwargs.get(f"strict_{key[:3]}") else ("at least", "at most")
            words.append(f"{edge[key == 'max_value']} {_short(value)}")
        elif key == "mostly":
            words.append(f"in {float(value):.4g} of the rows")
        elif key not in ("strict_min", "strict_max"):
            words.append(f"{key} {_short(value)}")
    return ", ".join(words) or "of every row"


def _trouble(info: dict[str, Any]) -> str | None:
    # GX reports an exception as a failed expectation; the exception is under the name of a metric, or at the top.
    parts = [info, *(part for part in info.values() if isinstance(part, dict))]
    return next((str(p["exception_message"]).splitlines()[0] for p in parts if p.get("raised_exception")), None)


def _observed(details: dict[str, Any]) -> Any:
    """The observed value; for expectations on rows how many failed and the first few different values."""
    if "observed_value" in details:
        value = details["observed_value"]
        return value if not isinstance(value, float) else round(value, 6) if math.isfinite(value) else None
    if "unexpected_count" not in details:
        return None
    seen = list(dict.fromkeys(map(_short, details.get("partial_unexpected_list") or [])))[:3]
    such = f", such as {', '.join(seen)}" if seen and seen != ["None"] else ""
    return f"{details['unexpected_count']:,} of {details['element_count']:,} rows failing{such}"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."
