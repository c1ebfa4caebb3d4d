"""A little scenario and its empty store, in a folder."""

from pathlib import Path

import pytest

from feature_jobs.schema import Scenario
from tasks.store.scenario_store import ScenarioStore, open_store
from tests.unit.tasks.little import little_scenario


@pytest.fixture
def scenario(tmp_path: Path) -> Scenario:
    return little_scenario(tmp_path)


@pytest.fixture
def store(tmp_path: Path) -> ScenarioStore:
    return open_store(tmp_path / "store", "little")
