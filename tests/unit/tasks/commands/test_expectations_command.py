"""recloop expectations: a diff from committed days, written when asked."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from feature_jobs.schema import load_scenario
from tasks.commands.cli import main
from tasks.run.runner import run_step
from tasks.store.scenario_store import open_store
from tests.small import days, write_small


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two joined days, of which one has passed."""
    folder = tmp_path_factory.mktemp("shop")
    scenario = load_scenario(write_small(folder, num_days=2))
    store = open_store(folder / "store", "shop")
    for ds in days(2):
        for name in ("ingest", "summarize", "join", *(["validate"] if ds == days(1)[0] else [])):
            run_step(name, scenario, ds, store, track=False)
    return folder


def _ask(shop: Path, *words: str) -> Result:
    options = ["-s", str(shop / "shop.yaml"), "--store", str(shop / "store"), "--no-track"]
    return CliRunner().invoke(main, ["expectations", *options, *words])


def test_it_shows_a_diff_writes_it_when_asked_and_then_has_nothing_to_say(shop: Path) -> None:
    file = shop / "shop.expectations.json"
    shown = _ask(shop, "--from", days(2)[0])
    assert shown.exit_code == 0, shown.output
    assert '+  {"type": "expect_column_values_to_be_between"' in shown.output and not file.exists()
    assert "proposed from 2 days (2024-03-01 to 2024-03-02), 0 of your own kept" in shown.output
    assert f"nothing is written; to write {file}, add --write" in shown.output.replace("\n", "")
    written = _ask(shop, "--from", days(2)[0], "--write")
    assert written.exit_code == 0 and f"wrote {file}" in written.output
    suite = json.loads(file.read_text())
    columns = {one["kwargs"].get("column") for one in suite["expectations"]}
    assert {"price", "label.buy", "day.rows", "day.hit_share.product", "colours.length"} <= columns
    assert CliRunner().invoke(main, ["check", "-s", str(shop / "shop.yaml")]).exit_code == 0
    again = _ask(shop, "--from", days(2)[0])
    assert "nothing has changed" in again.output and "@@" not in again.output
    # By default only of days that passed, and as a document for programs.
    facts = json.loads(_ask(shop, "--json").output)
    assert facts["days"] == days(1) and facts["own"] == 0 and facts["written"] is False


def test_without_a_joined_day_it_says_what_to_run(tmp_path: Path) -> None:
    write_small(tmp_path, num_days=1)
    shown = _ask(tmp_path)
    assert shown.exit_code == 4
    assert "no such day is joined yet" in shown.output and "--until join" in shown.output
