"""Features of the row itself: the join of a day and the items of a request give the model equal bytes."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from feature_jobs.checks.check import check_scenario
from feature_jobs.errors import BadInputError
from feature_jobs.expressions.evaluate import evaluate
from feature_jobs.expressions.vectors import Columns
from feature_jobs.joins.join import join_from_events
from feature_jobs.joins.request import ValuesOf
from feature_jobs.joins.same_row import SameRowFeatures
from feature_jobs.schema import Scenario
from feature_jobs.sources.source import time_columns
from feature_jobs.transforms import Encoded, Layout, encode
from tests.unit.feature_jobs.expressions.test_evaluate import exact
from tests.unit.feature_jobs.expressions.test_lists import ARROW, KINDS, random_columns
from tests.unit.feature_jobs.small_source import DAY_S, scenario_in

DS, MIDNIGHT = "1970-01-04", 3 * DAY_S
OF_USER = ("kv", "texts", "nums", "v")
NAMES = {name: f"who.{name}" if name in OF_USER else name for name in KINDS}
FEATURES: dict[str, Any] = {
    "n": {"kind": "id"},
    "texts_of": {"kind": "ids", "of": "who.texts"},
    "nums_of": {"kind": "ids", "of": "who.nums"},
    "pair": {"kind": "cross", "of": ["n", "s"]},
    "plain": {"kind": "number", "of": "x"},
    "stepped": {"kind": "number", "of": "x", "buckets": 3},
    "step": {"kind": "id", "of": "bucketize(x, [-1, 0.5, 1e300])"},
    "scaled": {"kind": "number", "of": "(min(max(x, -2.0), 3.0) + 2.0) / 5.0", "scale": "none"},
    "clean": {"kind": "id", "of": r"regex_replace(normalize(lower(s)), '[^\\p{L}]+', '_')"},
    "words": {"kind": "ids", "of": "tokenize(coalesce(s, r))"},
    "parts": {"kind": "ids", "of": "split(s, ':')"},
    "common": {"kind": "number", "of": "overlap(tokenize(s), tokenize(r), 'title_common_ratio')", "scale": "none"},
    "near": {"kind": "number", "of": "overlap(who.texts, more, 'proximity_avg_dist')"},
    "clicks": {"kind": "number", "of": "lookup(who.kv, s)"},
    "clicks_of_all": {"kind": "number", "of": "lookup(who.kv, more, 'mean')"},
    "group": {"kind": "id", "of": "lookup_text(who.kv, s)"},
    "mapped": {"kind": "number", "of": "lookup(['a:1.5', 'true:2', '0:7'], more, 'max')"},
    "nested_clicks": {"kind": "number", "of": "nested_lookup(nested, 'ALL', s, 'count')"},
    "similar": {"kind": "number", "of": "kv_dot_product(who.kv, kv2)"},
    "weighted": {"kind": "ids", "of": "who.kv", "weighted": True},
    "added": {"kind": "ids", "of": "kv2", "weighted": True, "pooling": "sum"},
    "masked": {"kind": "ids", "of": "bool_mask(who.nums, other)"},
    "total": {"kind": "number", "of": "combine(who.nums, 'sum')"},
    "cosine_of": {"kind": "number", "of": "cosine(who.v, w)", "scale": "none"},
    "angle": {"kind": "number", "of": "dot(who.v, w)"},
    "picture": {"kind": "vector", "of": "p", "width": 3},
}
CHANGES: dict[str, Any] = {
    **{f"data.events.columns.{n}": {"type": KINDS[n]} for n in KINDS if n not in OF_USER},
    "data.events.columns.p": {"type": "list[float]", "width": 3},
    "data.entities.who": {
        "path": "who.parquet",
        "format": "parquet",
        "key": "user",
        "columns": {"user": {"type": "int"}, **{name: {"type": KINDS[name]} for name in OF_USER}},
    },
    "features": FEATURES,
}


def _separators(changes: dict[str, Any]) -> dict[str, Any]:
    """Lists in a CSV need a separator; no file is read here."""
    return {k: {**v, "separator": "|"} if str(v.get("type", "")).startswith("list") else v for k, v in changes.items()}


def _scenario(folder: Path, changes: dict[str, Any] | None = None) -> Scenario:
    return scenario_in(folder, _separators({**CHANGES, **(changes or {})}))


def _columns(random: Random, num_rows: int) -> dict[str, pa.Array]:
    """Columns by their names in expressions: of the log, and of users. Three rows of each user follow each other."""
    columns = random_columns(random, num_rows)
    vectors = [random.choice([None, [0.5, -1e300, 3.0], [1e-9, 2.0, -0.0]]) for _ in range(num_rows)]
    users = pa.array([row // 3 for row in range(num_rows)])
    found = {NAMES[n]: c.take(users) if n in OF_USER else c for n, c in columns.items()}
    return found | {"p": pa.array(vectors, pa.list_(pa.float64())), "user": users}


def _samples(scenario: Scenario, root: Path, columns: dict[str, pa.Array]) -> pa.Table:
    num = len(columns["user"])
    log = {name: column for name, column in columns.items() if not name.startswith("who.")}
    log |= {"item": pa.array([1] * num), "rating": pa.array([5.0] * num), "t": pa.array([MIDNIGHT] * num)}
    log |= {"key.event_time": pa.array([MIDNIGHT * 1_000_000] * num), "key.event_row": pa.array(range(num))}
    first = pa.array(range(0, num, 3))
    who = {name.removeprefix("who."): c.take(first) for name, c in columns.items() if name not in log or name == "user"}
    (root / "events/entities").mkdir(parents=True)
    pq.write_table(pa.table(log), root / "events/events.parquet")
    pq.write_table(pa.table(who), root / "events/entities/who.parquet")
    join_from_events(scenario, DS, root / "events", {}, root / "out")
    return pq.read_table(root / "out/samples.parquet").combine_chunks()


def values_of(scenario: Scenario, columns: dict[str, pa.Array]) -> ValuesOf:
    """Evaluates expressions over the columns of some rows, as a server does over those of a request."""
    shared, times = Columns(columns, max(map(len, columns.values()))), time_columns(scenario)
    return lambda places: {place: evaluate(expression, shared, times=times) for place, expression in places.items()}


def _rows(encoded: Encoded, begin: int, end: int) -> list[bytes]:
    """The bytes of the model's input of some rows."""
    found = [keys[begin:end].tobytes() for keys in encoded.slots]
    for name, (keys, offsets) in encoded.bags.items():
        found += [keys[offsets[begin] : offsets[end]].tobytes(), np.diff(offsets[begin : end + 1]).tobytes()]
        if name in encoded.shares:
            found.append(encoded.shares[name][offsets[begin] : offsets[end]].tobytes())
    return [*found, encoded.numbers_NK[begin:end].tobytes()]


