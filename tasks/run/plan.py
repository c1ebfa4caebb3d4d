"""The plan of a run or a backfill, from the commit records, and the state that its training would begin with.

Nothing is computed, and nothing of the embeddings is read.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypedDict

from feature_jobs.errors import BadInputError, ParentMissingError
from feature_jobs.schema import Scenario
from feature_jobs.schema.days import check_day, previous_day
from tasks.contract import DayConfig, Table
from tasks.run.reuse import refuse_rows_left_out
from tasks.steps import DAILY, STEPS, WRITERS, daily_steps, upstream
from tasks.store.scenario_store import Commit, ScenarioStore
from tasks.store.source_digest import code_digest

if TYPE_CHECKING:
    from models.checkpoints.checkpoint import Restored
    from models.training.footprint import Footprint, TableFootprint

MOST_NAMES = 6
STATES = {"run": "to run", "no": "said no", "-": "missing"}
"""Words for the states of steps that are not words for a person."""
TRAINS = WRITERS["checkpoint"]  # by its output: generic code names no step


@dataclass(frozen=True)
class StepPlan:
    """Plan of a run for a step. `done`: it is committed; `run`; `blocked`: an input of an earlier day is neither
    committed nor part of this run. `why` gives the reason, or a remark."""

    state: Literal["done", "run", "blocked"]
    why: str = ""


@dataclass(frozen=True)
class DayPlan:
    """One day, with its daily steps in order."""

    ds: str
    generation: int
    steps: dict[str, StepPlan]


@dataclass(frozen=True)
class Blocked:
    """A step, and the reason why it can't run."""

    step: str
    error: ParentMissingError | BadInputError


def plan_days(scenario: Scenario, store: ScenarioStore, days: list[str]) -> list[DayPlan]:
    """Returns the plan of a run of these days."""
    plans: list[DayPlan] = []
    planned: set[str] = set()
    for ds in days:
        check_day(scenario, ds)
        steps = {name: _state(name, scenario, ds, store, planned) for name in daily_steps(scenario)}
        plans.append(DayPlan(ds, store.generation_of(ds), steps))
        planned.add(ds)
    return plans


def changed_steps(scenario: Scenario, store: ScenarioStore, ds: str) -> list[str]:
    """Steps of a day that were committed with other settings than the scenario has today."""
    from tasks.run.runner import config_digest

    committed = {name: commit for name in DAILY if (commit := store.find(name, ds))}
    return [n for n, commit in committed.items() if commit.manifest.get("config") != config_digest(scenario, STEPS[n])]


def _state(name: str, scenario: Scenario, ds: str, store: ScenarioStore, planned: set[str]) -> StepPlan:
    from tasks.run.runner import config_digest

    commit = store.find(name, ds)
    if commit is not None:
        manifest = commit.manifest
        changed = [
            word
            for word, key, now in (
                ("settings", "config", config_digest(scenario, STEPS[name])),
                ("code", "code", code_digest(name)),
            )
            if manifest.get(key) != now
        ]
        return StepPlan("done", f"made with other {' and '.join(changed)} than today's" if changed else "")
    if refused := _refused_source(name, scenario, ds, store):
        return StepPlan("blocked", str(refused))
    # Steps of the same day are not a reason to block: the run computes them first.
    before = [step for step in upstream(name) if store.find(step, ds) is None]
    for error in _missing_days(name, scenario, ds, store):
        # A day that the same run computes before is not missing.
        if error.ds not in planned:
            return StepPlan("blocked", str(error))
    return StepPlan("run", f"after {', '.join(before)}" if before else "")


def blocked_step(steps: Sequence[str], scenario: Scenario, ds: str, store: ScenarioStore) -> Blocked | None:
    """The first of the steps that can't run on a day, however much of it is done: an earlier day is missing, or its
    source must not be read."""
    # Before a missing day, whose remedy would run into this refusal.
    for name in (name for name in steps if store.find(name, ds) is None):
        if refused := _refused_source(name, scenario, ds, store):
            return Blocked(name, refused)
    for name in (name for name in steps if store.find(name, ds) is None):
        for error in _missing_days(name, scenario, ds, store):
            return Blocked(name, error)
    return None


