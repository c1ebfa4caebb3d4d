"""Expressions against Python: the same text, the same rows, the same answers."""

import datetime
import math
from collections.abc import Callable
from typing import Any
from zoneinfo import ZoneInfo

import duckdb
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from feature_jobs.errors import BadInputError
from feature_jobs.expressions.compiler import columns_of, to_sql
from feature_jobs.expressions.evaluate import evaluate
from feature_jobs.expressions.functions import FUNCTIONS
from feature_jobs.expressions.types import type_of

TYPES = {"a": "int", "x": "float", "s": "string", "f": "bool", "user.tags": "list[string]", "event_time": "int"}
ARROW_TYPES = {"int": pa.int64(), "float": pa.float64(), "string": pa.string(), "bool": pa.bool_()}
ARROW_TYPES["list[string]"] = pa.list_(pa.string())
SQL_TYPES = {"int": "BIGINT", "float": "DOUBLE", "string": "VARCHAR", "bool": "BOOLEAN", "list[string]": "VARCHAR[]"}

Term = tuple[str, Callable[[dict[str, Any]], Any]]


def run(expression: str, row: dict[str, Any], zone: str = "UTC") -> Any:
    """The value, which the evaluator and SQL agree on."""
    sql = to_sql(expression, lambda name: f'"{name}"', zone=zone)
    columns = ", ".join(f'CAST(${i} AS {SQL_TYPES[TYPES[n]]}) AS "{n}"' for i, n in enumerate(row, 1))
    found = duckdb.execute(f"SELECT {sql} FROM (SELECT {columns})", list(row.values())).fetchall()[0][0]
    arrays = {name: pa.array([value], ARROW_TYPES[TYPES[name]]) for name, value in row.items()}
    assert evaluate(expression, arrays, zone=zone).to_pylist() == [found]
    return found


def strict(function: Callable[..., Any]) -> Callable[..., Any]:
    """Null in, null out; null where Python has no answer."""

    def call(*values: Any) -> Any:
        if any(v is None for v in values):
            return None
        try:
            return function(*values)
        except (ZeroDivisionError, ValueError):
            return None

    return call


def kleene_and(left: Any, right: Any) -> Any:
    if left is False or right is False:
        return False
    return None if left is None or right is None else True


def kleene_or(left: Any, right: Any) -> Any:
    if left is True or right is True:
        return True
    return None if left is None or right is None else False


def op(sign: str, function: Callable[..., Any]) -> Callable[[Term, Term], Term]:
    return lambda left, right: (f"({left[0]} {sign} {right[0]})", lambda row: function(left[1](row), right[1](row)))


ints = st.integers(-20, 20)
halves = st.integers(-20, 20).map(lambda n: n / 2)
texts = st.sampled_from(["", "a", "it's", 'say "x"', "ä%_\\", "B"])


def constant(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Term]:
    return values.map(lambda value: (repr(value), lambda row: value))


def column(name: str) -> st.SearchStrategy[Term]:
    return st.just((name, lambda row: row[name]))


