"""A study that several processes search together and that survives any of them being killed.

Optuna's journal file holds the trials. A held file lock shows a living process: the kernel frees the lock of a killed
process at once, on any machine that has locks on the store's file system. A running trial whose lock is free was killed
and counts as failed, and its values are the next to be tried. (Optuna's heartbeat would need a database, and would wait
for it.) Samplers are seeded by a trial's place among those that count, so that a study that is killed and resumed by
one process ends as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from typing_extensions import TypedDict

from feature_jobs.errors import BadInputError, RetryLaterError
from feature_jobs.schema import Scenario
from tasks.tuning.space import Dimension

CHAMPION, OWN, ERROR = "champion", "own", "error"
"""User attributes of Optuna's trials: has the values that serve, has the scenario's own, raised this error."""
WAIT_S = 0.2
MAX_DRAWS = 100  # of values for one trial; in a small space all may have been tried
Report = Callable[[float], bool]
"""Takes the objective so far after one more replayed day; returns True if the trial should stop."""


@dataclass(frozen=True)
class Judged:
    """The value of a trial, and its parts by day and task."""

    value: float
    days: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Candidate:
    """Settings to judge: `values` by config path, over the champion's settings (`serves`) or over the scenario's."""

    values: Mapping[str, Any]
    serves: bool = False


Objective = Callable[[Candidate, Path, Report], Judged | None]
"""A candidate, a scratch folder and `Report` → the trial's value, or None where it stopped early."""


class Trial(TypedDict):
    """A trial as it is reported. `value` is None where it was pruned or failed; `error` is the reason why it failed."""

    number: int
    state: str
    params: dict[str, Any]
    value: float | None
    intermediate: dict[str, float | None]
    days: dict[str, dict[str, float]]
    error: str | None


