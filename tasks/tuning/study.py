"""A study that several processes search together and that survives any of them being killed.

Optuna's journal file holds the trials. Who is alive is told by file locks, which the kernel takes back from a killed
process at once, on any machine that has locks on the store's file system: a running trial whose lock is free was
killed, counts as failed, and its values are the next to be tried. (Optuna's heartbeat would need a database and wait
for it to fall silent.) Samplers are seeded by a trial's place among those that count, so that a study killed and
resumed by one process ends as if nothing had happened.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from feature_jobs.errors import BadInputError
from feature_jobs.schema import Scenario
from tasks.tuning.space import Dimension

CHAMPION = "champion"
WAIT_S = 0.2
Report = Callable[[float], bool]
"""Takes the objective so far after one more replayed day; says whether the trial should stop."""
Objective = Callable[[dict[str, Any], Path, Report], "tuple[float, dict[str, Any]] | None"]
"""Values by path, a scratch folder, and `Report` → the value and facts to keep, or None where it stopped early."""


class FileLock:
    """A lock that ends with its process. `acquire` and `release` are what Optuna's journal asks of a lock."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._stream: IO[str] | None = None

    def acquire(self, *, wait: bool = True) -> bool:
        """True once it is held; False where another process holds it and `wait` is off."""
        stream = self.file.open("a")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            stream.close()
            return False
        self._stream = stream
        return True

    def release(self) -> None:
        """Gives it back."""
        assert self._stream is not None  # noqa: S101 (held)
        self._stream.close()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Waits for it and holds it."""
        self.acquire()
        try:
            yield
        finally:
            self.release()


class Study:
    """The trials of one space over one replay, kept in `folder`."""

    def __init__(self, scenario: Scenario, ds: str, space: list[Dimension], folder: Path) -> None:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        folder.mkdir(parents=True, exist_ok=True)
        self.scenario, self.ds, self.space, self.folder = scenario, ds, space, folder
        self.mutex = FileLock(folder / "study.lock")
        self.distributions = {dimension.path: dimension.distribution for dimension in space}
        journal = folder / "study.journal"
        lock: Any = FileLock(folder / "journal.lock")
        with self.mutex.held():
            with lock.held():
                _mend(journal)
            self.study = optuna.create_study(
                storage=JournalStorage(JournalFileBackend(str(journal), lock)),
                study_name=f"{scenario.name}-{ds}",
                direction="maximize" if scenario.tune.objective == "auc" else "minimize",
                pruner=optuna.pruners.MedianPruner(n_startup_trials=min(4, max(2, scenario.tune.trials // 3))),
                load_if_exists=True,
            )

    def run(self, objective: Objective, *, wait: bool) -> None:
        """Tries until `tune.trials` trials count. `wait` for other processes' trials too, and redo those that die."""
        while True:
            with self.mutex.held():
                self._bury()
                states = [trial.state.name for trial in self.study.get_trials(deepcopy=False)]
                num_done, num_running = sum(s in ("COMPLETE", "PRUNED") for s in states), states.count("RUNNING")
                trial = (
                    self._ask(num_done + num_running) if num_done + num_running < self.scenario.tune.trials else None
                )
            if trial is not None:
                self._try(trial, objective)
            elif num_running == 0 or not wait:
                return
            else:
                time.sleep(WAIT_S)

    def trials(self) -> list[dict[str, Any]]:
        """What was tried, the champion's values first: number, state, params, value, intermediate, days."""
        counted = [t for t in self.study.get_trials(deepcopy=False) if t.state.name in ("COMPLETE", "PRUNED")]
        counted.sort(key=lambda t: (CHAMPION not in t.user_attrs, t.number))
        return [
            {
                "number": number,
                "state": t.state.name.lower(),
                "params": {d.path: d.decode(t.params[d.path]) for d in self.space},
                "value": t.value if t.state.name == "COMPLETE" else None,
                "intermediate": {str(step): value for step, value in sorted(t.intermediate_values.items())},
                "days": t.user_attrs.get("days", {}),
            }
            for number, t in enumerate(counted)
        ]

    def _ask(self, place: int) -> _Running:
        """The next trial, all its values chosen; the mutex is held."""
        import optuna

        trials = self.scenario.tune.trials
        self.study.sampler = optuna.samplers.TPESampler(
            seed=self._seed(place),
            multivariate=True,
            constant_liar=True,
            n_startup_trials=min(10, max(3, trials // 3)),
        )
        trial = self.study.ask(self.distributions)
        lock = self._lock_of(trial.number)
        lock.acquire()
        return _Running(trial, lock, self.folder / f"trial-{trial.number}")

    def _bury(self) -> None:
        """Fails trials whose process is gone, and queues their values again; the mutex is held."""
        for trial in self.study.get_trials(deepcopy=False):
            lock = self._lock_of(trial.number)
            if trial.state.name != "RUNNING" or not lock.acquire(wait=False):
                continue
            dead = self.study.get_trials(deepcopy=False)[trial.number]
            if dead.state.name == "RUNNING":  # else it ended well between the two looks
                self.study.tell(dead.number, state=_state("FAIL"))
                if dead.params.keys() == self.distributions.keys() and CHAMPION not in dead.user_attrs:
                    self.study.enqueue_trial(dead.params)
                shutil.rmtree(self.folder / f"trial-{dead.number}", ignore_errors=True)
            lock.release()
        standing = [t for t in self.study.get_trials(deepcopy=False) if t.state.name != "FAIL"]
        if not any(CHAMPION in trial.user_attrs for trial in standing):
            values = {dimension.path: dimension.champion_raw for dimension in self.space}
            self.study.enqueue_trial(values, user_attrs={CHAMPION: True})

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
            outcome = objective(values, running.scratch, report)
            if outcome is None and is_champion:
                raise BadInputError(
                    f"{self.scenario.file}: tune of {self.ds}: the scenario's own values can't be judged: no label has"
                    " both classes among the rows of a replayed day; tune another day, or raise tune.replay_days"
                )
            if outcome is None:
                self.study.tell(trial, state=_state("PRUNED"))
            else:
                value, days = outcome
                trial.set_user_attr("days", days)
                self.study.tell(trial, value)
            self._say(trial.number, "pruned" if outcome is None else f"{outcome[0]:.6f}")
        finally:
            shutil.rmtree(running.scratch, ignore_errors=True)
            running.lock.release()

    def _say(self, number: int, text: str) -> None:
        print(f"tune {self.ds}: trial {number}: {self.scenario.tune.objective} {text}", file=sys.stderr, flush=True)

    def _lock_of(self, number: int) -> FileLock:
        return FileLock(self.folder / f"trial-{number}.lock")

    def _seed(self, place: int) -> int:
        text = "\0".join([self.scenario.name, self.ds, str(self.scenario.train.seed), str(place)])
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "little")


class _Running:
    """A trial of ours, its lock and its scratch folder."""

    def __init__(self, trial: Any, lock: FileLock, scratch: Path) -> None:
        self.trial, self.lock, self.scratch = trial, lock, scratch


def _state(name: str) -> Any:
    from optuna.trial import TrialState

    return TrialState[name]


def _mend(journal: Path) -> None:
    """Cuts off a last line that a crash left unfinished: Optuna would never read past it."""
    if journal.is_file():
        data = journal.read_bytes()
        if not data.endswith(b"\n"):
            journal.write_bytes(data[: data.rfind(b"\n") + 1])
