"""Functions of texts and lists: worked examples, values at the edges, and rows alone against rows together."""

from __future__ import annotations

from random import Random
from typing import Any

import pyarrow as pa
import pytest

from feature_jobs.errors import BadInputError
from feature_jobs.expressions.compiler import has_sql, to_sql
from feature_jobs.expressions.evaluate import evaluate
from feature_jobs.expressions.functions import FUNCTIONS
from feature_jobs.expressions.types import type_of
from tests.unit.feature_jobs.expressions.test_evaluate import exact

KINDS = {
    **dict.fromkeys(("s", "r"), "string"),
    **dict.fromkeys(("texts", "more", "kv", "kv2", "nested"), "list[string]"),
    **dict.fromkeys(("nums", "other"), "list[int]"),
    **dict.fromkeys(("v", "w"), "list[float]"),
    "x": "float",
    "n": "int",
}
ELEMENTS = {"string": pa.string(), "int": pa.int64(), "float": pa.float64()}
ARROW = {
    name: pa.list_(ELEMENTS[kind[5:-1]]) if kind.startswith("list") else ELEMENTS[kind] for name, kind in KINDS.items()
}
NAN, INF = float("nan"), float("inf")
NESTED = ["ca^ba:1,bb:2", "cb^ba:3,bb:4"]
Q, T = ["b", "c"], ["a", "b", "c", "d"]

