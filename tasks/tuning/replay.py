"""Past days, replayed with other values of the scenario, and judged on rows that were not learned."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from feature_jobs.schema import Scenario
from feature_jobs.schema.days import history_days, maturing_days, trailing_days
from models.checkpoints.files import PREDICTIONS_FILE
from tasks.tuning.space import joins_again, with_values
from tasks.tuning.study import Candidate, Judged, Report

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


TAIL_DRAWS, MAX_DRAWS = 20, 10_000  # an end of an interval needs about ten draws beyond it


class Difference(TypedDict):
    """The AUC of the best trial minus that of trial 0 on the judged rows, its interval, and the judgement on it.

    `verdict` (models.metrics.judgement.Verdict) and `reason` are a text here, so that reading needs no NumPy. The
    numbers are None where they are undefined.
    """

    difference: float | None
    low: float | None
    high: float | None
    verdict: str
    reason: str


@dataclass(frozen=True)
class Gain:
    """The best trial's gain. It is `certain` if it is beyond chance in some task, and no task is worse or unknown.

    `by_task` is empty where nothing was changed.
    """

    certain: bool = False
    by_task: dict[str, Difference] = field(default_factory=dict)


@dataclass(frozen=True)
class Replay:
    """The days that every trial replays, from one checkpoint. `serving` is the scenario with the settings of the
    champion. `samples`, `events` and `summaries` are folders by day; the last two also hold the days before, and are
    read only by trials that join again."""

    scenario: Scenario
    serving: Scenario
    parent: Path
    samples: Mapping[str, Path]
    events: Mapping[str, Path]
    summaries: Mapping[str, Path] = field(default_factory=dict)

    def differences(self) -> list[tuple[str, Any, Any]]:
        """Config paths at which the scenario differs from the champion's settings, with both values."""
        found: list[tuple[str, Any, Any]] = []

        def compare(path: str, old: Any, new: Any) -> None:
            if isinstance(old, dict) and isinstance(new, dict):
                for key in sorted(old.keys() | new.keys()):
                    compare(f"{path}.{key}" if path else key, old.get(key), new.get(key))
            elif old != new:
                found.append((path, old, new))

        compare("", *(s.model_dump(mode="json", by_alias=True) for s in (self.serving, self.scenario)))
        return found

    def objective(self, candidate: Candidate, scratch: Path, report: Report) -> Judged | None:
        """The mean over replayed days of the mean over tasks; None where the pruner stopped it or it diverged."""
        by_day: dict[str, dict[str, float]] = {}
        means: list[float] = []
        for ds, judged, _ in self._days(candidate, scratch):
            by_day[ds] = _values(judged, self.scenario.tune.objective)
            # No task has a value (one class only, or scores that are not finite): the trial can't be ranked.
            if not by_day[ds]:
                return None
            means.append(sum(by_day[ds].values()) / len(by_day[ds]))
            # The last day is done: nothing to save by stopping.
            if report(_mean(means)) and len(means) < len(self.samples):
                return None
        return Judged(_mean(means), by_day)

    def _days(self, candidate: Candidate, scratch: Path) -> Iterator[tuple[str, Mapping[str, Any], Path]]:
        """Replays day after day: the day, the metrics of the rows that judge it, and its checkpoint."""
        from models.training.day import train_day
        from models.training.job import TrainJob

        # The champion's trial has the champion's whole settings, not only those that are searched.
        base, parent = self.serving if candidate.serves else self.scenario, self.parent
        scenario = with_values(base, candidate.values)
        is_joined = any(map(joins_again, candidate.values))
        for ds in sorted(self.samples):
            checkpoint = scratch / ds
            checkpoint.mkdir(parents=True)
            samples = self._join(scenario, ds, scratch / "samples") if is_joined else self.samples[ds]
            metrics: Mapping[str, Any] = train_day(TrainJob(scenario, ds, samples, parent, checkpoint))
            yield ds, metrics[self.judged_by(ds)], checkpoint
            if parent != self.parent:  # the first parent is the committed one
                shutil.rmtree(parent)
            parent = checkpoint
        shutil.rmtree(parent)

    def _join(self, scenario: Scenario, ds: str, output: Path) -> Path:
        """The day's samples as the changed scenario joins them. The labels and the order of rows stay the same."""
        from feature_jobs.joins.join import join_from_events

        # One day's samples at a time: a study keeps no copy of its days for each trial.
        shutil.rmtree(output, ignore_errors=True)
        days = trailing_days(scenario, ds, history_days(scenario) + maturing_days(scenario))
        past = {day: self.events[day] for day in days if day in self.events}
        join_from_events(scenario, ds, self.events[ds], past, output, seen=self.summaries or None)
        return output

    def judged_by(self, ds: str) -> str:
        """Names the scores that judge a day: the holdout's of the first day, the parent's of all rows of later days."""
        return "holdout" if ds == min(self.samples) else "progressive"

    def evidence(self, champion: Candidate, best: Candidate, num_trials: int, scratch: Path) -> Gain:
        """Replays both once more and compares them row by row.

        The best of several trials is better by chance too: the confidence is corrected for the number of trials and
        tasks (Bonferroni). Too few rows or positives (`deploy.min_rows`, `deploy.min_positives`) are unknown.
        """
        from models.metrics.bootstrap import paired_bootstrap
        from models.metrics.judgement import Evidence, judge_difference

        needs = Evidence(self.scenario.deploy.min_rows, self.scenario.deploy.min_positives)
        # One of the trials is the champion's own, which is compared with nothing.
        error = (1 - self.scenario.evaluate.confidence) / (len(self.scenario.tasks) * max(num_trials - 1, 1))
        # A corrected interval lies far in the tails, where few draws fall: it needs more of them.
        resamples = max(self.scenario.evaluate.bootstrap, min(math.ceil(TAIL_DRAWS / error), MAX_DRAWS))
        seed = self.scenario.train.seed
        # Trained again: a study keeps values, not scores, and equal settings give equal bytes.
        of_champion, of_best = (self._scores(candidate, scratch) for candidate in (champion, best))
        shutil.rmtree(scratch)
        found: dict[str, Difference] = {}
        for task, (labels, scores) in of_champion.items():
            interval = paired_bootstrap(
                labels, scores, of_best[task][1], resamples=resamples, confidence=1 - error, seed=seed
            )
            counts = {"rows": len(labels), "positives": int(labels.sum())}
            judged = judge_difference(interval, **counts, needs=needs)
            difference, low, high = (round(value, 6) if math.isfinite(value) else None for value in interval[:3])
            found[task] = {
                "difference": difference,
                "low": low,
                "high": high,
                "verdict": judged.verdict,
                "reason": judged.reason,
            }
        verdicts = {facts["verdict"] for facts in found.values()}
        return Gain("better" in verdicts and not verdicts & {"worse", "unknown"}, found)

    def _scores(self, candidate: Candidate, scratch: Path) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
        """Labels and scores [N] of each task over the rows that judge the replayed days."""
        import numpy as np
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        found: dict[str, list[np.ndarray[Any, Any]]] = {task: [] for task in self.scenario.tasks}
        for ds, _, checkpoint in self._days(candidate, scratch):
            kind = "gate" if self.judged_by(ds) == "holdout" else "progressive"
            table = pq.read_table(checkpoint / PREDICTIONS_FILE)
            for task, parts in found.items():
                label, score = table[f"label.{task}"], table[f"{kind}.{task}"]
                kept = pc.and_(label.is_valid(), score.is_valid())
                parts.append(np.stack([label.filter(kept).to_numpy(), score.filter(kept).to_numpy()]))
        joined = {task: np.concatenate(parts, axis=1) for task, parts in found.items()}
        return {task: (labels, scores) for task, (labels, scores) in joined.items()}


def _values(judged: Mapping[str, Any], objective: str) -> dict[str, float]:
    """The objective of each task for which it is defined."""
    return {task: facts[objective] for task, facts in judged.items() if facts[objective] is not None}


def _mean(values: list[float]) -> float:
    return round(sum(values) / len(values), 6)
