"""Columns that a source has since today, of each kind of file and of a table."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from feature_jobs.errors import CorruptError
from feature_jobs.sources import copies as module
from feature_jobs.sources.copies import Copies
from feature_jobs.sources.ingest import ingest_day
from tests.unit.feature_jobs.small_source import DAY_S, scenario_in

DAYS = [f"1970-01-0{day}" for day in (2, 3, 4, 5)]
Write = Callable[[pa.Table, Path], None]


def _json_lines(table: pa.Table, file: Path) -> None:
    file.write_text("".join(f"{json.dumps(row)}\n" for row in table.to_pylist()))


def _delta(table: pa.Table, folder: Path) -> None:
    deltalake = pytest.importorskip("deltalake")
    deltalake.write_deltalake(folder, table, mode="append", schema_mode="merge")


WRITERS: dict[str, Write] = {
    "csv": pyarrow.csv.write_csv,
    "jsonl": _json_lines,
    "parquet": pq.write_table,
    "delta": _delta,
}


def _rows(day: int, more: Sequence[str]) -> pa.Table:
    columns = {"user": [1, 2], "item": [3, 4], "rating": [4.5, 2.0], "t": [day * DAY_S + 1, day * DAY_S + 2]}
    return pa.table({**columns, **{name: ["a", "b"] for name in more}})


@pytest.mark.parametrize("kind", WRITERS)
def test_a_column_is_new_on_the_first_day_that_has_it(kind: str, tmp_path: Path) -> None:
    """It stays known where a later day lacks it."""
    is_table = kind == "delta"
    path = "events" if is_table else f"events-{{ds}}.{kind}"
    scenario = scenario_in(tmp_path, {"data.events.path": path, "data.events.format": kind})
    before, found = None, []
    for day, more in enumerate(([], ["coupon", "Page"], [], ["coupon", "shop"]), start=1):
        ds = DAYS[day - 1]
        WRITERS[kind](_rows(day, more), Path(scenario.data.path) / path.format(ds=ds))
        counts = ingest_day(scenario, ds, tmp_path / ds, yesterday=before)
        found.append(counts.get("new_columns", {}).get("data.events"))
        assert "new_columns" not in json.loads((tmp_path / ds / "counts.json").read_text())
        before = tmp_path / ds
    assert found == [None, ["Page", "coupon"], None, ["shop"]]


def test_a_copy_of_a_file_knows_its_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LEAST_BYTES", 0)
    monkeypatch.setattr(module, "SETTLED_S", -1)
    scenario = scenario_in(tmp_path)
    rows = pa.concat_tables([_rows(day, ["coupon"]) for day in (1, 2, 3, 4)])
    WRITERS["csv"](rows, Path(scenario.data.path) / "events.csv")
    (tmp_path / "copies").mkdir()
    copies, before = Copies(lambda: tmp_path / "copies"), None
    for ds in DAYS:
        counts = ingest_day(scenario, ds, tmp_path / ds, copies, yesterday=before)
        assert "new_columns" not in counts
        before = tmp_path / ds
    assert list((tmp_path / "copies").iterdir())
    known = {"columns": {"data.events": ["coupon", "item", "rating", "t", "user"]}, "new": {}}
    assert all(json.loads((tmp_path / ds / "columns.json").read_text()) == known for ds in DAYS)


def test_a_day_of_an_older_release_knows_no_columns_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    scenario = scenario_in(tmp_path, {"data.events.path": "events-{ds}.csv"})
    for day in (1, 2):
        WRITERS["csv"](_rows(day, ["coupon"] * (day - 1)), Path(scenario.data.path) / f"events-{DAYS[day - 1]}.csv")
    ingest_day(scenario, DAYS[0], tmp_path / "first")
    file = tmp_path / "first" / "columns.json"
    file.write_text('{"columns": {"data.events": [7]}, "new": {}}')
    with pytest.raises(CorruptError, match=r"columns\.json: .*run ingest again for this day"):
        ingest_day(scenario, DAYS[1], tmp_path / "damaged", yesterday=tmp_path / "first")
    file.unlink()
    assert "new_columns" not in ingest_day(scenario, DAYS[1], tmp_path / "second", yesterday=tmp_path / "first")