GOLDEN: list[tuple[str, dict[str, Any], Any]] = [
    # Texts. The examples of Chinese are those of TorchEasyRec's tests.
    (r"regex_replace(s, '\\|', ' ')", {"s": "中华|人民|共和国"}, "中华 人民 共和国"),
    (r"regex_replace(s, '(?s)^(.{0,3}).*$', '\\1!')", {"s": "中华人民共和国"}, "中华人!"),
    ("regex_replace(s, '(?i)ABC', 'x')", {"s": "abcd"}, "xd"),
    ("regex_replace(s, 'a*', 'x')", {"s": ""}, "x"),
    ("regex_replace(s, 'a', 'x')", {"s": None}, None),
    (r"regex_replace(texts, '\\|', ' ')", {"texts": ["a|b", None, "c|d", ""]}, ["a b", "c d", ""]),
    ("normalize(s)", {"s": "ＡＢＣ１ e\u0301"}, "ABC1 \u00e9"),
    ("normalize(s)", {"s": None}, None),
    (
        "tokenize(s)",
        {"s": "It's 2024: Straße-Test, 中文ok カナ e\u0301t\u0301"},
        ["It", "s", "2024", "Straße", "Test", "中", "文", "ok", "カ", "ナ", "e\u0301t\u0301"],
    ),
    ("tokenize(s)", {"s": " \t\n🙂!"}, []),
    ("tokenize(s)", {"s": ""}, []),
    ("tokenize(s)", {"s": None}, None),
    ("tokenize(lower(s))", {"s": "ÉTÉ"}, ["été"]),
    ("split(s, ',')", {"s": " a , b,,c d, "}, ["a", "b", "c d"]),
    ("split(s, '\x1d')", {"s": "科技\x1d电脑"}, ["科技", "电脑"]),
    ("split(s, '||')", {"s": None}, None),
    ("length(split(s, ','))", {"s": ","}, 0),
    # Boundaries: a number at one is above it.
    ("bucketize(x, [0.25, 0.75])", {"x": 0.5}, 1),
    ("bucketize(x, [0.25, 0.75])", {"x": 0.75}, 2),
    ("bucketize(x, [0.25, 0.75])", {"x": -INF}, 0),
    ("bucketize(x, [0.25, 0.75])", {"x": NAN}, 2),
    ("bucketize(x, [0.25, 0.75])", {"x": None}, None),
    ("bucketize(n, [-1e300, 0, 2.5, 1e300])", {"n": 3}, 3),
    ("bucketize(n, [9007199254740993])", {"n": 2**53}, 0),
    ("bucketize(n, [9007199254740993])", {"n": 2**53 + 1}, 1),
    ("bucketize(n, [-9223372036854775807, 0])", {"n": -(2**63)}, 0),
    # Query and title.
    (
        "overlap(texts, more, 'query_common_ratio')",
        {"texts": ["abc", "efg"], "more": ["abc", "qwe", "rty", "uio"]},
        0.5,
    ),
    (
        "overlap(texts, more, 'title_common_ratio')",
        {"texts": ["abc", "efg"], "more": ["abc", "qwe", "rty", "uio"]},
        0.25,
    ),
    ("overlap(texts, more, 'query_common_ratio')", {"texts": [], "more": []}, 0.0),
    ("overlap(texts, more, 'query_common_ratio')", {"texts": None, "more": ["a"]}, None),
    ("overlap(texts, more, 'query_common_ratio')", {"texts": ["a", "a", None, "b"], "more": ["a", None]}, 2 / 3),
    ("overlap(nums, other, 'title_common_ratio')", {"nums": [2**63 - 1], "other": [2**63 - 1, -(2**63)]}, 0.5),
    ("overlap(texts, more, 'is_contain')", {"texts": ["abc", "efg"], "more": ["abc", "efg", "rty"]}, 1.0),
    ("overlap(texts, more, 'is_contain')", {"texts": ["efg", "abc"], "more": ["abc", "efg", "rty"]}, 0.0),
    ("overlap(texts, more, 'is_equal')", {"texts": ["abc", "efg"], "more": ["abc", "efg"]}, 1.0),
    ("overlap(texts, more, 'is_equal')", {"texts": [], "more": []}, 0.0),
    ("overlap(texts, more, 'index_of')", {"texts": Q, "more": T}, 1.0),
    ("overlap(texts, more, 'index_of')", {"texts": ["c", "b"], "more": T}, -1.0),
    ("overlap(texts, more, 'proximity_min_cover')", {"texts": Q, "more": T}, 2.0),
    ("overlap(texts, more, 'proximity_min_cover')", {"texts": ["b", "z"], "more": T}, 0.0),
    ("overlap(texts, more, 'proximity_min_dist')", {"texts": ["a", "b", "d"], "more": T}, 1.0),
    ("overlap(texts, more, 'proximity_max_dist')", {"texts": ["a", "b", "d"], "more": T}, 3.0),
    ("overlap(texts, more, 'proximity_avg_dist')", {"texts": ["a", "b", "d"], "more": T}, 2.0),
    ("overlap(texts, more, 'proximity_min_dist')", {"texts": ["z"], "more": T}, 5.0),
    # Maps.
    ("lookup(kv, texts)", {"kv": ["ca:1", "cb:2"], "texts": ["ca", "cb"]}, 3.0),
    ("lookup(kv, texts, 'mean')", {"kv": ["ca:1", "cb:2"], "texts": ["ca", "cb", "cd"]}, 1.5),
    ("lookup(kv, texts, 'max')", {"kv": ["ca:1", "cb:-2"], "texts": ["ca", "cb"]}, 1.0),
    ("lookup(kv, texts, 'count')", {"kv": ["ca:1", "cb:2"], "texts": ["ca", "cd"]}, 1.0),
    ("lookup(kv, s)", {"kv": ["ca:1", "cb:2"], "s": "cd"}, None),
    ("coalesce(lookup(kv, s), 0.0)", {"kv": ["ca:1"], "s": "cd"}, 0.0),
    ("lookup(kv, s)", {"kv": None, "s": "ca"}, None),
    ("lookup(kv, s)", {"kv": ["ca:1"], "s": None}, None),
    ("lookup(kv, n)", {"kv": ["7:0.5", f"{-(2**63)}:2"], "n": -(2**63)}, 2.0),
    ("lookup(kv, s)", {"kv": [" a : .5 ", "a:2", "a:x", "a:nan", "a:1e400", None], "s": "a"}, 2.0),
    ("lookup(kv, s)", {"kv": ["a:b:3"], "s": "a:b"}, 3.0),
    ("lookup(kv, s)", {"kv": ["类"], "s": "类"}, 1.0),
    ("lookup(['tag1:1', 'tag2:2.5'], texts)", {"texts": ["tag2", "tag1", "tag9"]}, 3.5),
    ("lookup_text(kv, s)", {"kv": ["ca:x", "cb:y"], "s": "cb"}, "y"),
    ("lookup_text(kv, n)", {"kv": ["7:x"], "n": 8}, None),
    ("lookup_text(['1:one', '2:two'], n)", {"n": 2}, "two"),
    ("nested_lookup(nested, s, r)", {"nested": NESTED, "s": "ca", "r": "bb"}, 2.0),
    ("nested_lookup(nested, 'ALL', r)", {"nested": NESTED, "r": "ba"}, 4.0),
    ("nested_lookup(nested, s, 'ALL', 'max')", {"nested": NESTED, "s": "cb"}, 4.0),
    ("nested_lookup(nested, s, r)", {"nested": NESTED, "s": "ca", "r": "zz"}, None),
    ("nested_lookup(nested, s, r)", {"nested": NESTED, "s": None, "r": "ba"}, None),
    ("kv_dot_product(kv, kv2)", {"kv": ["a:0.5", "b:0.5"], "kv2": ["d:0.5", "b:0.5"]}, 0.25),
    ("kv_dot_product(kv, kv2)", {"kv": ["a", "b", "c"], "kv2": ["a", "b", "d"]}, 2.0),
    ("kv_dot_product(kv, kv2)", {"kv": ["a", "b", "c"], "kv2": ["a:0.5", "b:0.5"]}, 1.0),
    ("kv_dot_product(kv, kv2)", {"kv": ["a:2", "a:3"], "kv2": ["a:10", "a:1"]}, 55.0),
    ("kv_dot_product(kv, kv2)", {"kv": ["a"], "kv2": []}, 0.0),
    ("kv_dot_product(kv, kv2)", {"kv": ["a"], "kv2": None}, None),
    ("kv_dot_product(kv, ['a:2', 'b'])", {"kv": ["a", "b"]}, 3.0),
    # Lists.
    ("bool_mask(nums, other)", {"nums": [1, 2, 3, 4], "other": [1, 0, 1, 0]}, [1, 3]),
    ("bool_mask(texts, more)", {"texts": ["123", "456", "90"], "more": ["true", "false", "TRUE"]}, ["123", "90"]),
    ("bool_mask(nums, other)", {"nums": [1, 2, 3], "other": [None, 7]}, [2]),
    ("bool_mask(nums, other)", {"nums": [1], "other": [1, 1, 1]}, [1]),
    ("bool_mask(nums, other)", {"nums": [], "other": [1]}, []),
    ("bool_mask(nums, other)", {"nums": None, "other": [1]}, None),
    ("combine(nums, 'sum')", {"nums": [1, 2, None]}, 3.0),
    ("combine(nums, 'mean')", {"nums": [2**63 - 1, 2**63 - 1]}, 2.0**63),
    ("combine(v, 'min')", {"v": [0.5, NAN, -INF, -0.0]}, 0.0),
    ("combine(v, 'max')", {"v": []}, None),
    ("combine(v, 'count')", {"v": [1.0, NAN, None]}, 1.0),
    ("combine(v, 'count')", {"v": None}, None),
    # Vectors.
    ("dot(v, w)", {"v": [1.0, 2.0, 3.0], "w": [4.0, -5.0, 6.0]}, 12.0),
    ("cosine(v, w)", {"v": [3.0, 4.0], "w": [4.0, 3.0]}, 24 / 25),
    ("cosine(v, w)", {"v": [0.0, 0.0], "w": [4.0, 3.0]}, None),
    ("euclid_dist(v, w)", {"v": [0.0, 3.0], "w": [4.0, 0.0]}, 5.0),
    ("dot(v, w)", {"v": [1.0], "w": [1.0, 2.0]}, None),
    ("dot(v, w)", {"v": [1.0, None], "w": [1.0, 2.0]}, None),
    ("dot(v, w)", {"v": None, "w": [1.0]}, None),
    ("dot(v, w)", {"v": [], "w": []}, 0.0),
    ("dot(v, w)", {"v": [NAN], "w": [1.0]}, NAN),
    ("dot(v, w)", {"v": [1e308, 1e308], "w": [10.0, 1.0]}, INF),
]