@pytest.mark.parametrize("seed", range(2))
def test_a_request_gives_the_bytes_of_the_days_join(tmp_path: Path, seed: int) -> None:
    """Fuzzed rows: nulls, empty lists, null elements, unicode, extreme integers, NaN and infinity."""
    scenario, num = _scenario(tmp_path), 240
    assert check_scenario(scenario) == []
    columns = _columns(Random(seed), num)
    samples = _samples(scenario, tmp_path, columns)
    layout, features = Layout.from_scenario(scenario), SameRowFeatures(scenario)
    of_day = encode(samples, layout)
    assert of_day.numbers_NK.shape[1] == len([f for f in FEATURES.values() if f["kind"] == "number"]) + 3
    for begin in range(0, num, 6):
        size = 1 + begin % 6 + begin % 5
        request = features.columns(values_of(scenario, {name: c.slice(begin, size) for name, c in columns.items()}))
        assert list(request) == list(FEATURES)
        for name, column in request.items():
            assert column.type == samples.schema.field(name).type
        of_request = encode(pa.table(request), layout)
        end = min(begin + size, num)
        assert _rows(of_request, 0, end - begin) == _rows(of_day, begin, end)


def test_every_feature_of_the_fuzz_has_values_and_nulls(tmp_path: Path) -> None:
    scenario = _scenario(tmp_path)
    samples = _samples(scenario, tmp_path, _columns(Random(1), 3000))
    for name, feature in FEATURES.items():
        rows = samples[name].to_pylist()
        unknown = sum(row is None or row == [] for row in rows)
        assert 0 < unknown < len(rows) or "count" in str(feature), name


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        ({"kind": "vector", "of": "p", "width": 4}, "features.y.width: 4: is not that of p, 3; write the same width"),
        ({"kind": "vector", "of": "who.v", "width": 4096.0}, "whole number"),
        ({"kind": "vector", "of": "x", "width": 3}, "is of type float, not a vector; declare the column as list"),
        ({"kind": "ids", "of": "p"}, "is of type list.float., not a list; "),
        ({"kind": "id", "of": "tokenize(s)"}, "is of type list.string., not an id; use kind: ids"),
        ({"kind": "number", "of": "lookup(s, who.kv)"}, "lookup with string; give it list.string."),
        (
            {"kind": "number", "of": "combine(kv2, 'sum')"},
            "combine with list.string.; give it list.int. or list.float.",
        ),
        ({"kind": "number", "of": "lookup(who.kv, s, 'median')"}, "'median' is not one of them"),
    ],
)
def test_check_names_a_mistake(tmp_path: Path, feature: dict[str, Any], message: str) -> None:
    try:
        lines = check_scenario(_scenario(tmp_path, {"features": {"y": feature}}))
    except BadInputError as error:
        lines = [str(error)]
    assert any(re.search(message, line) for line in lines), lines


