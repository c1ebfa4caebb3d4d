"""Users are forgotten: days are as if they had never been there, nothing brings rows back, and no file keeps them."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from feature_jobs.errors import RetryLaterError
from feature_jobs.schema import Scenario, load_scenario
from feature_jobs.sources.user_ids import users_of
from tasks.commands.cli import main
from tasks.store.champion_log import ChampionLog, Entry
from tasks.store.scenario_store import ScenarioStore, open_store
from tests.paths import ROOT
from tests.small import days, write_small
from tests.traces import traces

DAYS = days(5)
GONE = "s777"
LEARNED = ("ingest", "summarize", "join", "validate", "train")


def _write(folder: Path, holds: tuple[str, ...]) -> None:
    """The small shop, where another user may have sent the shopper; with one user more on some days, who did so once,
    and has a malformed row."""
    write_small(folder, len(DAYS), rows=200)
    for ds in DAYS:
        file = folder / "data" / "events" / f"{ds}.csv"
        head, *rows = ([*row, ""] for row in csv.reader(file.open()))
        head[-1] = "sent_by"
        if ds in holds:
            rows[7][-1] = GONE
            rows += [[GONE, product, product % 2, "", f"{ds} 1{product % 10}:00:00", ""] for product in range(12)]
            rows.append([GONE, "none", 0, "", f"{ds} 10:00:00", ""])
        with file.open("w", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerows([head, *sorted(rows, key=lambda row: row[4])])
    scenario = folder / "shop.yaml"
    text = scenario.read_text().replace("      at: {type", "      sent_by: {type: string}\n      at: {type")
    scenario.write_text(text.replace("  price: {kind", "  sent_by: {kind: id, table: shopper}\n  price: {kind"))


class Shop:
    """A small scenario with its store; commands are called as a person calls them."""

    def __init__(self, folder: Path, url: str = "") -> None:
        self.folder, self.root = folder, folder / "store"
        self.url = url or str(self.root)
        self.options = ["-s", str(folder / "shop.yaml"), "--store", self.url]

    @property
    def scenario(self) -> Scenario:
        return load_scenario(self.folder / "shop.yaml")

    @property
    def store(self) -> ScenarioStore:
        return open_store(self.url, "shop")

    def call(self, *words: str) -> Result:
        return CliRunner().invoke(main, [*words, *self.options])

    def done(self, *words: str) -> str:
        result = self.call(*words)
        assert result.exit_code == 0, result.output
        return result.output

    def digests(self, steps: tuple[str, ...] = LEARNED) -> dict[tuple[str, str], str]:
        found = {(ds, step): self.store.find(step, ds) for ds in DAYS for step in steps}
        return {place: commit.digest for place, commit in found.items() if commit}

    def copy(self, folder: Path) -> Shop:
        shutil.copytree(self.folder, folder)
        (folder / "shop.yaml").write_text((self.folder / "shop.yaml").read_text())
        return Shop(folder)


def _learned(folder: Path, holds: tuple[str, ...]) -> Shop:
    folder.mkdir()
    _write(folder, holds)
    shop = Shop(folder)
    _short_lookback(folder)
    shop.done("run", "--until", "train", "--no-track")
    return shop


def _short_lookback(folder: Path) -> None:
    file = folder / "shop.yaml"
    file.write_text(file.read_text().replace("lookback_days: 7", "lookback_days: 1"))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """Five learned days, the user among them on the third."""
    return _learned(tmp_path_factory.mktemp("forget") / "with", (DAYS[2],))


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """The same days without the user."""
    return _learned(tmp_path_factory.mktemp("forget") / "without", ())


@pytest.fixture
def shop(original: Shop, tmp_path: Path) -> Shop:
    return original.copy(tmp_path / "shop")


def _forget(shop: Shop, *words: str, user: str = GONE) -> Result:
    """The days are learned, and no further: so the end, which asks MLflow, is left to the test of the whole."""
    if words:
        return shop.call("forget", "--user", user, *words)
    _begin(shop)
    return shop.call("run", "--until", "train", "--no-track")


def _begin(shop: Shop, *columns: str) -> None:
    from tasks.run.forget import begin_forgetting, cost_of
    from tasks.run.launchers import InProcess

    users = users_of(shop.scenario, [GONE], columns)
    begin_forgetting(shop.scenario, shop.store, users, cost_of(shop.scenario, shop.store, users), InProcess())


def test_the_cost_is_shown_first(shop):
    shown = shop.done("forget", "--user", GONE)
    assert f"14 rows on 1 day; a new generation from {DAYS[2]} to {DAYS[4]}, 3 days" in shown
    assert "nothing was changed" in shown
    counts = dict(line.split()[:2] for line in shown.splitlines() if line.split()[0] in LEARNED)
    assert counts == {"ingest": "1", "summarize": "3", "join": "3", "validate": "3", "train": "3"}
    assert shop.store.generation == 0


def test_nobody_is_forgotten_where_nobody_is_known(shop):
    shown = shop.done("forget", "--user", "s999")
    assert "no committed day holds rows" in shown
    assert "no committed day knows 1 of the 1 ids: 's999'" in shown


def _cost(shop: Shop, *words: str) -> dict[str, Any]:
    return json.loads(shop.done("forget", *words, "--json"))


def test_the_ids_of_a_file_are_as_the_file_has_them(shop, tmp_path):
    file = tmp_path / "ids.txt"
    file.write_bytes("\ufeffs7\r\n\r\ns8\r\n s3 \r\ns\u202810".encode())
    by_file = _cost(shop, "--users", str(file))
    assert by_file["unknown"] == [" s3 ", "s\u202810"]
    assert by_file["rows"] == _cost(shop, "--user", "s7", "--user", "s8")["rows"] != _cost(shop, "--user", "s8")["rows"]


def test_a_column_that_names_users_beside_is_shown_and_emptied(tmp_path):
    _write(tmp_path, (DAYS[0],))
    events = tmp_path / "data" / "events" / f"{DAYS[0]}.csv"
    head, *rows = csv.reader(events.open())
    rows[5][-1] = json.dumps({"by": GONE, "to": [f"{GONE}7"]})  # an id inside a text
    with events.open("w", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([head, *rows])
    shop = Shop(tmp_path)
    file = tmp_path / "shop.yaml"
    file.write_text(file.read_text().replace("sent_by: {kind: id, table: shopper}", "sent_by: {kind: id}"))
    shop.done("run", "--until", "ingest", "--no-track", "--to", DAYS[0])
    cost = _cost(shop, "--user", GONE)
    assert (cost["rows"], cost["elsewhere"]) == ({DAYS[0]: 13}, {"sent_by": 2})
    assert "sent_by (2)" in shop.done("forget", "--user", GONE)
    assert "did you mean 'sent_by'" in shop.call("forget", "--user", GONE, "--column", "sentby").output
    _begin(shop)
    assert traces(shop.store.work / "g0001", GONE, ())
    assert _cost(shop, "--user", GONE)["elsewhere"] == {"sent_by": 2}
    _begin(shop, "sent_by")
    assert traces(shop.store.work / "g0002", GONE, ()) == []
    assert _cost(shop, "--user", GONE, "--column", "sent_by")["days"] == []
    assert _cost(shop, "--user", GONE)["elsewhere"] == {}


@pytest.mark.slow
def test_days_are_as_if_the_user_had_never_been_there(shop, without):
    before = shop.digests()
    assert before != without.digests()
    assert _forget(shop).exit_code == 0
    assert shop.digests() == without.digests()
    assert "no committed day holds rows" in shop.done("forget", "--user", GONE)
    assert {place: d for place, d in before.items() if place[0] < DAYS[2]}.items() <= shop.digests().items()
    reused = {(e["ds"], e["step"]) for e in shop.store.journal() if e["outcome"] == "reused"}
    assert reused == {(DAYS[4], "join")}  # its window does not reach back to the user's day
    shop.done("chain", "verify")


@pytest.mark.slow
def test_after_gc_no_file_holds_the_user(shop):
    """Also where a replay was begun, and has not computed the day of the user yet."""
    shop.done("chain", "replay", "--from", DAYS[1], "--no-run")
    cost = _cost(shop, "--user", GONE)
    assert (cost["days"], cost["from_source"], cost["rows"]) == (DAYS[1:], DAYS[1:], {DAYS[2]: 14})
    assert cost["steps"]["train"]["seconds"] > 0
    _forget(shop)
    assert traces(shop.root, GONE, ("shopper",))
    shop.done("gc", "--delete")
    assert traces(shop.root, GONE, ("shopper",)) == []
    assert traces(shop.root, "s7", ("shopper",))  # another's rows are there
    shop.done("chain", "verify")
    assert "done before" in shop.done("run", "--until", "train", "--no-track")  # the source still holds the rows


def test_the_online_store_keeps_the_newest_state_that_does_not_know_the_user(shop):
    """Also where that is of an earlier day than the one that it has."""
    from feature_jobs.online.opening import store_of
    from tasks.run.erase import keep_newest_alone

    file = shop.folder / "shop.yaml"
    file.write_text(f"{file.read_text()}\nonline: {{store: online}}\n")
    for ds in (DAYS[1], DAYS[3]):
        shop.done("materialize", "--ds", ds, "--no-track")
    current, states = store_of(shop.scenario).current, shop.folder / "online/shop/states"
    assert current().ds == DAYS[3]
    keep_newest_alone(shop.scenario, shop.store)
    assert current().ds == DAYS[3]  # nobody was forgotten
    _begin(shop)
    for _ in range(2):
        keep_newest_alone(shop.scenario, shop.store)
        assert current().ds == DAYS[1]
        assert [path.name for path in states.iterdir()] == [current().name]


@pytest.mark.slow
def test_in_a_bucket_too_no_object_and_no_copy_holds_the_user(shop, without, object_server, tmp_path, monkeypatch):
    for name, value in object_server.environment(RECLOOP_CACHE=str(tmp_path / "cache")).items():
        monkeypatch.setenv(name, value)
    there = Shop(shop.folder, object_server.filled(shop.root))
    # In a process of its own: one holds the copies that it has read as long as it lives.
    code = f"""from pathlib import Path; from tests.unit.tasks.run.test_forget import Shop, _forget
