"""A shop with two versions, in a store: what a server needs of two days, made by the steps themselves."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from filelock import FileLock

from feature_jobs.schema import Scenario, load_scenario
from tasks.run.releases import Releases
from tasks.run.runner import run_step
from tasks.store.champion_log import ChampionLog, Entry
from tasks.store.scenario_store import ScenarioStore, open_store
from tests.small import days, write_csv, write_small

STEPS = ("ingest", "summarize", "join", "validate", "train", "quantize", "materialize")
DAYS = days(2)
BIG = 2**53 + 1
"""An id that a float does not hold."""


@dataclass(frozen=True)
class Shop:
    """A scenario with its store. Version N is the one of day N, from 1 on."""

    file: Path

    @property
    def scenario(self) -> Scenario:
        return load_scenario(self.file)

    @property
    def store(self) -> ScenarioStore:
        return open_store(self.file.parent / "store", "shop")

    @property
    def log(self) -> ChampionLog:
        return ChampionLog(self.store)

    @property
    def releases(self) -> Releases:
        return Releases(self.scenario, self.store)

    def promote(self, version: int, *, kind: Literal["promotion", "rollback"] = "promotion") -> None:
        """Lets a version be the champion, as deploy and rollback do."""
        commit = self.store.find("train", DAYS[version - 1])
        assert commit is not None
        current = self.log.current()
        entry = Entry(kind, "shop", str(version), DAYS[version - 1], 0, commit.digest)
        self.log.promote(current.sequence if current else 0, entry)

    def copy(self, folder: Path) -> Shop:
        """One that a test may change."""
        shutil.copytree(self.file.parent, folder, symlinks=True)
        return Shop(folder / self.file.name)


def shared_shop(factory: pytest.TempPathFactory) -> Shop:
    """One for all workers of a test session, which read it alone."""
    top = factory.getbasetemp()
    folder = (top.parent if "PYTEST_XDIST_WORKER" in os.environ else top) / "served-shop"
    with FileLock(f"{folder}.lock"):
        if not (folder / "made").exists():
            make_shop(folder)
            (folder / "made").touch()
    return Shop(folder / "shop.yaml")


def make_shop(folder: Path) -> Shop:
    """Two days from their events to an export, and the first one promoted."""
    file = write_small(folder, len(DAYS))
    shoppers = "shopper: {path: shoppers.csv, format: csv, key: shopper, columns: {shopper: %s, age: {type: int}}}"
    shoppers %= "{type: string, required: true}"
    text = file.read_text().replace("  entities:\n", f"  entities:\n    {shoppers}\n")
    text = text.replace("features:\n", "features:\n  age: {kind: number, of: shopper.age}\n")
    file.write_text(f"{text}online: {{}}\n")
    write_csv(folder / "data" / "shoppers.csv", ["shopper", "age"], [[f"s{n}", 20 + n] for n in range(40)])
    products = folder / "data" / "products.csv"
    products.write_text(products.read_text() + f"{BIG},7.5,red\n")
    shop = Shop(file)
    for ds in DAYS:
        for step in STEPS:
            outcome = run_step(step, shop.scenario, ds, shop.store, track=False)
            assert outcome.outcome == "done", outcome
    shop.promote(1)
    return shop