def _refused_source(name: str, scenario: Scenario, ds: str, store: ScenarioStore) -> BadInputError | None:
    """Returns the error of a step that must not read a day's source: it would bring rows back that were left out."""
    if STEPS[name].source:
        try:
            refuse_rows_left_out(DayConfig(scenario, ds, store, store.generation_of(ds)))
        except BadInputError as refused:
            return refused
    return None


def _missing_days(name: str, scenario: Scenario, ds: str, store: ScenarioStore) -> Iterator[ParentMissingError]:
    """An error for each input of another day that is not committed."""
    from tasks.run.inputs import resolve_inputs

    for argument, source in STEPS[name].reads.items():
        try:
            resolve_inputs(replace(STEPS[name], reads={argument: source}), scenario, ds, store)
        except ParentMissingError as error:
            # Missing outputs of the day itself are computed first by the run.
            if error.ds != ds:
                yield error


def plan_table(plans: list[DayPlan], options: str) -> str:
    """The plan as text: a line for each day, then the reasons. `options` are those of commands that it names."""
    from models.metrics.judgement import counted

    lines: list[str] = []
    reasons: list[str] = []
    changed: list[str] = []
    for day in plans:
        lines.append(f"{day.ds}  {in_words({name: step.state for name, step in day.steps.items()})}")
        # After an upgrade the reason is the same for all steps: one line for each of them would hide the plan.
        by_reason: dict[str, list[str]] = {}
        for name, step in day.steps.items():
            if step.state != "run" and step.why:
                by_reason.setdefault(step.why, []).append(name)
                changed += [day.ds] if step.state == "done" else []
        reasons += [f"{day.ds} {_named(names, len(day.steps))}: {why}" for why, names in by_reason.items()]
    if changed:
        reasons.append(f"to make these days again: recloop chain replay {options} --from {min(changed)}")
    to_run = sum(step.state == "run" for day in plans for step in day.steps.values())
    return "\n".join([*lines, *reasons, f"{counted(to_run, 'step')} would run"])


def in_words(states: Mapping[str, str]) -> str:
    """The states of a day's steps in few words: `done: ingest to train; blocked: evaluate`."""
    # A column for each step would be wider than a terminal.
    parts = [(state, [*names]) for state, names in itertools.groupby(states, key=states.__getitem__)]
    return "; ".join(f"{STATES.get(state, state)}: {_span(names, len(states))}" for state, names in parts)


def _span(steps: list[str], num_all: int) -> str:
    return f"{steps[0]} to {steps[-1]}" if 1 < len(steps) < num_all else _named(steps, num_all)


def _named(steps: list[str], num_all: int) -> str:
    return "all steps" if len(steps) == num_all else ", ".join(steps)


class Parent(TypedDict):
    """The checkpoint that a training starts from."""

    ds: str
    digest: str


@dataclass(frozen=True)
class TrainingPlan:
    """State that a training would begin with. `ds`: its day; None where all planned days are trained already."""

    ds: str | None
    parent: Parent | None
    footprint: Footprint

    def as_json(self) -> dict[str, object]:
        """For `--json`."""
        return {"ds": self.ds, "parent": self.parent, **self.footprint}


def plan_training(scenario: Scenario, store: ScenarioStore, plans: list[DayPlan]) -> TrainingPlan:
    """Plans the first training of the planned days; where all are done, that of the next day."""
    from models.training.footprint import footprint

    # The day that learns first: later ones start from its checkpoint.
    ds = next((day.ds for day in plans if day.steps[TRAINS].state != "done"), None)
    parent = store.find(TRAINS, plans[-1].ds) if ds is None else _newest_before(scenario, store, ds)
    named: Parent | None = {"ds": parent.ds, "digest": parent.digest} if parent else None
    return TrainingPlan(ds, named, footprint(scenario, parent.folder if parent else None))


