"""Step `ingest` inside a store: its refusals before it reads, and its report."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from feature_jobs.errors import BadInputError
from feature_jobs.schema import load_scenario
from tasks.run.runner import run_step
from tasks.store.scenario_store import open_store
from tests.small import days, write_small

FIRST, SECOND = days(2)


def test_fault_4_a_retyped_column_is_refused_before_ingest(tmp_path: Path) -> None:
    file = write_small(tmp_path, 2, rows=50)
    store = open_store(tmp_path / "store", "shop")
    run_step("ingest", load_scenario(file), FIRST, store, track=False)
    retyped = load_scenario(file, overrides={"data.events.columns.rated": {"type": "string"}})
    with pytest.raises(BadInputError) as caught:
        run_step("ingest", retyped, SECOND, store, track=False)
    message = str(caught.value)
    assert caught.value.exit_code == 4 and store.find("ingest", SECOND) is None
    assert f"column 'rated' was double on {FIRST} and is string on {SECOND}" in message
    assert (
        "data.events.columns.rated.type" in message and f"--from {FIRST}" in message and "chain replay -s " in message
    )
    added = load_scenario(file, overrides={"data.events.columns.more": {"type": "int", "optional": True}})
    assert run_step("ingest", added, SECOND, store, track=False).outcome == "done"


def test_a_new_column_of_the_source_is_reported_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, store = write_small(tmp_path, 3, rows=50), open_store(tmp_path / "store", "shop")
    first, second, third = days(3)
    for ds in (second, third):
        log = tmp_path / "data" / "events" / f"{ds}.csv"
        lines = log.read_text().splitlines()
        log.write_text("\n".join([f"{lines[0]},coupon", *(f"{line},7" for line in lines[1:])]) + "\n")
    by_day = {"data.events.path": "events/{ds}.csv"}
    scenario = load_scenario(file, overrides=by_day)
    outcomes = [run_step("ingest", scenario, ds, store, track=False).metrics for ds in (first, second, third)]
    assert [found.get("new_columns") for found in outcomes] == [None, {"data.events": ["coupon"]}, None]
    warning = f"warning: {second}: data.events: new column 'coupon', which no earlier day has; to read it, declare it"
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")] == [
        f"{warning} (optional: true) in {file}"
    ]
    with_more = tmp_path / "data" / "events" / f"{first}.csv"
    lines = with_more.read_text().splitlines()
    with_more.write_text("\n".join([f"{lines[0]},coupon", *(f"{line},7" for line in lines[1:])]) + "\n")
    again = run_step("ingest", scenario, first, store, track=False)  # no row is another one
    assert again.outcome == "already_done"


def test_ingest_reports_what_it_quarantined_and_dropped(tmp_path: Path) -> None:
    file = write_small(tmp_path, 1, rows=200)
    log = tmp_path / "data" / "events" / f"{FIRST}.csv"
    lines = log.read_text().splitlines()
    log.write_text("\n".join([*lines, lines[-1], lines[-1].replace(",0,", ",7,", 1).replace(",1,", ",7,", 1)]) + "\n")
    outcome = run_step("ingest", load_scenario(file), FIRST, open_store(tmp_path / "store", "shop"), track=False)
    metrics = outcome.metrics
    assert (metrics["duplicates"], metrics["quarantined"]) == (1, 1) and len(metrics["reasons"]) == 1
    assert json.loads((Path(str(outcome.uri)) / "counts.json").read_text()) == metrics


_RUN = """
import sys
from pathlib import Path
from feature_jobs.schema import load_scenario
from feature_jobs.sources import copies
from tasks.run.runner import run_step
from tasks.store.scenario_store import open_store

copies._LEAST_BYTES, copies.SETTLED_S = 0, -1
file, place, *days = sys.argv[1:]
scenario = load_scenario(Path(file), overrides={"data.events.path": "events/*.csv"})
for ds in days:
    run_step("ingest", scenario, ds, open_store(place, "shop"), track=False)
print(len(list(Path(place).glob("**/.scratch/*/*-rows.parquet"))))
"""


def test_copies_of_source_files_end_with_their_process(tmp_path: Path) -> None:
    file, place = write_small(tmp_path, 3, rows=50), tmp_path / "store"
    done = subprocess.run(
        [sys.executable, "-c", _RUN, str(file), str(place), *days(3)], check=True, capture_output=True, text=True
    )
    assert int(done.stdout) >= 3
    assert not [path for scratch in place.rglob(".scratch") for path in scratch.iterdir()]
