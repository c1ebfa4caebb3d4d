"""The chain on whole days: killed, doubled, out of order, corrected, damaged."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests import warm
from tests.environment import inherited
from tests.small import days, write_day, write_small

FAST = ("ingest", "summarize", "join", "train")

pytestmark = pytest.mark.slow


def recloop(*words: str, cwd: Path, check: int | None = 0) -> subprocess.CompletedProcess[str]:
    done = started(*words, cwd=cwd).ended()
    assert "Traceback" not in done.stderr, done.stderr
    if check is not None:
        assert done.returncode == check, f"{words}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def started(*words: str, cwd: Path) -> warm.Warm:
    return warm.start(words, cwd, {**inherited(), "RECLOOP_NO_TRACK": "1", "OMP_NUM_THREADS": "1"})


def step(name: str, scenario: Path, ds: str, store: Path, check: int | None = 0) -> dict:
    done = recloop(
        name, "-s", str(scenario), "--ds", ds, "--store", str(store), "--json", cwd=scenario.parent, check=check
    )
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"stderr": done.stderr}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("shop"), num_days=3)


@pytest.fixture(scope="module")
def through_train(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A store with two days trained, and their checkpoint digests."""
    store = tmp_path_factory.mktemp("store")
    digests = []
    for ds in days(2):
        for name in ("ingest", "summarize", "join", "validate", "train"):
            outcome = step(name, shop, ds, store)
        digests.append(outcome["digest"])
    return store, digests


def test_a_second_run_changes_nothing(shop: Path, through_train: tuple[Path, list[str]]) -> None:
    store, digests = through_train
    before = {p: p.stat().st_mtime_ns for p in store.rglob("g0000/**/*") if p.is_file()}
    for name in ("ingest", "summarize", "join", "validate", "train"):
        outcome = step(name, shop, days(2)[1], store)
        assert outcome["outcome"] == "already_done"
    assert outcome["digest"] == digests[1]
    assert {p: p.stat().st_mtime_ns for p in store.rglob("g0000/**/*") if p.is_file()} == before


def test_scratch_of_a_run_killed_right_after_its_commit_is_removed(
    shop: Path, through_train: tuple[Path, list[str]]
) -> None:
    store, _ = through_train
    left = store / "shop" / ".scratch" / f"{0:032x}"
    (left / "checkpoint").mkdir(parents=True)
    left.with_name(f"{left.name}.lock").touch()
    assert step("train", shop, days(2)[1], store)["outcome"] == "already_done"
    assert list(left.parent.iterdir()) == []


def test_day_without_its_parent_is_refused(shop: Path, tmp_path: Path) -> None:
    first, second = days(2)
    refused = step("ingest", shop, second, tmp_path, check=5)
    assert "needs the output of ingest of 2024-03-01, which is not committed" in refused["stderr"]
    for ds in (first, second):
        step("ingest", shop, ds, tmp_path)
    refused = step("train", shop, second, tmp_path, check=5)
    assert "needs the output of join of 2024-03-02, which is not committed" in refused["stderr"]
    refused = step("summarize", shop, second, tmp_path, check=5)
    assert "needs the output of summarize of 2024-03-01" in refused["stderr"]
    assert f"recloop run -s {shop} --store {tmp_path} --from 2024-03-01 --to 2024-03-02" in refused["stderr"]


