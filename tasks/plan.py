"""What a run or a backfill would do, read from the commit records; nothing is computed."""

from __future__ import annotations

from typing import Any

from feature_jobs.days import check_day
from feature_jobs.errors import ParentMissingError
from feature_jobs.schema import Scenario
from tasks.code import code_digest
from tasks.steps import DAILY, STEPS, upstream
from tasks.store import ScenarioStore


def plan_days(scenario: Scenario, store: ScenarioStore, days: list[str]) -> list[dict[str, Any]]:
    """A row a day: {"ds", "generation", "steps": {step: {"state", "why"}}}.

    States: `done`; `run`; `blocked`, an input of an earlier day is neither committed nor part of this run.
    """
    rows = []
    planned: set[str] = set()
    for ds in days:
        check_day(scenario, ds)
        steps = {name: _state(name, scenario, ds, store, planned) for name in DAILY}
        rows.append({"ds": ds, "generation": store.generation_of(ds), "steps": steps})
        planned.add(ds)
    return rows


def _state(name: str, scenario: Scenario, ds: str, store: ScenarioStore, planned: set[str]) -> dict[str, str]:
    from tasks.runner import config_digest, resolve_inputs

    commit = store.find(name, ds)
    if commit is not None:
        manifest = commit.manifest
        changed = [
            word
            for word, now in (("config", config_digest(scenario, STEPS[name])), ("code", code_digest(name)))
            if manifest.get(word) != now
        ]
        why = f"with other {' and '.join(changed)}; `recloop chain replay --from {ds}` recomputes" if changed else ""
        return {"state": "done", "why": why}
    before = [step for step in upstream(name) if store.find(step, ds) is None]
    try:
        resolve_inputs(STEPS[name], scenario, ds, store)
    except ParentMissingError as error:
        if error.ds not in planned and error.ds != ds:
            return {"state": "blocked", "why": str(error)}
    return {"state": "run", "why": f"after {', '.join(before)}" if before else ""}


def plan_table(rows: list[dict[str, Any]]) -> str:
    """The plan as text: a line a day, then the reasons."""
    width = max(map(len, DAILY)) + 1
    lines = ["day         " + "".join(f"{name:<{width}}" for name in DAILY)]
    reasons: list[str] = []
    for row in rows:
        lines.append(f"{row['ds']}  " + "".join(f"{s['state']:<{width}}" for s in row["steps"].values()))
        reasons += [f"{row['ds']} {n}: {s['why']}" for n, s in row["steps"].items() if s["state"] != "run" and s["why"]]
    to_run = sum(s["state"] == "run" for row in rows for s in row["steps"].values())
    return "\n".join([*lines, *dict.fromkeys(reasons), f"{to_run} steps would run"])
