"""evaluate: is today's challenger as good as the champion, on rows that neither has learned from?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.contract import DayConfig, Input, Metrics, Resources, step
from tasks.evaluation.scored_day import ScoredDay, read_day
from tasks.store.output_files import digest_of, read_json, write_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from feature_jobs.schema import Scenario
    from tasks.evaluation.scored_day import Scores


@step(
    reads={
        "samples": Input(),
        "validation": Input(),
        "checkpoint": Input(),
        "champion": Input(of="checkpoint", days="champion"),
        "former_champion": Input(of="checkpoint", days="former_champion"),
        "yesterday": Input(of="evaluation", days="previous", optional=True),
    },
    writes="evaluation",
    config=("evaluate", "deploy", "labels"),
    imports=("models.metrics.comparison", "models.training.day", "tasks.evaluation.report", "matplotlib.figure"),
    resources=Resources(memory_gib=4.0),
    timeout_s=1800,
)
def evaluate(
    config: DayConfig,
    *,
    samples: Path,
    validation: Path,
    checkpoint: Path,
    champion: Path | None,
    former_champion: Path | None,
    yesterday: Path | None,
    evaluation: Path,
) -> Metrics:
    """Judges the day's challenger against the champion, and the champion itself on the day that has now arrived.

    The challenger is compared on the holdout: the day's last rows, scored before they were learned, overall and per
    segment, with paired bootstrap intervals. The champion is compared with the one before it, and the chain with the
    champion, on all rows of the day. Writes evaluation.json and report.html.
    """
    from tasks.evaluation.report import write_report

    scenario = config.scenario
    day = read_day(scenario, samples, checkpoint)
    facts = read_json(checkpoint, "checkpoint.json")
    digests = {
        "challenger": digest_of(checkpoint),
        "parent": facts.get("parent"),
        "champion": digest_of(champion) if champion else None,
        "former_champion": digest_of(former_champion) if former_champion else None,
    }
    scores = _scores(day, samples, champion, digests["champion"], digests["parent"])
    former = _scores(day, samples, former_champion, digests["former_champion"], digests["parent"])
    judged = _judge_holdout(config, day, scores)
    next_day = _judge_day(config, day, scores, former, is_parent=digests["champion"] == digests["parent"])
    result = {
        "scenario": scenario.name,
        "ds": config.ds,
        **digests,
        "rows": {"day": len(day.users_N), "holdout": int(day.holdout_N.sum())},
        **judged,
        "comparison": verdict(scenario, judged, day),
        "next_day": next_day,
        "history": _history(config, day, yesterday),
    }
    write_json(evaluation, "evaluation.json", result)
    as_written = read_json(evaluation, "evaluation.json")
    write_report(scenario, as_written, day, champion=scores, validation=validation, output=evaluation)
    return _metrics(result)


def _scores(day: ScoredDay, samples: Path, model: Path | None, digest: str | None, parent: str | None) -> Scores | None:
    """What a checkpoint says of every row of the day; the parent has said it before."""
    if model is None:
        return None
    if digest == parent and day.progressive is not None:
        return day.progressive
    import pyarrow.parquet as pq

    from models.training.day import score

    return score(model, pq.read_table(samples / "samples.parquet").sort_by("key.event_row"))


def _how(config: DayConfig) -> dict[str, Any]:
    """Settings of the bootstrap; the day is its seed."""
    rules = config.scenario.evaluate
    seed = int(config.ds.replace("-", ""))
    return {"resamples": rules.bootstrap, "confidence": rules.confidence, "seed": seed}


def _judge_holdout(config: DayConfig, day: ScoredDay, champion: Scores | None) -> dict[str, Any]:
    """{"overall": {task: comparison}, "segments": {segment: {task: comparison}}} on the holdout."""
    from models.metrics.comparison import compare

    def on(rows_N: NDArray[np.bool_], task: str) -> dict[str, Any]:
        theirs = champion[task][rows_N] if champion is not None else None
        return compare(day.labels[task][rows_N], theirs, day.gate[task][rows_N], day.users_N[rows_N], **_how(config))

    segments: dict[str, dict[str, Any]] = {}
    for name, inside_N in day.segments.items():
        segments[name] = {task: on(day.holdout_N & inside_N, task) for task in day.labels}
        for facts in segments[name].values():
            facts["judged"] = facts["rows"] >= config.scenario.deploy.min_segment_rows
    return {"overall": {task: on(day.holdout_N, task) for task in day.labels}, "segments": segments}


def verdict(scenario: Scenario, judged: Mapping[str, Any], day: ScoredDay) -> dict[str, Any]:
    """{"ok", "reasons"}: whether the challenger is not worse than the champion, and where it is."""
    import numpy as np

    from models.metrics.comparison import is_worse

    rules, reasons = scenario.deploy, []
    first = int(np.argmax(day.holdout_N)) if day.holdout_N.any() else len(day.holdout_N)
    unscored = {task: int(np.isnan(scores[first:]).sum()) for task, scores in day.gate.items()}
    if not day.holdout_N.any():
        reasons.append("the challenger has no score on any row of the holdout")
    reasons += [
        f"{task}: the challenger has no score on {count} rows of the holdout"
        for task, count in unscored.items()
        if count
    ]
    for task, facts in judged["overall"].items():
        if is_worse(facts["difference"], rules.max_auc_drop):
            reasons.append(f"{task}: {_told(facts['difference'], rules.max_auc_drop)}")
    for segment, tasks in judged["segments"].items():
        for task, facts in tasks.items():
            if facts["judged"] and is_worse(facts["difference"], rules.max_segment_auc_drop):
                reasons.append(f"{task} in segment {segment}: {_told(facts['difference'], rules.max_segment_auc_drop)}")
    return {"ok": not reasons, "reasons": reasons}


def _told(difference: Mapping[str, float], allowed: float) -> str:
    interval = f"[{difference['low']:+.4f}, {difference['high']:+.4f}]"
    return f"AUC {difference['auc']:+.4f} {interval} where at most {-allowed:.4f} is allowed"


def _judge_day(
    config: DayConfig, day: ScoredDay, champion: Scores | None, former: Scores | None, *, is_parent: bool
) -> dict[str, Any]:
    """The day that arrived after the champion was promoted judges it, on all rows.

    `rollback_proposed`: it is worse than the one before it. `hold`: the chain is worse than it, so what grew from the
    chain should not replace it.
    """
    from models.metrics.comparison import compare, is_worse

    def all_rows(names: tuple[str, str], ours: Scores | None, theirs: Scores | None) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for task in day.labels if ours is not None and theirs is not None else ():
            facts = compare(day.labels[task], theirs[task], ours[task], day.users_N, **_how(config))  # type: ignore[index]
            sides = {names[0]: facts.pop("challenger"), names[1]: facts.pop("champion")}
            found[task] = {**facts, **sides}
        return found

    against_former = all_rows(("champion", "former"), champion, former)
    chain = {} if is_parent else all_rows(("chain", "champion"), day.progressive, champion)
    limit = config.scenario.deploy.max_auc_drop
    reasons = [
        *(f"{task}: the champion against the one before it: {_told(facts['difference'], limit)}"
          for task, facts in against_former.items() if is_worse(facts["difference"], limit)),
        *(f"{task}: the chain against the champion: {_told(facts['difference'], limit)}"
          for task, facts in chain.items() if is_worse(facts["difference"], limit)),
    ]  # fmt: skip
    hold = any(is_worse(facts["difference"], limit) for facts in chain.values())
    rollback = any(is_worse(facts["difference"], limit) for facts in against_former.values())
    return {
        "verdict": "hold" if hold else "rollback_proposed" if rollback else "ok",
        "rollback_proposed": rollback,
        "reasons": reasons,
        "champion_against_former": against_former,
        "chain_against_champion": chain,
    }


def _history(config: DayConfig, day: ScoredDay, yesterday: Path | None) -> list[dict[str, Any]]:
    """Progressive AUC of every day so far: what earlier evaluations carried on, and this day."""
    from models.metrics.comparison import judge

    before = read_json(yesterday, "evaluation.json")["history"] if yesterday else []
    today = []
    for task, scores in (day.progressive or {}).items():
        known_N = day.labels[task] == day.labels[task]
        labels_N, users_N = day.labels[task][known_N], day.users_N[known_N]
        facts = judge(labels_N, scores[known_N], users_N, confidence=config.scenario.evaluate.confidence)
        today.append({"ds": config.ds, "task": task, "rows": int(known_N.sum()), **facts})
    return [*before, *today]


def _metrics(result: Mapping[str, Any]) -> Metrics:
    """The numbers worth a curve."""
    return {
        "rows": result["rows"],
        "holdout": {
            task: {side: facts[side] for side in ("challenger", "champion") if facts[side]}
            | {"difference": facts["difference"] or {}}
            for task, facts in result["overall"].items()
        },
        "not_worse": result["comparison"]["ok"],
        "next_day_ok": result["next_day"]["verdict"] == "ok",
    }
