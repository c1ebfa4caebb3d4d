"""The comparisons of a day: challenger against champion on the holdout, and the champion itself on the new day.

Every comparison ends in one of four verdicts, see models.metrics.judgement: better, not worse, worse, or unknown.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from feature_jobs.schema import Scenario
from tasks.contract import DayConfig
from tasks.evaluation.scored_day import ScoredDay

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from models.metrics.comparison import Comparison, Difference, Groups, Judged, Quality
    from models.metrics.judgement import Judgement, Verdict
    from models.metrics.requests import RequestQuality
    from tasks.evaluation.scored_day import Scores

TRAILING_DAYS = 7  # each weekday once


class Holdout(TypedDict):
    """The comparisons on the holdout by task, and by segment and task."""

    overall: dict[str, Comparison]
    segments: dict[str, dict[str, Comparison]]


class Finding(TypedDict):
    """The challenger compared with the champion. `reasons`: sentences on the tasks and segments in which it is worse;
    `unknown`: on the tasks that could not be judged."""

    verdict: Verdict | Literal["no_champion"]
    reasons: list[str]
    unknown: list[str]


Side = Literal["champion", "former", "chain"]


class DayComparison(TypedDict, total=False):
    """Two models on all rows of a day, as models.metrics.comparison.Comparison, but under the names of the two."""

    rows: int
    positives: int
    champion: Quality | None
    former: Quality | None
    chain: Quality | None
    difference: Difference | None
    judgement: Judged | None


class NextDay(TypedDict):
    """Quality of the champion on the day that arrived after it was promoted, on all rows.

    `rollback_proposed`: it is worse than the one before it. `hold`: the chain is worse than it, so a version that grew
    from the chain should not replace it.
    """

    verdict: Literal["ok", "rollback_proposed", "hold", "unknown"]
    rollback_proposed: bool
    reasons: list[str]
    unknown: list[str]
    champion_against_former: dict[str, DayComparison]
    chain_against_champion: dict[str, DayComparison]


class DayQuality(TypedDict, total=False):
    """One task on one day, scored by the model of the day before; days of older releases lack `positives`."""

    ds: str
    task: str
    rows: int
    positives: int
    auc: float
    gauc: float
    normalized_entropy: float
    calibration: float
    calibration_interval: list[float]
    calibration_error: float
    per_request: RequestQuality
    anonymous: int


class Evaluation(Holdout):
    """evaluation.json. `challenger`, `parent`, `champion` and `former_champion` are digests of checkpoints; `rows` are
    counts of the day and of its holdout; `history` holds the progressive quality of all days so far."""

    scenario: str
    ds: str
    challenger: str
    parent: str | None
    champion: str | None
    former_champion: str | None
    rows: dict[str, int]
    comparison: Finding
    next_day: NextDay
    warnings: list[str]
    history: list[DayQuality]


def compare_holdout(config: DayConfig, day: ScoredDay, champion: Scores | None) -> Holdout:
    """Compares both on the holdout, overall and in every segment."""
    rules = config.scenario.deploy

    def on(rows_N: NDArray[np.bool_], task: str, min_rows: int, max_drop: float) -> Comparison:
        theirs = champion[task][rows_N] if champion is not None else None
        ours, labels, groups = day.gate[task][rows_N], day.labels[task][rows_N], day.groups.take(rows_N)
        return _compare(config, labels, theirs, ours, groups, min_rows=min_rows, max_drop=max_drop)

    return {
        "overall": {task: on(day.holdout_N, task, rules.min_rows, rules.max_auc_drop) for task in day.labels},
        "segments": {
            name: {
                task: on(day.holdout_N & inside_N, task, rules.min_segment_rows, rules.max_segment_auc_drop)
                for task in day.labels
            }
            for name, inside_N in day.segments.items()
        },
    }


def judge_holdout(judged: Holdout, day: ScoredDay) -> Finding:
    """Worse anywhere is worse. A task that could not be judged overall is unknown; an unjudged segment is not held
    against the challenger, because small segments are normal."""
    overall = [(task, facts["judgement"]) for task, facts in judged["overall"].items()]
    inside = [
        (f"{task} in segment {name}", facts["judgement"])
        for name, tasks in judged["segments"].items()
        for task, facts in tasks.items()
    ]
    worse = [*_without_score(day), *_reasons([*overall, *inside], "worse")]
    unknown = _reasons(overall, "unknown")
    if worse:  # evidence against it counts, however much else is unknown
        return {"verdict": "worse", "reasons": worse, "unknown": unknown}
    if all(found is None for _, found in overall):
        return {"verdict": "no_champion", "reasons": [], "unknown": []}
    if unknown:
        return {"verdict": "unknown", "reasons": [], "unknown": unknown}
    better = any(found is not None and found["verdict"] == "better" for _, found in overall)
    return {"verdict": "better" if better else "not_worse", "reasons": [], "unknown": []}


def _without_score(day: ScoredDay) -> list[str]:
    """A challenger that diverged scores some rows of the holdout with NaN."""
    import numpy as np

    from models.metrics.judgement import counted

    if not day.holdout_N.any():
        return ["the challenger has no score on any row of the holdout"]
    # The holdout is the end of the day: from its first scored row on, each row must have a score.
    first = int(np.argmax(day.holdout_N))
    counts = {task: int(np.isnan(scores[first:]).sum()) for task, scores in day.gate.items()}
    return [
        f"{task}: the challenger has no score on {counted(n, 'row')} of the holdout" for task, n in counts.items() if n
    ]


def judge_day(
    config: DayConfig, day: ScoredDay, champion: Scores | None, former: Scores | None, *, is_parent: bool
) -> NextDay:
    """Judges the champion on all rows of a day that it has not learned from."""
    # The champion's own next day: the first rows that neither it nor the one before it has learned.
    against_former = _on_all_rows(config, day, ("champion", "former"), champion, former)
    # The parent of the day is the chain itself: where it is the champion, there are no two models to compare.
    chain = {} if is_parent else _on_all_rows(config, day, ("chain", "champion"), day.progressive, champion)
    groups = [("the champion against the one before it", against_former), ("the chain against the champion", chain)]
    named = [(f"{task}: {text}", facts["judgement"]) for text, tasks in groups for task, facts in tasks.items()]
    unknown, hold, rollback = _reasons(named, "unknown"), _any_worse(chain), _any_worse(against_former)
    verdict: Literal["ok", "rollback_proposed", "hold", "unknown"] = "unknown" if unknown else "ok"
    # Hold comes first: where the chain itself fell behind, no version of it may replace the champion.
    if hold or rollback:
        verdict = "hold" if hold else "rollback_proposed"
    return {
        "verdict": verdict,
        "rollback_proposed": rollback,
        "reasons": _reasons(named, "worse"),
        "unknown": unknown,
        "champion_against_former": against_former,
        "chain_against_champion": chain,
    }


def _on_all_rows(
    config: DayConfig, day: ScoredDay, names: tuple[Side, Side], ours: Scores | None, theirs: Scores | None
) -> dict[str, DayComparison]:
    """Comparisons by task, with `names` for the two sides instead of challenger and champion."""
    if ours is None or theirs is None:
        return {}
    rules = config.scenario.deploy
    found: dict[str, DayComparison] = {}
    for task, labels in day.labels.items():
        scores = (labels, theirs[task], ours[task], day.groups)
        facts = _compare(config, *scores, min_rows=rules.min_rows, max_drop=rules.max_auc_drop)
        found[task] = {
            "rows": facts["rows"],
            "positives": facts["positives"],
            "difference": facts["difference"],
            "judgement": facts["judgement"],
        }
        found[task][names[0]], found[task][names[1]] = facts["challenger"], facts["champion"]
    return found


def _compare(
    config: DayConfig,
    labels_N: NDArray[np.floating[Any]],
    theirs_N: NDArray[np.floating[Any]] | None,
    ours_N: NDArray[np.floating[Any]],
    groups: Groups,
    *,
    min_rows: int,
    max_drop: float,
) -> Comparison:
    """One comparison with the scenario's settings; the day is the seed of the bootstrap."""
    from models.metrics.comparison import compare
    from models.metrics.judgement import Evidence

    rules = config.scenario.evaluate
    return compare(
        labels_N,
        theirs_N,
        ours_N,
        groups,
        resamples=rules.bootstrap,
        confidence=rules.confidence,
        ndcg_k=rules.ndcg_k,
        # Another seed each day, so that the draws of different days are independent.
        seed=int(config.ds.replace("-", "")),
        needs=Evidence(min_rows, config.scenario.deploy.min_positives),
        max_drop=max_drop,
    )


