"""Forgetting users: a generation whose days do not hold their rows, and nothing left that could bring them back.

A day's ingested events are written again without the rows, from the committed ones. All of that is prepared before the
generation begins and committed in one go, so the ids are in the memory of this process alone: no file, container or
scheduler gets them. The steps after that are run like those of any replay. Where their inputs are as they were, the
output of the older generation is taken over (`tasks.run.reuse`).
"""

from __future__ import annotations

import contextlib
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from feature_jobs.errors import BadInputError, CorruptError, RetryLaterError
from feature_jobs.schema import Scenario
from feature_jobs.schema.days import day_range, is_day, previous_day
from feature_jobs.sources.user_ids import Users
from tasks.contract import DayConfig, Forgetting, Metrics, Step
from tasks.run.collect import LINK_STEPS, size_of
from tasks.run.corrected import steps_that_change
from tasks.run.launchers import Call, Launcher
from tasks.run.replay import Replay, deleted_input, is_unfinished
from tasks.run.reuse import take_over
from tasks.run.runner import facts_of_run
from tasks.steps import DAILY, STEPS, WRITERS
from tasks.store.champion_log import ChampionLog, promotions_held
from tasks.store.digests import MANIFEST
from tasks.store.forgotten import is_forgotten
from tasks.store.keys import JOURNAL, record_key
from tasks.store.output_files import digest_of
from tasks.store.records import Facts
from tasks.store.scenario_store import Commit, ScenarioStore

REASON = "rows of users were left out"
ORIGINS = tuple(name for name, declared in STEPS.items() if declared.forgetting and declared.forgetting.leave_out)
TRIES = "tries"
ASIDE = (TRIES, "tuning", "rejected")
"""Folders of the store that hold copies of days' rows outside the committed history."""


class StepCost(TypedDict):
    """Days on which a step is computed again, and the seconds that this took when they were computed before."""

    days: int
    seconds: float


@dataclass(frozen=True)
class Cost:
    """Cost of forgetting: a new generation from `first` on, whose `days` are written again without `rows`, by day.

    `from_source`: days read from their source, because gc deleted their events, or a replay that was begun has not read
    them yet. `bytes`: size of the files that gc then erases; `aside`: keys of files deleted at once. `resumed`: only
    the rest of an earlier call is to do. `unknown`: ids that no day knows. `elsewhere`: equal values that stay.
    """

    users: int
    first: str = ""
    days: list[str] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)
    from_source: list[str] = field(default_factory=list)
    steps: dict[str, StepCost] = field(default_factory=dict)
    bytes: int = 0
    aside: list[str] = field(default_factory=list)
    resumed: bool = False
    unknown: list[int | str] = field(default_factory=list)
    elsewhere: dict[str, int] = field(default_factory=dict)


@dataclass
class _Held:
    """Users' data in committed days: `rows` of events by day, the `ids` that the days know; `elsewhere` as in Cost."""

    rows: dict[str, int] = field(default_factory=dict)
    ids: set[int | str] = field(default_factory=set)
    elsewhere: dict[str, int] = field(default_factory=dict)


def cost_of(scenario: Scenario, store: ScenarioStore, users: Users) -> Cost:
    """Returns the cost of forgetting these users; without days where no committed day knows them. Nothing is written.

    Raises BadInputError where an unfinished generation that leaves other rows out, or a rollback, is in the way.
    """
    found, newest = _days_that_hold(scenario, store, users), store.generations()[-1]
    held = found.rows
    if _is_begun(scenario, store) and held:
        raise BadInputError(
            f"{store.url}: generation {newest.number} leaves rows out and is not finished, and {min(held)} holds rows"
            " of these users beside it; first give the command that began it, with its ids"
        )
    if not held:
        # A call that was killed after it wrote the days finds no rows any more, and has its days to compute.
        resumed = newest.forgets and is_unfinished(scenario, store)
        days = _days(scenario, newest.from_ds or "", newest.to_ds or "") if resumed else []
        unknown = [] if resumed else list(users.ids)  # the days that held the rows are replaced by now
        return Cost(len(users.ids), days=days, resumed=resumed, unknown=unknown, elsewhere=found.elsewhere)
    first = _first_day(scenario, store, min(held))
    _refuse_held(scenario, store, first)
    days = _days(scenario, first, _newest(scenario, store))
    from_source = [ds for ds in days if None in _base(store, ds, store.generation).values()]
    rows = {ds: held[ds] for ds in days if held.get(ds)}
    return Cost(
        len(users.ids),
        first,
        days,
        rows,
        from_source,
        _steps_again(scenario, store, days, {*rows, *from_source}),
        sum(size_of(c) for c in store.commits() if c.ds >= first and not store.is_collected(c)),
        _aside(store, first),
        unknown=[user for user in users.ids if user not in found.ids],
        elsewhere=found.elsewhere,
    )


