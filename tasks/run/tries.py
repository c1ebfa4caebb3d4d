"""Tries: days of the chain trained again with other settings, beside the chain, to compare their quality.

    STORE/SCENARIO/tries/NAME/try.json               its changes, its days and its result
    STORE/SCENARIO/tries/NAME/DAY/predictions.parquet  its scores, so that it can be compared row by row later

A try starts from the same parent as the first of its days and learns the samples that are committed. Only where a
setting changes the samples are its days joined again, into scratch. The committed chain is read and never written.
"""

from __future__ import annotations

import difflib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from feature_jobs.control_records import read_record
from feature_jobs.errors import BadInputError
from feature_jobs.schema import Scenario
from models.checkpoints.files import PREDICTIONS_FILE
from tasks.contract import DayConfig
from tasks.run.inputs import Found, resolve_inputs
from tasks.run.tries_plan import (
    COMMITTED,
    JOIN,
    NAME,
    PARENT,
    TRAIN,
    Base,
    Planned,
    Try,
    Variant,
    committed_days,
    committed_inputs,
    days_joined,
    plan,
)
from tasks.run.tries_scores import Side, compare_sides, day_qualities
from tasks.run.tries_workers import Chain, ChainEnd, Job, run_chains
from tasks.store.digests import canonical_json
from tasks.store.objects import LocalObjects
from tasks.store.scenario_store import ScenarioStore

FOLDER, RECORD = "tries", "try.json"
# This module, too: the jobs are its functions, which a process imports by name.
IMPORTS = (__name__, *JOIN.imports, *TRAIN.imports)


def trained_days(store: ScenarioStore) -> list[str]:
    """Days of the committed chain, oldest first."""
    return sorted({commit.ds for commit in store.commits() if commit.step == TRAIN.name})


def run_tries(
    base: Scenario,
    variants: Sequence[Variant],
    days: Sequence[str],
    store: ScenarioStore,
    *,
    workers: int,
    done: Callable[[str, str], None] = lambda name, label: None,
) -> list[Try]:
    """Trains the days with each variant and compares it with the committed chain on the same rows.

    `done` is called with a variant's name and a label after each day. An equal try that exists is found, not repeated.
    Raises BadInputError for a variant that can't be tried and ParentMissingError for a day that is not committed,
    before anything is computed. A variant that fails later has its `error`; the others go on.
    """
    found = committed_days(base, tuple(days), store)
    planned = [plan(found, variant) for variant in variants]
    names = [one.record.name for one in planned]
    if twice := {name for name in names if names.count(name) > 1}:
        raise BadInputError(f"variant {sorted(twice)[0]}: given twice; name each variant once")
    new = [one for one in planned if not _is_done(one, store)]
    for one in new:
        _refuse_other_settings(one, store)
    ended: dict[str, Try] = {}
    if new:
        # Proven once for all variants, and not by each: they read the same files.
        for commit in committed_inputs(found):
            store.verify(commit)
        with store.scratch() as scratch:
            ended = _run(found, new, scratch, workers, done)
    return [ended.get(one.record.name) or _load_done(found, one) for one in planned]


def load_side(store: ScenarioStore, name: str) -> Side:
    """A try that exists, for a comparison. Raises BadInputError where there is none of that name."""
    ended = _ended(store, name) if NAME.fullmatch(name) else None
    if ended is None:
        known = tries(store)
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"tries: {', '.join(known) or 'none'}"
        raise BadInputError(
            f"{store.url}: {name!r} is not a try, a day (2022-04-25), a generation (g0) or {COMMITTED!r}; {hint}"
        )
    days = ended["days"]
    return Side(name, {ds: store.work / FOLDER / name / ds for ds in days}, days[0])


def tries(store: ScenarioStore) -> list[str]:
    """Names of all tries."""
    return sorted(path.parent.name for path in (store.work / FOLDER).glob(f"*/{RECORD}"))


class Ended(TypedDict):
    """The part of a try's record that later commands read."""

    key: str
    changes: dict[str, Any]
    days: list[str]
    seconds: float
    cpu_s: float


def _ended(store: ScenarioStore, name: str) -> Ended | None:
    """The record of a try that ended, or None."""
    key, remedy = f"{FOLDER}/{name}/{RECORD}", "remove its folder, and try it again"
    data = LocalObjects(store.work).read(key)  # tries stay on the machine that made them
    return None if data is None else read_record(data, Ended, f"{store.work / key}", remedy, extra="ignore")


def _is_done(planned: Planned, store: ScenarioStore) -> bool:
    ended = _ended(store, planned.record.name)
    return ended is not None and ended["key"] == planned.record.key


def _refuse_other_settings(planned: Planned, store: ScenarioStore) -> None:
    """Keeps the scores of an earlier try from being replaced by those of other settings. Raises BadInputError."""
    ended, record = _ended(store, planned.record.name), planned.record
    # The same settings on other days, or after a change of the chain or of the code, are a repetition of that try.
    if ended is not None and canonical_json(ended["changes"]) != canonical_json(record.changes):
        raise BadInputError(
            f"variant {record.name}: an earlier try of this name has other settings,"
            f" {settings_text(ended['changes']) or 'none'}; choose another name, or remove"
            f" {store.work / FOLDER / record.name}"
        )


def settings_text(changes: Mapping[str, Any]) -> str:
    """`train.seed=3 model.tower=[8]`: changes as a command line has them."""
    return " ".join(f"{path}={json.dumps(value)}" for path, value in changes.items())


def _load_done(base: Base, planned: Planned) -> Try:
    ended = _ended(base.store, planned.record.name)
    times = {"seconds": ended["seconds"], "cpu_s": ended["cpu_s"]} if ended else {}
    return _judged(base, planned, base.store.work / FOLDER / planned.record.name, outcome="already_done", **times)


