"""The one operator: a task is a step's command for a day, and its exit code decides how the task ends."""

from __future__ import annotations

import datetime
import json
import os
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal
from zoneinfo import ZoneInfo

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException, AirflowTaskTimeout

from dags.execution import Execution
from feature_jobs.errors import GateError, RetryLaterError
from tasks.run.modes import execution_of

if TYPE_CHECKING:
    from airflow.sdk import Context

ERROR_MARK = "recloop: "  # how the command begins its error message
KILLED = 128  # shells and containers report signal N as 128 + N


class StepOperator(BaseOperator):  # type: ignore[misc]
    """Runs `recloop STEP --scenario FILE --ds DAY`, where RECLOOP_EXECUTION says, and streams its output to the log.

    Exit codes: 0 is success; a gate's no (3) skips the task or fails it, as the step declares; 6 and death by a signal
    are retried; all else fails at once, because the same command would fail again. `day` chooses ds from a scheduled
    run's data interval: its first day, or its last complete one. A run that a person triggers is of its logical
    date's day. Days in `skip_days` skip, and so do scheduled ones after `last_day`. The run's `data` parameter goes on
    as --data. XCom gets the output's digest and place, nothing else.
    """

    template_fields: Sequence[str] = ("options",)
    ui_color = "#e6f2ef"

    def __init__(
        self,
        *,
        step: str,
        scenario: str,
        zone: str = "UTC",
        on_no: Literal["fail", "skip"] = "fail",
        day: Literal["first", "last"] = "first",
        skip_days: Sequence[str] = (),
        last_day: str | None = None,
        options: Sequence[str] = (),
        **airflow: Any,
    ) -> None:
        super().__init__(**airflow)
        self.step = step
        self.scenario = scenario
        self.zone = zone
        self.on_no = on_no
        self.day = day
        self.skip_days = skip_days
        self.last_day = last_day
        self.options = options

    _execution: Execution | None = None

    def execute(self, context: Context) -> dict[str, str | None]:
        """Runs the step. Raises what Airflow understands as skip, fail or retry."""
        ds = self.ds_of(context)
        if ds in self.skip_days:
            raise AirflowSkipException(f"{ds} is in the scenario's data.days.skip")
        if self.last_day and ds > self.last_day and context["dag_run"].run_type == "scheduled":
            raise AirflowSkipException(f"the scenario's data ends on {self.last_day}; pause this DAG")
        arguments = [self.step, "--scenario", self.scenario, "--ds", ds, *self.options, "--json"]
        if data := (context.get("params") or {}).get("data"):
            arguments += ["--data", str(data)]
        output: list[str] = []
        errors: list[str] = []

        def on_stdout(line: str) -> None:
            output.append(line)
            self.log.info(line)

        def on_stderr(line: str) -> None:
            errors.append(line)
            self.log.info(line)  # progress too comes on stderr; the error itself is in what `_judge` raises

        self.log.info("running: recloop %s", shlex.join(arguments))
        try:
            self._execution = execution_of(os.environ)
            code = self._execution.run(arguments, on_stdout, on_stderr)
        except ValueError as error:
            raise AirflowFailException(str(error)) from None
        except AirflowTaskTimeout:
            # A step that ran too long once would do so again: a person must look.
            raise AirflowFailException(f"{self.step}: not done within {self.execution_timeout}; stopped") from None
        self._judge(code, reason_of(errors))
        result = result_of(output)
        return {"digest": result.get("digest"), "uri": result.get("uri")}

    def on_kill(self) -> None:
        """Airflow wants the task to end: ends the step with all of its processes."""
        if self._execution is not None:
            self._execution.kill()

    def ds_of(self, context: Context) -> str:
        """The day that this run is about."""
        run = context["dag_run"]
        logical_date = context.get("logical_date")
        if logical_date is None:
            raise AirflowFailException(
                f"run {run.run_id} has no logical date, so it is of no day; trigger it with the day as logical date"
            )
        zone = ZoneInfo(self.zone)
        if self.day == "last" and run.run_type != "manual":
            before_end = context["data_interval_end"].astimezone(zone) - datetime.timedelta(days=1)
            return str(before_end.date())
        return str(logical_date.astimezone(zone).date())

    def _judge(self, code: int, reason: str) -> None:
        if code == 0:
            return
        message = f"{self.step} ended with exit code {code}: {reason}"
        if code == GateError.exit_code and self.on_no == "skip":
            raise AirflowSkipException(message)
        if code == RetryLaterError.exit_code or code < 0 or code > KILLED:
            raise AirflowException(message)
        raise AirflowFailException(message)


def result_of(output: Sequence[str]) -> dict[str, Any]:
    """The JSON object on the last line of a step's output. Raises AirflowFailException where there is none."""
    try:
        result = json.loads(last_line(output))
    except ValueError:
        result = None
    if not isinstance(result, dict):
        raise AirflowFailException(f"the step ended without its JSON line but with {last_line(output)!r}")
    return result


def reason_of(errors: Sequence[str]) -> str:
    """The error message at the end of a step's stderr: from `recloop: ` on, or the last line of anything else."""
    starts = [index for index, line in enumerate(errors) if line.startswith(ERROR_MARK)]
    if not starts:
        return last_line(errors)
    return "\n".join(errors[starts[-1] :]).removeprefix(ERROR_MARK)


def last_line(lines: Sequence[str]) -> str:
    """The last line that is not empty."""
    return next((line for line in reversed(lines) if line.strip()), "")