def _reasons(named: Iterable[tuple[str, Judged | None]], verdict: Verdict) -> list[str]:
    return [f"{name}: {found['reason']}" for name, found in named if found is not None and found["verdict"] == verdict]


def _any_worse(tasks: Mapping[str, DayComparison]) -> bool:
    return any(facts["judgement"] and facts["judgement"]["verdict"] == "worse" for facts in tasks.values())


def history(config: DayConfig, day: ScoredDay, before: list[DayQuality]) -> list[DayQuality]:
    """Progressive quality of every day so far: that of the earlier days, and of this day."""
    from models.metrics.comparison import judge

    rules, today = config.scenario.evaluate, list[DayQuality]()
    for task, scores in (day.progressive or {}).items():
        known_N = day.labels[task] == day.labels[task]  # NaN differs from itself
        labels_N, groups = day.labels[task][known_N], day.groups.take(known_N)
        facts: Quality = judge(labels_N, scores[known_N], groups, confidence=rules.confidence, ndcg_k=rules.ndcg_k)
        rows, positives = int(known_N.sum()), int(labels_N.sum())
        today.append({"ds": config.ds, "task": task, "rows": rows, "positives": positives, **facts})
    return [*before, *today]


def rare_labels(config: DayConfig, day: ScoredDay, judged: Holdout, days: list[DayQuality]) -> list[str]:
    """A warning for each label with fewer than `evaluate.rare_positives` positives today, or a day on average.

    The training moves the bias of a task with every batch. With a few positives a day the scores follow the luck of the
    day: their calibration may differ by several times from one day to the next.
    """
    from models.metrics.judgement import calibration_numbers, counted, describe_calibration, describe_direction

    limit = config.scenario.evaluate.rare_positives
    warnings: list[str] = []
    for task, labels_N in day.labels.items():
        today = int((labels_N > 0).sum())
        # Both the day and the average: one quiet day is chance, and one busy day does not end rarity.
        trailing = [p["positives"] for p in days if p["task"] == task and "positives" in p][-TRAILING_DAYS:]
        mean = sum(trailing) / len(trailing) if trailing else float(today)
        if today >= limit and mean >= limit:
            continue
        ours = judged["overall"][task]["challenger"]
        found = calibration_numbers(ours["calibration"], ours["calibration_interval"])
        warnings.append(
            f"{task} is rare: {counted(today, 'positive')} on {config.ds}, {mean:.0f} a day on average over"
            f" {counted(max(1, len(trailing)), 'day')}, where evaluate.rare_positives = {limit} are asked for; on the"
            f" holdout {describe_direction(*found)} ({describe_calibration(*found)}); metrics of one day vary by"
            " chance: judge it over several days"
        )
    return warnings


