"""The one operator: a task is a step's command for a day, and its exit code decides the task's state."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shlex
import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, cast
from zoneinfo import ZoneInfo

from airflow.sdk import Asset, BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException, AirflowTaskTimeout

from dags.assets import metadata_of
from dags.execution import Execution
from dags.timetable import Picks, day_of
from feature_jobs.errors import GateError, RetryLaterError
from tasks.run.modes import execution_of

if TYPE_CHECKING:
    from airflow.sdk import Context

ERROR_MARK = "recloop: "  # the beginning of the command's error message
ALREADY_DONE = "already_done"
KILLED = 128  # shells and containers report signal N as 128 + N
MANUAL = "manual"  # a DagRunType, which is a string; its module is slow to import
WHO_SENDS = {
    signal.SIGKILL: "out of memory, or killed by hand",
    signal.SIGTERM: "asked to end, by a person or by a machine that shuts down",
}


class Result(TypedDict, total=False):
    """The JSON line that a step ends with, as far as Airflow uses it: see tasks.run.runner.Outcome."""

    outcome: str
    digest: str | None
    uri: str | None
    metrics: dict[str, Any]


class StepOperator(BaseOperator):
    """Runs `recloop STEP --scenario FILE --ds DAY` in the mode of RECLOOP_EXECUTION, and streams its output to the log.

    Exit codes: 0 is success; a gate's no (3) skips the task or fails it, as the step declares; 6 and death by a signal
    are retried; all else fails at once, because the same command would fail again. DAY is a day of the run's data
    interval, see `dags.timetable.day_of`. The run's `data` parameter is passed on as --data. XCom gets the output's
    digest and place, nothing else. Each of the task's `outlets` gets an event with more about a new output.
    """

    template_fields: Sequence[str] = ("options",)
    outlets: list[Asset]
    ui_color = "#e6f2ef"

    def __init__(
        self,
        *,
        step: str,
        scenario: str,
        zone: str = "UTC",
        on_no: Literal["fail", "skip"] = "fail",
        picks: Picks = "first",
        options: Sequence[str] = (),
        **airflow: Any,
    ) -> None:
        super().__init__(**airflow)
        self.step = step
        self.scenario = scenario
        self.zone = zone
        self.on_no = on_no
        self.picks = picks
        self.options = options

    _execution: Execution | None = None

    def execute(self, context: Context) -> dict[str, str | None]:
        """Runs the step. Raises the exceptions by which Airflow skips, fails or retries a task."""
        ds = self.ds_of(context)
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
            self.log.info(line)  # progress too comes on stderr; the error itself is in the exception of `_judge`

        self.log.info("running: recloop %s", shlex.join(arguments))
        try:
            self._execution = execution_of(os.environ)
            code = self._execution.run(arguments, on_stdout, on_stderr)
        except ValueError as error:
            raise AirflowFailException(str(error)) from None
        except AirflowTaskTimeout:
            # A retry would take as long again, so a person must look.
            raise AirflowFailException(f"{self.step}: not done within {self.execution_timeout}; stopped") from None
        self._judge(code, reason_of(errors, code))
        result = result_of(output)
        self._announce(context, ds, result)
        return {"digest": result.get("digest"), "uri": result.get("uri")}

    def on_kill(self) -> None:
        """Called when Airflow stops the task: stops the step with all its processes."""
        if self._execution is not None:
            self._execution.kill()

    def ds_of(self, context: Context) -> str:
        """The day that this run is about. Raises AirflowFailException where there is none, or it is not over."""
        logical_date, run = context.get("logical_date"), context["dag_run"]
        if logical_date is None:
            raise AirflowFailException(
                f"run {run.run_id} has no logical date, so its day is unknown; trigger it with the day as logical date"
            )
        if run.run_type != MANUAL:
            return day_of(context["data_interval_start"], context["data_interval_end"], self.zone, self.picks)
        ds = str(logical_date.astimezone(ZoneInfo(self.zone)).date())  # `airflow dags trigger` sets another interval
        if ds >= str(datetime.datetime.now(ZoneInfo(self.zone)).date()):
            raise AirflowFailException(
                f"{ds} is not over yet in {self.zone}, so its data is not complete; trigger an earlier day"
            )
        return ds

    def _announce(self, context: Context, ds: str, result: Result) -> None:
        """Attaches metadata to the events that Airflow records for the outlets when this task has succeeded."""
        if not self.outlets:
            return
        # A first try that finds its output committed produced nothing new, so it must not trigger other DAGs. A later
        # try may follow one that was killed between its commit and its event: then the event is still due.
        if result.get("outcome") == ALREADY_DONE and context["ti"].try_number == 1:
            self.outlets = []
        for outlet in self.outlets:
            context["outlet_events"][outlet].extra = metadata_of(ds, result)

    def _judge(self, code: int, reason: str) -> None:
        if code == 0:
            return
        message = f"{self.step} ended with exit code {code}: {reason}"
        if code == GateError.exit_code and self.on_no == "skip":
            raise AirflowSkipException(message)
        if code == RetryLaterError.exit_code or code < 0 or code > KILLED:
            raise AirflowException(message)
        raise AirflowFailException(message)


def result_of(output: Sequence[str]) -> Result:
    """The JSON object on the last line of a step's output. Raises AirflowFailException where there is none."""
    try:
        found = json.loads(last_line(output))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise AirflowFailException(f"the step ended without its JSON line but with {last_line(output)!r}")
    return cast("Result", found)


def reason_of(errors: Sequence[str], code: int) -> str:
    """The error message at the end of a step's stderr, from `recloop: ` on; else the signal that ended the step, and
    the last line of stderr."""
    starts = [index for index, line in enumerate(errors) if line.startswith(ERROR_MARK)]
    if starts:
        return "\n".join(errors[starts[-1] :]).removeprefix(ERROR_MARK)
    ended_by, last = signal_of(code), last_line(errors)
    if not ended_by:
        return last
    return f"{ended_by}; its last line was: {last}" if last else ended_by


def signal_of(code: int) -> str:
    """Explains the signal that ended the step, from its exit code; empty where the code is not of a signal."""
    number = -code if code < 0 else code - KILLED
    with contextlib.suppress(ValueError):
        found = signal.Signals(number)
        return f"{found.name}: {WHO_SENDS.get(found, 'ended from outside, or by a defect in a library')}"
    return ""


def last_line(lines: Sequence[str]) -> str:
    """The last line that is not empty."""
    return next((line for line in reversed(lines) if line.strip()), "")
