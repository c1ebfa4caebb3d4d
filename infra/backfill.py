"""Runs days of a scenario through Airflow and shows them as they go."""

from __future__ import annotations

import contextlib
import datetime
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from zoneinfo import ZoneInfo

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from feature_jobs.errors import BadInputError, RetryLaterError
from feature_jobs.schema import Scenario
from infra.airflow_api import AirflowApi, DagRun
from infra.day_task import ENDED, Task, task_of
from infra.waiting import PATIENCE_S, reasons
from tasks.steps import DAILY, daily_steps

POLL_S = 1.5
PARSE_TIMEOUT_S = 120.0
CREATE_TIMEOUT_S = 240.0  # one that failed on Airflow's locked SQLite stays active for two minutes


class Backfill:
    """The days of a scenario in Airflow."""

    def __init__(self, api: AirflowApi, scenario: Scenario, days: Sequence[str], data: Path | None) -> None:
        self.api = api
        self.scenario = scenario
        self.days = list(days)
        self.dag_id = f"{scenario.name}_daily"
        self.zone = ZoneInfo(scenario.schedule.zone)
        self._conf = {"data": str(data)} if data else {}
        first, last = (datetime.date.fromisoformat(ds) for ds in (days[0], days[-1]))
        self._first = datetime.datetime.combine(first, datetime.time(), self.zone).isoformat()
        self._last = datetime.datetime.combine(last, datetime.time.max, self.zone).isoformat()
        self._tasks: dict[str, list[Task]] = {}

    def await_dag(self) -> None:
        """Waits until Airflow knows the DAG. Raises BadInputError with Airflow's import errors where it refuses it."""
        deadline = time.monotonic() + PARSE_TIMEOUT_S
        while not self.api.has_dag(self.dag_id):
            errors = self.api.import_errors()
            if errors or time.monotonic() > deadline:
                why = "\n".join(errors) or f"not parsed within {PARSE_TIMEOUT_S:.0f} s"
                raise BadInputError(f"Airflow has no DAG {self.dag_id}: {why}")
            time.sleep(0.5)

    def create(self, committed: Callable[[str], bool], say: Callable[[str], None]) -> bool:
        """Asks Airflow to run the days that are not done; returns True if there are any. `say` reports each wait.

        A day counts as done where its run succeeded and the store still has its outputs.
        """
        runs = {self._ds(run): run["state"] for run in self.api.runs(self.dag_id, self._first, self._last)}
        if any(state not in ENDED for state in runs.values()):
            return True  # an earlier demo's days are still running
        # Airflow's runs may outlive the store: somebody deleted it, and Airflow still calls the days done.
        lost = [ds for ds in self.days if runs.get(ds) == "success" and not committed(ds)]
        missing = [ds for ds in self.days if runs.get(ds) != "success"]
        if not (lost or missing):
            return False
        self._ask("completed" if lost else "failed", say)
        return True

    def _ask(self, reprocess: str, say: Callable[[str], None]) -> None:
        """Creates Airflow's backfill, as soon as Airflow accepts one."""
        deadline, said_at = time.monotonic() + CREATE_TIMEOUT_S, time.monotonic()
        while True:
            try:
                # An ended one stays active for a while: Airflow looks only every half minute.
                if not self.api.active_backfills(self.dag_id):
                    self.api.backfill(self.dag_id, self._first, self._last, self._conf, reprocess=reprocess)
                    return
                problem = f"another backfill of {self.dag_id} is active; see {self.api.url}/dags/{self.dag_id}"
            except RetryLaterError as error:
                problem = str(error)
            if time.monotonic() > deadline:
                raise RetryLaterError(problem)
            if time.monotonic() - said_at > PATIENCE_S:
                said_at = time.monotonic()
                say(f"waiting: {problem}")
            time.sleep(1)

    def watch(self, console: Console, require_running: Callable[[], None]) -> list[Task]:
        """Shows the days until all have ended: a live table on a terminal, else lines. Returns the tasks.

        Where nothing changes for a while, it shows the reasons. `require_running` raises where a server has
        ended, since nothing would change any more.
        """
        since, before, waits = time.monotonic(), self._all(), list[str]()
        with self._screen(console) as show:
            while True:
                require_running()
                try:
                    ended = self._poll()
                    if self._all() != before:
                        since, before, waits = time.monotonic(), self._all(), []
                    elif not ended and time.monotonic() - since > PATIENCE_S:
                        since, waits = time.monotonic(), reasons(self.api, self.dag_id, before)
                except RetryLaterError as error:  # the days go on; a server that has ended is found above
                    ended, waits = False, [str(error)]
                show(waits)
                if ended:
                    return self._all()
                time.sleep(POLL_S)

    @contextlib.contextmanager
    def _screen(self, console: Console) -> Iterator[Callable[[list[str]], None]]:
        """Yields a function that shows the days; it is called after each poll, with the reasons why they wait."""
        if not console.is_terminal:
            printed: set[str] = set()
            yield lambda waits: self._print_lines(console, printed, waits)
            return
        with Live(console=console, refresh_per_second=4) as live:
            yield lambda waits: live.update(self._table(waits))

    def _print_lines(self, console: Console, printed: set[str], waits: list[str]) -> None:
        """Prints the lines that are new since the last call."""
        tasks = [task for task in self._all() if task.state in (*ENDED, "up_for_retry")]
        lines = [f"{task.ds} {task.step:<9} {task.text}" for task in tasks] + [f"waiting: {wait}" for wait in waits]
        for line in lines:
            if line not in printed:
                printed.add(line)
                console.print(line, markup=False, soft_wrap=True)

    def _poll(self) -> bool:
        """Reads the state of the runs; returns True if all have ended."""
        runs = self.api.runs(self.dag_id, self._first, self._last)
        for run in runs:
            ds = self._ds(run)
            known = self._tasks.get(ds, [])
            # An ended day does not change: a long backfill would ask Airflow for all its days each time.
            if run["state"] == "queued" or (known and all(task.state in ENDED for task in known)):
                continue
            found = self.api.task_instances(self.dag_id, run["dag_run_id"])
            self._tasks[ds] = [task_of(ds, run["dag_run_id"], instance) for instance in found]
        return bool(runs) and all(run["state"] in ENDED for run in runs)

    def _table(self, waits: Sequence[str]) -> Table:
        caption = "\n".join(f"waiting: {wait}" for wait in waits)
        steps = daily_steps(self.scenario)
        table = Table("day", *steps, title=self.dag_id, caption=caption, box=box.SIMPLE_HEAD, padding=0)
        for ds in self.days:
            tasks = {task.step: task.text for task in self._tasks.get(ds, [])}
            table.add_row(ds, *(tasks.get(step, Text("·", "dim")) for step in steps))
        return table

    def _all(self) -> list[Task]:
        order = {step: index for index, step in enumerate(DAILY)}
        tasks = [task for ds in self.days for task in self._tasks.get(ds, [])]
        return sorted(tasks, key=lambda task: (task.ds, task.end or float("inf"), order.get(task.step, 0)))

    def _ds(self, run: DagRun) -> str:
        return str(datetime.datetime.fromisoformat(run["logical_date"]).astimezone(self.zone).date())


def failure_of(task: Task, dag_id: str, logs: Path) -> tuple[str, Path]:
    """Returns the reason why a task failed, from its log, and the log's path."""
    folder = logs / f"dag_id={dag_id}" / f"run_id={task.run_id}" / f"task_id={task.step}"
    log = folder / f"attempt={task.try_number}.log"
    reason = "its log has no error message"
    if log.is_file():
        for line in log.read_text(errors="replace").splitlines():
            try:
                details = json.loads(line).get("error_detail") or []
            except ValueError:
                continue
            reason = str(details[0]["exc_value"]) if details else reason
    return reason, log
