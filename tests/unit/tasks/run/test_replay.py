"""A replay goes on where it stopped, and works on damaged days, on the first day too."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from feature_jobs.errors import BadInputError, ParentMissingError
from feature_jobs.schema import Scenario
from tasks.commands.cli import main
from tasks.run.replay import begin_replay
from tasks.store.scenario_store import ScenarioStore, open_store
from tests.unit.tasks.little import DAYS, little_scenario


@pytest.fixture
def scenario(tmp_path: Path) -> Scenario:
    return little_scenario(tmp_path)


@pytest.fixture
def store(tmp_path: Path) -> ScenarioStore:
    store = open_store(tmp_path / "store", "little")
    for ds in DAYS[:4]:
        _day(store, ds)
    return store


def _day(store: ScenarioStore, ds: str, steps: tuple[str, ...] = ("ingest", "train")) -> None:
    for step in steps:
        with store.scratch() as scratch:
            (scratch / "content").write_text(f"{step} {ds}")
            store.commit(step, ds, scratch, {"parent": None} if step == "train" else {})


def _replay(scenario, store, first, last=None, **options):
    return begin_replay(scenario, store, first, last, "corrected", **options)


def test_a_replay_that_was_killed_goes_on_where_it_stopped(scenario, store):
    begun = _replay(scenario, store, DAYS[1])
    assert (begun.generation, begun.days, begun.resumed) == (1, DAYS[1:4], False)
    again = _replay(scenario, store, DAYS[1])  # killed before its first commit
    assert (again.generation, again.days, again.resumed) == (1, DAYS[1:4], True)
    _day(store, DAYS[1])
    _day(store, DAYS[2], ("ingest",))
    again = _replay(scenario, store, DAYS[1])
    assert (again.generation, again.days, again.resumed) == (1, DAYS[1:4], True)
    _day(store, DAYS[2], ("train",))
    _day(store, DAYS[3])
    finished = _replay(scenario, store, DAYS[1])
    assert (finished.generation, finished.days, finished.resumed) == (2, DAYS[1:4], False)


def test_so_it_does_from_the_first_day_on(scenario, store):
    """Before its first commit nothing is seen from the new generation."""
    assert _replay(scenario, store, DAYS[0]).days == DAYS[:4]
    again = _replay(scenario, store, DAYS[0])
    assert (again.generation, again.days, again.resumed) == (1, DAYS[:4], True)
    with pytest.raises(ParentMissingError, match=f"{DAYS[0]} is not finished"):
        _replay(scenario, store, DAYS[1])


def test_another_first_day_and_a_restart_begin_a_generation(scenario, store):
    assert _replay(scenario, store, DAYS[2]).generation == 1
    earlier = _replay(scenario, store, DAYS[1])
    assert (earlier.generation, earlier.days) == (2, DAYS[1:4])  # to the day that is there, seen from generation 0
    assert _replay(scenario, store, DAYS[1], restart=True).generation == 3


@pytest.mark.parametrize(
    ("first", "last", "error", "text"),
    [
        (DAYS[2], DAYS[1], BadInputError, "is after --to"),
        ("1999-01-01", None, BadInputError, "1999-01-01"),
        ("soon", None, BadInputError, "soon"),
    ],
)
def test_what_is_refused_starts_nothing(scenario, store, first, last, error, text):
    with pytest.raises(error, match=text):
        _replay(scenario, store, first, last)
    assert store.generation == 0


@pytest.mark.parametrize("there", [(), ("ingest",)])
def test_a_day_whose_day_before_is_not_finished_starts_nothing(scenario, store, there):
    _day(store, DAYS[4], there)
    _day(store, DAYS[5])
    with pytest.raises(ParentMissingError, match=f"{DAYS[4]} is not finished"):
        _replay(scenario, store, DAYS[5])
    assert store.generation == 0


def test_days_that_were_never_trained_are_replayed_too(scenario, store):
    for ds in DAYS[4:6]:
        _day(store, ds, ("ingest",))
    assert _replay(scenario, store, DAYS[5]).days == [DAYS[5]]


def test_a_replay_ends_at_the_newest_day_of_any_generation(scenario, store):
    assert _replay(scenario, store, DAYS[1], DAYS[1]).days == [DAYS[1]]
    _day(store, DAYS[1])
    again = _replay(scenario, store, DAYS[1])
    assert (again.generation, again.days) == (2, DAYS[1:4])


def test_nothing_to_replay_is_said(scenario, tmp_path):
    with pytest.raises(BadInputError, match="nothing is committed"):
        _replay(scenario, open_store(tmp_path / "empty", "little"), DAYS[0])


@pytest.mark.parametrize("name", ["commit.json", "manifest.json"])
def test_the_remedy_of_a_damaged_first_day_works(scenario, store, tmp_path, name):
    commit = store.find("train", DAYS[0])
    (commit.folder / name if name == "manifest.json" else commit.folder.parent / name).write_text('{"step"')
    place = ["-s", str(scenario.file), "--store", str(tmp_path / "store")]
    found = CliRunner().invoke(main, ["chain", "verify", *place])
    assert found.exit_code == 4
    advised = found.output[found.output.index("recloop chain replay") :].split("\n")[0].split()[1:]
    started = CliRunner().invoke(main, [*advised, "--no-run"])
    assert started.exit_code == 0, started.output
    for ds in DAYS[:4]:
        _day(store, ds)
    assert all(store.find("train", ds).generation == 1 for ds in DAYS[:4])
