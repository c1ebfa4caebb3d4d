"""Summary at the end of the demo: facts of the days from the store, and its wall time by part."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypedDict

from rich.console import Console

from feature_jobs.schema import Scenario
from infra.day_task import Task
from tasks.commands.day_table import table_of
from tasks.commands.summary import DayFacts, day_facts
from tasks.store.champion_log import ChampionLog
from tasks.store.scenario_store import ScenarioStore


@dataclass(frozen=True)
class Times:
    """The demo's wall time by part, in seconds. `compute`: inside step functions, summed over steps.

    `running` is the time during which at least one task ran, `step` the sum of the steps' processes.
    """

    wall: float
    startup: float
    running: float
    step: float
    compute: float

    @classmethod
    def of(
        cls, store: ScenarioStore, journal_from: int, tasks: Iterable[Task], *, startup_s: float, wall_s: float
    ) -> Times:
        """Reads the journal from line `journal_from` on, and Airflow's task times of this demo."""
        seconds = [entry.get("seconds", {}) for entry in list(store.journal())[journal_from:]]
        step, compute = (sum(entry.get(kind, 0.0) for entry in seconds) for kind in ("total", "compute"))
        # Tasks overlap: their sum would count some seconds twice.
        running = covered([(t.start, t.end) for t in tasks if t.start and t.end]) if seconds else 0.0
        return cls(wall_s, startup_s, min(running, wall_s - startup_s), step, compute)

    @property
    def useful_share(self) -> float:
        """Compute over wall time; steps that ran side by side both count, up to 1."""
        return round(min(1.0, self.compute / self.wall), 3)

    def text(self) -> str:
        """One line for people."""
        between = max(0.0, self.wall - self.startup - self.running)
        return (
            f"{self.wall:.0f} s in all: {self.compute:.0f} s useful compute ({self.useful_share:.0%}),"
            f" {max(0.0, self.step - self.compute):.0f} s imports and bookkeeping of the steps' processes;"
            f" Airflow: {self.startup:.0f} s to start, {max(0.0, self.running - self.step):.0f} s around tasks,"
            f" {between:.0f} s between them"
        )


def covered(intervals: Sequence[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def journal_size(store: ScenarioStore) -> int:
    """Lines in the journal so far."""
    return len(list(store.journal()))


class DemoChampion(TypedDict):
    """The version that serves after the demo."""

    name: str
    version: str
    checkpoint: str


class DemoFacts(TypedDict):
    """The part of demo.json that comes from the store."""

    scenario: str
    days: list[DayFacts]
    champion: DemoChampion | None


def demo_facts(scenario: Scenario, store: ScenarioStore, days: Sequence[str]) -> DemoFacts:
    """The part of demo.json that comes from the store."""
    champion = ChampionLog(store).current()
    return {
        "scenario": scenario.name,
        "days": [day_facts(scenario, store, ds) for ds in days],
        "champion": {"name": champion.model, "version": champion.version, "checkpoint": champion.checkpoint}
        if champion
        else None,
    }


def print_days(scenario: Scenario, facts: DemoFacts, console: Console) -> None:
    """The table of the days, and the version that serves after them."""
    console.print(table_of(scenario, facts["days"]), crop=False)  # a reason names commands: whole lines
    champion = facts["champion"]
    if champion:
        console.print(f"champion: {champion['name']} version {champion['version']} ({champion['checkpoint'][:12]})")