def _newest(scenario: Scenario, store: ScenarioStore) -> str:
    """The newest day of any generation: one that a replay has not computed again yet must not keep the rows either."""
    return max(place.ds for place in store.places() if is_day(scenario, place.ds))


def _days(scenario: Scenario, first: str, last: str) -> list[str]:
    """Days that the scenario has, of those from `first` to `last`."""
    return [ds for ds in day_range(scenario, first, last) if is_day(scenario, ds)]


def _days_that_hold(scenario: Scenario, store: ScenarioStore, users: Users) -> _Held:
    """Days of which some output holds rows of the users, in any generation, with the rows of their events.

    Days that rows were left out of since do not count: gc erases them.
    """
    held, commits = _Held(), store.commits()
    newest = {(commit.ds, commit.step): commit.generation for commit in commits}
    for commit in commits:
        declared = STEPS.get(commit.step)
        if not declared or not declared.forgetting or store.is_collected(commit):
            continue
        if is_forgotten(store, commit.ds, commit.generation):
            continue
        store.verify(commit)
        found = declared.forgetting.find(scenario, commit.folder, users)
        held.ids |= found.ids
        held.elsewhere = dict(Counter(held.elsewhere) + Counter(found.elsewhere))
        if found.rows:
            is_shown = declared.name in ORIGINS and newest[commit.ds, commit.step] == commit.generation
            held.rows[commit.ds] = held.rows.get(commit.ds, 0) + (found.rows if is_shown else 0)
    return held


def _is_begun(scenario: Scenario, store: ScenarioStore) -> bool:
    """Says if the newest generation leaves rows out, and a kill left days that it has not written yet."""
    return store.generations()[-1].forgets and is_unfinished(scenario, store, ORIGINS)


def _first_day(scenario: Scenario, store: ScenarioStore, first: str) -> str:
    """The day to begin at: the day before has a checkpoint that can be looked into, and does not know the users, and
    what the day reads of earlier ones is there."""
    while (before := previous_day(scenario, first)) is not None:
        links = [store.find(name, before) for name in LINK_STEPS]
        is_there = all(link is not None and not store.is_collected(link) for link in links)
        if is_there and deleted_input(scenario, store, first) is None:
            break
        first = before
    return first


def _refuse_held(scenario: Scenario, store: ScenarioStore, first: str) -> None:
    log = ChampionLog(store)
    back, held = log.held_by(), promotions_held(scenario, log, store.options)
    if back is not None and held and back.ds >= first:
        raise BadInputError(
            f"version {back.version} serves and knows these users, but no other version may replace it: promotions are"
            f" {held}"
        )


def _base(store: ScenarioStore, ds: str, generation: int) -> dict[str, Commit | None]:
    """Returns the commits of a day to leave rows out of, by step; None where the source has to be read."""
    found = {name: store.find(name, ds, generation) for name in ORIGINS}
    return {name: None if commit is None or store.is_collected(commit) else commit for name, commit in found.items()}


def _steps_again(scenario: Scenario, store: ScenarioStore, days: list[str], begins: set[str]) -> dict[str, StepCost]:
    """Returns the steps to compute again, with their numbers of days: those that read something that changes."""
    changed = steps_that_change(scenario, store, days, {(name, ds) for name in ORIGINS for ds in begins})
    seconds: dict[str, dict[str, float]] = defaultdict(dict)
    newest = {(commit.step, commit.ds): commit for commit in store.commits()}  # of a later generation, if it is there
    for name, ds in changed:
        seconds[name][ds] = 0.0
        with contextlib.suppress(CorruptError):  # of a record that only times and metrics are in
            commit = newest.get((name, ds))
            seconds[name][ds] = sum(store.run_record(commit).get("seconds", {}).values()) if commit else 0.0
    return {
        name: {"days": len(seconds[name]), "seconds": round(sum(seconds[name].values()), 1)}
        for name in DAILY
        if name in seconds
    }


