"""Expectations of a day's samples: a Great Expectations suite, kept as JSON in git beside the scenario.

The file is GX's own ExpectationSuite format. `severity` is the effect of an expectation's failure: `critical`
(GX's default) stops the day before train, `warning` and `info` are reported. Columns are those of samples.parquet;
of a list column (ids, sequence) the suite sees its length, as NAME.length.
"""

from __future__ import annotations

import difflib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Required, TypedDict

from feature_jobs.errors import BadInputError, listed
from feature_jobs.imports import quick_imports
from feature_jobs.schema import Scenario
from feature_jobs.schema.files import SAMPLES_FILE
from feature_jobs.schema.user_file import read_user_text

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

SEVERITIES = {"critical": "blocking", "warning": "warning", "info": "info"}  # in GX's words and in ours
BUILT_IN = "built-in"
MAX_SUITE_BYTES = 10_000_000
_COLUMN_KEYS = ("column", "column_A", "column_B", "column_list")


class Expectation(TypedDict, total=False):
    """One expectation, as Great Expectations' JSON has it."""

    type: Required[str]
    severity: str
    kwargs: dict[str, Any]
    meta: dict[str, Any]


class Suite(TypedDict):
    """A suite, as Great Expectations' JSON has it."""

    name: str
    expectations: list[Expectation]
    meta: dict[str, Any]


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


def propose_suite(scenario: Scenario, null_shares: Mapping[str, float] = MappingProxyType({})) -> Suite:
    """A first suite, for its owner to refine; used as it is where the file is missing.

    `null_shares`: share of nulls of an id or a number on the worst day that was seen. It is allowed, and half more.
    """
    expectations = [
        _expect("table_row_count_to_be_between", min_value=1),
        # No sample can be joined or judged without them.
        *(_expect("column_values_to_not_be_null", column=name) for name in ("key.event_time", "key.user", "key.item")),
        _expect("column_values_to_be_unique", column="key.event_row"),
    ]
    for task in scenario.tasks:
        column = f"label.{task}"
        expectations.append(_expect("column_values_to_be_in_set", column=column, value_set=[0, 1]))
        if task in scenario.own_labels:
            # A label from an optional column may be unknown on most rows; a day without any is still broken. That of
            # another log is unknown on the first days.
            known = 0.9 if _always_known(scenario, task) else 0.01
            expectations.append(_expect("column_values_to_not_be_null", column=column, mostly=known))
        # A day with one class alone has no AUC, and teaches only the rate.
        bounds = {"min_value": 0, "max_value": 1, "strict_min": True, "strict_max": True}
        expectations.append(_expect("column_mean_to_be_between", "warning", column=column, **bounds))
    for name, feature in scenario.features.items():
        expectations += _of_feature(name, feature, null_shares.get(name, 0.0))
    return {"name": scenario.name, "expectations": expectations, "meta": {}}


def _always_known(scenario: Scenario, task: str) -> bool:
    """Says if every event has the label: a null in a column that is not required only masks the sample."""
    from feature_jobs.expressions.compiler import columns_of

    events = scenario.data.events.columns
    return all(name in events and events[name].required for name in columns_of(scenario.own_labels[task]))


def _expect(kind: str, severity: str = "critical", **kwargs: Any) -> Expectation:
    return {"type": f"expect_{kind}", "severity": severity, "kwargs": kwargs, "meta": {}}


def _of_feature(name: str, feature: Any, null_share: float) -> Iterator[Expectation]:
    not_negative = ("count", "unique_count", "recency", "variance", "stddev")
    if feature.kind in ("id", "cross", "number"):
        # A warning with room: half more nulls than on the worst day seen, since a first suite must not cry every day.
        known = min(0.95, round(0.98 - 1.5 * null_share, 2))
        if known >= 0.05:
            yield _expect("column_values_to_not_be_null", "warning", column=name, mostly=known)
    elif feature.kind == "rate":
        yield _expect("column_values_to_be_between", column=name, min_value=0, max_value=1)
    elif feature.kind in not_negative or (feature.kind == "match" and feature.operation == "count"):
        yield _expect("column_values_to_be_between", column=name, min_value=0)
    elif feature.kind == "match" or (feature.kind == "request" and feature.operation != "share"):
        yield _expect("column_values_to_be_between", column=name, min_value=1)
    elif feature.kind in ("sequence", "top_k"):
        most = feature.length if feature.kind == "sequence" else feature.k
        yield _expect("column_values_to_be_between", column=f"{name}.length", min_value=0, max_value=most)
    elif feature.kind == "ids":
        yield _expect("column_max_to_be_between", "warning", column=f"{name}.length", min_value=1)


