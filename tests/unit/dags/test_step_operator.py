"""The meaning of a step's end to Airflow. The steps here are small scripts at the execution seam."""

import datetime
import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from tests.airflow_home import executed  # isort: skip (before the first import of Airflow)
from dags.execution import ProcessExecution

LOGICAL = datetime.datetime(2022, 4, 24, 19, tzinfo=datetime.UTC)  # 03:00 of the 25th in Shanghai


def _operator(**arguments: Any) -> Any:
    from dags.step_operator import StepOperator

    return StepOperator(task_id="train", step="train", scenario="s.yaml", **arguments)


def _context(**given: Any) -> dict[str, Any]:
    run = SimpleNamespace(run_type=given.pop("run_type", "scheduled"), run_id="r")
    interval = {"data_interval_start": LOGICAL, "data_interval_end": LOGICAL + datetime.timedelta(days=1)}
    return {"dag_run": run, "logical_date": LOGICAL, "params": {}, **interval, **given}


def _execute(
    monkeypatch: pytest.MonkeyPatch, code: str, context: dict[str, Any] | None = None, **arguments: Any
) -> Any:
    program = ProcessExecution([sys.executable, "-c", code])
    monkeypatch.setattr("dags.step_operator.execution_of", lambda environment: program)
    operator = _operator(**arguments)
    return executed(operator, context or _context())


def test_xcom_gets_digest_and_uri_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    result = {"step": "train", "digest": "ab", "uri": "/store/x", "metrics": {"auc": 0.7}, "seconds": {"total": 1}}
    code = f"print('epoch 1'); print({json.dumps(result)!r}); print()"
    assert _execute(monkeypatch, code) == {"digest": "ab", "uri": "/store/x"}


def test_the_command_names_step_scenario_day_and_data(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import json, sys; print(json.dumps({'digest': ' '.join(sys.argv[1:]), 'uri': None}))"
    context = _context(params={"data": "/logs of mine"})
    got = _execute(monkeypatch, code, context, zone="Asia/Shanghai", options=["--worker", "1"])
    assert got["digest"] == "train --scenario s.yaml --ds 2022-04-25 --worker 1 --json --data /logs of mine"


@pytest.mark.parametrize(
    ("code", "on_no", "expected"),
    [
        (1, "fail", "AirflowFailException"),
        (2, "fail", "AirflowFailException"),
        (3, "fail", "AirflowFailException"),
        (3, "skip", "AirflowSkipException"),
        (4, "fail", "AirflowFailException"),
        (5, "skip", "AirflowFailException"),
        (6, "fail", "AirflowException"),
        (137, "fail", "AirflowException"),
    ],
)
def test_exit_codes(monkeypatch: pytest.MonkeyPatch, code: int, on_no: str, expected: str) -> None:
    script = f"import sys; print('recloop: the reason\\nand more', file=sys.stderr); sys.exit({code})"
    with pytest.raises(Exception, match="the reason\nand more") as caught:
        _execute(monkeypatch, script, on_no=on_no)
    assert type(caught.value).__name__ == expected
    assert f"exit code {code}" in str(caught.value)


@pytest.mark.parametrize(
    ("end", "printed", "reason"),
    [
        ("os.kill(os.getpid(), 9)", "", "exit code -9: SIGKILL: out of memory, or killed by hand"),
        ("os.kill(os.getpid(), 15)", "batch 3 of 9", r"exit code -15: SIGTERM: asked to end.*was: batch 3 of 9"),
        ("sys.exit(137)", "batch 3 of 9", r"exit code 137: SIGKILL: .*; its last line was: batch 3 of 9"),
        ("sys.exit(137)", "recloop: over the limit of 4 GiB", "exit code 137: over the limit of 4 GiB"),
        ("os.kill(os.getpid(), 11)", "", "exit code -11: SIGSEGV: ended from outside, or by a defect in a library"),
    ],
)
def test_a_signal_is_named_and_worth_a_retry(
    monkeypatch: pytest.MonkeyPatch, end: str, printed: str, reason: str
) -> None:
    with pytest.raises(Exception, match=reason) as caught:
        _execute(monkeypatch, f"import os, sys; print({printed!r}, file=sys.stderr, flush=True); {end}")
    assert type(caught.value).__name__ == "AirflowException"


def test_a_step_without_its_json_line_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Exception, match="without its JSON line but with 'hello'"):
        _execute(monkeypatch, "print('hello')")


