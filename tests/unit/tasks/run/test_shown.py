"""Runs that MLflow missed in an outage are shown later: by the next step of any day, or by a person."""

import json

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

from feature_jobs.schema import load_scenario
from tasks.commands.cli import main
from tasks.contract import Step
from tasks.run.launchers import Call, Ran
from tasks.run.runner import run_step
from tasks.run.shown import not_shown, show_after
from tasks.store.scenario_store import open_store
from tests.small import days, write_small
from tests.unit.tasks.little import commit

AWAY = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
LEFT = ("ingest", "join", "summarize")
"""Steps that an outage left unshown."""


@pytest.fixture
def shop(tmp_path, mlflow_uri, monkeypatch):
    """A day whose first steps could not be shown, because MLflow was away."""
    scenario = load_scenario(write_small(tmp_path, num_days=2))
    store = open_store(tmp_path / "store", scenario.name)
    with monkeypatch.context() as outage:
        _end_mlflow(outage)
        for step in ("ingest", "summarize", "join"):
            run_step(step, scenario, days(2)[0], store)
        show_after(scenario, store, days(2)[0], at_once=True)
    return scenario, store


def _end_mlflow(outage):
    for name, value in AWAY.items():
        outage.setenv(name, value)


def _steps_in(uri: str) -> list[str]:
    [experiment] = [e for e in MlflowClient(uri).search_experiments() if e.name == "shop"] or [None]
    runs = MlflowClient(uri).search_runs([experiment.experiment_id]) if experiment else []
    return sorted(run.info.run_name for run in runs if run.data.tags["recloop.kind"] == "step")


def test_a_step_of_another_day_shows_what_an_outage_left(shop, mlflow_uri, capsys):
    scenario, store = shop
    first, second = days(2)
    assert [(commit.ds, commit.step) for commit in not_shown(store)] == [
        (first, "ingest"),
        (first, "join"),
        (first, "summarize"),
    ]
    run_step("ingest", scenario, second, store)
    assert _steps_in(mlflow_uri) == [f"ingest {first}", f"ingest {second}", f"join {first}", f"summarize {first}"]
    assert not_shown(store) == []
    run_step("ingest", scenario, second, store)
    assert len(_steps_in(mlflow_uri)) == 1 + len(LEFT)


def test_the_message_of_an_outage_has_a_command_that_ends_it(shop, mlflow_uri, tmp_path, monkeypatch, capsys):
    scenario, store = shop
    with monkeypatch.context() as outage:
        _end_mlflow(outage)
        show_after(scenario, store, days(2)[0], at_once=True)
    _, command = capsys.readouterr().err.strip().split("and so does: recloop ")
    asked = [*command.split(), "-s", str(tmp_path / "shop.yaml")]
    before = CliRunner().invoke(main, [word for word in asked if word != "--repair"])
    assert (
        f"MLflow does not show yet: {', '.join(f'{days(2)[0]} {step}' for step in LEFT)}; to show them: recloop status"
        in before.output
    )
    away = CliRunner().invoke(main, asked, env=AWAY)
    assert away.exit_code == 6
    done = CliRunner().invoke(main, [*asked, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["not_shown"] == []
    assert len(_steps_in(mlflow_uri)) == len(LEFT)


def test_a_step_of_the_same_day_that_is_short_leaves_it_to_the_next(shop, mlflow_uri):
    scenario, store = shop
    show_after(scenario, store, days(2)[0], at_once=False)
    assert _steps_in(mlflow_uri) == []


def test_the_run_of_a_day_begins_with_its_first_step_also_where_register_opens_it(shop, mlflow_uri, tmp_path):
    scenario, store = shop
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "file").write_text("of another step")
    for step in ("validate", "train", "evaluate", "quantize"):
        commit(store, step, days(2)[0], tmp_path / "made")
    shown: list[str] = []

    class Looks:
        """Looks at MLflow when the step begins, in place of the step."""

        def launch(self, declared: Step, call: Call) -> Ran:
            shown.extend(_steps_in(mlflow_uri))
            (call.output / "file").write_text("registered")
            return Ran({}, {}, {"compute": 0.0, "imports": 0.0})

    run_step("register", scenario, days(2)[0], store, launcher=Looks())
    assert shown == [f"{step} {days(2)[0]}" for step in LEFT]
