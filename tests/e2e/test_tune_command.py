"""`recloop tune` on a small chain: trials that join again, a changed space on a finished day, an accepted proposal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from feature_jobs.schema import load_scenario
from tasks.commands.cli import main
from tasks.run.runner import run_step
from tasks.store.scenario_store import open_store
from tests.small import days, write_small

DAYS = days(3)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three days of a shop, trained; no search space yet."""
    folder = tmp_path_factory.mktemp("shop")
    scenario = load_scenario(write_small(folder, num_days=3))
    for ds in DAYS:
        for name in ("ingest", "summarize", "join", "validate", "train"):
            run_step(name, scenario, ds, open_store(folder / "store", "shop"), track=False)
    return folder


def recloop(shop: Path, *arguments: str) -> Result:
    common = ["-s", str(shop / "shop.yaml"), "--store", str(shop / "store"), "--no-track", "--ds", DAYS[2]]
    return CliRunner().invoke(main, [arguments[0], *common, *arguments[1:]], catch_exceptions=False)


def with_space(shop: Path, space: str) -> None:
    text = (shop / "shop.yaml").read_text()
    (shop / "shop.yaml").write_text(text[: text.index("  space:")] + f"  space:\n    {space}\n")


def test_windows_and_joins_are_searched_a_changed_space_is_searched_again_and_accept_warns(shop: Path) -> None:
    with_space(shop, "features.buy_rate.window_days: {choices: [1, 2]}")
    done = recloop(shop, "tune")
    assert done.exit_code == 0, done.output
    assert "each of 3 trials joins 2 days again" in done.stderr
    first = json.loads(done.stdout.splitlines()[-1])
    proposal = json.loads((Path(first["uri"]) / "proposal.json").read_text())
    tried = {json.dumps(t["params"]["features.buy_rate.window_days"]) for t in proposal["trials"]}
    values = {t["value"] for t in proposal["trials"] if t["value"]}
    assert "null" in tried and len(tried) > 1 and len(values) > 1  # another window gives other samples
    assert "no trial was better" in done.stderr or "to take it over:" in done.stderr
    assert "(serves)" in done.stderr

    again = recloop(shop, "tune")
    assert json.loads(again.stdout.splitlines()[-1])["outcome"] == "already_done"
    assert "(serves)" in again.stderr  # the table is shown again

    with_space(shop, "join.lookback_days: {low: 1, high: 7}")
    other = recloop(shop, "tune")
    second = json.loads(other.stdout.splitlines()[-1])
    assert second["outcome"] == "done" and second["uri"] != first["uri"]
    found = json.loads((Path(second["uri"]) / "proposal.json").read_text())
    assert set(found["best"]) == {"join.lookback_days"}

    accepted = recloop(shop, "accept")
    assert accepted.exit_code == 0, accepted.output
    assert ("warning: " in accepted.stderr) == (found["better"] and not found["certain"])
    changed = load_scenario(shop / "shop.yaml").join.lookback_days
    assert changed == found["best"]["join.lookback_days"] if found["better"] else changed == 7