def _newest_before(scenario: Scenario, store: ScenarioStore, ds: str) -> Commit | None:
    day = previous_day(scenario, ds)
    while day is not None and (commit := store.find(TRAINS, day)) is None:
        day = previous_day(scenario, day)
    return None if day is None else commit


HEAD = ("table", "from parent", "rows", "weights", "state", "bookkeeping", "a row", "at most", "settings")


def training_table(plan: TrainingPlan) -> list[str | Table]:
    """The result of `plan_training` for a terminal."""
    parent, found = plan.parent, plan.footprint
    changes = found["changes"]
    title = f"training of {plan.ds}" if plan.ds else "the next training"
    if parent:
        title += f" starts from the checkpoint of {parent['ds']} ({parent['digest'][:12]})"
    else:
        title += " starts without a checkpoint: no earlier day is trained. The number of rows is not known yet"
    rows = [_table_line(name, table) for name, table in found["tables"].items()]
    held = [table for table in found["tables"].values() if table["fate"] == "restored"]
    sums = map(_size, map(sum, zip(*map(_held_bytes, held), strict=True)))
    names = ("weights", "state", "bookkeeping")
    total = ", ".join(f"{name} {size}" for name, size in zip(names, sums, strict=False))
    sketch = f", the sketch of ids without a row {_size(found['sketch_bytes'])}" if found["sketch_bytes"] else ""
    cached, dense = found["cached_rows"], found["dense"]
    others = "the others are in a file, or with a GPU in host memory"
    places = [f"at most {cached:,} rows are cached where they are learned, {others}"] if cached else []
    return [
        title,
        Table(HEAD, rows, 2),
        *([f"all tables: {sum(table['rows'] for table in held):,} rows, {total}"] if held else []),
        f"the id map takes {_size(found['id_map_bytes'])}{sketch}",
        *places,
        f"dense part: {dense['parameters']:,} parameters, {_size(dense['bytes'])} with their moments",
        *(_change_lines(changes) if changes else []),
    ]


def _held_bytes(table: TableFootprint) -> tuple[int, int, int]:
    return table["weight_bytes"], table["state_bytes"], table["bookkeeping_bytes"]


def _table_line(name: str, table: TableFootprint) -> tuple[str, ...]:
    if table["fate"] == "dropped":
        return (name, "dropped", f"{table['rows']:,}", *[""] * 6)
    settings = ", ".join(f"{key} {value}" for key, value in table["settings"].items())
    # Of a new table nothing is known before its first id.
    known = (f"{table['rows']:,}", *map(_size, _held_bytes(table))) if table["fate"] == "restored" else ("-",) * 4
    most = "unbounded" if table["most_bytes"] is None else _size(table["most_bytes"])
    return (name, table["fate"], *known, _size(table["row_bytes"]), most, settings)


def _change_lines(changes: Restored) -> list[str]:
    dense, tables = changes["dense"], changes["tables"]
    kinds = {"new": dense["new"], "resized": dense["resized"], "dropped": dense["dropped"]}
    lines = [f"  {dense['restored']} tensors restored, " + ", ".join(f"{len(kinds[kind])} {kind}" for kind in kinds)]
    for kind, names in kinds.items():
        if names:
            more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
            lines.append(f"  {kind}: {', '.join(names[:MOST_NAMES])}{more}")
    if resized := tables["resized"]:
        kept = min(resized["from"], resized["to"])
        rest = ", the others are initialized" if resized["to"] > kept else ", the others are dropped"
        lines.append(f"embedding_dim {resized['from']} → {resized['to']}: the first {kept} are kept{rest}")
    if optimizer := tables["optimizer"]:
        lines.append(
            f"embedding_optimizer {optimizer['from']} → {optimizer['to']}: weights are kept, its state starts from zero"
        )
    return lines


def _size(num_bytes: float) -> str:
    if num_bytes < 1024:
        return f"{num_bytes:.0f} B"
    units = ("KiB", "MiB", "GiB", "TiB")
    power = min(int(math.log(num_bytes, 1024)), len(units))
    return f"{num_bytes / 1024**power:.1f} {units[power - 1]}"
