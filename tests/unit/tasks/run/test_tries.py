"""Tries on a small shop: real training in real processes, compared with a committed chain that stays as it is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner, Result

from feature_jobs.errors import BadInputError
from feature_jobs.schema import load_scenario
from tasks.commands.cli import main
from tasks.commands.tries import parse_variant
from tasks.run.runner import run_step
from tasks.run.tries_workers import Chain, Job, run_chains
from tasks.store.objects import files_of
from tasks.store.scenario_store import ScenarioStore, open_store
from tests.small import days, write_small
from tests.unit.tasks.little import commit, write_validation
from tests.waiting import awaited, runs

DAYS = days(3)


class Shop(NamedTuple):
    scenario: Path
    store: ScenarioStore

    def call(self, command: str, *arguments: str, track: bool = False) -> Result:
        place = ["-s", str(self.scenario), "--store", str(self.store.work.parent)]
        quiet = [] if track else ["--no-track"]
        return CliRunner().invoke(main, [command, *place, *quiet, *arguments], catch_exceptions=False)

    def json(self, command: str, *arguments: str, track: bool = False) -> dict[str, Any]:
        done = self.call(command, *arguments, "--json", track=track)
        assert done.exit_code == 0, done.output
        found: dict[str, Any] = json.loads(done.stdout)
        return found


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """Three days, trained."""
    folder = tmp_path_factory.mktemp("shop")
    scenario = write_small(folder, num_days=len(DAYS))
    found = Shop(scenario, open_store(folder / "store", "shop"))
    write_validation(folder / "verdict")
    for ds in DAYS:
        commit(found.store, "validate", ds, folder / "verdict")
        for name in ("ingest", "summarize", "join", "train"):
            run_step(name, load_scenario(scenario), ds, found.store, track=False)
    return found


@pytest.fixture(autouse=True)
def _tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command sets this variable where it is not set; no other test must see it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////nowhere/mlflow.db")


def committed(store: ScenarioStore) -> dict[str, str]:
    """Digests of the files of all commits."""
    return {str(one.folder): json.dumps(files_of(one.folder)) for one in store.commits()}


@pytest.mark.slow
def test_variants_share_a_call_and_the_chain_stays_as_it_is(shop: Shop) -> None:
    before = committed(shop.store)
    variants = [
        "--variant",
        "same: train.threads=2",
        "--variant",
        "wide: model.bottom=[32, 8],train.learning_rate=0.01",
    ]
    found = shop.json("try", *variants)
    assert committed(shop.store) == before
    assert list((shop.store.work / ".scratch").iterdir()) == []
    same, wide = found["tries"]
    assert same["days"] == DAYS
    # The number of threads changes no bit: such a try repeats the chain, so that its baseline is the right one.
    for facts in same["comparison"]["tasks"].values():
        assert facts["first"] == facts["second"]
        assert facts["difference"] == {"auc": 0.0, "low": 0.0, "high": 0.0, "verdict": "equal"}
    for ds in DAYS:
        predictions = shop.store.work / "tries" / "same" / ds / "predictions.parquet"
        trained = shop.store.find("train", ds)
        assert trained is not None
        assert predictions.read_bytes() == (trained.folder / "predictions.parquet").read_bytes()
    buy = wide["comparison"]["tasks"]["buy"]
    assert buy["first"] == same["comparison"]["tasks"]["buy"]["first"]
    assert buy["difference"]["low"] < buy["difference"]["auc"] < buy["difference"]["high"]
    assert buy["first"]["rows"] == 80 + 400 + 400  # of the first day the holdout
    assert not wide["joined_again"]


@pytest.mark.slow
def test_an_equal_try_is_found_and_one_of_other_settings_keeps_its_name(shop: Shop) -> None:
    setting = ("--set", "train.learning_rate=0.02", "--ds", DAYS[2])
    first, second = (shop.json("try", *setting)["tries"][0] for _ in range(2))
    assert first["name"].startswith("try-")
    assert (first["outcome"], second["outcome"]) == ("done", "already_done")
    assert {**second, "outcome": "done"} == first
    shop.json("try", "--variant", "again: train.learning_rate=0.02", "--ds", DAYS[2])
    before = (shop.store.work / "tries" / "again" / "try.json").read_bytes()
    refused = shop.call("try", "--variant", "again: train.learning_rate=0.03", "--ds", DAYS[2])
    assert refused.exit_code == 4
    assert "an earlier try of this name has other settings, train.learning_rate=0.02; choose" in refused.output
    assert (shop.store.work / "tries" / "again" / "try.json").read_bytes() == before
    other = shop.json("try", "--variant", "again: train.learning_rate=0.02", "--ds", DAYS[1])["tries"][0]
    assert "rows where" in other["comparison"]["tasks"]["buy"]["difference"]["verdict"]  # 80 decide nothing
    assert other["notes"] == ["replaces an older try of this name and these settings"]


@pytest.mark.slow
def test_a_changed_feature_joins_its_days_again_in_scratch(shop: Shop) -> None:
    before = committed(shop.store)
    new = "features.tint={kind: ids, of: product.colours},features.seen.enabled=false"
    found = shop.json("try", "--variant", f"tint: {new}", "--from", DAYS[1])["tries"][0]
    assert found["joined_again"]
    assert found["comparison"]["not_paired"] is None
    assert found["parent"] == getattr(shop.store.find("train", DAYS[0]), "digest", None)
    assert committed(shop.store) == before


@pytest.mark.parametrize(
    ("arguments", "exit_code", "said"),
    [
        (["--set", "labels.buy=bought == 0"], 4, "can't change this"),
        (["--set", "train.holdout_share=0.5"], 4, "must be the same as the committed"),
        (["--set", "deploy.max_auc_drop=0.5"], 4, "change something in model, train, features"),
        (["--set", "model.architecture=nothing"], 4, "recloop: --set model.architecture=nothing: model.architecture: "),
        (["--variant", "x: model.architecture=nothing"], 4, "recloop: variant x: model.architecture=nothing: model."),
        (["--variant", "x: train.threads=1,join.lookback_days=-2"], 4, "recloop: variant x: join.lookback_days=-2: "),
        (["--variant", "g1: train.seed=3"], 4, "'g1': not a name for a try"),
        (["--variant", "a: train.seed=3", "--variant", "a: train.seed=4"], 4, "given twice"),
        (["--variant", "train.seed=3"], 4, "write it as 'NAME: "),
        ([], 4, "nothing differs from the committed chain"),
    ],
)
def test_what_cannot_be_tried_is_refused_before_anything_runs(
    shop: Shop, arguments: list[str], exit_code: int, said: str
) -> None:
    done = shop.call("try", *arguments)
    assert done.exit_code == exit_code, done.output
    assert said in done.stderr


def test_a_day_that_is_not_trained_is_named_with_the_command_that_trains_it(shop: Shop, tmp_path: Path) -> None:
    empty = Shop(shop.scenario, open_store(tmp_path / "my store", "shop"))
    done = empty.call("try", "--set", "train.seed=3", "--ds", DAYS[0])
    assert done.exit_code == 5
    command = f"recloop run -s {shop.scenario} --store '{tmp_path / 'my store'}' --to {DAYS[0]}"
    assert command in done.stderr
    assert "no day is trained yet" in empty.call("try", "--set", "train.seed=3").stderr


def fail(words: str) -> None:
    """A job that meets bad input."""
    raise BadInputError(words)


def die() -> None:
    """A job that the system ends, as where memory is short."""
    print("last words", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_chain_that_fails_leaves_the_others_alone(tmp_path: Path) -> None:
    good, late = Job("good", time.sleep, (0.01,)), Job("late", time.sleep, (0,))
    chains = [
        Chain("a", [Job("bad", fail, ("too bad",)), late], tmp_path / "a.log"),
        Chain("b", [Job("dead", die, ()), late], tmp_path / "b.log"),
        Chain("c", [good, late], tmp_path / "c.log"),
    ]
    seen: list[tuple[int, str]] = []
    ends = run_chains(chains, 2, [], lambda number, job: seen.append((number, job.label)))
    assert seen == [(2, "good"), (2, "late")]
    assert [(end.error, end.exit_code) for end in ends[::2]] == [("too bad", 4), (None, 0)]
    assert ends[1].exit_code == 128 + signal.SIGKILL
    assert "signal 9 ended its process" in str(ends[1].error)
    assert "last words" in str(ends[1].error)


def test_compare_pairs_what_has_the_same_rows_and_says_where_not(shop: Shop) -> None:
    shop.json("try", "--variant", "slow: train.learning_rate=0.0001", "--from", DAYS[1])
    paired = shop.json("compare", "committed", "slow")
    assert (paired["days"], paired["holdout_days"], paired["not_paired"]) == (DAYS[1:], [DAYS[1]], None)
    assert paired["tasks"]["buy"]["difference"]["low"] is not None
    same = shop.json("compare", "g0", "committed")
    assert same["tasks"]["buy"]["difference"]["verdict"] == "equal"
    assert same["tasks"]["buy"]["first"]["rows"] == 800  # no parent scored the first day
    two_days = shop.json("compare", DAYS[1], DAYS[2])
    assert "no day in common" in two_days["not_paired"]
    assert two_days["tasks"]["buy"]["difference"]["low"] is None
    first_day = shop.call("compare", DAYS[0], DAYS[2])
    assert first_day.exit_code == 0
    assert first_day.output.startswith(f"nothing to compare: {DAYS[0]} scored no row before it was learned")
    unknown = shop.call("compare", "slo", "committed")
    assert unknown.exit_code == 4
    assert "did you mean slow?" in unknown.stderr


def test_a_try_is_a_run_in_mlflow_once(shop: Shop, mlflow_uri: str) -> None:
    from tasks.tracking.connection import client

    for _ in range(2):
        shop.json("try", "--variant", "seen: train.seed=11", "--ds", DAYS[2], track=True)
    experiment = client().get_experiment_by_name("shop")
    (run,) = client().search_runs([experiment.experiment_id])
    assert run.info.run_name == "try seen"
    assert run.info.status == "FINISHED"
    assert run.data.params["train.seed"] == "11"
    assert 0 < run.data.metrics["auc/buy"] < 1
    assert run.data.metrics["auc_difference_low/buy"] <= run.data.metrics["auc_difference/buy"]


@pytest.mark.slow
def test_killed_it_leaves_no_process_and_no_try(shop: Shop) -> None:
    place = ["-s", str(shop.scenario), "--store", str(shop.store.work.parent), "--no-track"]
    slow = [f"s{n}: train.seed={n},model.bottom=[2048, 2048]" for n in range(2)]
    command = [sys.executable, "-m", "tasks", "try", *place, *(part for text in slow for part in ("--variant", text))]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    scratch, deadline = shop.store.work / ".scratch", time.monotonic() + 120
    while not list(scratch.glob("*/tries/*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    while _group_lives(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with shop.store.scratch() as mine:
        assert list(scratch.glob("*/")) == [mine]  # the next one removes the leftovers
    assert not (shop.store.work / "tries" / "s0").exists()


LONG = """
import os, sys, time
from pathlib import Path
from tasks.run.tries_workers import Chain, Job, run_chains


