"""Features over the rows of a request: against their definition, alone as in the day's batch, and never from a later
time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_jobs.checks.check import check_scenario
from feature_jobs.errors import BadInputError
from feature_jobs.expressions.evaluate import evaluate
from feature_jobs.expressions.vectors import Columns
from feature_jobs.joins.join import join_from_events
from feature_jobs.joins.request import RequestFeatures, one_request, requests_of
from feature_jobs.schema import Scenario
from tests.unit.feature_jobs.joins import small_log
from tests.unit.feature_jobs.small_source import DAY_S, scenario_in

DS, BEFORE = "1970-01-04", "1970-01-03"
MIDNIGHT = 3 * DAY_S
CHANGES: dict[str, Any] = {
    "data.request": "shown",
    "data.events.columns.shown": {"type": "string"},
    "data.events.columns.price": {"type": "float"},
    "data.events.columns.author": {"type": "string"},
    "join": {"lookback_days": 2},
    "features": {
        "user": {"kind": "id"},
        "item_events": {"kind": "count", "by": ["item"]},
        "item_rate": {"kind": "rate", "by": ["item"], "of": "rating >= 4"},
        "recency": {"kind": "recency", "by": ["user"]},
        "last": {"kind": "sequence", "of": "item", "by": "user", "length": 5},
        "authors": {"kind": "sequence", "of": "author", "by": "user", "length": 5},
        "size": {"kind": "request", "operation": "size"},
        "place": {"kind": "request", "operation": "position"},
        "cheapest": {"kind": "request", "operation": "position", "of": "price"},
        "dearest": {"kind": "request", "operation": "rank", "of": "price"},
        "price_share": {"kind": "request", "operation": "share", "of": "price"},
        "rate_rank": {"kind": "request", "operation": "rank", "of": "item_rate"},
        "popularity": {"kind": "request", "operation": "share", "of": "item_events + 1"},
        "item_seen": {"kind": "match", "of": "item", "sequence": "last"},
        "author_seen": {"kind": "match", "of": "author", "sequence": "authors"},
        "item_place": {"kind": "match", "of": "item", "sequence": "last", "operation": "position"},
    },
}
WITHOUT = {path: value for path, value in CHANGES.items() if path != "data.request"}
COMPARING = [name for name, feature in CHANGES["features"].items() if feature["kind"] in ("request", "match")]
ROW = st.fixed_dictionaries(
    {
        "t": st.integers(0, 30),
        "user": st.sampled_from([1, 2]),
        "shown": st.sampled_from(["a", "b", "c", None]),
        "item": st.integers(1, 4),
        "price": st.sampled_from([None, 0.1, 0.2, 0.3, 1e16, -1.0, float("inf")]),
        "author": st.sampled_from([None, "x", "y"]),
        "rating": st.sampled_from([None, 2.0, 5.0]),
    }
)


def _folder(root: Path, ds: str, rows: list[dict[str, Any]]) -> Path:
    """The folder of a day as ingest writes it; times are seconds of the day."""
    folder = root / ds / "events"
    (folder / "entities").mkdir(parents=True, exist_ok=True)
    midnight = MIDNIGHT if ds == DS else MIDNIGHT - DAY_S
    kinds = {"user": pa.int64(), "item": pa.int64(), "shown": pa.string(), "author": pa.string()}
    columns: dict[str, Any] = {
        name: pa.array([row[name] for row in rows], kinds.get(name, pa.float64()))
        for name in ("user", "item", "shown", "author", "price", "rating")
    }
    times = [midnight + row["t"] for row in rows]
    columns |= {"t": times, "key.event_time": [time * 1_000_000 for time in times]}
    columns["key.event_row"] = pa.array(range(len(rows)), pa.int64())
    pq.write_table(pa.table(columns), folder / "events.parquet", row_group_size=5)
    return folder


def _samples(scenario: Scenario, root: Path, rows: list[dict[str, Any]], past: list[dict[str, Any]]) -> pa.Table:
    """The day's samples; rows of today are in the order of time."""
    history = {BEFORE: _folder(root, BEFORE, past)} if past else {}
    folder = _folder(root, DS, rows)
    with small_log.some_rows_at_once(3):
        join_from_events(scenario, DS, folder, history, root / "parts")
    join_from_events(scenario, DS, folder, history, root / "out")
    assert (root / "out/samples.parquet").read_bytes() == (root / "parts/samples.parquet").read_bytes()
    return pq.read_table(root / "out/samples.parquet")


