"""What the demo tells at the end: facts of the days from the store, and where its time went."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from feature_jobs.schema import Scenario
from infra.backfill import Task
from tasks.commands.summary import day_facts
from tasks.steps import DAILY
from tasks.store.champion_log import ChampionLog
from tasks.store.scenario_store import ScenarioStore

JOURNAL = "journal.jsonl"
PROMOTED = "promoted"


@dataclass(frozen=True)
class Times:
    """Where the demo's wall time went, in seconds. `compute`: inside step functions, summed over steps.

    `running` is the time during which at least one task ran, `step` what the steps' processes took in all.
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
        """Reads the journal from a size on, and Airflow's task times of this demo."""
        lines = (store.read(JOURNAL) or b"")[journal_from:].splitlines()
        seconds = [json.loads(line).get("seconds", {}) for line in lines]
        step, compute = (sum(entry.get(kind, 0.0) for entry in seconds) for kind in ("total", "compute"))
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
    """Bytes in the journal so far."""
    return len(store.read(JOURNAL) or b"")


def demo_facts(scenario: Scenario, store: ScenarioStore, days: Sequence[str]) -> dict[str, Any]:
    """The part of demo.json that the store knows."""
    champion = ChampionLog(store).current()
    return {
        "scenario": scenario.name,
        "days": [day_facts(scenario, store, ds) for ds in days],
        "champion": champion
        and {"name": champion.model, "version": champion.version, "checkpoint": champion.checkpoint},
    }


def _promoted(day: dict[str, Any]) -> bool:
    """Also where the version was promoted without a judgement: "promoted, unjudged: …"."""
    return bool(day["gate"]) and day["gate"].startswith(PROMOTED)


def print_days(facts: dict[str, Any], console: Console) -> None:
    """Two tables: what the days gave, and what their steps took."""
    quality = table("day", "rows", "AUC of", "parent", "champion", "challenger", "verdict", "version")
    for day in facts["days"]:
        parent, gate = day["auc_progressive"], day["gate_auc"]
        aucs = [lines(side.values()) for side in (parent, gate["champion"], gate["challenger"])]
        verdict = day["gate"] and (day["gate"].split(":")[0] if _promoted(day) else "refused")
        last = [str(value or "-") for value in (verdict, day["version"])]
        quality.add_row(day["ds"], str(day["rows"]), "\n".join(parent), *aucs, *last)
    console.print(quality)
    for day in facts["days"]:
        if day["gate"] not in (None, PROMOTED):
            console.print(f"{day['ds']} {'' if _promoted(day) else 'refused: '}{day['gate']}", markup=False)
    times = table("seconds", *DAILY)
    for day in facts["days"]:
        times.add_row(day["ds"], *(f"{day['seconds'][s]:.1f}" if s in day["seconds"] else "-" for s in DAILY))
    console.print(times)
    champion = facts["champion"]
    if champion:
        console.print(f"champion: {champion['name']} version {champion['version']} ({champion['checkpoint'][:12]})")


def table(*columns: str) -> Table:
    """A plain table that fits into 80 columns."""
    plain = Table(box=box.SIMPLE_HEAD, padding=0)
    for column in columns:
        plain.add_column(column, no_wrap=True)
    return plain


def lines(values: Iterable[float | None]) -> str:
    """Each value on a line of its own: three digits, or a dash."""
    return "\n".join("-" if value is None else f"{value:.3f}" for value in values)
