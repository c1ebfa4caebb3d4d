"""The store, shown in MLflow: a run per committed step, nested under the run of its day, and a run of the whole chain.

Everything here is derived from commits and from the records under runs/, and runs are found by their tags. So showing a
step twice, from several processes, or again after a kill ends with the same runs.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from feature_jobs.control_records import read_record_file
from feature_jobs.schema import Scenario
from feature_jobs.schema.days import day_range
from tasks.contract import Step
from tasks.store.scenario_store import Commit, ScenarioStore
from tasks.tracking.runs import PARENT, Metric, Run, RunKey, Runs
from tasks.tracking.values import allowed_name, curves, headline, numbers_in, params_of, system_curves

MAX_FILE_BYTES = 20_000_000
MAX_TAG = 4000  # characters; MLflow takes 5000 where it runs on some databases
COMPLETE = "recloop.complete"


class TrialFacts(TypedDict, total=False):
    """Facts that are shown of a trial of a search."""

    number: int
    state: str
    params: dict[str, Any]
    value: float | None
    intermediate: dict[str, float | None]


class Trials(TypedDict):
    """The file that a step's declaration names as `trials`."""

    trials: list[TrialFacts]


@dataclass(frozen=True)
class Done:
    """A committed step, and the record that the runner kept of its run."""

    declared: Step
    commit: Commit
    record: Mapping[str, Any]

    @cached_property
    def end_ms(self) -> int:
        """Time of the commit."""
        # No file that has a digest holds a clock.
        return int(self.commit.store.committed_at(self.commit) * 1000)

    @property
    def seconds(self) -> float:
        """Duration of the work, imports included."""
        return sum(float(self.record.get("seconds", {}).get(part, 0.0)) for part in ("imports", "compute"))

    @property
    def start_ms(self) -> int:
        """Start of the work."""
        return self.end_ms - int(1000 * self.seconds)

    def headline(self, step: int = 0) -> list[Metric]:
        """Returns its metrics that the run of its day shows."""
        found = headline(self.record.get("metrics", {}), self.declared.headline)
        return [Metric(name, value, self.end_ms, step) for name, value in found]


