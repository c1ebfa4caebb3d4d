"""Digests of the small shop's first two days, run by one command: every other way to run them must reproduce these."""

from __future__ import annotations

import json
from pathlib import Path

from filelock import FileLock

from feature_jobs.schema import load_scenario
from tasks.store.scenario_store import open_store
from tasks.store.verify import require_sound
from tests import warm
from tests.environment import inherited
from tests.small import write_small

Digests = dict[tuple[str, str], str]
"""Of a day's steps, by day and step."""


def plain_digests(folder: Path) -> Digests:
    """Runs the days below `folder`, or reads what another worker of this test session has found there."""
    file = folder / "digests.json"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):
        if not file.exists():
            file.write_text(json.dumps([[*place, digest] for place, digest in _run(folder).items()]))
    return {(ds, step): digest for ds, step, digest in json.loads(file.read_text())}


def _run(folder: Path) -> Digests:
    shop = write_small(folder, num_days=2)
    environment = {**inherited(), "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "OMP_NUM_THREADS": "1"}
    done = warm.start(("run", "-s", str(shop), "--store", str(folder / "store")), folder, environment).ended()
    assert done.returncode == 0, done.stderr
    return digests_of(str(folder / "store"), shop)


def digests_of(store: str, scenario: Path) -> Digests:
    """Of all that is committed, after a proof of the whole store."""
    found = open_store(store, "shop")
    require_sound(load_scenario(scenario), found)
    return {(commit.ds, commit.step): commit.digest for commit in found.commits()}
