"""Inputs of a day after its scenario was changed: the summaries of earlier days were written for another one."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from feature_jobs.errors import BadInputError
from feature_jobs.schema import Scenario, load_scenario
from feature_jobs.sources.user_ids import users_of
from tasks.run.collect import collect, garbage, leftovers
from tasks.run.forget import cost_of
from tasks.run.replay import begin_replay
from tasks.run.runner import run_step
from tasks.store.scenario_store import ScenarioStore, open_store
from tests.small import days, write_small
from tests.unit.tasks.little import commit

DAYS = days(5)
NEW_FEATURE = ("  seen:", "  both: {kind: count, by: [shopper, product]}\n  seen:")
LATER = ("first: 2024-03-01", "first: 2024-03-04")


@dataclass
class Shop:
    """A store with four days, and the scenario that the next ones have."""

    file: Path
    store: ScenarioStore

    def changed(self, *pairs: tuple[str, str]) -> Scenario:
        text = self.file.read_text()
        for old, new in pairs:
            assert old in text
            text = text.replace(old, new, 1)
        file = self.file.with_name("changed.yaml")
        file.write_text(text)
        return load_scenario(file)

    def day(self, scenario: Scenario, ds: str, *steps: str) -> list[str]:
        """Runs steps of a day; returns the digests of their outputs."""
        return [str(run_step(step, scenario, ds, self.store, track=False).digest) for step in steps]


@pytest.fixture(scope="module")
def four_days(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    shop = Shop(write_small(folder, num_days=len(DAYS), rows=100), open_store(folder / "store", "shop"))
    for ds in DAYS[:4]:
        shop.day(shop.changed(), ds, "ingest", "summarize", *(["join"] if ds < DAYS[3] else []))
        (folder / "link").mkdir(exist_ok=True)
        (folder / "link" / "weights").write_text(ds)
        commit(shop.store, "train", ds, folder / "link")
    return folder


@pytest.fixture
def shop(four_days: Path, tmp_path: Path) -> Shop:
    shutil.copytree(four_days, tmp_path / "shop")
    return Shop(tmp_path / "shop" / "shop.yaml", open_store(tmp_path / "shop" / "store", "shop"))


def test_days_before_a_later_first_day_are_read_and_kept_as_long_as_windows_reach_them(shop: Shop) -> None:
    """Of days whose source is gone. The samples are as if nothing had been changed."""
    expected = shop.day(shop.changed(), DAYS[4], "ingest", "summarize", "join")
    shutil.rmtree(shop.file.parent / "store" / "shop" / "g0000" / DAYS[4])
    later = shop.changed(LATER)
    collect(shop.store, garbage(later, shop.store, 1), leftovers(shop.store), "test")
    assert any(shop.store.is_collected(found) for found in shop.store.commits())
    assert shop.day(later, DAYS[3], "join")
    assert shop.day(later, DAYS[4], "ingest", "summarize", "join") == expected


@pytest.mark.parametrize("change", [NEW_FEATURE, ("lookback_days: 7", "lookback_days: 9")])
def test_a_day_that_was_summarized_for_other_features_is_computed_again(shop: Shop, change: tuple[str, str]) -> None:
    scenario = shop.changed(change)
    with pytest.raises(BadInputError, match=rf"changed after {DAYS[3]} was summarized; .*chain replay .*{DAYS[3]}"):
        shop.day(scenario, DAYS[3], "join")
    assert garbage(scenario, shop.store, 1).commits
    for link in (shop.file.parent / "store" / "shop" / "g0000").glob("*/train"):
        shutil.rmtree(link)
    assert cost_of(scenario, shop.store, users_of(scenario, ["s7"])).days == DAYS[:4]
    begin_replay(scenario, shop.store, DAYS[3], None, "other features")
    assert len(set(shop.day(scenario, DAYS[3], "ingest", "summarize", "join"))) == 3