def test_killed_at_random_moments_the_digest_is_the_same(
    shop: Path, through_train: tuple[Path, list[str]], tmp_path: Path
) -> None:
    import shutil

    store, digests = through_train
    copy = tmp_path / "store"
    shutil.copytree(store, copy)
    second = days(2)[1]
    words = ("train", "-s", str(shop), "--ds", second, "--store", str(copy), "--json")
    times_s = []
    for _ in range(3):  # the first may compile kernels
        shutil.rmtree(copy / "shop" / "g0000" / second / "train")
        begun = time.monotonic()
        recloop(*words, cwd=shop.parent)
        times_s.append(time.monotonic() - begun)
    whole_s, rng, num_runs, killed = min(times_s), random.Random(20), 0, 0
    while num_runs < 12 or killed < 6:
        shutil.rmtree(copy / "shop" / "g0000" / second / "train", ignore_errors=True)
        shutil.rmtree(copy / "shop" / "tracked", ignore_errors=True)
        running = started(*words, cwd=shop.parent)
        time.sleep(rng.uniform(0.2, 0.9) * whole_s)
        running.process.kill()
        num_runs += 1
        if running.ended().returncode == -signal.SIGKILL:
            killed += 1
        else:
            whole_s *= 0.8  # other work on the machine made it look longer
        outcome = step("train", shop, second, copy)
        assert outcome["digest"] == digests[1]
        assert len(list((copy / "shop" / ".scratch").iterdir())) == 0
    recloop("chain", "verify", "-s", str(shop), "--store", str(copy), cwd=shop.parent)


def test_two_runs_of_one_day_commit_once(shop: Path, tmp_path: Path) -> None:
    first = days(1)[0]
    for name in ("ingest", "summarize", "join", "validate"):
        step(name, shop, first, tmp_path)
    words = ("train", "-s", str(shop), "--ds", first, "--store", str(tmp_path), "--json")
    outcomes = []
    for one in [started(*words, cwd=shop.parent) for _ in range(2)]:
        done = one.ended()
        assert done.returncode == 0, done.stderr
        outcomes.append(json.loads(done.stdout.splitlines()[-1]))
    assert sorted(outcome["outcome"] for outcome in outcomes) == ["already_done", "done"]
    assert outcomes[0]["digest"] == outcomes[1]["digest"]
    log = json.loads(
        recloop("chain", "log", "-s", str(shop), "--store", str(tmp_path), "--json", cwd=shop.parent).stdout
    )
    assert len(log) == 1


def test_flipped_byte_is_found_and_refused(shop: Path, through_train: tuple[Path, list[str]], tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "store"
    shutil.copytree(through_train[0], copy)
    weights = next((copy / "shop" / "g0000" / days(2)[1] / "train").glob("*/embeddings.safetensors"))
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    found = recloop("chain", "verify", "-s", str(shop), "--store", str(copy), cwd=shop.parent, check=4)
    assert "embeddings.safetensors: digest" in found.stderr
    third = days(3)[2]
    for name in ("ingest", "summarize", "join", "validate"):
        step(name, shop, third, copy)
    refused = step("train", shop, third, copy, check=4)
    assert "embeddings.safetensors: digest" in refused["stderr"]
    assert not (copy / "shop" / "g0000" / third / "train" / "commit.json").exists()


def test_corrected_day_is_refused_then_replayed(tmp_path: Path) -> None:
    scenario = write_small(tmp_path / "shop", num_days=2)
    store = tmp_path / "store"
    common = ("-s", str(scenario), "--store", str(store))
    recloop("run", *common, cwd=scenario.parent)
    old = json.loads(recloop("chain", "log", *common, "--json", cwd=scenario.parent).stdout)
    write_day(scenario.parent, days(1)[0], rows=420)
    refused = step("ingest", scenario, days(1)[0], store, check=4)
    assert "400 rows then, 420 now" in refused["stderr"]
    assert "recloop chain replay" in refused["stderr"]
    recloop("chain", "replay", *common, "--from", days(1)[0], cwd=scenario.parent)
    log = json.loads(recloop("chain", "log", *common, "--json", cwd=scenario.parent).stdout)
    assert [link["generation"] for link in log] == [0, 1, 0, 1]
    new = [link for link in log if link["current"]]
    assert new[1]["parent"] == new[0]["checkpoint"]
    assert {link["checkpoint"] for link in old} == {link["checkpoint"] for link in log if not link["current"]}
    assert new[1]["checkpoint"] != old[1]["checkpoint"]
    recloop("chain", "verify", *common, cwd=scenario.parent)