def test_a_vector_of_another_width_stops_the_join_by_its_row(tmp_path: Path) -> None:
    scenario = _scenario(tmp_path, {"features": {"y": {"kind": "vector", "of": "who.v", "width": 3}}})
    columns = _columns(Random(0), 6)
    columns["who.v"] = pa.array([[1.0, 2.0, 3.0]] * 3 + [[1.0, 2.0]] * 3)
    message = r"features\.y: row 3: \[1.0, 2.0\] is not a vector of 3 finite numbers; correct width, or declare it"
    with pytest.raises(BadInputError, match=message):
        _samples(scenario, tmp_path, columns)


NAN, INF, LOW, HIGH = float("nan"), float("inf"), -(2**63), 2**63 - 1
GOLDEN: list[tuple[dict[str, Any], list[Any], list[Any]]] = [
    ({"kind": "id", "of": "n"}, [0, LOW, HIGH, None], [0, LOW, HIGH, None]),
    ({"kind": "id", "of": "s"}, ["", "\u4e2d", "e\u0301", "\u00e9", None], ["", "\u4e2d", "e\u0301", "\u00e9", None]),
    ({"kind": "id", "of": "x"}, [2.0, -0.0, NAN, INF, None], [2, 0, None, None, None]),
    ({"kind": "id", "of": "x > 1"}, [2.0, NAN, -INF, None], [1, 1, 0, None]),
    ({"kind": "ids", "of": "more"}, [["b", "", None], [], None], [["b", "", None], [], []]),
    ({"kind": "ids", "of": "other"}, [[LOW, HIGH, LOW], [], None], [[LOW, HIGH, LOW], [], []]),
    ({"kind": "cross", "of": ["n", "n"]}, [LOW, None], [f"{LOW}\x1f{LOW}", None]),
    ({"kind": "cross", "of": ["s", "coalesce(s, 'z')"]}, ["\u4e2d", "", None], ["\u4e2d\x1f\u4e2d", "\x1f", "\x1fz"]),
    ({"kind": "number", "of": "x"}, [1.5, -0.0, NAN, INF, -INF, None], [1.5, -0.0, None, None, None, None]),
    ({"kind": "number", "of": "n"}, [HIGH, LOW, None], [2.0**63, -(2.0**63), None]),
    ({"kind": "vector", "of": "p", "width": 3}, [[1.0, -0.0, 5e-324], [], None], [[1.0, -0.0, 5e-324], [], []]),
]


@pytest.mark.parametrize(("feature", "values", "expected"), GOLDEN)
def test_values_of_each_kind(tmp_path: Path, feature: dict[str, Any], values: list[Any], expected: list[Any]) -> None:
    (name,) = {"n", "s", "x", "more", "other", "p"} & set(re.findall(r"\w+", str(feature["of"])))
    scenario = _scenario(tmp_path, {"features": {"y": feature}})
    kind = pa.list_(pa.float64()) if name == "p" else ARROW[name]
    (found,) = SameRowFeatures(scenario).columns(values_of(scenario, {name: pa.array(values, kind)})).values()
    assert exact(found) == exact(pa.array(expected, found.type))


@pytest.mark.parametrize(
    ("feature", "value", "message"),
    [
        ({"kind": "id", "of": "x"}, 1.5, r"features\.y: 1.5 is not an id; use bucket\(x, width\), or kind: number"),
        ({"kind": "id", "of": "x"}, 2.0**53, "is a float too large to be exact"),
        ({"kind": "cross", "of": ["x", "x"]}, 1.5, "1.5 is not an id"),
        ({"kind": "number", "of": "n + 1"}, HIGH, "does not fit 64 bits"),
        ({"kind": "vector", "of": "p", "width": 3}, [1.0, NAN, 2.0], "is not a vector of 3 finite numbers"),
        ({"kind": "vector", "of": "p", "width": 3}, [1.0, None, 2.0], "is not a vector of 3 finite numbers"),
    ],
)
def test_a_value_that_is_none_of_its_kind_is_refused(
    tmp_path: Path, feature: dict[str, Any], value: Any, message: str
) -> None:
    (name,) = {"n", "x", "p"} & set(re.findall(r"\w+", str(feature["of"])))
    scenario = _scenario(tmp_path, {"features": {"y": feature}})
    kind = pa.list_(pa.float64()) if name == "p" else ARROW[name]
    with pytest.raises(BadInputError, match=message):
        SameRowFeatures(scenario).columns(values_of(scenario, {name: pa.array([value], kind)}))