def _aside(store: ScenarioStore, first: str) -> list[str]:
    """Keys of copies outside the committed history that may hold rows of these days, and of all tries."""
    found = set()
    for folder in ASIDE:
        names = {key.split("/")[1] for depth in ("*/*", "*/*/*") for key in store.keys(f"{folder}/{depth}")}
        if not (store.work / folder).is_symlink():  # its target is not the store's to delete
            names |= {path.name for path in (store.work / folder).glob("*")}
        found |= {f"{folder}/{name}" for name in names if folder == TRIES or name >= first}
    resumable = store.objects.scratch.resumable()
    return sorted(found) + [f".resume/{name}" for name in resumable if name >= first]


def begin_forgetting(scenario: Scenario, store: ScenarioStore, users: Users, cost: Cost, launcher: Launcher) -> Replay:
    """Starts the generation, or goes on with the one that was begun, and commits its days without the rows.

    Where it raises before the generation begins, nothing was changed.
    """
    base = store.generation - 1 if cost.resumed else store.generation
    generation = base + 1
    if cost.resumed and not _is_begun(scenario, store):  # all of its days are written already
        return Replay(generation, cost.days, cost.resumed)
    with store.scratch() as scratch:
        # All days before the generation begins: an id that is not there, or a full disk, then changes nothing.
        ready = list(_Preparation(scenario, store, users, base, scratch, launcher).outputs(cost.days))
        if not cost.resumed:
            # A day that was committed since the cost was computed has to be written again, too.
            if _days(scenario, cost.first, _newest(scenario, store)) != cost.days:
                raise RetryLaterError(f"{store.url}: another run committed a day just now; give the same command again")
            generation = store.new_generation(cost.first, REASON, cost.days[-1], forgets=True, after=base)
        # Before the days are committed: when all of them stand, the same command finds nothing left to do here.
        for key in _aside(store, cost.first or cost.days[0]):
            _remove(store, key)
        _forget_messages(store, users)
        for day in ready:
            day.commit(store, generation)
    return Replay(generation, cost.days, cost.resumed)


@dataclass(frozen=True)
class Prepared:
    """A step's output of a day without the rows, in `folder`; one that never held any is taken over `as_before`."""

    ds: str
    step: str
    folder: Path
    facts: Facts
    metrics: Metrics = field(default_factory=dict)
    as_before: Commit | None = None

    def commit(self, store: ScenarioStore, generation: int) -> None:
        """Commits it, or compares it with the commit of an earlier run of the same command."""
        standing = store.find(self.step, self.ds, generation)
        if standing is None:
            if self.as_before is not None:
                self.folder.mkdir(parents=True)
                take_over(self.as_before, self.folder, generation)
            else:
                record = {"metrics": self.metrics, "seconds": {}}
                store.write_record(record_key(generation, self.ds, self.step), record)
            store.commit(self.step, self.ds, self.folder, self.facts, generation)
        elif standing.digest != (self.as_before.digest if self.as_before else digest_of(self.folder)):
            raise BadInputError(
                f"{standing.uri}: other rows were left out than those of these users; give the ids, and each --column,"
                f" with which generation {generation} was begun"
            )