assert _forget(Shop(Path({str(there.folder)!r}), {there.url!r})).exit_code == 0"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    assert there.digests() == without.digests()
    assert traces(tmp_path / "cache", GONE, ("shopper",))
    there.done("gc", "--delete")
    object_server.copied(there.url, tmp_path / "objects")
    assert [traces(tmp_path / folder, GONE, ("shopper",)) for folder in ("objects", "cache")] == [[], []]
    assert traces(tmp_path / "objects", "s7", ("shopper",))
    there.done("chain", "verify")


def test_the_rows_do_not_come_back(shop):
    _begin(shop)
    refused = shop.call("chain", "replay", "--from", DAYS[1], "--no-run")
    assert refused.exit_code == 4
    assert "--source-cleaned" in refused.output
    assert shop.store.generation == 1
    shop.done("chain", "replay", "--from", DAYS[1], "--no-run", "--source-cleaned")


@pytest.mark.slow
@pytest.mark.parametrize("is_cleaned", [True, False])
def test_nothing_from_before_the_forgetting_is_taken_over(shop, without, is_cleaned):
    """Also where the rows are in the source still, so that the inputs of the days are as they were with them."""
    _begin(shop)
    shop.done("run", "--until", "join", "--no-track", "--from", DAYS[2])
    if is_cleaned:
        _write(shop.folder, ())
        _short_lookback(shop.folder)
    shop.done("chain", "replay", "--from", DAYS[1], "--no-run", "--source-cleaned")
    shop.done("run", "--until", "join", "--no-track", "--from", DAYS[1])
    found = {(ds, step): shop.store.find(step, ds) for ds in DAYS[1:] for step in ("summarize", "join")}
    reused = {
        place: commit.manifest["reused_from"] for place, commit in found.items() if "reused_from" in commit.manifest
    }
    # The day before the user's was not written again, so it is as it was.
    before = {(DAYS[1], step): 0 for step in ("summarize", "join")}
    if not is_cleaned:
        assert reused == before | {(DAYS[4], "join"): 1}
        return
    assert reused == before | {(ds, step): 1 for ds in DAYS[2:] for step in ("summarize", "join")}
    assert shop.digests(("join",)) == without.digests(("join",))