def suite_text(suite: Suite) -> str:
    """The suite as JSON for git: one expectation a line, so that a change reads well."""
    lines = ",\n  ".join(json.dumps(expectation) for expectation in suite["expectations"])
    name, meta = json.dumps(suite["name"]), json.dumps(suite["meta"])
    return f'{{\n "name": {name},\n "meta": {meta},\n "expectations": [\n  {lines}\n ]\n}}\n'


def load_suite(scenario: Scenario) -> tuple[Suite, str]:
    """The scenario's suite and the name of its file, or the proposed one and "built-in" where it has no file.

    Raises BadInputError with a line for each entry of the file that is not an expectation of Great Expectations.
    """
    suite = read_suite(scenario)
    if suite is None:
        return propose_suite(scenario), BUILT_IN
    file = scenario.suite_file
    problems = [
        line for i, given in enumerate(suite["expectations"]) for line in _problems(f"{file}: expectations[{i}]", given)
    ]
    if problems:
        raise BadInputError(listed(problems))
    return suite, file.name


def read_suite(scenario: Scenario) -> Suite | None:
    """The suite as its file has it, without Great Expectations; None where the file does not exist.

    Raises BadInputError where the file is not a suite.
    """
    file = scenario.suite_file
    try:
        suite = json.loads(read_user_text(file, MAX_SUITE_BYTES))
    except FileNotFoundError:
        return None
    except json.JSONDecodeError as error:
        raise BadInputError(f"{file}:{error.lineno}: not readable as JSON: {error.msg}; correct the line") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, a list in a list in a list …
        raise BadInputError(f"{file}: not readable as JSON: {error}; write it simpler") from None
    if not isinstance(suite, dict) or not isinstance(suite.get("expectations"), list):
        raise BadInputError(f'{file}: not a suite; write {{"name": "{scenario.name}", "expectations": [...]}}')
    # Each entry is checked by `load_suite`. The name becomes a path of Data Docs: it is the scenario's, not the file's.
    return Suite(name=scenario.name, expectations=suite["expectations"], meta=suite.get("meta") or {})


def sample_columns(scenario: Scenario) -> list[str]:
    """The columns of samples.parquet as the suite sees them: a list feature as NAME.length."""
    lists = [name for name, feature in scenario.features.items() if feature.form in ("ids", "vector")]
    return [
        *("key.event_time", "key.event_row", "key.user", "key.item"),
        *(("key.request",) if scenario.data.request else ()),
        *(f"{name}.length" if name in lists else name for name in scenario.features),
        *(f"label.{task}" for task in scenario.tasks),
        *(f"segment.{name}" for name in scenario.evaluate.segments),
    ]


def unknown_columns(suite: Suite, columns: Sequence[str], source: str) -> list[str]:
    """A line for each column that an expectation names and the samples lack: a removed or renamed feature, say."""
    problems = []
    for i, expectation in enumerate(suite["expectations"]):
        kwargs = expectation.get("kwargs") if isinstance(expectation, dict) else None
        if not isinstance(kwargs, dict) or expectation.get("type") == "expect_column_to_exist":
            continue
        given = [kwargs.get(key) for key in _COLUMN_KEYS]
        # A pair of columns stands under two keys, a set of them in a list.
        for name in [n for value in given if value for n in (value if isinstance(value, list) else [value])]:
            if name not in columns:
                place = f"{source}: expectations[{i}] {expectation.get('type')}"
                problems.append(f"{place}: no column {name!r} in the samples; {_other_column(str(name), columns)}")
    return problems