def _expected(row: dict[str, Any], together: list[dict[str, Any]], past: list[dict[str, Any]]) -> dict[str, Any]:
    """Values of one row by their definition: `together` are all rows of its request, in the order of the log."""

    def rank(values: list[Any], mine: Any) -> int | None:
        return None if mine is None else 1 + sum(v > mine for v in values if v is not None)

    def share(values: list[Any], mine: Any) -> float | None:
        total = 0.0
        for value in sorted(v for v in values if v is not None):
            total += value
        return None if mine is None or not total else mine / total

    prices = [r["price"] if r["price"] != float("inf") else None for r in together]
    here = next((i for i, other in enumerate(together) if other is row), 0)
    price = prices[here] if together else None
    counts = [sum(p["item"] == r["item"] for p in past) + 1 for r in together]
    by_price = sorted((i for i, p in enumerate(prices) if p is not None), key=lambda i: prices[i])
    return {
        "size": len(together) or None,
        "place": here + 1 if together else None,
        "cheapest": by_price.index(here) + 1 if price is not None else None,
        "dearest": rank(prices, price),
        "price_share": share(prices, price),
        "popularity": share(counts, counts[here]) if together else None,
    }


@settings(max_examples=40, deadline=None)
@given(today=st.lists(ROW, min_size=1, max_size=14), past=st.lists(ROW, max_size=6))
def test_values_are_those_of_the_definition(
    tmp_path_factory: pytest.TempPathFactory, today: list[dict[str, Any]], past: list[dict[str, Any]]
) -> None:
    root = tmp_path_factory.mktemp("day")
    today[0]["rating"] = 5.0  # one label must be known
    today.sort(key=lambda row: row["t"])
    past.sort(key=lambda row: row["t"])
    samples = _samples(scenario_in(root, CHANGES), root, today, past)
    found = samples.to_pylist()
    for row, of_row in zip(today, found, strict=True):
        together = [
            r for r in today if row["shown"] is not None and (r["shown"], r["user"]) == (row["shown"], row["user"])
        ]
        answered = min((r["t"] for r in together), default=row["t"])
        seen = past + [r for r in today if r["t"] < answered]
        expected = _expected(row, together, seen)
        rates = [f["item_rate"] for r, f in zip(today, found, strict=True) if any(r is other for other in together)]
        expected["rate_rank"] = 1 + sum(rate > of_row["item_rate"] for rate in rates) if together else None
        assert {name: of_row[name] for name in expected} == expected
        listed = of_row["last"]
        assert listed == [r["item"] for r in reversed([r for r in seen if r["user"] == row["user"]])][:5]
        assert of_row["item_seen"] == listed.count(row["item"])
        assert of_row["item_place"] == (listed.index(row["item"]) + 1 if row["item"] in listed else None)
        assert of_row["author_seen"] == (of_row["authors"].count(row["author"]) if row["author"] else None)
        assert of_row["key.request"] == row["shown"]


def _bytes(array: pa.Array) -> tuple[bytes, bytes]:
    """The values (0 where null), and which of them are known."""
    values = np.asarray(array.fill_null(0.0))
    return values.tobytes(), np.asarray(array.is_valid()).tobytes()