def _judged(base: Base, planned: Planned, folder: Path, **ended: Any) -> Try:
    """The try with the quality of its predictions in `folder`."""
    record = planned.record
    side = Side(record.name, {ds: folder / ds for ds in record.days}, record.days[0])
    comparison = compare_sides(planned.scenario, base.side, side)
    return replace(record, comparison=comparison, curve=day_qualities(planned.scenario, side), **ended)


def _run(
    base: Base, plans: Sequence[Planned], scratch: Path, workers: int, done: Callable[[str, str], None]
) -> dict[str, Try]:
    join_ends = _join(base, plans, scratch, workers, done)
    ready = [planned for planned in plans if not (planned.join_key and join_ends[planned.join_key].error)]
    chains = [_chain(base, planned, scratch) for planned in ready]
    ends = run_chains(chains, workers, IMPORTS, lambda number, job: done(chains[number].name, job.label))
    ended = {planned.record.name: _keep(base, planned, end, scratch) for planned, end in zip(ready, ends, strict=True)}
    for planned in plans:
        if planned not in ready:
            end = join_ends[str(planned.join_key)]
            ended[planned.record.name] = _failed(planned, end)
    return ended


def _failed(planned: Planned, end: ChainEnd) -> Try:
    return replace(planned.record, outcome="failed", **asdict(end))


def _join(
    base: Base, plans: Sequence[Planned], scratch: Path, workers: int, done: Callable[[str, str], None]
) -> dict[str, ChainEnd]:
    """Joins the days of every distinct set of samples once, into scratch; returns the end of each, by join key."""
    by_key = {planned.join_key: planned.scenario for planned in plans if planned.join_key}
    chains, keys = [], []
    for key, scenario in by_key.items():
        # A chain of its own for each day: a join needs no other day's samples, so several days are joined at once.
        for ds in base.days:
            events, seen = (_folders(days_joined(scenario, ds, base.store, o)) for o in ("events", "summaries"))
            arguments = (scenario, ds, events, seen, scratch / "samples" / key / ds)
            job = Job(f"{JOIN.name} {ds}", join_day, arguments)
            chains.append(Chain(JOIN.name, [job], scratch / "logs" / f"{key[:8]}-{ds}.log"))
            keys.append(key)
    found = (
        run_chains(chains, workers, IMPORTS, lambda number, job: done(chains[number].name, job.label)) if chains else []
    )
    ends: dict[str, ChainEnd] = {}
    for key, end in zip(keys, found, strict=True):
        if key not in ends or end.error:
            ends[key] = end
    return ends


def _folders(found: Any) -> Any:
    return {ds: c.folder for ds, c in found.items()} if isinstance(found, dict) else found.folder if found else None


def _chain(base: Base, planned: Planned, scratch: Path) -> Chain:
    folder, name = scratch / "tries" / planned.record.name, planned.record.name
    parent, jobs = base.parent.folder if base.parent else None, []
    for ds in base.days:
        samples = scratch / "samples" / planned.join_key / ds if planned.join_key else None
        inputs = {a: _folders(c) for a, c in _same_day(base, ds).items()}
        inputs |= {"samples": samples} if samples else {}
        jobs.append(Job(ds, train_day, (planned.scenario, ds, inputs, parent, folder / ds)))
        parent = folder / ds
    return Chain(name, jobs, scratch / "logs" / f"{name}.log")


def _same_day(base: Base, ds: str) -> dict[str, Found]:
    """Returns the inputs of its own day that the training reads, as committed."""
    inputs = resolve_inputs(TRAIN, base.scenario, ds, base.store)
    return {argument: found for argument, found in inputs.items() if TRAIN.reads[argument].days == "same"}


def _keep(base: Base, planned: Planned, end: ChainEnd, scratch: Path) -> Try:
    """Judges a finished try and moves it to its place, whole; an older one of the same name makes room."""
    if end.error:
        return _failed(planned, end)
    made = scratch / "tries" / planned.record.name
    # The last checkpoint has no child that would shed it; a kept one would cost as much disk as the chain's.
    _shed(made / base.days[-1])
    tried = _judged(base, planned, made, seconds=end.seconds, cpu_s=end.cpu_s)
    place = base.store.work / FOLDER / tried.name
    if place.exists():
        old = scratch / "replaced" / tried.name
        # Moved aside and not deleted: a try that is killed between the two leaves one of them whole.
        old.parent.mkdir(exist_ok=True)
        place.rename(old)
        tried = replace(tried, notes=(*tried.notes, "replaces an older try of this name and these settings"))
    (made / RECORD).write_bytes(canonical_json(asdict(tried)))
    place.parent.mkdir(exist_ok=True)
    made.rename(place)
    return tried


def _shed(checkpoint: Path) -> None:
    """Keeps of a checkpoint only its predictions."""
    for path in checkpoint.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != PREDICTIONS_FILE:
            path.unlink()


def join_day(scenario: Scenario, ds: str, events: Mapping[str, Path], seen: Mapping[str, Path], output: Path) -> None:
    """One day's samples with a variant's settings, from its events and those of the days before."""
    from feature_jobs.joins.join import join_from_events

    join_from_events(scenario, ds, events[ds], {day: events[day] for day in events if day != ds}, output, seen=seen)


def train_day(scenario: Scenario, ds: str, inputs: Mapping[str, Any], parent: Path | None, output: Path) -> None:
    """One day of a try. Its own parent has then served and keeps only its predictions."""
    output.mkdir(parents=True)
    TRAIN.function(DayConfig(scenario, ds), **inputs, **{PARENT: parent, TRAIN.writes: output})
    if parent is not None and parent.parent == output.parent:
        _shed(parent)
