"""`recloop run` as its user sees it: the printed lines, and the JSON of a day that stops."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tasks.commands.cli import main
from tasks.commands.common import json_line
from tests.small import days, write_day, write_small

DAYS = days(2)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two days of data; the second has a broken row and a row twice, the scenario's third day has no data."""
    folder = tmp_path_factory.mktemp("shop")
    scenario = write_small(folder, num_days=2)
    file = write_day(folder, DAYS[1], rows=400)
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines, lines[-1], f"s1,not a number,1,,{DAYS[1]} 23:59:59"]) + "\n")
    scenario.write_text(scenario.read_text().replace(f"last: {DAYS[1]}", f"last: {days(3)[-1]}"))
    return scenario


@pytest.fixture(autouse=True)
def _tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command sets this variable where it is not set; no other test must see it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////nowhere/mlflow.db")


def recloop(shop: Path, command: str, *arguments: str) -> Result:
    place = ["-s", str(shop), "--store", str(shop.parent / "store"), "--no-track"]
    return CliRunner().invoke(main, [command, *place, *arguments])


def test_until_ends_each_day_early_and_lines_name_rows_that_were_left_out(shop: Path) -> None:
    done = recloop(shop, "run", "--to", DAYS[1], "--until", "join")
    assert done.exit_code == 0, done.output
    lines = done.stderr.splitlines()
    assert [line.split()[:2] for line in lines[:6]] == [
        [ds, step] for ds in DAYS for step in ("ingest", "summarize", "join")
    ]
    assert "quarantined" not in lines[0]
    assert "rows 400  duplicates 1  quarantined 1" in lines[3]
    assert "validate" in done.stderr  # a column of the table that it ends with
    assert "made with other settings" not in done.stderr


def test_json_lists_the_finished_steps_and_the_error_when_a_day_stops(shop: Path) -> None:
    done = recloop(shop, "run", "--from", DAYS[1], "--until", "join", "--json")
    assert done.exit_code == 4
    *finished, error = json.loads(done.stdout)
    assert [(one["ds"], one["step"]) for one in finished] == [
        (DAYS[1], "ingest"),
        (DAYS[1], "summarize"),
        (DAYS[1], "join"),
    ]
    assert (error["ds"], error["step"]) == (days(3)[-1], "ingest")
    assert (error["outcome"], error["exit_code"]) == ("BadInputError", 4)
    assert days(3)[-1] in error["message"]
    assert done.stderr.splitlines()[-1].startswith("recloop: ")


def test_json_lists_the_finished_steps_where_a_step_has_a_defect(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("feature_jobs.joins.join.join_day", broken)
    store = str(shop.parent / "other")
    done = CliRunner().invoke(main, ["run", "-s", str(shop), "--store", store, "--no-track", "--to", DAYS[0], "--json"])
    *finished, error = json.loads(done.stdout)
    assert [one["step"] for one in finished] == ["ingest", "summarize"]
    assert (error["step"], error["outcome"], error["exit_code"]) == ("join", "ZeroDivisionError", 1)
    assert isinstance(done.exception, ZeroDivisionError)  # a defect keeps its traceback


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "validate.suite=/tmp/none.json"], "validate.suite"),
        (["--set", "train.learning_rate=fast"], "train.learning_rate"),
        (["--ds", "2019-01-01"], "is outside"),
        (["--from", "2033-01-01"], "data.days: 2033-01-01 is outside"),
        (["--to", "2019-01-01"], "data.days: 2019-01-01 is outside"),
        (["--from", DAYS[1], "--to", DAYS[0]], "swap them"),
    ],
)
def test_json_holds_the_error_also_where_it_comes_before_the_first_step(
    shop: Path, arguments: list[str], message: str
) -> None:
    done = recloop(shop, "run", "--json", *arguments)
    (error,) = json.loads(done.stdout)
    assert (error["outcome"], error["exit_code"], done.exit_code) == ("BadInputError", 4, 4)
    assert message in error["message"]


def test_json_holds_no_number_that_json_does_not_have() -> None:
    shown = json_line({"interval": (0.0, math.inf), "days": [{"auc": math.nan}], "rows": 3})
    assert json.loads(shown, parse_constant=pytest.fail) == {
        "interval": [0.0, None],
        "days": [{"auc": None}],
        "rows": 3,
    }


def test_a_day_made_with_other_settings_is_named_with_a_command_that_can_be_copied(shop: Path) -> None:
    done = recloop(shop, "run", "--ds", DAYS[1], "--until", "join", "--set", "join.lookback_days=3")
    assert done.exit_code == 0, done.output
    assert f"{DAYS[1]}: made with other settings than the scenario has today: summarize, join" in done.stderr
    line = next(line for line in done.stderr.splitlines() if "recloop chain replay" in line)
    command = line.partition(": recloop ")[2]
    assert command.endswith(f"--from {DAYS[1]}")
    assert "join.lookback_days=3" in command
    started = CliRunner().invoke(main, [*command.split(), "--no-run"])
    assert started.exit_code == 0, started.output
    assert "generation 1" in started.output


def test_a_column_added_later_does_not_make_the_days_before_look_like_corrected_data(shop: Path) -> None:
    added = ["--set", "data.events.columns.more={type: int, optional: true}"]
    done = recloop(shop, "run", "--to", DAYS[1], "--until", "join", *added)
    assert done.exit_code == 0, done.output
    assert f"{DAYS[0]}: made with other settings than the scenario has today: ingest, summarize, join" in done.stderr


def test_status_shows_the_parents_auc_of_each_day(shop: Path, mlflow_uri: str) -> None:
    done = recloop(shop, "status")
    assert done.exit_code == 0, done.output
    assert all(f"AUC {task}" in done.stdout for task in ("buy", "loved"))