def columns_of_row(row: dict[str, Any]) -> dict[str, pa.Array]:
    """One row as columns."""
    return {name: pa.array([value], ARROW[name]) for name, value in row.items()}


@pytest.mark.parametrize(("expression", "row", "expected"), GOLDEN)
def test_worked_examples(expression: str, row: dict[str, Any], expected: Any) -> None:
    found = evaluate(expression, columns_of_row(row))
    assert exact(found) == exact(pa.array([expected], found.type))
    kind = type_of(expression, KINDS.__getitem__)
    assert found.type == (pa.list_(pa.field("l", ELEMENTS[kind[5:-1]])) if "list" in kind else ELEMENTS[kind])
    # A null of a request has no type, and no other value than a null of a type.
    if None in row.values():
        columns = {n: pa.nulls(1) if v is None else pa.array([v], ARROW[n]) for n, v in row.items()}
        assert evaluate(expression, columns).to_pylist() == [expected]


def test_every_function_of_texts_and_lists_has_examples() -> None:
    wanted = {name for name, function in FUNCTIONS.items() if function.takes}
    assert wanted <= {expression.partition("(")[0] for expression, _, _ in GOLDEN}
    assert not any(has_sql(f"length({e})" if "split" in e else e) for e, _, _ in GOLDEN)