def _begun(shop: Shop) -> None:
    """As a kill leaves the store while the days are committed: the last two are not written."""
    _begin(shop)
    for ds in DAYS[3:]:
        shutil.rmtree(shop.store.work / "g0001" / ds)


@pytest.mark.slow
def test_a_day_that_is_not_written_yet_is_not_read_from_its_source(shop, without):
    _begun(shop)
    assert "blocked" in next(line for line in shop.done("plan").splitlines() if line.startswith(DAYS[3]))
    refused = shop.call("run", "--no-track", "--until", "train", "--from", DAYS[3], "--to", DAYS[3])
    assert refused.exit_code == 4
    assert "recloop forget" in refused.output
    assert _forget(shop).exit_code == 0
    assert shop.digests() == without.digests()


def test_other_ids_do_not_finish_what_was_begun(shop):
    _begun(shop)
    shutil.rmtree(shop.store.work / "g0001" / DAYS[2])
    refused = _forget(shop, "--yes", user="s7")
    assert refused.exit_code == 4
    assert "not finished" in refused.output


def test_other_ids_are_noticed_by_what_is_written_already(shop):
    _begun(shop)
    refused = _forget(shop, "--yes", user="s999")
    assert refused.exit_code == 4
    assert "other rows were left out" in refused.output