@dataclass(frozen=True)
class _Preparation:
    """Writes days without the rows of users below `scratch`, from their outputs in generation `base`."""

    scenario: Scenario
    store: ScenarioStore
    users: Users
    base: int
    scratch: Path
    launcher: Launcher

    def outputs(self, days: list[str]) -> Iterator[Prepared]:
        """The outputs of these days, oldest first; one that is read from its source goes on from the day before."""
        ready: dict[tuple[str, str], Path] = {}
        for prepared in self._outputs(days, ready):
            ready[prepared.ds, prepared.step] = (
                prepared.as_before.folder if prepared.as_before is not None else prepared.folder
            )
            yield prepared

    def _outputs(self, days: list[str], ready: Mapping[tuple[str, str], Path]) -> Iterator[Prepared]:
        for ds in days:
            for name, commit in _base(self.store, ds, self.base).items():
                is_written = self.store.generation != self.base and self.store.find(name, ds) is not None
                if commit is not None:
                    yield self._from_commit(STEPS[name], commit)
                elif not is_written:  # the commit to compare it with is gone
                    yield self._from_source(STEPS[name], ds, ready)

    def _from_commit(self, declared: Step, commit: Commit) -> Prepared:
        self.store.verify(commit)
        manifest, folder = commit.manifest, self.scratch / commit.ds / declared.name
        facts: Facts = {
            "scenario": self.scenario.name,
            # Made from the older output, not from the source.
            "inputs": {declared.writes: commit.digest},
            "sources": [commit.source],
            "config": manifest.get("config", ""),
            "settings": manifest.get("settings", {}),
            "code": manifest.get("code", ""),
            "gate": None,
        }
        source = self._as_first(declared, commit)
        if source == commit.folder and not _forgetting(declared).find(self.scenario, source, self.users).rows:
            return Prepared(commit.ds, declared.name, folder, facts, as_before=commit)
        return Prepared(commit.ds, declared.name, folder, facts, self._leave_out(declared, source, folder))

    def _as_first(self, declared: Step, commit: Commit) -> Path:
        """The folder of the output; on the first day of the chain, which may begin later now, as a first day has it."""
        begins = [s.forgetting.begin for s in STEPS.values() if s.forgetting and declared.writes in s.forgetting.begin]
        if not begins or previous_day(self.scenario, commit.ds) is not None:
            return commit.folder

        def folder_of(output: str, ds: str) -> Path:
            found = self.store.find(WRITERS[output], ds, self.base)
            if found is None:
                raise BadInputError(f"{self.store.url}: {output} of {ds} is not committed; bring back the day's source")
            self.store.verify(found)
            return found.folder

        copy = self.scratch / commit.ds / f"{declared.name}.first"
        shutil.copytree(commit.folder, copy, ignore=shutil.ignore_patterns(MANIFEST))
        begins[0][declared.writes](self.scenario, commit.ds, copy, folder_of)
        return copy if digest_of(copy) != commit.digest else commit.folder

    def _from_source(self, declared: Step, ds: str, ready: Mapping[tuple[str, str], Path]) -> Prepared:
        before = previous_day(self.scenario, ds)
        yesterday = ready.get((before, declared.name)) if before else None
        if before and not ready:  # the first of these days
            commit = _base(self.store, before, self.base)[declared.name]
            yesterday = commit.folder if commit else None
        folder = self.scratch / ds / declared.name
        source = folder.with_name(f"{declared.name}.source")
        source.mkdir(parents=True)
        try:
            self.launcher.launch(
                declared, Call(DayConfig(self.scenario, ds), dict.fromkeys(declared.reads, yesterday), source)
            )
        except BadInputError as error:
            raise BadInputError(
                f"{error}. A checkpoint knows these users from this day or an earlier one, and the day's events are not"
                " in the store: recloop gc deleted them, or a replay that was begun has not read them. Bring the source"
                " back; or let the chain begin at a day whose events are kept: change data.days.first in"
                f" {self.scenario.file}, and give the same command again"
            ) from None
        metrics = self._leave_out(declared, source, folder)
        shutil.rmtree(source)
        return Prepared(ds, declared.name, folder, facts_of_run(declared, self.scenario, {}, None), metrics)

    def _leave_out(self, declared: Step, source: Path, folder: Path) -> Metrics:
        folder.mkdir(parents=True)
        leave_out = _forgetting(declared).leave_out
        return leave_out(self.scenario, source, self.users, folder) if leave_out else {}


def _forgetting(declared: Step) -> Forgetting:
    assert declared.forgetting is not None  # noqa: S101 (ORIGINS have it)
    return declared.forgetting


def _forget_messages(store: ScenarioStore, users: Users) -> None:
    """Takes messages that name a user out of the journal; they quote cells of malformed rows."""
    entries = list(store.journal())
    named = [bool(users.finder.find(str(entry.get("message", "")))) for entry in entries]
    if any(named):
        store.objects.delete(JOURNAL)
        for entry, is_named in zip(entries, named, strict=True):
            store.note({**entry, "message": REASON} if is_named else entry)


def _remove(store: ScenarioStore, key: str) -> None:
    if key.startswith(".resume/"):
        store.objects.scratch.remove_resumable(key.partition("/")[2])
    else:
        store.objects.delete(key)
        shutil.rmtree(store.work / key, ignore_errors=True)  # where the store is not local