class View:
    """Shows committed steps of one scenario. `steps` are all declared steps by name."""

    def __init__(self, scenario: Scenario, store: ScenarioStore, steps: Mapping[str, Step]) -> None:
        self.scenario, self.store, self.steps = scenario, store, steps

    def show(self, commits: Sequence[Commit]) -> None:
        """Shows these commits, their days and their chains. Raises RetryLaterError where MLflow does not answer."""
        from filelock import FileLock

        # Two processes that look for a run at the same moment would both create it.
        with FileLock(self.store.work / ".tracking.lock"):
            self.runs = Runs(self.scenario)
            days = {(commit.generation, commit.ds) for commit in commits}
            parents = {day: self._show_day(*day) for day in sorted(days)}
            for commit in commits:
                self._show_step(self._done(commit), parents[commit.generation, commit.ds])
            for generation in {commit.generation for commit in commits}:
                self._show_chain(generation, {ds for g, ds in days if g == generation})

    def _done(self, commit: Commit) -> Done:
        name = commit.step.partition("-")[0]  # a step with variants commits each as NAME-DIGEST
        return Done(self.steps[name], commit, self.store.run_record(commit))

    def _done_on(self, ds: str, generation: int) -> list[Done]:
        """The tracked steps that are committed of a day, in the order of the day."""
        names = [name for name, declared in self.steps.items() if declared.tracked and declared.daily]
        found = [self.store.find(name, ds, generation) for name in names]
        return [self._done(commit) for commit in found if commit is not None]

    def _show_step(self, done: Done, day: Run) -> None:
        declared, commit, record = done.declared, done.commit, done.record
        key = RunKey(self.scenario.name, commit.generation, commit.ds, commit.step)
        run = self.runs.open(key, done.start_ms, parent=day, note=declared.doc)
        if run.is_finished and run.tags.get("recloop.digest") == commit.digest:  # shown by an earlier run
            return
        # A run that exists keeps its own start, so that logging a second time gives the same points.
        begin_ms, end_ms = run.start_ms, max(done.end_ms, run.start_ms)
        metrics = [Metric(name, value, end_ms) for name, value in numbers_in(record.get("metrics", {}))]
        metrics += [Metric(f"seconds/{name}", value, end_ms) for name, value in numbers_in(record.get("seconds", {}))]
        metrics += curves(record.get("series", {}), begin_ms, end_ms)
        metrics += system_curves(record.get("system", {}), begin_ms, end_ms)
        manifest = commit.manifest
        tags = {"recloop.digest": commit.digest, "recloop.code": str(manifest.get("code", ""))}
        if manifest.get("gate"):
            tags["recloop.gate"] = str(manifest["gate"])
        self.runs.log(run, metrics, params_of(self.scenario, declared.config), tags)
        if not self.store.is_collected(commit):
            for file in _readable(commit.folder):
                self.runs.upload(run, file, declared.writes)
            if declared.trials:
                self._show_trials(run, commit.folder / declared.trials)
        self.runs.finish(run, end_ms)

    def _show_day(self, generation: int, ds: str) -> Run:
        """The run of a day, with all that is known of it by now."""
        steps = self._done_on(ds, generation)
        begins = [done.start_ms for done in steps] or [0]
        run = self.runs.open(RunKey(self.scenario.name, generation, ds), min(begins), note=self.scenario.description)
        if not steps:
            return run
        end_ms = max(done.end_ms for done in steps)
        metrics = [metric for done in steps for metric in done.headline()]
        metrics += [Metric(f"seconds/{done.declared.name}", done.seconds, done.end_ms) for done in steps]
        if self._is_over(steps):  # not before: a metric keeps each value that was logged
            metrics.append(Metric("seconds_total", sum(done.seconds for done in steps), end_ms))
        self.runs.log(run, metrics, tags={"recloop.verdict": self._verdict(steps)[:MAX_TAG]})
        self.runs.finish(run, end_ms)
        return run

    def _verdict(self, steps: Sequence[Done]) -> str:
        """Returns the day's result: the first no of a gate, else a step's sentence on the day, else its progress."""
        for done in steps:
            if gate := done.commit.manifest.get("gate"):
                return f"{done.declared.name}: {gate}"
        said = [str(done.record["metrics"]["verdict"]) for done in steps if "verdict" in done.record.get("metrics", {})]
        unfinished = f"{len(steps)} of {self._num_daily} steps done"
        return said[-1] if said else "finished" if self._is_over(steps) else unfinished

    def _is_over(self, steps: Sequence[Done]) -> bool:
        return len(steps) == self._num_daily or any(done.commit.manifest.get("gate") for done in steps)

    @property
    def _num_daily(self) -> int:
        return sum(declared.tracked and declared.daily for declared in self.steps.values())

    def _show_chain(self, generation: int, days: set[str]) -> None:
        """The run of the chain as this generation sees it: earlier days come from the generation before."""
        key = RunKey(self.scenario.name, generation)
        known = self.runs.find(key.tags)
        if not (known and known[0].tags.get(COMPLETE)):  # a new run, or one whose first process was killed
            days = {commit.ds for commit in self.store.commits() if commit.generation <= generation}
        steps = [(self._place(ds), done) for ds in sorted(days) for done in self._done_on(ds, generation)]
        if not steps:
            return
        note = "AUC, calibration and rows over days: the step of a metric is the day's place in the chain."
        run = self.runs.open(key, min(done.start_ms for _, done in steps), note=note)
        metrics = [metric for place, done in steps for metric in done.headline(place)]
        self.runs.log(run, metrics, tags={COMPLETE: "true"})
        self.runs.finish(run, max(done.end_ms for _, done in steps))

    def _place(self, ds: str) -> int:
        """The day's place in the chain; the first is 1."""
        return len(day_range(self.scenario, str(self.scenario.data.days.first), ds))

    def _show_trials(self, parent: Run, file: Path) -> None:
        """A run for each trial of a search, nested under the step's: the values tried, and the result."""
        trials = read_record_file(file, Trials, extra="ignore")["trials"]
        # Found by tag: a process that was killed in between goes on with the trials that are missing.
        known = {run.tags.get("recloop.trial"): run for run in self.runs.find({PARENT: parent.run_id})}
        for position, trial in enumerate(trials):
            number = str(trial.get("number", position))
            tags = {PARENT: parent.run_id, "recloop.trial": number, "recloop.state": str(trial.get("state", ""))}
            run = known.get(number) or self.runs.create(f"trial {number}", parent.start_ms, tags)
            if run.is_finished:  # a process that was killed leaves its last trial unfinished
                continue
            params = {allowed_name(path): json.dumps(value) for path, value in trial.get("params", {}).items()}
            values = dict(numbers_in({"value": trial.get("value")}))
            metrics = [Metric(name, value, parent.start_ms) for name, value in values.items()]
            steps = trial.get("intermediate", {})
            metrics += [Metric("intermediate", value, parent.start_ms, int(step))
                        for step, value in steps.items() if value is not None and step.isdecimal()]  # fmt: skip
            self.runs.log(run, metrics, params)
            self.runs.finish(run, parent.start_ms)


def _readable(folder: Path) -> Iterator[Path]:
    """Yields the files that people read: JSON and HTML files, and the data docs."""
    for file in sorted(folder.iterdir()):
        # Not stat: a link must not show MLflow a file outside of the output.
        facts = file.lstat()
        is_text = file.suffix in (".json", ".html") and facts.st_size <= MAX_FILE_BYTES
        if (stat.S_ISREG(facts.st_mode) and is_text) or (stat.S_ISDIR(facts.st_mode) and file.name == "docs"):
            yield file
