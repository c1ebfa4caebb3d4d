"""Spark gives the bytes of the engine of one machine, in threads of this one and in executors of their own."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.spark import LastDay
from feature_jobs.errors import BadInputError
from feature_jobs.schema import load_scenario
from feature_jobs.spark.windows import SparkWindows
from feature_jobs.spark_session import spark_session
from feature_jobs.windows.query import answers
from tasks.run.runner import run_step
from tasks.store.scenario_store import open_store
from tests.small import days, write_small
from tests.unit.feature_jobs.joins.small_log import CHANGES, DS, RATED, Carried, two_days
from tests.unit.feature_jobs.joins.test_summaries import days_of, month, write_days
from tests.unit.feature_jobs.small_source import scenario_in

LOCAL, CLUSTER = "local[2]", "local-cluster[2,1,1024]"
pytestmark = pytest.mark.slow
by_both = pytest.mark.parametrize("windows", [LOCAL, CLUSTER], indirect=True)
in_threads = pytest.mark.parametrize("windows", [LOCAL], indirect=True)
# Values of every kind, over whole days and over hours, with texts as keys and a history of the user's.
FEATURES = {
    "user_hours": {"kind": "count", "by": ["user"], "window_hours": 30},
    "group_rate": {"kind": "rate", "by": ["who.group", "item"], "of": RATED, "window_days": 4},
    "level_liked": {"kind": "recency", "by": ["state.level"], "where": RATED},
    "average": {"kind": "average", "of": "rating", "by": ["tag"]},
    "deviation": {"kind": "stddev", "of": "rating", "by": ["item"]},
    "least": {"kind": "min", "of": "rating", "by": ["item"]},
    "middle": {"kind": "percentile", "of": "rating", "by": ["item"], "percent": 50},
    "tags": {"kind": "unique_count", "of": "tag", "by": ["user"]},
    "newest": {"kind": "last", "of": "tag", "by": ["user"]},
    "usual": {"kind": "top_k", "of": "tag", "by": ["item"], "k": 2},
    "liked": {"kind": "sequence", "of": "item", "by": "user", "where": RATED, "length": 3, "history": "who.seen"},
}


@pytest.fixture(scope="module")
def windows(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkWindows]:
    """An open session. The second one has the first one's Java process, which is half of its start."""
    if shutil.which("java") is None:
        reason = "no Java; on Debian, as root: infra/engine.sh install"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    settings = {"spark.master": request.param, "spark.settings": {"spark.python.worker.reuse": "true"}}
    scenario = scenario_in(tmp_path_factory.mktemp("session"), settings)
    try:
        with spark_session(scenario) as session:
            yield SparkWindows(session, num_parts=3)
    finally:
        _remove_work()


def _remove_work() -> None:
    """Spark keeps the logs of a local cluster's executors beside its own files."""
    import pyspark

    shutil.rmtree(Path(pyspark.__file__).parent / "work", ignore_errors=True)


@pytest.fixture(scope="module")
def skewed(tmp_path_factory: pytest.TempPathFactory) -> LastDay:
    return LastDay(tmp_path_factory.mktemp("skewed"), 5000, share=0.3)


@by_both
def test_a_log_with_several_keys_of_which_one_has_30_percent_of_the_rows(
    windows: SparkWindows, skewed: LastDay
) -> None:
    here, there = skewed.measured(answers, rounds=0), skewed.measured(windows, rounds=0)
    assert here["samples"] == there["samples"]


@in_threads
def test_every_kind_of_feature_over_two_weeks(windows: SparkWindows, tmp_path: Path) -> None:
    scenario = month(tmp_path, features=FEATURES)
    folders, carried = write_days(scenario, tmp_path, days_of(scenario, 13), seed=4), Carried(tmp_path)
    for ds, events in folders.items():
        carried.add(scenario, ds, events)
    last = max(folders)
    here = carried.samples(scenario, last, folders[last]).read_bytes()
    assert carried.samples(scenario, last, folders[last], how=windows).read_bytes() == here


@in_threads
def test_a_chain_may_change_its_engine_from_day_to_day(windows: SparkWindows, tmp_path: Path) -> None:
    shop = write_small(tmp_path, num_days=3, rows=200)
    found = []
    for name, engines in {"one": ["duckdb"] * 3, "other": ["duckdb", "spark", "duckdb"]}.items():
        store = open_store(str(tmp_path / name), "shop")
        for ds, engine in zip(days(3), engines, strict=True):
            scenario = load_scenario(shop, overrides={"engine": engine, "spark.master": LOCAL})
            for step in ("ingest", "summarize", "join"):
                run_step(step, scenario, ds, store, track=False)
        found.append({(commit.ds, commit.step): commit.manifest for commit in store.commits()})
    assert len(found[0]) == 9
    # Not only the files: also the digests of settings and inputs.
    assert found[0] == found[1]


@in_threads
def test_data_that_the_kernel_refuses_is_refused_with_its_own_words(windows: SparkWindows, tmp_path: Path) -> None:
    # Within a day nothing is summarized before the join; 4 stars are then 4e9 units, too many for a square.
    features = {"spread": {"kind": "stddev", "of": "rating", "by": ["user"], "decimals": 9, "window_days": 1}}
    changes = {**CHANGES, "evaluate": {}, "features": features, "join": {"lookback_days": 1}}
    scenario, (today, past), carried = scenario_in(tmp_path, changes), two_days(tmp_path), Carried(tmp_path)
    for ds, events in {**past, DS: today}.items():
        carried.add(scenario, ds, events)
    with pytest.raises(BadInputError, match="units are too many for a square of 64 bits"):
        carried.samples(scenario, DS, today, how=windows)
