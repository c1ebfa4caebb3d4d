"""Expectations of a day's samples: a Great Expectations suite, kept as JSON in git beside the scenario.

The file is GX's own ExpectationSuite format. `severity` is the effect of an expectation's failure: `critical`
(GX's default) stops the day before train, `warning` and `info` are reported. Columns are those of samples.parquet;
of a list column (ids, sequence) the suite sees its length, as NAME.length. Facts of the day as a whole, such as
`day.rows`, are expected like columns.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Required, TypedDict

from feature_jobs.errors import BadInputError, listed
from feature_jobs.imports import quick_imports
from feature_jobs.schema import Scenario
from feature_jobs.schema.user_file import read_user_text
from feature_jobs.validation.day_facts import NEW_COLUMNS, PREFIX, SHIFTED, fact_names

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


def propose_suite(scenario: Scenario, null_shares: Mapping[str, float] = MappingProxyType({})) -> Suite:
    """A first suite, for its owner to refine; used as it is where the file is missing.

    `null_shares`: share of nulls of an id or a number on the worst day that was seen. It is allowed, and half more.
    """
    expectations = [
        _expect("table_row_count_to_be_between", min_value=1),
        # No sample can be joined or judged without them.
        *(_expect("column_values_to_not_be_null", column=name) for name in _needed_keys(scenario)),
        _expect("column_values_to_be_unique", column="key.event_row"),
        *_of_sources(scenario),
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


def _of_sources(scenario: Scenario) -> Iterator[Expectation]:
    """A source that changes its columns or its clock: warnings, as the day's rows are all good."""
    yield _expect("column_values_to_be_between", "warning", column=f"{PREFIX}{NEW_COLUMNS}", max_value=0)
    for name in fact_names(scenario):
        if name.startswith(f"{PREFIX}{SHIFTED}"):
            yield _expect("column_values_to_be_between", "warning", column=name, min_value=0, max_value=0)


def _needed_keys(scenario: Scenario) -> list[str]:
    users = ["key.user"] if scenario.data.anonymous is None else []
    return ["key.event_time", *users, "key.item"]


def _always_known(scenario: Scenario, task: str) -> bool:
    """Says if every event has the label: a null in a column that is not required only masks the sample."""
    from feature_jobs.expressions.compiler import columns_of

    events = scenario.data.events.columns
    return all(name in events and events[name].required for name in columns_of(scenario.own_labels[task]))


def _expect(kind: str, severity: str = "critical", **kwargs: Any) -> Expectation:
    return proposed(f"expect_{kind}", severity, kwargs, {"from": "the scenario"})


def proposed(kind: str, severity: str, kwargs: dict[str, Any], why: Mapping[str, Any]) -> Expectation:
    """An expectation that is marked as proposed: `meta` says why, and has a digest of the rest."""
    mark = {"proposed": {**why, "digest": _digest(kind, severity, kwargs)}}
    return {"type": kind, "severity": severity, "kwargs": kwargs, "meta": mark}


def is_as_proposed(expectation: Any) -> bool:
    """Says if a proposal wrote the expectation and nobody has changed its type, severity or arguments since."""
    if not isinstance(expectation, dict):
        return False
    meta, kwargs = expectation.get("meta"), expectation.get("kwargs", {})
    mark = meta.get("proposed") if isinstance(meta, dict) else None
    digest = _digest(expectation.get("type"), expectation.get("severity", "critical"), kwargs)
    return isinstance(mark, dict) and mark.get("digest") == digest


def _digest(*content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


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
        *(("key.negative",) if scenario.join.negative_sampler else ()),
        *(f"{name}.length" if name in lists else name for name in scenario.features),
        *(f"label.{task}" for task in scenario.tasks),
        *(f"value.{task}" for task, label in scenario.outcome_labels.items() if label.value),
        *(f"segment.{name}" for name in scenario.evaluate.segments),
    ]


def expectable_columns(scenario: Scenario) -> list[str]:
    """All names that a suite may expect something of: columns of the samples, and facts of the day."""
    return [*sample_columns(scenario), *fact_names(scenario)]


def unknown_columns(suite: Suite, columns: Sequence[str], source: str) -> list[str]:
    """A line for each column that an expectation names and the samples lack: a removed or renamed feature, say."""
    problems = []
    for i, expectation in enumerate(suite["expectations"]):
        kwargs = expectation.get("kwargs") if isinstance(expectation, dict) else None
        if not isinstance(kwargs, dict) or expectation.get("type") == "expect_column_to_exist":
            continue
        for name in columns_named(expectation):
            if name not in columns:
                place = f"{source}: expectations[{i}] {expectation.get('type')}"
                problems.append(f"{place}: no column {name!r} in the samples; {_other_column(str(name), columns)}")
    return problems


def columns_named(expectation: Mapping[str, Any]) -> list[Any]:
    """The columns that an expectation names: one, a pair under two keys, or a list of them."""
    given = [expectation.get("kwargs", {}).get(key) for key in _COLUMN_KEYS]
    return [name for value in given if value for name in (value if isinstance(value, list) else [value])]


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