TEXTS = [
    "a:0x10",
    "a:1_000",
    "a:1e",
    "a:+5",
    "a:.",
    "a:-",
    "a:infinity",
    "a:1d5",
    "a:1e5 ",
    "",
    "a",
    "b:2",
    "a:0.5",
    "a:-1e3",
    "中:1",
    "e\u0301 🙂",
    "ca^a:1,b:2",
    "x^中:3",
    "true",
    "0",
    "a b",
    ":",
    "^",
]
NUMBERS = [0.0, -0.0, 1.5, -2.25, 1e308, 5e-324, NAN, INF, -INF]
INTS = [0, 1, -1, 7, 2**53 + 1, 2**63 - 1, -(2**63)]


def random_columns(random: Random, num_rows: int) -> dict[str, pa.Array]:
    """Columns of every type, with nulls, empty lists and null elements."""
    values: dict[str, list[Any]] = {"string": TEXTS, "int": INTS, "float": NUMBERS}

    def cell(kind: str) -> Any:
        if random.random() < 0.15:
            return None
        if not kind.startswith("list"):
            return random.choice(values[kind])
        num = 3 if kind == "list[float]" and random.random() < 0.8 else random.randint(0, 4)
        return [random.choice([*values[kind[5:-1]], None]) for _ in range(num)]

    return {name: pa.array([cell(kind) for _ in range(num_rows)], ARROW[name]) for name, kind in KINDS.items()}


@pytest.mark.parametrize("expression", sorted({expression for expression, _, _ in GOLDEN}))
def test_a_row_alone_has_the_bytes_that_it_has_among_others(expression: str) -> None:
    columns = random_columns(Random(expression), 120)
    together = evaluate(expression, columns)
    for begin, num in [*((row, 1) for row in range(0, 120, 3)), (5, 17), (50, 0)]:
        part = evaluate(expression, {name: values.slice(begin, num) for name, values in columns.items()})
        assert part.type == together.type
        assert exact(part) == exact(together.slice(begin, num))


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("regex_replace(s, '(', '')", "missing"),
        (r"regex_replace(s, 'a', '\\2')", "correct the pattern"),
        ("regex_replace(s, r, '')", "pattern of regex_replace is a text in quotes"),
        ("tokenize(n)", "tokenize with int; give it string"),
        ("split(s, '')", "separator is empty"),
        ("bucketize(x, [2, 1])", "not numbers in rising order"),
        ("bucketize(x, v)", "not numbers in rising order"),
        ("overlap(texts, more, 'common')", "'common' is not one of them; overlap"),
        ("overlap(texts, nums, 'is_equal')", "overlap of list.string. and list.int."),
        ("lookup(kv, x)", "lookup with float; give it int or string or"),
        ("lookup(['a:1', 2], s)", "numbers and texts in one list"),
        ("combine(nums, 'median')", "'median' is not one of them"),
        ("dot(nums, v)", "dot with list.int."),
        ("tokenize([1])", "not allowed"),
        ("1.5 if n else n > 2", "a choice between a condition and a number"),
        ("nums if n else texts", "a list is compared"),
    ],
)
def test_mistakes_name_the_argument(expression: str, message: str) -> None:
    with pytest.raises(BadInputError, match=rf"expression .*, position \d+: .*{message}"):
        type_of(expression, KINDS.__getitem__)


def test_conditions_that_duckdb_computes_refuse_them() -> None:
    assert has_sql("matches(s, 'a') and lower(s) == 'a'")
    with pytest.raises(BadInputError, match="tokenize is a function of features alone; compute it in the source"):
        to_sql("length(tokenize(s)) > 2", str)


def test_columns_of_other_libraries_have_the_same_values() -> None:
    columns = random_columns(Random(3), 50)
    others = {
        "s": [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
        "kv": [pa.large_list(pa.large_string()), pa.list_(pa.large_string())],
        "v": [pa.large_list(pa.float64())],
    }
    for name, kinds in others.items():
        expression = {"s": "tokenize(lower(s))", "kv": "lookup(kv, s)", "v": "dot(v, w)"}[name]
        for kind in kinds:
            given = columns[name].dictionary_encode() if pa.types.is_dictionary(kind) else columns[name].cast(kind)
            found, expected = evaluate(expression, {**columns, name: given}), evaluate(expression, columns)
            assert (found.type, exact(found)) == (expected.type, exact(expected)), kind
    wide = pa.FixedSizeListArray.from_arrays(pa.array([1.0, 2.0, 3.0, 4.0], pa.float32()), 2)
    assert evaluate("dot(v, v)", {"v": wide}).to_pylist() == [5.0, 25.0]