@pytest.mark.parametrize("seed", range(5))
def test_a_request_alone_gives_the_same_bytes_as_in_the_days_batch(tmp_path: Path, seed: int) -> None:
    """About 400 requests whose rows lie between each other in the log; each is computed again from its own rows."""
    scenario, num = scenario_in(tmp_path, CHANGES), 3000
    rng = np.random.default_rng(seed)

    def some(values: Any, share: float = 0.1) -> pa.Array:
        return pa.array(values, mask=rng.random(num) < share)

    def lists(values: pa.Array) -> pa.Array:
        lengths = rng.integers(0, 5, num)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        return pa.ListArray.from_arrays(offsets, values.take(pa.array(rng.integers(0, num, lengths.sum()))))

    item, author = some(rng.integers(0, 30, num)), some(rng.choice(["x", "y", "long name", ""], num))
    rows = pa.table(
        {
            "item": item,
            "author": author,
            # Values of which a sum depends on the order, ties, infinity and NaN.
            "price": some(rng.choice([0.1, 0.3, 1e16, -1e16, 7.7, np.inf, np.nan, -0.0, 1e308], num)),
            "item_rate": some(rng.random(num).round(1)),
            "item_events": some(rng.integers(0, 50, num).astype(float)),
            "last": lists(item),
            "authors": lists(author),
        }
    )
    requests = requests_of(some(rng.integers(0, 20, num), 0.05), some(rng.integers(0, 25, num)))

    features, columns = RequestFeatures(scenario), {name: rows[name].combine_chunks() for name in rows.column_names}
    whole = features.columns(_values_of(columns), columns, requests)
    assert list(whole) == COMPARING and len(requests.sizes) > 300
    for begin, size in zip(requests.offsets_R, requests.sizes, strict=False):
        taken = pa.array(requests.order_M[begin : begin + size])
        alone = _of_one(features, {name: column.take(taken) for name, column in columns.items()})
        assert alone.keys() == whole.keys()
        for name, column in alone.items():
            assert _bytes(column) == _bytes(whole[name].take(taken)), name


def _values_of(columns: dict[str, pa.Array]) -> Any:
    """Evaluates expressions over these columns, as the join does over a day's."""
    shared = Columns(columns, len(columns["item"]))
    return lambda places: {place: evaluate(expression, shared) for place, expression in places.items()}


def _of_one(features: RequestFeatures, columns: dict[str, pa.Array]) -> dict[str, pa.Array]:
    """The features of one request, whose items are all rows."""
    return features.columns(_values_of(columns), columns, one_request(len(columns["item"])))


def test_the_order_of_a_request_changes_no_value_but_positions(tmp_path: Path) -> None:
    features = RequestFeatures(scenario_in(tmp_path, CHANGES))
    columns = {
        "item": pa.array([1, 2, 3, 4, 5]),
        "author": pa.array(["x", "y", "x", "y", None]),
        "price": pa.array([0.1, 1e16, 0.2, -1e16, 0.3]),
        "item_rate": pa.array([0.5, 0.5, 0.1, None, 0.9]),
        "item_events": pa.array([1.0, 2.0, 3.0, 4.0, 5.0]),
        "last": pa.array([[1, 2]] * 5),
        "authors": pa.array([["x"]] * 5),
    }
    order = pa.array([3, 0, 4, 2, 1])
    first = _of_one(features, columns)
    second = _of_one(features, {name: column.take(order) for name, column in columns.items()})
    for name in set(COMPARING) - {"place"}:
        assert _bytes(first[name].take(order)) == _bytes(second[name]), name
    alone = {name: column[:1] if name in ("last", "authors") else column for name, column in columns.items()}
    assert _of_one(features, alone) == first  # one list stands for all
    assert first["item_seen"].to_pylist() == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert first["author_seen"].to_pylist() == [1.0, 0.0, 1.0, 0.0, None]
    assert first["rate_rank"].to_pylist() == [2.0, 2.0, 4.0, None, 1.0]


def test_rows_of_a_request_see_nothing_after_its_first_row(tmp_path: Path) -> None:
    """Users 1 and 2 are shown item 1. Between the two rows of user 1's request, user 2 rates the item: the later row
    does not see it, and no share of the request changes with an outcome of its rows."""
    scenario = scenario_in(tmp_path, CHANGES)
    row = {"user": 1, "shown": "a", "item": 1, "price": 1.0, "author": "x", "rating": 5.0}
    rows = [
        {**row, "t": 10},
        {**row, "t": 20, "user": 2, "shown": "b"},
        {**row, "t": 30, "item": 1},
        {**row, "t": 40, "shown": "c"},
    ]
    found = _samples(scenario, tmp_path, rows, []).to_pylist()
    assert [r["item_events"] for r in found] == [0, 1, 0, 3]
    assert [r["last"] for r in found] == [[], [], [], [1, 1]]
    assert [r["recency"] for r in found] == [None, None, None, 10]
    assert [r["popularity"] for r in found] == [0.5, 1.0, 0.5, 1.0]
    changed = [{**one, "rating": 1.0} if one["shown"] == "a" else one for one in rows]
    other = _samples(scenario, tmp_path / "other", changed, []).to_pylist()
    first, later = [[[rows[i][name] for name in scenario.features] for i in (0, 2)] for rows in (found, other)]
    assert first == later