@pytest.mark.slow
def test_what_gc_deleted_is_read_from_the_source_without_the_rows(shop, without):
    shop.done("gc", "--keep-days", "1", "--delete")
    cost = shop.done("forget", "--user", GONE)
    assert f"from {DAYS[0]}" in cost
    assert "read again from the source: 2 days" in cost
    assert _forget(shop).exit_code == 0
    assert shop.digests() == without.digests()


def test_a_source_that_is_gone_too_refuses_before_anything_changes(shop):
    shop.done("gc", "--keep-days", "1", "--delete")
    (shop.folder / "data" / "events").rename(shop.folder / "data" / "elsewhere")
    refused = _forget(shop, "--yes")
    assert refused.exit_code == 4
    assert "data.days.first" in refused.output
    assert shop.store.generation == 0


@pytest.mark.slow
def test_a_chain_that_begins_later_forgets_with_the_days_that_are_kept(shop):
    shop.done("gc", "--keep-days", "1", "--delete")
    shutil.rmtree(shop.folder / "data" / "events")
    file = shop.folder / "shop.yaml"
    file.write_text(file.read_text().replace(f"first: {DAYS[0]}", f"first: {DAYS[3]}"))
    assert _forget(shop).exit_code == 0
    shop.done("gc", "--delete")
    assert traces(shop.root, GONE, ("shopper",)) == []


def test_compare_takes_the_days_whose_files_are_kept(shop):
    shop.done("gc", "--keep-days", "1", "--delete")
    assert json.loads(shop.done("compare", "committed", "g0", "--json"))["days"] == DAYS[2:]


def test_retention_deletes_old_events_and_the_days_stay_done(shop):
    shop.done("gc", "--keep-days", "2", "--delete")
    commits = [shop.store.find("ingest", ds) for ds in DAYS]
    kept = {commit.ds for commit in commits if (shop.store.work / commit.key / "events.parquet").exists()}
    assert kept == set(DAYS[1:])  # two days, and the two that windows of the older one can reach
    for ds in DAYS:  # also the first one that is kept, whose day before is gone
        assert "done before" in shop.done("run", "--until", "train", "--no-track", "--ds", ds)
    compared = shop.call("compare", DAYS[0], DAYS[4])
    assert compared.exit_code == 4 and "deleted as no longer needed" in compared.output
    shutil.rmtree(shop.folder / "data" / "events")
    assert "done before" in shop.done("run", "--until", "train", "--no-track", "--to", DAYS[0])


def test_two_at_once_do_not_undo_each_other(shop):
    base = shop.store.generation
    _begin(shop)
    with pytest.raises(RetryLaterError):
        shop.store.new_generation(DAYS[0], "prepared from the earlier contents", DAYS[4], forgets=True, after=base)
    assert shop.store.generation == 1


