"""A task of a day as Airflow reports it, and as the demo shows it."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from rich.text import Text

from infra.airflow_api import TaskInstance

ENDED = ("success", "failed", "skipped", "upstream_failed", "removed")
SHOWN = {
    "success": ("green", "done"),
    "failed": ("bold red", "FAILED"),
    "running": ("cyan", "running"),
    "upstream_failed": ("dim", "not run"),
    "up_for_retry": ("yellow", "retrying"),
    "skipped": ("dim", "skipped"),
}


@dataclass(frozen=True)
class Task:
    """A task of a day as Airflow reports it. Times in seconds since 1970, None where it has none yet."""

    ds: str
    step: str
    state: str
    start: float | None
    end: float | None
    run_id: str
    try_number: int
    pool: str = "default_pool"

    @property
    def text(self) -> Text:
        """Its cell in the table."""
        style, word = SHOWN.get(self.state, ("dim", "·" if self.state in ("", "none") else self.state))
        if self.state == "success" and self.start and self.end:
            word = f"{self.end - self.start:.1f} s"
        return Text(word, style)


def task_of(ds: str, run_id: str, instance: TaskInstance) -> Task:
    """A task of a day's run, from Airflow's report of it."""

    def seconds(moment: str | None) -> float | None:
        return datetime.datetime.fromisoformat(moment).timestamp() if moment else None

    start, end = seconds(instance["start_date"]), seconds(instance["end_date"])
    state, tries, pool = instance["state"] or "", instance["try_number"], instance["pool"]
    return Task(ds, instance["task_id"], state, start, end, run_id, tries, pool)