def _other_column(name: str, columns: Sequence[str]) -> str:
    close = [f"{name}.length"] if f"{name}.length" in columns else difflib.get_close_matches(name, columns, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return f"remove the expectation if its feature was removed; the samples hold {', '.join(columns)}"


def _problems(place: str, given: Any) -> Iterator[str]:
    """Yields the problems of one expectation of the file."""
    if not isinstance(given, dict) or not isinstance(given.get("type"), str):
        yield f'{place}: not an expectation; write {{"type": "expect_...", "kwargs": {{...}}, "severity": "critical"}}'
        return
    place = f"{place} {given['type']}"
    known = ("type", "kwargs", "severity", "meta", "notes", "description", "id")
    for key in given.keys() - set(known):
        yield f"{place}: {key}: unknown key; {_hint(key, known)}"
    severity = given.get("severity", "critical")
    if severity not in SEVERITIES:
        yield f"{place}: severity: {severity!r} is not allowed; critical blocks the day, warning and info are reported"
    if not isinstance(given.get("kwargs", {}), dict):
        yield f"{place}: kwargs: {given['kwargs']!r} is not a table; write the arguments as {{name: value}}"
        return
    gx = import_gx()
    from great_expectations.expectations.registry import (
        get_expectation_impl,
        list_registered_expectation_implementations,
    )

    # The registry holds metrics, too.
    kinds = [name for name in list_registered_expectation_implementations() if name.startswith("expect_")]
    # Before it is built: the error of a class that does not exist would name Great Expectations' own files.
    if given["type"] not in kinds:
        yield f"{place}: no such expectation in Great Expectations {gx.__version__}; {_hint(given['type'], kinds)}"
        return
    from great_expectations.compatibility.pydantic import ValidationError

    try:
        # Built and thrown away: its own validation knows which arguments go together.
        get_expectation_impl(given["type"])(**given.get("kwargs", {}))
    except ValidationError as error:
        for item in error.errors():
            field = ".".join(str(part) for part in item["loc"] if part != "__root__") or "kwargs"
            yield f"{place}: {field}: {item['msg']}; change kwargs"
    except (TypeError, ValueError) as error:
        yield f"{place}: {error}; change kwargs"


def _hint(given: str, known: Any) -> str:
    close = difflib.get_close_matches(given, list(known), n=1)
    return f"did you mean {close[0]}?" if close else f"known here: {', '.join(sorted(known))}"


def import_gx() -> Any:
    """Great Expectations, imported without telemetry."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # before the import, which reads it
    with quick_imports():
        import great_expectations as gx

    return gx


def read_frame(samples: Path) -> pd.DataFrame:
    """The samples as a frame of R rows: plain columns as they are, list columns as NAME.length."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    table = pq.read_table(samples / SAMPLES_FILE)
    columns = {}
    for name in table.column_names:
        values = table[name]
        # Great Expectations compares plain values; the length is what can be wrong with a list.
        if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
            columns[f"{name}.length"] = pc.list_value_length(values)
        else:
            columns[name] = values
    frame: pd.DataFrame = pa.table(columns).to_pandas()
    return frame


def read_lists(samples: Path, scenario: Scenario) -> dict[str, pa.ChunkedArray]:
    """The columns of the features of kind ids, in the frame's order."""
    import pyarrow.parquet as pq

    names = [name for name, feature in scenario.features.items() if feature.kind == "ids"]
    table = pq.read_table(samples / SAMPLES_FILE, columns=names)
    return {name: table[name] for name in names}


def run_suite(frame: pd.DataFrame, suite: Suite, source: str, ds: str, docs: Path) -> list[Failure]:
    """Holds the frame against the suite and builds Data Docs in `docs`; returns the failures, in the suite's order.

    `source`: the suite's file, for messages. Raises BadInputError where an expectation names a column that the
    samples lack, or can't be computed on the column's values.
    """
    if problems := unknown_columns(suite, [str(name) for name in frame.columns], source):
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
    # Great Expectations returns results in an order of its own; messages follow the suite's.
    order = {expectation.id: i for i, expectation in enumerate(known.expectations)}
    asset = context.data_sources.add_pandas("samples").add_dataframe_asset("samples")
    batch = asset.add_batch_definition_whole_dataframe(ds).get_batch(batch_parameters={"dataframe": frame})
    result = batch.validate(known)
    results = sorted(result.results, key=lambda r: order[r.expectation_config.id])
    failures = [failure for r in results if (failure := _failure(r, source)) is not None]
    write_docs(result, known, ds, docs)
    return failures


def _failure(result: Any, source: str) -> Failure | None:
    """None where it held. Raises BadInputError where it could not be computed."""
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
        return Failure(config.type, column, severity, "each quantile in its range", broken)
    return Failure(config.type, column, severity, _expected(kwargs), _observed(details))


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
