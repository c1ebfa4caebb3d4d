"""Functions of a user's own package, registered by an entry point."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from feature_jobs.checks.check import check_scenario
from feature_jobs.errors import BadInputError
from feature_jobs.expressions import custom
from feature_jobs.expressions.evaluate import compiled, evaluate
from feature_jobs.expressions.types import type_of
from feature_jobs.joins.aggregations import key_sets, types_read
from tasks.run.runner import config_digest
from tasks.steps import STEPS
from tests.unit.feature_jobs.small_source import scenario_in

SOURCE = """
def edit_distance(query: str, title: str) -> int:
    last = list(range(len(title) + 1))
    for i, a in enumerate(query, 1):
        row = [i]
        for j, b in enumerate(title, 1):
            row.append(min(last[j] + 1, row[-1] + 1, last[j - 1] + (a != b)))
        last = row
    return last[-1]

def tripled(x: float) -> float:
    return 3 * x

def first(words: list[str], other: str | None) -> str | None:
    return words[0] if words else other

def digits(n: int) -> list[int]:
    return [int(letter) for letter in str(n)]

def is_odd(n: int) -> bool:
    return n % 2 == 1

def wrong(n: int) -> int:
    return 2**63 if n else 1 // n

def unclear(n) -> int:
    return n
"""
NAMES = ("edit_distance", "tripled", "first", "digits", "is_odd", "wrong", "unclear")
COLUMNS = {
    "s": pa.array(["kitten", "\u4e2d\u6587", "", None]),
    "r": pa.array(["sitting", "\u4e2d", "abc", "x"]),
    "n": pa.array([7, -(2**63), 0, None]),
    "texts": pa.array([["a", None], [None, "b"], [], None], pa.list_(pa.string())),
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An installed package, as a wheel leaves it; returns its source file."""
    folder = tmp_path / "site"
    info = folder / "shop_features-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shop-features\nVersion: 1.0\n")
    lines = [f"{name} = shop_features:{name}" for name in NAMES]
    (info / "entry_points.txt").write_text("\n".join([f"[{custom.GROUP}]", *lines]) + "\n")
    (folder / "shop_features.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(folder)
    importlib.invalidate_caches()
    yield folder / "shop_features.py"
    sys.modules.pop("shop_features", None)
    custom._loaded.cache_clear()
    compiled.cache_clear()


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("custom.edit_distance(s, r)", [3, 1, 3, None]),
        ("custom.edit_distance(lower(s), 'kit') + 1", [4, 4, 4, None]),
        ("custom.tripled(n)", [21.0, -3.0 * 2**63, 0.0, None]),
        ("custom.first(texts, s)", ["a", "b", "", None]),
        ("custom.first(texts, None)", ["a", "b", None, None]),
        ("custom.digits(abs(n + 1))", [[8], None, [1], None]),
        ("custom.is_odd(n) or n == 0", [True, False, True, None]),
    ],
)
def test_each_row_is_one_call(package: Path, expression: str, expected: list[object]) -> None:
    columns = COLUMNS
    if "digits" in expression:
        columns = {**COLUMNS, "n": pa.array([7, None, 0, None])}
    found = evaluate(expression, columns)
    assert found.to_pylist() == expected
    assert found.type == evaluate(expression, {name: c.slice(1, 1) for name, c in columns.items()}).type
    for row in range(4):
        assert evaluate(expression, {name: c.slice(row, 1) for name, c in columns.items()}).to_pylist() == [
            expected[row]
        ]


def test_mistakes_name_the_function_and_its_arguments(package: Path) -> None:
    types = {"s": "string", "n": "int"}
    for expression, message in {
        "custom.edit_distance(s)": "custom.edit_distance with 1 arguments; it takes string, string",
        "custom.edit_distance(s, n)": "custom.edit_distance with int; give it string",
        "custom.levenshtein(s, s)": "custom.levenshtein: no such function; registered are digits, edit_distance, first",
        "custom.unclear(n)": r"custom.unclear .shop_features:unclear.: an argument or the result is not annotated",
    }.items():
        with pytest.raises(BadInputError, match=message):
            type_of(expression, types.__getitem__)
    with pytest.raises(
        BadInputError, match=r"custom.wrong\(0\): ZeroDivisionError: .*; correct the function, which gives"
    ):
        evaluate("custom.wrong(n)", {"n": pa.array([0])})
    with pytest.raises(BadInputError, match=r"custom.wrong\(1\): OverflowError: "):
        evaluate("custom.wrong(n)", {"n": pa.array([1])})


def test_a_changed_function_is_a_changed_setting(package: Path, tmp_path: Path) -> None:
    features = {"user": {"kind": "id"}, "far": {"kind": "number", "of": "custom.is_odd(item)"}}
    scenario = scenario_in(tmp_path, {"features": features})
    assert check_scenario(scenario) == []
    other = scenario_in(tmp_path, {"features": {**features, "far": {"kind": "number", "of": "item"}}})
    before = {name: config_digest(scenario, STEPS[name]) for name in ("ingest", "summarize", "join", "train")}
    plain = config_digest(other, STEPS["join"])
    package.write_text(SOURCE + "\n# changed\n")
    after = {name: config_digest(scenario, STEPS[name]) for name in before}
    assert after["ingest"] == before["ingest"]
    assert all(after[name] != before[name] for name in ("summarize", "join", "train"))
    assert config_digest(other, STEPS["join"]) == plain


def test_a_changed_function_makes_older_summaries_unfit(package: Path, tmp_path: Path) -> None:
    odd = {"kind": "count", "by": ["user"], "where": "custom.is_odd(item)"}
    scenario = scenario_in(tmp_path, {"features": {"odd": odd, "all": {"kind": "count", "by": ["item"]}}})
    before = [types_read(scenario, one) for one in key_sets(scenario)]
    package.write_text(SOURCE + "\n# changed\n")
    after = [types_read(scenario, one) for one in key_sets(scenario)]
    assert [one == other for one, other in zip(before, after, strict=True)] == [False, True]


def test_without_the_package_check_names_the_remedy(tmp_path: Path) -> None:
    scenario = scenario_in(tmp_path, {"features": {"far": {"kind": "number", "of": "custom.far(item)"}}})
    (line,) = check_scenario(scenario)
    assert "custom.far: no such function; none is registered: install the package whose entry point" in line