def test_a_request_over_two_days_is_one_on_each(tmp_path: Path) -> None:
    scenario = scenario_in(tmp_path, CHANGES)
    row = {"user": 1, "shown": "a", "item": 1, "price": 1.0, "author": "x", "rating": 5.0}
    found = _samples(scenario, tmp_path, [{**row, "t": 0}, {**row, "t": 1}], [{**row, "t": DAY_S - 1}]).to_pylist()
    assert [(r["size"], r["item_events"]) for r in found] == [(2, 1), (2, 1)]


@pytest.mark.parametrize(
    "leak",
    [
        {"kind": "request", "operation": "share", "of": "rating"},
        {"kind": "request", "operation": "rank", "of": "item_rate * rating"},
        {"kind": "match", "of": "bucket(rating, 1)", "sequence": "last"},
    ],
)
def test_outcomes_of_the_requests_rows_are_refused(tmp_path: Path, leak: dict[str, Any]) -> None:
    scenario = scenario_in(tmp_path, {**CHANGES, "features.leak": leak})
    assert any("rating is an outcome" in line for line in check_scenario(scenario))
    row = {"t": 1, "user": 1, "shown": "a", "item": 1, "price": 1.0, "author": "x", "rating": 5.0}
    with pytest.raises(BadInputError, match=r"features\.leak\.of: rating is an outcome"):
        _samples(scenario, tmp_path, [row], [])
    assert not (tmp_path / "out/samples.parquet").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (WITHOUT, "features.size: 'size': needs data.request; name the column"),
        ({"data.request": "price"}, "data.request: 'price': is of type float, not an id"),
        ({"data.request": "rating"}, "data.user, data.item or data.request is an outcome"),
        (
            {"features.item_seen.sequence": "lst"},
            "features.item_seen.sequence: 'lst': is not a sequence feature; did you mean last?",
        ),
        ({"features.item_seen.of": "author"}, "'author': is of type string, but last is list[int]"),
        ({"features.dearest.of": "author"}, "is of type string, not a number"),
        ({"features.dearest.of": "price_share"}, "no column price_share"),
    ],
)
def test_check_names_what_does_not_fit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    problems = check_scenario(scenario_in(tmp_path, changes if changes is WITHOUT else {**CHANGES, **changes}))
    assert any(message in line for line in problems), problems


def test_without_data_request_matches_still_work(tmp_path: Path) -> None:
    features = {n: f for n, f in CHANGES["features"].items() if f["kind"] != "request"}
    scenario = scenario_in(tmp_path, {**WITHOUT, "features": features})
    row = {"user": 1, "shown": "a", "item": 1, "price": 1.0, "author": "x", "rating": 5.0}
    samples = _samples(scenario, tmp_path, [{**row, "t": t} for t in (0, 1, 2)], [])
    assert samples["item_seen"].to_pylist() == [0, 1, 2]
    assert "key.request" not in samples.column_names


def test_entities_and_the_time_of_an_event_are_those_of_its_request(tmp_path: Path) -> None:
    """User 1's state changes at one o'clock, between the two rows of a request. The summaries know the second row by
    the earlier state, too."""
    features = {
        "level": {"kind": "number", "of": "state.level", "scale": "none"},
        "hour": {"kind": "number", "of": "hour(event_time)", "scale": "none"},
        "level_events": {"kind": "count", "by": ["state.level"]},
    }
    scenario = scenario_in(tmp_path, {**small_log.CHANGES, "data.request": "tag", "features": features, "evaluate": {}})
    events = [
        small_log.Event(MIDNIGHT + t, 1, 1, 4.0, tag)
        for t, tag in ((3590, "a"), (3610, "a"), (3620, None), (3650, "b"))
    ]
    entities = small_log.entities_of(rows=[(1, MIDNIGHT - 5, 1), (1, MIDNIGHT + 3600, 2)])
    folder = small_log.folder_of(tmp_path, DS, events, entities)
    join_from_events(scenario, DS, folder, {}, tmp_path / "out")
    found = pq.read_table(tmp_path / "out/samples.parquet")
    assert found["level"].to_pylist() == [1, 1, 2, 2]
    assert found["hour"].to_pylist() == [0, 0, 1, 1]
    assert found["level_events"].to_pylist() == [0, 0, 0, 1]