def grow_numbers(inner: st.SearchStrategy[Term]) -> st.SearchStrategy[Term]:
    binary = [
        op("+", strict(lambda p, q: p + q)),
        op("-", strict(lambda p, q: p - q)),
        op("*", strict(lambda p, q: p * q)),
        op("/", strict(lambda p, q: p / q)),
        op("//", strict(lambda p, q: p // q)),
        op("%", strict(lambda p, q: p % q)),
    ]
    pairs = st.builds(lambda make, p, q: make(p, q), st.sampled_from(binary), inner, inner)
    calls = [("abs", abs), ("floor", math.floor), ("bucket", lambda p: math.floor(p / 0.5)), ("log1p", math.log1p)]

    def call(named: tuple[str, Callable[..., Any]], term: Term) -> Term:
        name, function = named
        more = ", 0.5" if name == "bucket" else ""
        return f"{name}({term[0]}{more})", lambda row: strict(function)(term[1](row))

    def several(name: str, terms: list[Term]) -> Term:
        function = {"min": strict(min), "max": strict(max)}.get(
            name, lambda *values: next((v for v in values if v is not None), None)
        )
        return f"{name}({', '.join(t[0] for t in terms)})", lambda row: function(*(t[1](row) for t in terms))

    many = st.builds(several, st.sampled_from(["min", "max", "coalesce"]), st.lists(inner, min_size=2, max_size=3))
    return pairs | st.builds(call, st.sampled_from(calls), inner) | many


atoms = constant(ints) | constant(halves) | column("a") | column("x")
numbers = atoms | grow_numbers(atoms)
comparisons = [
    op("==", strict(lambda p, q: p == q)),
    op("!=", strict(lambda p, q: p != q)),
    op("<", strict(lambda p, q: p < q)),
    op("<=", strict(lambda p, q: p <= q)),
    op(">", strict(lambda p, q: p > q)),
    op(">=", strict(lambda p, q: p >= q)),
]
strings = constant(texts) | column("s")
leaves = (
    st.builds(lambda make, p, q: make(p, q), st.sampled_from(comparisons), numbers, numbers)
    | st.builds(lambda make, p, q: make(p, q), st.sampled_from(comparisons), strings, strings)
    | st.builds(lambda t: (f"{t[0]} is None", lambda row: t[1](row) is None), numbers | strings)
    | st.builds(lambda t: (f"({t[0]} != None)", lambda row: t[1](row) is not None), numbers | strings)
    | st.builds(
        lambda t, v: (f"{t[0]} in {v!r}", lambda row: strict(lambda p: p in v)(t[1](row))),
        numbers,
        st.lists(ints, min_size=1, max_size=3),
    )
    | st.builds(
        lambda t: (f"{t[0]} in user.tags", lambda row: strict(lambda p, q: p in q)(t[1](row), row["user.tags"])),
        strings,
    )
    | column("f")
)
conditions = st.recursive(
    leaves,
    lambda inner: (
        st.builds(lambda p: (f"(not {p[0]})", lambda row: strict(lambda v: not v)(p[1](row))), inner)
        | st.builds(op("and", kleene_and), inner, inner)
        | st.builds(op("or", kleene_or), inner, inner)
    ),
    max_leaves=4,
)
rows = st.fixed_dictionaries(
    {
        "a": st.none() | ints,
        "x": st.none() | halves,
        "s": st.none() | texts,
        "f": st.none() | st.booleans(),
        "user.tags": st.none() | st.lists(texts, max_size=3),
    }
)


@settings(max_examples=300)
@given(conditions | numbers, rows)
@example(
    ("coalesce(a, x, a)", lambda row: row["a"] if row["a"] is not None else row["x"]),
    {"a": None, "x": 0.0, "s": None, "f": None, "user.tags": None},
)
def test_sql_answers_as_python_does(term: Term, row: dict[str, Any]) -> None:
    text, model = term
    expected, found = model(row), run(text, row)
    if isinstance(expected, float) and found is not None:
        assert found == pytest.approx(expected, rel=1e-12, abs=1e-12)
    else:
        assert found == expected
    assert columns_of(text) <= set(TYPES)
    kind = type_of(text, TYPES.__getitem__)
    if found is not None:
        assert {"int": int, "float": float, "bool": bool}[kind] in (type(found), type(expected)) or kind == "float"


@settings(max_examples=200)
@given(st.text(max_size=30))
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    try:
        to_sql(text, lambda name: f'"{name}"')
    except BadInputError as error:
        assert "expression" in str(error)
        assert "\n" not in str(error)


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20))
def test_text_stays_text(value: str) -> None:
    sql = to_sql(repr(value), lambda name: name)
    assert duckdb.execute(f"SELECT {sql}").fetchall() == [(value,)]
    assert evaluate(repr(value), {"a": pa.array([1, 2])}).to_pylist() == [value, value]


