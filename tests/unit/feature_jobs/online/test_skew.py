"""A planted skew is found and named, whatever its kind; equal features are called equal."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from feature_jobs.errors import BadInputError
from feature_jobs.online.skew import skew

NUM = 5_000


@pytest.fixture(scope="module")
def samples() -> pa.Table:
    random = np.random.default_rng(3)
    rate = random.random(NUM)
    return pa.table(
        {
            "key.event_time": pa.array(np.arange(NUM) // 3),
            "key.event_row": pa.array(np.arange(NUM)),
            "key.user": pa.array([None if row % 7 == 0 else row // 3 % 50 for row in range(NUM)], pa.int64()),
            "rate": pa.array(rate, mask=rate < 0.1),
            "seen": pa.array([[row % 5] * (row % 3) for row in range(NUM)], pa.list_(pa.int64())),
            "group": pa.array([None if row % 11 == 0 else f"g{row % 9}" for row in range(NUM)]),
            "vector": pa.array([None if row % 13 == 0 else [0.1 * row, 0.7] for row in range(NUM)]),
        }
    )


FEATURES = ["rate", "seen", "group", "vector"]


def with_changed(table: pa.Table, name: str, rows: list[int], value: object) -> pa.Table:
    values = table[name].to_pylist()
    for row in rows:
        values[row] = value
    return table.set_column(table.column_names.index(name), name, pa.array(values, table.schema.field(name).type))


def test_rows_in_another_order_are_equal(samples: pa.Table) -> None:
    shuffled = samples.take(pa.array(np.random.default_rng(1).permutation(NUM)))
    found = skew(shuffled, samples, FEATURES, "log")
    assert (found.rows, found.only_online, found.only_offline, found.unequal) == (NUM, 0, 0, [])
    assert found.alike == 0


def test_a_log_in_the_network_s_own_type_is_equal(samples: pa.Table) -> None:
    rate = pa.array(samples["rate"].to_numpy(), pa.float32())  # NaN where it is null
    logged = samples.set_column(samples.column_names.index("rate"), "rate", rate)
    assert rate.null_count == 0
    assert skew(logged, samples, FEATURES, "log").unequal == []
    changed = rate.to_numpy().copy()
    changed[2_000] = np.nextafter(changed[2_000], np.float32(2))
    logged = logged.set_column(samples.column_names.index("rate"), "rate", pa.array(changed))
    [one] = skew(logged, samples, FEATURES, "log").unequal
    assert (one.feature, one.different) == ("rate", 1)


@pytest.mark.parametrize(
    ("feature", "value", "counts", "largest"),
    [
        ("rate", 9.0, {"different", "extra"}, True),
        ("rate", None, {"missing"}, False),
        ("seen", [4, 4, 9], {"different", "extra"}, False),
        ("seen", [], {"missing"}, False),
        ("group", "other", {"different", "extra"}, False),
        ("group", None, {"missing"}, False),
    ],
)
def test_one_row_in_a_thousand_is_found(
    samples: pa.Table, feature: str, value: object, counts: set[str], largest: bool
) -> None:
    rows = list(range(100, NUM, NUM // 5))
    found = skew(with_changed(samples, feature, rows, value), samples, FEATURES, "log")
    [one] = found.unequal
    assert one.feature == feature
    assert 1 <= one.unequal <= len(rows)
    assert {name for name in ("missing", "extra", "different") if getattr(one, name)} <= counts
    assert (one.largest is not None) == (largest and one.different > 0)
    assert any(f"event_row {row}" in text for row in rows for text in one.rows)


@pytest.mark.parametrize(
    ("name", "type_"),
    [
        ("seen", pa.large_list(pa.int64())),
        ("seen", pa.list_(pa.int32())),
        ("group", pa.large_string()),
        ("group", pa.dictionary(pa.int32(), pa.string())),
        ("vector", pa.list_(pa.float32())),
        ("vector", pa.large_list(pa.float32())),
        ("vector", pa.list_(pa.float32(), 2)),
        ("key.name", pa.large_string()),
        ("key.name", pa.dictionary(pa.int32(), pa.string())),
    ],
)
def test_types_that_others_write_are_equal(samples: pa.Table, name: str, type_: pa.DataType) -> None:
    offline = samples.append_column("key.name", pa.array([f"n{row % 4}" for row in range(NUM)]))
    logged = offline.set_column(offline.column_names.index(name), name, offline[name].cast(type_, safe=False))
    found = skew(logged, offline, FEATURES, "log")
    assert (found.rows, found.unequal) == (NUM, [])
    if name in FEATURES:
        changed = offline[name].slice(1, 1).to_pylist()
        [one] = skew(with_changed(logged, name, [2], changed[0]), offline, FEATURES, "log").unequal
        assert (one.feature, one.unequal) == (name, 1)


def test_nan_in_a_list_is_null(samples: pa.Table) -> None:
    changed = with_changed(samples, "vector", [1, 2], [None, 0.5])
    logged = with_changed(samples, "vector", [1, 2], [float("nan"), 0.5])
    assert skew(logged, changed, FEATURES, "log").unequal == []


def test_columns_that_come_twice_are_refused(samples: pa.Table) -> None:
    for name in ("rate", "key.event_row"):
        with pytest.raises(BadInputError, match=f"log: has several columns {name}; log"):
            skew(samples.append_column(name, samples[name]), samples, FEATURES, "log")


def test_rows_of_equal_keys_are_paired_in_their_order(samples: pa.Table) -> None:
    online = samples.drop_columns("key.event_row")  # of three rows with one time those without a user are alike
    found = skew(online, samples, FEATURES, "log")
    named = Counter(zip(online["key.event_time"].to_pylist(), online["key.user"].to_pylist(), strict=True))
    assert found.unequal == []
    assert found.alike == sum(num for num in named.values() if num > 1) > 0
    [one] = skew(with_changed(online, "group", [2_501], "x"), samples, FEATURES, "log").unequal
    assert (one.feature, one.unequal) == ("group", 1)


def test_rows_that_one_side_lacks_are_counted(samples: pa.Table) -> None:
    found = skew(samples.slice(10), samples.slice(0, NUM - 4), FEATURES, "log")
    assert (found.rows, found.only_online, found.only_offline) == (NUM - 14, 4, 10)


def test_what_cannot_be_compared_is_refused(samples: pa.Table) -> None:
    with pytest.raises(BadInputError, match=r"of the key columns key\.event_time, .* it has none, which do not"):
        skew(samples.select(FEATURES), samples, FEATURES, "log")
    with pytest.raises(BadInputError, match=r"it has key\.user, which do not name a row; log key\.event_time"):
        skew(samples.select(["key.user", *FEATURES]), samples, FEATURES, "log")
    with pytest.raises(BadInputError, match="log: has no column group"):
        skew(samples.drop_columns("group"), samples, FEATURES, "log")
    with pytest.raises(BadInputError, match=r"key\.event_row is string, but int64 in the samples"):
        texts = samples["key.event_row"].cast(pa.string())
        skew(samples.set_column(1, "key.event_row", texts), samples, FEATURES, "log")
