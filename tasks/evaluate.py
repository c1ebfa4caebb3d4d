"""evaluate: is today's challenger as good as the champion, on rows that neither has learned from?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from feature_jobs.schema.files import SAMPLES_FILE
from models.checkpoints.files import CHECKPOINT_FILE
from tasks.contract import DayConfig, Input, Metrics, Resources, step
from tasks.evaluation.comparison import (
    Evaluation,
    Holdout,
    NextDay,
    compare_holdout,
    comparison_line,
    history,
    judge_day,
    judge_holdout,
    judge_scores,
    rare_labels,
)
from tasks.evaluation.files import EVALUATION_FILE
from tasks.evaluation.scored_day import ScoredDay, read_day
from tasks.store.output_files import digest_of, read_json, write_json

if TYPE_CHECKING:
    from feature_jobs.schema import Scenario
    from models.metrics.comparison import Comparison
    from tasks.evaluation.scored_day import Scores


@step(
    reads={
        "samples": Input(),
        "validation": Input(),
        "checkpoint": Input(),
        "champion": Input(of="checkpoint", days="champion"),
        "former_champion": Input(of="checkpoint", days="former_champion"),
        # For the curve over days alone, so a day is judged without it, too.
        "yesterday": Input(of="evaluation", days="previous", optional=True),
    },
    writes="evaluation",
    config=("evaluate", "deploy", "labels"),  # deploy: the allowed loss of AUC, the minimum of rows
    imports=("models.metrics.comparison", "models.training.day", "tasks.evaluation.report", "matplotlib.figure"),
    headline={
        "holdout/*/challenger/auc": "challenger_auc/*",
        "holdout/*/champion/auc": "champion_auc/*",
        # Of scenarios with `data.request` alone.
        "holdout/*/challenger/per_request/ndcg": "challenger_ndcg/*",
        "holdout/*/champion/per_request/ndcg": "champion_ndcg/*",
        "per_request/*/auc": "request_auc/*",
        "per_request/*/ndcg": "request_ndcg/*",
        "per_request/*/mrr": "request_mrr/*",
    },
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
    """Compares the day's challenger with the champion. It also judges the champion itself on the new day.

    The challenger is compared on the holdout: the day's last rows, scored before they were learned, overall and per
    segment, with paired bootstrap intervals; too few rows or positives give the verdict unknown. The champion is
    compared with the one before it, and the chain with the champion, on all rows of the day. Warns of rare labels.
    Writes evaluation.json and report.html.
    """
    from tasks.evaluation.report import write_report

    scenario = config.scenario
    day = read_day(scenario, samples, checkpoint)
    parent = read_json(checkpoint, CHECKPOINT_FILE).get("parent")
    champion_digest, former_digest = (digest_of(one) if one else None for one in (champion, former_champion))
    scores = _scores(day, samples, champion, champion_digest, parent)
    former = _scores(day, samples, former_champion, former_digest, parent)
    judged = compare_holdout(config, day, scores)
    days = history(config, day, read_json(yesterday, EVALUATION_FILE)["history"] if yesterday else [])
    result: Evaluation = {
        "scenario": scenario.name,
        "ds": config.ds,
        "challenger": digest_of(checkpoint),
        "parent": parent,
        "champion": champion_digest,
        "former_champion": former_digest,
        "rows": {"day": len(day.groups.users_N), "holdout": int(day.holdout_N.sum())},
        "overall": judged["overall"],
        "segments": judged["segments"],
        "comparison": judge_holdout(judged, day),
        "next_day": judge_day(config, day, scores, former, is_parent=champion_digest == parent),
        "warnings": rare_labels(config, day, judged, days),
        "history": days,
    }
    write_json(evaluation, EVALUATION_FILE, result)
    as_written = read_json(evaluation, EVALUATION_FILE)  # without NaN: the report shows the same as the file
    write_report(scenario, as_written, day, champion=scores, validation=validation, output=evaluation)
    _print(scenario, judged, result["next_day"], result["warnings"])
    return _metrics(scenario, result)


def _scores(day: ScoredDay, samples: Path, model: Path | None, digest: str | None, parent: str | None) -> Scores | None:
    """A checkpoint's scores of every row of the day. The parent's were written while the day was trained."""
    if model is None:
        return None
    # Saves scoring the whole day once more.
    if digest == parent and day.progressive is not None:
        return day.progressive
    import pyarrow.parquet as pq

    from models.training.day import score

    # By row, because the scores are compared row by row with those that the training wrote.
    return score(model, pq.read_table(samples / SAMPLES_FILE).sort_by("key.event_row"))


def _print(scenario: Scenario, judged: Holdout, next_day: NextDay, warnings: list[str]) -> None:
    """One line for each task, then the warnings; on stderr, because stdout holds the JSON line."""
    lines = [comparison_line(scenario, task, facts) for task, facts in judged["overall"].items()]
    # Here alone: no gate of a later step says it, as a rollback is about the champion and not about the day's version.
    proposed = [f"a rollback is proposed: {'; '.join(next_day['reasons'])}"] if next_day["rollback_proposed"] else []
    print("\n".join([*lines, *(f"warning: {text}" for text in [*proposed, *warnings])]), file=sys.stderr, flush=True)


def _metrics(scenario: Scenario, result: Evaluation) -> Metrics:
    """The numbers worth a curve, and the verdicts by name; a verdict on nothing is not there."""
    # Of the parent's scores of the whole day; its other metrics are reported by train.
    today = [point for point in result["history"] if point["ds"] == result["ds"]]
    per_request = {point["task"]: point["per_request"] for point in today if "per_request" in point}
    return {
        "rows": result["rows"],
        "holdout": {task: _sides(facts) for task, facts in result["overall"].items()},
        **({"per_request": per_request} if per_request else {}),
        **_verdicts(scenario, result),
        "warnings": len(result["warnings"]),
    }


def _verdicts(scenario: Scenario, result: Evaluation) -> Metrics:
    """Each is shown by its name: {"not_worse": True, "calibration_unknown": True} as not worse, calibration unknown."""
    compared, next_day = result["comparison"]["verdict"], result["next_day"]
    found = {"not_worse": compared != "worse"}
    if compared in ("unknown", "no_champion"):
        found = {"judged": False} if compared == "unknown" else {"no_champion_yet": True}
    calibrated = [judge_scores(scenario, facts).verdict for facts in result["overall"].values()]
    if "worse" in calibrated or "unknown" not in calibrated:
        found["calibrated"] = "worse" not in calibrated
    else:
        found["calibration_unknown"] = True
    if next_day["verdict"] == "unknown":
        found["next_day_unknown"] = True
    elif next_day["champion_against_former"] or next_day["chain_against_champion"]:
        found["next_day_ok"] = next_day["verdict"] == "ok"
    return found


def _sides(facts: Comparison) -> Metrics:
    sides = {"challenger": facts["challenger"], "champion": facts["champion"]}
    return {**{name: side for name, side in sides.items() if side}, "difference": facts["difference"] or {}}