def test_copies_beside_the_history_go_at_once(shop):
    for key in (f"rejected/{DAYS[3]}/validate/docs", f"rejected/{DAYS[0]}/validate/docs", "tries/idea/docs"):
        (shop.store.work / key).mkdir(parents=True)
        (shop.store.work / key / "row.html").write_text(GONE)
    shop.store.note({"step": "ingest", "ds": DAYS[2], "outcome": "BadInputError", "message": f"row 3: '{GONE}' is not"})
    shown = shop.done("forget", "--user", GONE)
    assert f"rejected/{DAYS[3]}" in shown
    _begin(shop)
    left = [path.relative_to(shop.store.work).as_posix() for path in shop.store.work.rglob("row.html")]
    assert left == [f"rejected/{DAYS[0]}/validate/docs/row.html"]
    assert GONE not in (shop.store.work / "journal.jsonl").read_text()


def _promote(shop: Shop, kind: str, ds: str, sequence: int) -> None:
    checkpoint = shop.store.find("train", ds).digest
    entry = Entry(kind, "shop", str(DAYS.index(ds) + 1), ds, shop.store.generation_of(ds), checkpoint)
    ChampionLog(shop.store).promote(sequence, entry)


def test_versions_of_forgotten_days_are_history_only(shop):
    for place, ds in enumerate(DAYS):
        _promote(shop, "promotion", ds, place)
    _begin(shop)
    log = ChampionLog(shop.store)
    assert [entry.ds for entry in log.rollback_targets(9)] == [DAYS[1], DAYS[0]]
    assert log.as_of(DAYS[4])[0].ds == DAYS[1]
    assert len(log.history()) == len(DAYS)


def test_versions_that_knew_the_user_are_deleted_and_the_one_that_serves_is_named(shop, mlflow_uri):
    from tasks.run.erase import Erased, erase_from_registry
    from tasks.tracking.connection import client
    from tasks.tracking.registry import CHECKPOINT_TAG

    client().create_registered_model("shop")
    for place, ds in enumerate(DAYS):
        _promote(shop, "promotion", ds, place)
        tags = {"recloop.ds": ds, "recloop.generation": "0", CHECKPOINT_TAG: shop.store.find("train", ds).digest}
        client().create_model_version("shop", (shop.folder / ds).as_uri(), tags=tags)
    _begin(shop)
    assert erase_from_registry(shop.scenario, shop.store) == Erased(["4", "3"], 0, serves="5")
    assert [version.version for version in client().search_model_versions("name='shop'")] == [5, 2, 1]


def test_a_rollback_that_holds_promotions_is_in_the_way(shop):
    for place, (kind, ds) in enumerate((("promotion", DAYS[3]), ("promotion", DAYS[4]), ("rollback", DAYS[3]))):
        _promote(shop, kind, ds, place)
    refused = shop.call("forget", "--user", GONE, "--yes")
    assert refused.exit_code == 4
    assert "resume-promotions" in refused.output


@pytest.mark.slow
def test_a_killed_forgetting_ends_with_a_champion_that_never_knew_the_user(tmp_path, mlflow_uri):
    folder = tmp_path / "shop"
    folder.mkdir()
    _write(folder, (DAYS[2], DAYS[3]))
    shop = Shop(folder)
    shop.done("run")
    roots = (shop.root, tmp_path / "mlartifacts", tmp_path / "mlflow.db")
    assert all(any(traces(root.parent, GONE, ("shopper",))) for root in roots[:2])
    words = [sys.executable, "-m", "tasks", "forget", "--user", GONE, "--yes", *shop.options]
    process = subprocess.Popen(words, start_new_session=True)
    while not (shop.store.work / "g0001" / DAYS[2] / "join" / "commit.json").exists():
        assert process.poll() is None
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    shown = shop.done("forget", "--user", GONE, "--yes")
    assert "goes on with generation 1" in shown
    assert "deleted in MLflow: 3 versions" in shown
    shop.done("gc", "--delete")
    assert traces(tmp_path, GONE, ("shopper",)) == [f"shop/data/events/{ds}.csv: the id" for ds in (DAYS[2], DAYS[3])]
    shop.done("chain", "verify")
    current = ChampionLog(shop.store).current()
    assert (current.ds, current.generation) == (DAYS[4], 1)
    assert "done before" in shop.done("run")
    again = shop.done("forget", "--user", GONE, "--yes")
    assert "no committed day holds rows" in again
