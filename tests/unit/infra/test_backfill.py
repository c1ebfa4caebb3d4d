"""Requests for runs to Airflow, and their display. Airflow is a double here; tests/e2e uses the real one."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from rich.console import Console

from feature_jobs.errors import BadInputError, RetryLaterError
from feature_jobs.schema import load_scenario
from infra.backfill import Backfill, failure_of
from tests.small import DAILY, days, write_small

if TYPE_CHECKING:
    from infra.airflow_api import AirflowApi


class Airflow:
    """Answers as Airflow's API would."""

    url = "http://airflow"

    def __init__(self, states: dict[str, str] | None = None) -> None:
        self.states = states or {}
        self.asked: list[dict[str, Any]] = []
        self.locked = 0
        self.problems: list[str] = []

    def runs(self, *_: str) -> list[dict[str, Any]]:
        return [{"logical_date": f"{ds}T03:00:00Z", "state": s, "dag_run_id": ds} for ds, s in self.states.items()]

    def task_instances(self, _: str, run_id: str) -> list[dict[str, Any]]:
        times = {
            "start_date": "2024-03-05T10:00:00Z",
            "end_date": "2024-03-05T10:00:02.5Z",
            "try_number": 1,
            "pool": "default_pool",
        }
        states = ["success", "failed"] if self.states[run_id] == "failed" else ["success"] * len(DAILY)
        states += ["upstream_failed"] * (len(DAILY) - len(states))
        if self.states[run_id] == "running":
            waits: dict[str, Any] = {"start_date": None, "end_date": None, "try_number": 0, "pool": "gpu"}
            return [{"task_id": "train", "state": "scheduled", **waits}]
        return [{"task_id": t, "state": s, **times} for t, s in zip(DAILY, states, strict=True)]

    def active_backfills(self, _: str) -> list[int]:
        return []

    def backfill(self, dag_id: str, first: str, last: str, conf: dict[str, Any], *, reprocess: str) -> None:
        if self.locked:
            self.locked -= 1
            raise RetryLaterError("locked")
        self.asked.append({"dag": dag_id, "first": first, "last": last, "conf": conf, "reprocess": reprocess})

    def scheduler_health(self) -> str:
        return "unhealthy"

    def is_paused(self, _: str) -> bool:
        return True

    def pools(self) -> list[dict[str, Any]]:
        return [{"name": "gpu", "slots": 0, "open_slots": 0}, {"name": "default_pool", "slots": 9, "open_slots": 8}]

    def has_dag(self, _: str) -> bool:
        return not self.problems

    def import_errors(self) -> list[str]:
        return self.problems


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.backfill.time.sleep", lambda seconds: None)


def _backfill(airflow: Airflow, folder: Path, data: Path | None = None) -> Backfill:
    scenario = load_scenario(write_small(folder, num_days=3))
    return Backfill(cast("AirflowApi", airflow), scenario, days(3), data)


def test_missing_and_failed_days_are_asked_for(tmp_path: Path) -> None:
    airflow = Airflow({"2024-03-01": "success", "2024-03-02": "failed"})
    assert _backfill(airflow, tmp_path, tmp_path / "logs").create(lambda ds: True, print)
    [asked] = airflow.asked
    assert asked["first"] == "2024-03-01T00:00:00+00:00"
    assert asked["last"].startswith("2024-03-03T23:59:59")
    assert asked["reprocess"] == "failed"
    assert asked["conf"] == {"data": str(tmp_path / "logs")}


def test_nothing_is_asked_for_where_all_is_done_or_running(tmp_path: Path) -> None:
    done = Airflow(dict.fromkeys(days(3), "success"))
    assert not _backfill(done, tmp_path).create(lambda ds: True, print)
    running = Airflow({"2024-03-01": "running"})
    assert _backfill(running, tmp_path).create(lambda ds: False, print)
    assert done.asked == running.asked == []


def test_days_that_the_store_lost_run_again(tmp_path: Path) -> None:
    airflow = Airflow(dict.fromkeys(days(3), "success"))
    assert _backfill(airflow, tmp_path).create(lambda ds: ds != "2024-03-02", print)
    assert airflow.asked[0]["reprocess"] == "completed"


def test_a_locked_database_is_waited_for_and_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("infra.backfill.PATIENCE_S", 0.0)
    airflow = Airflow()
    airflow.locked = 3
    assert _backfill(airflow, tmp_path).create(lambda ds: False, print)
    assert len(airflow.asked) == 1
    assert capsys.readouterr().out == "waiting: locked\n" * 3


def test_a_dag_that_airflow_refuses_is_reported(tmp_path: Path) -> None:
    airflow = Airflow()
    airflow.problems = ["shop.yaml:3: data.pth: unknown key"]
    with pytest.raises(BadInputError, match=r"no DAG shop_daily: shop.yaml:3: data.pth"):
        _backfill(airflow, tmp_path).await_dag()


@pytest.mark.parametrize("terminal", [True, False])
def test_days_are_shown_step_by_step(tmp_path: Path, terminal: bool) -> None:
    airflow = Airflow({"2024-03-01": "success", "2024-03-02": "failed"})
    text = io.StringIO()
    tasks = _backfill(airflow, tmp_path).watch(Console(file=text, force_terminal=terminal, width=100), lambda: None)
    shown = text.getvalue()
    assert len(tasks) == 2 * len(DAILY)
    assert "2.5 s" in shown
    assert "FAILED" in shown
    assert shown.count("not run") == len(DAILY) - 2


@pytest.mark.parametrize("terminal", [True, False])
def test_it_says_what_the_days_wait_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    monkeypatch.setattr("infra.backfill.PATIENCE_S", 0.0)
    text, polls = io.StringIO(), iter(range(4))

    def require_running() -> None:
        if next(polls) == 3:
            raise RetryLaterError("scheduler has ended")

    with pytest.raises(RetryLaterError, match="scheduler has ended"):
        _backfill(Airflow({"2024-03-01": "running"}), tmp_path).watch(
            Console(file=text, force_terminal=terminal, width=100), require_running
        )
    shown = " ".join(text.getvalue().split())
    assert "scheduler has not reported for a while" in shown
    assert "shop_daily is paused: unpause it at http://airflow/dags/shop_daily" in shown
    assert "train of 2024-03-01 waits for the pool gpu, which has no slots" in shown


def test_the_days_are_watched_on_after_an_airflow_that_did_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    airflow, text = Airflow({"2024-03-01": "success"}), io.StringIO()
    backfill, answers = _backfill(airflow, tmp_path), iter([False, True])
    runs = airflow.runs

    def late(*given: str) -> list[dict[str, Any]]:
        if next(answers):
            return runs(*given)
        raise RetryLaterError("Airflow does not answer")

    monkeypatch.setattr(airflow, "runs", late)
    assert len(backfill.watch(Console(file=text), lambda: None)) == len(DAILY)
    assert "waiting: Airflow does not answer" in text.getvalue()


def test_the_reason_of_a_failure_comes_from_its_log(tmp_path: Path) -> None:
    airflow = Airflow({"2024-03-01": "failed"})
    tasks = _backfill(airflow, tmp_path).watch(Console(file=io.StringIO()), lambda: None)
    failed = next(task for task in tasks if task.state == "failed")
    reason, log = failure_of(failed, "shop_daily", tmp_path / "logs")
    assert reason == "its log has no error message"
    log.parent.mkdir(parents=True)
    log.write_text('not json\n{"event": "x"}\n{"error_detail": [{"exc_value": "join ended with exit code 5: no"}]}\n')
    assert failure_of(failed, "shop_daily", tmp_path / "logs")[0] == "join ended with exit code 5: no"