def judge_scores(scenario: Scenario, facts: Comparison, min_rows: int | None = None) -> Judgement:
    """Judges if the mean of the challenger's scores is near the mean label; `facts` may come from evaluation.json."""
    from models.metrics.judgement import Evidence, calibration_numbers, judge_calibration

    rules, ours = scenario.deploy, facts["challenger"]
    # NaN and infinity are null in a file, so the numbers are read back first: `facts` may come from either.
    return judge_calibration(
        *calibration_numbers(ours["calibration"], ours["calibration_interval"]),
        rows=facts["rows"],
        positives=facts["positives"],
        needs=Evidence(min_rows or rules.min_rows, rules.min_positives),
        max_error=rules.max_calibration_error,
    )


def comparison_line(scenario: Scenario, task: str, facts: Comparison) -> str:
    """One task of the holdout for the terminal."""
    from models.metrics.judgement import WORDS, describe_difference, shown

    theirs, found, gap = facts["champion"], facts["judgement"], facts["difference"]
    text = f"{task}: AUC {shown(facts['challenger']['auc'])}"
    calibrated = judge_scores(scenario, facts).reason
    if theirs is None or found is None or gap is None:
        return f"{text}, no champion yet; {calibrated}"
    difference = "" if math.isnan(gap["auc"]) else f" {describe_difference(gap['auc'], gap['low'], gap['high'])}"
    verdict = WORDS[found["verdict"]] + (f" ({found['reason']})" if found["verdict"] == "unknown" else "")
    return f"{text}, champion's {shown(theirs['auc'])}{difference}: {verdict}; {calibrated}"