@pytest.mark.parametrize("zone", ["UTC", "Asia/Shanghai", "America/New_York"])
@given(moment=st.datetimes(datetime.datetime(1975, 1, 1), datetime.datetime(2035, 1, 1)))
@settings(max_examples=40)
def test_hour_and_weekday_are_local(zone: str, moment: datetime.datetime) -> None:
    utc = moment.replace(tzinfo=datetime.UTC)
    time_us = (utc - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(microseconds=1)
    local = utc.astimezone(ZoneInfo(zone))
    assert run("hour(event_time)", {"event_time": time_us}, zone) == local.hour
    assert run("weekday(event_time)", {"event_time": time_us}, zone) == local.weekday()


def test_names() -> None:
    assert columns_of("hour(event_time) > 3 and user.age in [1] or coalesce(hour, -a) == 2") == {
        "event_time",
        "user.age",
        "hour",
        "a",
    }
    assert columns_of("a >\n  4") == {"a"}


def test_equals_null_is_null_and_is_none_is_not() -> None:
    assert run("a == 1", {"a": None}) is None
    assert run("a == None", {"a": None}) is True
    assert run("a is not None", {"a": None}) is False
    assert run("f and a is None", {"f": None, "a": 1}) is False
    assert run("1 < a < 3", {"a": 2}) is True


REFUSED = [
    ("", "is empty; write something like rating >= 4"),
    ("rating = 4", "position 8: a single =; write == to compare"),
    ("a && b", "position 3: &; write and"),
    ("a & b", "position 1: & and | are not for conditions; write and, or"),
    ("a || b", "position 3: |; write or"),
    ("a <> b", "position 3: <>; write !="),
    ("not a AND b", "position 7: capital letters"),
    ("a is null", "position 6: null is not a column; write None"),
    ("a is not null or", "is null; write is None"),
    ("a == true", "position 6: true is not a column; write True"),
    ("a is 1", "is only asks for None; write == to compare"),
    ("a < None", "None has no order"),
    ("a in [None, 1]", "write x is None or x in [..]"),
    ("a in [b]", "only numbers and texts in a list"),
    ("a in []", "an empty list"),
    ("a in 3", "in needs a list"),
    ("a.b.c", "more than two parts; write column or entity.column"),
    ("flor(a)", "position 1: flor is not a function; did you mean floor?"),
    ("é == 1 or __import__('os')", "position 11: __import__ is not a function; functions: abs"),
    ("a.lower()", "a.lower is not a function"),
    ("abs(a, 1)", "abs with 2 arguments; abs(x) is the distance of x from zero"),
    ("abs(x=1)", "abs with 0 arguments"),
    ("bucket(a, 0)", "width of bucket is a number above zero"),
    ("matches(s, 'a(b')", "position 12: 'a(b': Invalid regular expression: missing ): a(b; correct the pattern (RE2)"),
    ("matches(s, r'(?=a)')", "invalid perl operator: (?=; correct the pattern"),
    ("matches(s, 1)", "the pattern of matches is a text in quotes"),
    ("matches(s, r)", "the pattern of matches is a text in quotes"),
    (r"s == '\ud800'", "half a surrogate pair in text"),
    ("(lambda: 1)", "'lambda: 1' is not allowed; allowed: comparisons"),
    ("[b for b in a]", "is not allowed"),
    ("f'{a}'", "is not allowed"),
    ("a ** 2", "is not allowed"),
    ("a[0]", "is not allowed"),
    ("b'x'", "a value of type bytes"),
    ("1e999", "an infinite number"),
    ("99999999999999999999", "does not fit 64 bits"),
    ("'a\\0'", "a zero character in text"),
    ("not " * 900 + "a", "characters; at most 2000"),
    ("a" + " // b" * 60, "nested too deep"),
    (" + ".join("a" * 150), "more than 100 operators inside one another; write it simpler"),
    ("not " * 400 + "a", "more than 100 operators inside one another"),
    ("(" * 900 + "a" + ")" * 900, "too many nested parentheses"),
    ("-" * 1900 + "a", "write it simpler"),
    ("'open", "unterminated string literal"),
]


@pytest.mark.parametrize(("expression", "message"), REFUSED, ids=[e[:20] or "empty" for e, _ in REFUSED])
def test_refusals_name_place_and_remedy(expression: str, message: str) -> None:
    with pytest.raises(BadInputError) as caught:
        to_sql(expression, lambda name: name)
    assert message in str(caught.value)


MISTYPED = [
    ("s == 1", "text is compared with a number; texts stand in quotes"),
    ("a in ['x']", "a number is compared with text"),
    ("s and f", "text is not a condition"),
    ("f + f", "arithmetic with a yes/no value; combine conditions with and, or"),
    ("s * 2", "arithmetic with text"),
    ("user.tags == 'a'", "a list is compared; write value in list_column"),
    ("3 in user.tags", "a number in a list[string]; look for text"),
    ("a in x", "in needs a list, not a number"),
    ("lower(a)", "lower of a number"),
    ("length(a)", "length of a number"),
    ("coalesce(a, 'x')", "a number is compared with text"),
    ("log1p(s)", "log1p with text"),
    ("-s", "- with text"),
    ("starts_with(a, 'x')", "starts_with of a number; give it a text"),
    ("contains(user.tags, 'x')", "contains of a list"),
    ("matches(s, 'x') + 1", "arithmetic with a yes/no value"),
]


@pytest.mark.parametrize(("expression", "message"), MISTYPED)
def test_types_must_fit(expression: str, message: str) -> None:
    with pytest.raises(BadInputError) as caught:
        type_of(expression, TYPES.__getitem__)
    assert message in str(caught.value)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("text", [" + ".join("a" * 50), "not " * 90 + "f", "abs(" * 90 + "a" + ")" * 90])
def test_an_expression_of_the_allowed_depth_is_read_soon_wherever_the_caller_stands(text: str) -> None:
    def below(frames: int) -> str:
        return below(frames - 1) if frames else to_sql(text, str) + type_of(text, TYPES.__getitem__)

    assert below(300)


def test_every_function_has_help_that_begins_with_its_call() -> None:
    assert all(function.help.startswith(f"{name}(") for name, function in FUNCTIONS.items())