def test_a_timeout_ends_the_step_and_is_not_retried(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.sdk.exceptions import AirflowTaskTimeout

    class Late:
        def run(self, *_: Any) -> int:
            raise AirflowTaskTimeout

        def kill(self) -> None:
            pass

    monkeypatch.setattr("dags.step_operator.execution_of", lambda environment: Late())
    operator = _operator(execution_timeout=datetime.timedelta(seconds=5))
    with pytest.raises(Exception, match="not done within 0:00:05") as caught:
        executed(operator, _context())
    assert type(caught.value).__name__ == "AirflowFailException"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"RECLOOP_EXECUTION": "podman"}, "RECLOOP_EXECUTION=podman: no such mode"),
        ({"RECLOOP_EXECUTION": "kubernetes", "RECLOOP_TAG": ""}, "RECLOOP_TAG=: name the release"),
    ],
)
def test_settings_that_do_not_do_fail_with_their_name(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], message: str
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    operator = _operator()
    with pytest.raises(Exception, match=message) as caught:
        executed(operator, _context())
    assert type(caught.value).__name__ == "AirflowFailException"


def test_the_day_of_a_run() -> None:
    end = datetime.datetime(2022, 5, 1, 22, tzinfo=datetime.UTC)  # Monday the 2nd, 06:00 in Shanghai
    weekly = _operator(zone="Asia/Shanghai", picks="last")
    assert _operator(zone="Asia/Shanghai").ds_of(_context()) == "2022-04-25"
    assert weekly.ds_of(_context(data_interval_end=end)) == "2022-05-01"
    with pytest.raises(Exception, match="trigger it with the day as logical date"):
        weekly.ds_of(_context(logical_date=None))


def test_the_day_of_a_run_that_a_person_triggers_is_that_of_its_logical_date() -> None:
    now = datetime.datetime.now(datetime.UTC)
    from_the_command_line = {"data_interval_start": now, "data_interval_end": now + datetime.timedelta(days=1)}
    shanghai = _operator(zone="Asia/Shanghai")
    assert shanghai.ds_of(_context(run_type="manual", **from_the_command_line)) == "2022-04-25"
    with pytest.raises(Exception, match=r"is not over yet in Asia/Shanghai.* trigger an earlier day"):
        shanghai.ds_of(_context(run_type="manual", logical_date=now))


def _announced(monkeypatch: pytest.MonkeyPatch, try_number: int = 1, **result: Any) -> tuple[list[str], Any]:
    """Names of the assets that get an event when the step ends with `result`, and the event's metadata."""
    from dags.assets import asset_of

    program = ProcessExecution([sys.executable, "-c", f"print({json.dumps(result)!r})"])
    monkeypatch.setattr("dags.step_operator.execution_of", lambda environment: program)
    asset, event = asset_of("shop", "champion"), SimpleNamespace(extra=None)
    operator = _operator(outlets=[asset])
    executed(operator, _context(ti=SimpleNamespace(try_number=try_number), outlet_events={asset: event}))
    return [outlet.name for outlet in operator.outlets], event.extra


def test_a_new_output_is_announced_with_day_digest_and_auc(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = {"version": 3, "auc": {"buy": 0.7}, "rows": 5}
    names, metadata = _announced(monkeypatch, outcome="done", digest="ab", uri="/store/x", metrics=metrics)
    assert names == ["shop.champion"]
    assert metadata == {"ds": "2022-04-24", "digest": "ab", "uri": "/store/x", "version": 3, "auc.buy": 0.7}


def test_an_output_that_was_there_is_announced_only_after_a_lost_try(monkeypatch: pytest.MonkeyPatch) -> None:
    again: dict[str, Any] = {"outcome": "already_done", "digest": "ab", "uri": "/store/x", "metrics": {}}
    assert _announced(monkeypatch, **again) == ([], None)
    names, metadata = _announced(monkeypatch, try_number=2, **again)
    assert names == ["shop.champion"]
    assert metadata["digest"] == "ab"