def begin(place):
    place.with_suffix(".new").write_text(str(os.getpid()))
    place.with_suffix(".new").rename(place)


def chain(folder, name):
    return Chain(name, [Job("begun", begin, (folder / name,)), Job("long", time.sleep, (3600,))], folder / "log" / name)


if __name__ == "__main__":
    run_chains([chain(Path(sys.argv[1]), name) for name in ("c0", "c1")], 2, [], lambda number, job: None)
"""


def test_a_caller_that_is_killed_during_a_long_job_leaves_no_worker(tmp_path: Path) -> None:
    script = tmp_path / "long.py"
    script.write_text(LONG)
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path)])
    places = [tmp_path / "c0", tmp_path / "c1"]
    awaited(lambda: all(place.exists() for place in places), within_s=120)
    workers = [int(place.read_text()) for place in places]
    try:
        process.kill()
        process.wait()
        awaited(lambda: not any(map(runs, workers)), within_s=60)
    finally:
        for worker in filter(runs, workers):
            os.kill(worker, signal.SIGKILL)


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_values_of_a_variant_may_hold_commas_equals_signs_and_quotes() -> None:
    assert parse_variant("a: model.bottom=[64, 32], features.x={kind: rate, of: 'n == 1, or so'},train.seed=3") == (
        "a",
        {"model.bottom": [64, 32], "features.x": {"kind": "rate", "of": "n == 1, or so"}, "train.seed": 3},
    )
    with pytest.raises(BadInputError, match="not readable as YAML"):
        parse_variant("a: model.bottom=[64")
