"""What a run or a backfill would do, read from the commit records, and what its training would begin with.

Nothing is computed, and nothing of the embeddings is read.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from feature_jobs.errors import ParentMissingError
from feature_jobs.schema import Scenario
from feature_jobs.schema.days import check_day, previous_day
from tasks.steps import DAILY, STEPS, upstream
from tasks.store.scenario_store import Commit, ScenarioStore
from tasks.store.source_digest import code_digest

MOST_NAMES = 6


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
    from tasks.run.runner import config_digest, resolve_inputs

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
    for argument, source in STEPS[name].reads.items():
        try:
            resolve_inputs(replace(STEPS[name], reads={argument: source}), scenario, ds, store)
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


def plan_training(scenario: Scenario, store: ScenarioStore, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What the first training of the planned days (where all are done: the next one) would begin with.

    {"ds", "parent": {"ds", "digest"}, ...}, the rest as `models.training.footprint` tells it.
    """
    from models.training.footprint import footprint

    ds = next((row["ds"] for row in rows if row["steps"]["train"]["state"] != "done"), None)
    parent = store.find("train", rows[-1]["ds"]) if ds is None else _newest_before(scenario, store, ds)
    named = {"ds": parent.ds, "digest": parent.digest} if parent else None
    return {"ds": ds, "parent": named, **footprint(scenario, parent.folder if parent else None)}


def _newest_before(scenario: Scenario, store: ScenarioStore, ds: str) -> Commit | None:
    day = previous_day(scenario, ds)
    while day is not None and (commit := store.find("train", day)) is None:
        day = previous_day(scenario, day)
    return None if day is None else commit


HEAD = ("table", "parent gives", "rows", "weights", "state", "bookkeeping", "a row", "at most", "settings")


def training_table(plan: dict[str, Any]) -> str:
    """What `plan_training` told, as text."""
    parent, changes = plan["parent"], plan["changes"]
    title = f"training of {plan['ds']}" if plan["ds"] else "the next training"
    if parent:
        title += f" starts from the checkpoint of {parent['ds']} ({parent['digest'][:12]})"
    else:
        title += " starts anew, no day before it is trained; how many rows its tables will hold is not known"
    lines = [HEAD, *(_table_line(name, table) for name, table in plan["tables"].items())]
    if parent:
        held = [table for table in plan["tables"].values() if table["fate"] == "restored"]
        sums = (sum(t[key] for t in held) for key in ("weight_bytes", "state_bytes", "bookkeeping_bytes"))
        lines.append(("all", "", f"{sum(t['rows'] for t in held):,}", *map(_size, sums), "", "", ""))
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    text = [
        f"{line[0]:<{widths[0]}}  {line[1]:<{widths[1]}}  "
        + "".join(f"{cell:>{width}}  " for cell, width in zip(line[2:-1], widths[2:-1], strict=True))
        + line[-1]
        for line in lines
    ]
    sketch = f", the sketch of ids without a row {_size(plan['sketch_bytes'])}" if plan["sketch_bytes"] else ""
    cached, dense = plan["cached_rows"], plan["dense"]
    others = "the others lie in a file, or beside a GPU in memory"
    places = [f"{cached:,} rows at most are held where they are learned, {others}"] if cached else []
    return "\n".join(
        [
            title,
            *(line.rstrip() for line in text),
            f"the id map takes {_size(plan['id_map_bytes'])}{sketch}",
            *places,
            f"dense part: {dense['parameters']:,} parameters, {_size(dense['bytes'])} with their moments",
            *(_change_lines(changes) if changes else []),
        ]
    )


def _table_line(name: str, table: dict[str, Any]) -> tuple[str, ...]:
    if table["fate"] == "dropped":
        return (name, "dropped", f"{table['rows']:,}", *[""] * 6)
    settings = ", ".join(f"{key} {value}" for key, value in table["settings"].items())
    sizes = [_size(table[key]) for key in ("weight_bytes", "state_bytes", "bookkeeping_bytes")]
    known = (f"{table['rows']:,}", *sizes) if table["fate"] == "restored" else ("-",) * 4
    most = "unbounded" if table["most_bytes"] is None else _size(table["most_bytes"])
    return (name, table["fate"], *known, _size(table["row_bytes"]), most, settings)


def _change_lines(changes: dict[str, Any]) -> list[str]:
    dense, tables = changes["dense"], changes["tables"]
    kinds = ("new", "resized", "dropped")
    lines = [f"  {dense['restored']} tensors restored, " + ", ".join(f"{len(dense[kind])} {kind}" for kind in kinds)]
    for kind in kinds:
        if names := dense[kind]:
            more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
            lines.append(f"  {kind}: {', '.join(names[:MOST_NAMES])}{more}")
    if resized := tables["resized"]:
        kept = min(resized["from"], resized["to"])
        rest = ", the others begin anew" if resized["to"] > kept else ", the others are dropped"
        lines.append(f"embedding_dim {resized['from']} → {resized['to']}: the first {kept} are kept{rest}")
    if optimizer := tables["optimizer"]:
        lines.append(
            f"embedding_optimizer {optimizer['from']} → {optimizer['to']}: weights are kept, its state begins anew"
        )
    return lines


def _size(num_bytes: float) -> str:
    if num_bytes < 1024:
        return f"{num_bytes:.0f} B"
    units = ("KiB", "MiB", "GiB", "TiB")
    power = min(int(math.log(num_bytes, 1024)), len(units))
    return f"{num_bytes / 1024**power:.1f} {units[power - 1]}"
