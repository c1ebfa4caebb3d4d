"""Releases for a server: the champion, with the newest state of features, as the store has them."""

from __future__ import annotations

from dataclasses import dataclass, field

from feature_jobs.errors import ParentMissingError
from feature_jobs.schema import Scenario
from feature_jobs.schema.days import ONE_DAY, is_day, parse_ds
from models.runtime.files import SERVING_FILE
from serving.release import Release
from tasks.steps import WRITERS
from tasks.store.champion_log import PREFIX, ChampionLog, Entry
from tasks.store.digests import sha256_of
from tasks.store.keys import log_key
from tasks.store.scenario_store import Commit, ScenarioStore

_AHEAD = 8
"""A state of so many days after the last known one is looked for: the chain may pass over days."""


@dataclass
class Releases:
    """Finds the release that should serve. Each question costs a few small reads of the store."""

    scenario: Scenario
    store: ScenarioStore
    _state: Commit | None = field(default=None, init=False)
    _found: tuple[Entry, Commit, Release] | None = field(default=None, init=False)
    _end: tuple[Entry, str] | None = field(default=None, init=False)

    def newest(self) -> Release:
        """The champion of the log with the newest state; its files lie on this machine, proven.

        Raises ParentMissingError where nothing serves yet, or no state is committed; CorruptError for a damaged file.
        """
        entry, options = self._champion(), self.scenario.option
        if entry is None:
            raise ParentMissingError(
                f"{self.store.url}: no version was promoted yet; run some days: recloop run {options} --ds DAY"
            )
        state = self._newest_state(entry)
        if self._found is None or self._found[:2] != (entry, state):
            self._found = entry, state, self._release(entry, state)
        return self._found[2]

    def _champion(self) -> Entry | None:
        """The newest record of the champion log, which is read whole only where its end has changed."""
        if self._end is not None:
            entry, digest = self._end
            newest, next_ = (self.store.read(log_key(PREFIX, entry.sequence + n)) for n in (0, 1))
            if next_ is None and newest is not None and sha256_of(newest) == digest:
                return entry
        records = ChampionLog(self.store).records()
        self._end = records[-1] if records else None
        return self._end[0] if self._end else None

    def _newest_state(self, entry: Entry) -> Commit:
        """The newest committed state: of the version's own day or a later one."""
        step, newest = WRITERS["online"], self._state
        day = parse_ds(newest.ds if newest else entry.ds)
        # From the day of the last one on: a replay may have replaced it.
        ahead, newest = 0, None
        while ahead <= _AHEAD:
            ds = day.isoformat()
            found = self.store.find(step, ds) if is_day(self.scenario, ds) else None
            newest, ahead = found or newest, 0 if found else ahead + 1
            day += ONE_DAY
        if newest is None:
            raise ParentMissingError(
                f"{self.store.url}: no state of features is committed for {entry.ds} or later; add `online: {{}}` to"
                f" {self.scenario.file} and make it: recloop {step} {self.scenario.option} --ds {entry.ds}",
                entry.ds,
            )
        self._state = newest
        return newest

    def _release(self, entry: Entry, state: Commit) -> Release:
        export, samples = (self._of_version(entry, output) for output in ("export", "samples"))
        for commit in (export, state):
            self.store.verify(commit)
        # As the version learned them: the scenario may have been changed since.
        settings = {name: value for name, value in samples.manifest["settings"].items() if "." not in name}
        settings["data"] = {**settings["data"], "path": self.scenario.data.path}
        return Release(
            model=entry.model,
            version=entry.version,
            ds=entry.ds,
            checkpoint=entry.checkpoint,
            scenario=str(self.scenario.file),
            settings=settings,
            state=state.ds,
            export=str(export.folder),
            digest=export.manifest["files"][SERVING_FILE]["sha256"],
            online=str(state.folder),
        )

    def _of_version(self, entry: Entry, output: str) -> Commit:
        found = self.store.find(WRITERS[output], entry.ds, entry.generation)
        if found is None:
            raise ParentMissingError(
                f"{self.store.url}: {WRITERS[output]} of {entry.ds} is not committed, but version {entry.version} of it"
                f" serves; go back to another version: recloop rollback {self.store.options}",
                entry.ds,
            )
        return found