class Study:
    """The trials of one space over one replay, kept in `folder`."""

    def __init__(
        self, scenario: Scenario, ds: str, space: list[Dimension], folder: Path, *, differs: bool = False
    ) -> None:
        """`differs`: the scenario's settings are not the champion's, also at paths outside the space."""
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        folder.mkdir(parents=True, exist_ok=True)
        self.scenario, self.ds, self.space, self.folder = scenario, ds, space, folder
        self.differs = differs
        self.mutex = FileLock(folder / "study.lock")  # held by the process that asks for a trial
        self.distributions = {dimension.path: dimension.distribution for dimension in space}
        journal = folder / "study.journal"
        # Not Optuna's own lock, a file that a killed process leaves behind.
        lock: Any = FileLock(folder / "journal.lock")
        with self.mutex:
            # Under the journal's own lock: without it, a line without an end may be one that is being written.
            with lock:
                _cut_torn_line(journal)
            self.study = optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(journal), lock)),
                study_name=f"{scenario.name}-{ds}",
                direction="maximize" if scenario.tune.objective == "auc" else "minimize",
                pruner=optuna.pruners.MedianPruner(n_startup_trials=min(4, max(2, scenario.tune.trials // 3))),
                load_if_exists=True,
            )

    def run(self, objective: Objective, *, wait: bool) -> None:
        """Tries until `tune.trials` trials count, or the space holds no other values. `wait` for other processes'
        trials too, and redo those that die."""
        spent = -1
        while True:
            with self.mutex:
                self._bury()
                trials = self.study.get_trials(deepcopy=False)
                num_running = sum(trial.state.name == "RUNNING" for trial in trials)
                place = sum(map(_counts, trials)) + num_running
                trial = self._ask(place) if place < self.scenario.tune.trials and place != spent else None
                spent = place if trial is None else spent
            if trial is not None:
                self._try(trial, objective)
            elif num_running == 0 or not wait:
                if place < self.scenario.tune.trials:
                    done = f"tune {self.ds}: {place} of {self.scenario.tune.trials} trials"
                    print(f"{done}: {MAX_DRAWS} draws found no values that were not tried yet", file=sys.stderr)
                return
            else:
                time.sleep(WAIT_S)

    def trials(self) -> list[Trial]:
        """Returns the trials in order. Trial 0 has the values of the champion."""
        counted = _in_order(t for t in self.study.get_trials(deepcopy=False) if _counts(t))
        return [
            {
                "number": number,
                "state": t.state.name.lower().replace("fail", "failed"),
                "params": {d.path: d.decode(t.params[d.path]) for d in self.space},
                "value": t.value if t.state.name == "COMPLETE" else None,
                "intermediate": {str(step): value for step, value in sorted(t.intermediate_values.items())},
                "days": t.user_attrs.get("days", {}),
                "error": t.user_attrs.get(ERROR),
            }
            for number, t in enumerate(counted)
        ]

    def _ask(self, place: int) -> _Running | None:
        """The next trial, all its values chosen; None where only known ones are drawn. The mutex is held."""
        for draw in range(MAX_DRAWS):
            known = [t.params for t in self.study.get_trials(deepcopy=False) if self._is_known(t)]
            trial = self._draw(place, draw)
            if trial.params not in known or {CHAMPION, OWN} & trial.user_attrs.keys():
                lock = self._lock_of(trial.number)
                lock.acquire()  # released at the trial's end, or by the kernel
                return _Running(trial, lock, self.folder / f"trial-{trial.number}")
            self.study.tell(trial, state=_state("FAIL"))  # equal values give equal results
        return None

    def _is_known(self, trial: Any) -> bool:
        if CHAMPION in trial.user_attrs and self.differs:  # with the scenario's other settings the values are new
            return False
        return _counts(trial) or trial.state.name == "RUNNING"

    def _draw(self, place: int, draw: int) -> Any:
        import optuna

        trials, seed = self.scenario.tune.trials, self._seed(place, draw)
        by_results = optuna.samplers.TPESampler(
            seed=seed,
            multivariate=True,
            constant_liar=True,  # workers that run at once would otherwise try the same place
            n_startup_trials=min(10, max(3, trials // 3)),  # Optuna's ten would be the whole of a small study
        )
        # Where the best known values are drawn, they are drawn again and again: only chance leads to others.
        self.study.sampler = by_results if draw == 0 else optuna.samplers.RandomSampler(seed=seed)
        return self.study.ask(self.distributions)

    def _bury(self) -> None:
        """Fails trials whose process is gone, and queues their values again; the mutex is held."""
        for trial in self.study.get_trials(deepcopy=False):
            if trial.state.name == "RUNNING":
                with contextlib.suppress(Timeout), self._lock_of(trial.number).acquire(blocking=False):
                    self._bury_one(trial.number)
        standing = [t for t in self.study.get_trials(deepcopy=False) if t.state.name != "FAIL" or _counts(t)]
        for mark, values in self._known_values():
            if not any(mark in trial.user_attrs for trial in standing):
                self.study.enqueue_trial(values, user_attrs={mark: True})

    def _bury_one(self, number: int) -> None:
        dead = self.study.get_trials(deepcopy=False)[number]
        if dead.state.name != "RUNNING":  # it ended well between the two looks
            return
        self.study.tell(number, state=_state("FAIL"))  # else every process would wait for it
        if dead.params.keys() == self.distributions.keys() and not {CHAMPION, OWN} & dead.user_attrs.keys():
            self.study.enqueue_trial(dead.params)
        shutil.rmtree(self.folder / f"trial-{number}", ignore_errors=True)

    def _known_values(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields the values to try first: the champion's, then the scenario's own where they differ.

        A scenario's values can be of any type.
        """
        champion = {d.path: d.encode(d.champion) for d in self.space}
        own = {d.path: d.encode(d.own) for d in self.space}
        yield CHAMPION, champion
        if (self.differs or own != champion) and self.scenario.tune.trials > 1:
            yield OWN, own

    def _try(self, running: _Running, objective: Objective) -> None:
        trial = running.trial
        values = {d.path: d.decode(trial.params[d.path]) for d in self.space}
        is_champion = CHAMPION in trial.user_attrs
        steps = iter(range(1, sys.maxsize))

        def report(value: float) -> bool:
            trial.report(value, next(steps))
            return bool(trial.should_prune()) and not is_champion

        try:
            running.scratch.mkdir(exist_ok=True)
            judged = objective(Candidate(values, is_champion), running.scratch, report)
            if judged is None and is_champion:
                raise BadInputError(
                    f"{self.scenario.file}: tune of {self.ds}: the values that serve can't be judged: no label has both"
                    " classes among the rows of a replayed day; tune another day, or raise tune.replay_days"
                )
            if judged is None:
                self.study.tell(trial, state=_state("PRUNED"))
            else:
                trial.set_user_attr("days", judged.days)
                self.study.tell(trial, judged.value)
            self._say(trial, "pruned" if judged is None else f"{self.scenario.tune.objective} {judged.value:.6f}")
        except Exception as error:
            if is_champion or not _is_of_values(error):
                raise
            self._fail(trial, error)
        finally:
            shutil.rmtree(running.scratch, ignore_errors=True)
            running.lock.release()

    def _fail(self, trial: Any, error: Exception) -> None:
        """The values are wrong, not the study: the trial counts as failed, and the search goes on."""
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        trial.set_user_attr(ERROR, f"{type(error).__name__}: {reason}" if reason else type(error).__name__)
        self.study.tell(trial, state=_state("FAIL"))
        self._say(trial, f"failed: {reason}")

    def _say(self, trial: Any, text: str) -> None:
        # Optuna numbers each draw, also those that repeat known values; a person must find this trial in the report.
        standing = _in_order(
            t for t in self.study.get_trials(deepcopy=False) if _counts(t) or t.state.name == "RUNNING"
        )
        number = [t.number for t in standing].index(trial.number)
        print(f"tune {self.ds}: trial {number}: {text}", file=sys.stderr, flush=True)

    def _lock_of(self, number: int) -> FileLock:
        return FileLock(self.folder / f"trial-{number}.lock")

    def _seed(self, place: int, draw: int) -> int:
        text = "\0".join([self.scenario.name, self.ds, str(self.scenario.train.seed), str(place), *["again"] * draw])
        # 4 bytes: the sampler's generator takes seeds of 32 bits.
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")


class _Running:
    """A trial of ours, its lock and its scratch folder."""

    def __init__(self, trial: Any, lock: FileLock, scratch: Path) -> None:
        self.trial, self.lock, self.scratch = trial, lock, scratch


def _counts(trial: Any) -> bool:
    """Says if a trial is done: complete, pruned, or failed by itself. One whose process died is tried again."""
    return trial.state.name in ("COMPLETE", "PRUNED") or ERROR in trial.user_attrs


def _in_order(trials: Iterable[Any]) -> list[Any]:
    """Trials as they are reported: the champion's first, also where it was begun again, then by age."""
    return sorted(trials, key=lambda t: (CHAMPION not in t.user_attrs, t.number))


def _is_of_values(error: Exception) -> bool:
    """Says if other values might not have raised it: a full disk or a lost file stops any trial, memory does not."""
    return not isinstance(error, RetryLaterError | OSError) or getattr(error, "errno", None) == errno.ENOMEM


def _state(name: str) -> Any:
    from optuna.trial import TrialState

    return TrialState[name]


def _cut_torn_line(journal: Path) -> None:
    """Cuts off a last line that a crash left unfinished: Optuna would never read past it."""
    if journal.is_file():
        data = journal.read_bytes()
        if not data.endswith(b"\n"):
            journal.write_bytes(data[: data.rfind(b"\n") + 1])
