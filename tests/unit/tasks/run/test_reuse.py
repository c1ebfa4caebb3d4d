"""A replay computes the steps whose inputs, settings or code differ, and takes over all others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from tasks.commands.cli import main
from tasks.run import runner
from tasks.store.records import Manifest
from tasks.store.scenario_store import ScenarioStore, open_store

DAYS = [f"2024-03-{n:02}" for n in range(1, 11)]
STEPS = ("ingest", "summarize", "join", "validate")
SCENARIO = """
name: shop
description: Does the user like or buy this item?
data:
  path: data
  events:
    path: events/{ds}.csv
    format: csv
    time: {column: t}
    columns: {user: {type: int}, item: {type: int}, t: {type: time}, stars: {type: int}}
  logs:
    orders:
      path: orders/{ds}.csv
      format: csv
      time: {column: t}
      columns: {user: {type: int}, item: {type: int}, t: {type: time}}
  user: user
  item: item
  days: {first: 2024-03-01, last: 2024-03-10}
labels:
  like: stars >= 4
  buy: {source: orders, on: [user, item], window_hours: 2, maturity_days: 2}
features:
  user: {kind: id}
  seen: {kind: count, by: [user]}
  bought: {kind: count, by: [user], source: orders, window_hours: 12}
join: {lookback_days: 2}
validate: {trailing_days: 1}
"""


def _csv(file: Path, *rows: tuple[object, ...]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(",".join(map(str, row)) + "\n" for row in rows))


class Shop:
    """Days whose steps are run as a person runs them."""

    def __init__(self, folder: Path, url: str = "") -> None:
        self.folder, self.url = folder, url or str(folder / "store")

    @property
    def store(self) -> ScenarioStore:
        return open_store(self.url, "shop")

    def call(self, *words: str) -> str:
        done = CliRunner().invoke(main, [*words, "-s", str(self.folder / "shop.yaml"), "--store", self.url])
        assert done.exit_code == 0, done.output
        return done.stdout  # warnings are on stderr

    def replay(self, first: str, *words: str) -> dict[str, list[str]]:
        """Replays the days; returns those that were computed, by step."""
        self.call("chain", "replay", "--from", first, "--no-run", *words)
        self.call("run", "--from", first, "--until", STEPS[-1], "--no-track")
        return self.days("done")

    def days(self, outcome: str) -> dict[str, list[str]]:
        """Days on which each step of the newest generation had this outcome."""
        mine = [entry for entry in self.store.journal() if entry["generation"] == self.store.generation]
        return {
            step: found
            for step in STEPS
            if (found := [e["ds"] for e in mine if e["step"] == step and e["outcome"] == outcome])
        }

    def manifest(self, step: str, ds: str) -> Manifest:
        commit = self.store.find(step, ds)
        assert commit is not None
        return commit.manifest

    def digests(self) -> list[str]:
        return [self.manifest(step, ds)["digest"] for ds in DAYS for step in STEPS]

    def correct(self, ds: str, table: str = "events") -> None:
        """Takes the last row out of a day."""
        file = self.folder / "data" / table / f"{ds}.csv"
        file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))

    def copy(self, folder: Path) -> Shop:
        shutil.copytree(self.folder, folder)
        return Shop(folder)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """Ten days that are validated."""
    shop = Shop(tmp_path_factory.mktemp("reuse"))
    (shop.folder / "shop.yaml").write_text(SCENARIO)
    for number, ds in enumerate(DAYS):
        at = [f"{ds}T{hour:02}:00:00Z" for hour in (8, 9, 10)]
        events = [(user, item, at[item], (user + item * number) % 6) for user in range(8) for item in range(3)]
        _csv(shop.folder / f"data/events/{ds}.csv", ("user", "item", "t", "stars"), *events)
        orders = [(user, 1, f"{ds}T09:30:00Z") for user in range(number % 3, 8, 2)]
        _csv(shop.folder / f"data/orders/{ds}.csv", ("user", "item", "t"), *orders)
    shop.call("run", "--until", STEPS[-1], "--no-track")
    return shop


@pytest.fixture
def shop(original: Shop, tmp_path: Path) -> Shop:
    return original.copy(tmp_path / "shop")


def _until(first: int, last: int) -> list[str]:
    """Days of March 2024, both included."""
    return DAYS[first - 1 : last]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "features", "features_until", "last"),
    [
        # A window reaches two days further, and rows of these days come again two days later, when their label matures.
        # The index of summaries names a tile of the third and the fourth day, and so two more.
        ("events", ["user", "seen", "bought"], DAYS[4], {"summarize": 7, "join": 9, "validate": 9}),
        ("orders", ["bought"], DAYS[3], {"summarize": 6, "join": 8, "validate": 8}),
    ],
)
def test_a_corrected_day_is_computed_as_far_as_it_reaches(shop, table, features, features_until, last):
    shop.correct(DAYS[2], table)
    planned = json.loads(shop.call("plan", "--source", "--json"))["corrected"]
    assert (planned["features"], planned["features_until"]) == (features, features_until)
    bound = {"ingest": [DAYS[2]], **{step: _until(3, day) for step, day in last.items()}}
    assert planned["steps"] == bound
    computed = shop.replay(DAYS[2])
    assert computed.pop("ingest") == DAYS[2:]  # nobody knows beforehand what the source holds
    for step, days in computed.items():
        # Rows of a day may reach less far than the day itself could.
        assert {*days} <= {*bound[step]}
        assert shop.days("reused")[step] == [ds for ds in DAYS[2:] if ds not in days]
    if table == "events":
        assert computed == {"summarize": _until(3, 7), "join": _until(3, 9), "validate": _until(3, 7)}
        beginning = Shop(shop.folder, str(shop.folder / "beginning"))
        beginning.call("run", "--until", STEPS[-1], "--no-track")
        assert shop.digests() == beginning.digests()
    shop.call("chain", "verify")


def test_a_column_that_nobody_declares_is_carried_to_all_later_days(shop):
    shop.correct(DAYS[-3])
    file = shop.folder / "data/events" / f"{DAYS[-3]}.csv"
    file.write_text("".join(f"{line},shop\n" for line in file.read_text().splitlines()))
    planned = json.loads(shop.call("plan", "--source", "--json"))["corrected"]
    assert planned["steps"] == dict.fromkeys(STEPS, DAYS[-3:])
    assert shop.replay(DAYS[-3]) == planned["steps"]


def test_an_output_that_was_taken_over_says_so(shop):
    assert shop.replay(DAYS[-2]) == {"ingest": DAYS[-2:]}
    manifest, before = (open_store(shop.url, "shop").find("join", DAYS[-1], number).manifest for number in (1, 0))
    assert (manifest["reused_from"], manifest["digest"]) == (0, before["digest"])
    assert manifest["generation"]["record"] == "g0001/generation.json"
    assert "reused_from" not in {**before, **shop.manifest("ingest", DAYS[-1])}
    shop.call("chain", "replay", "--from", DAYS[-2], "--no-run")
    shop.call("ingest", "--ds", DAYS[-2], "--no-track")
    # As Airflow and DVC do it: each step by its own command.
    assert json.loads(shop.call("summarize", "--ds", DAYS[-2], "--json", "--no-track"))["outcome"] == "reused"
    assert shop.manifest("summarize", DAYS[-2])["reused_from"] == 1


def test_a_step_with_other_settings_or_code_is_computed(shop, monkeypatch):
    file = shop.folder / "shop.yaml"
    file.write_text(SCENARIO.replace("trailing_days: 1", "trailing_days: 2"))
    assert shop.replay(DAYS[-2]) == {"ingest": DAYS[-2:], "validate": DAYS[-2:]}
    of_project = runner.code_digest
    monkeypatch.setattr(runner, "code_digest", lambda step: "other" if step == "join" else of_project(step))
    # Its samples are the same, so no later step is computed.
    assert shop.replay(DAYS[-2]) == {"ingest": DAYS[-2:], "join": DAYS[-2:]}
    file.write_text(SCENARIO)  # the first generation has had these
    assert shop.replay(DAYS[-2]) == {"ingest": DAYS[-2:]}
    assert shop.manifest("validate", DAYS[-1])["reused_from"] == 0
    assert shop.replay(DAYS[-2], "--all") == dict.fromkeys(STEPS, DAYS[-2:])


@pytest.mark.parametrize("name", ["a file", "manifest.json", "commit.json", "deleted"])
def test_a_damaged_or_deleted_output_is_computed(shop, name):
    commit = shop.store.find("join", DAYS[-1])
    place = commit.folder.parent if name == "commit.json" else commit.folder
    wanted = next(iter(commit.manifest["files"])) if name == "a file" else name
    if name == "deleted":
        shop.store.collect(commit, "test")
    else:
        (place / wanted).write_bytes((place / wanted).read_bytes()[:-2])
    assert shop.replay(DAYS[-1]) == {"ingest": [DAYS[-1]], "join": [DAYS[-1]]}
    assert shop.manifest("join", DAYS[-1])["digest"] == commit.digest
    shop.call("chain", "verify")


def test_in_a_bucket_too(shop, object_server, tmp_path, monkeypatch):
    for name, value in object_server.environment(RECLOOP_CACHE=str(tmp_path / "cache")).items():
        monkeypatch.setenv(name, value)
    there = Shop(shop.folder, object_server.filled(shop.folder / "store"))
    before = there.manifest("validate", DAYS[-1])["digest"]
    assert there.replay(DAYS[-1]) == {"ingest": DAYS[-1:]}
    assert there.manifest("validate", DAYS[-1])["digest"] == before
    there.call("chain", "verify")
