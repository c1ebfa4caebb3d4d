"""The evaluation as one HTML file that needs nothing else: verdicts, plots, tables. The page is in templates/."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_jobs.validation.files import VERDICT_FILE
from tasks.evaluation import figures
from tasks.evaluation.comparison import judge_scores
from tasks.evaluation.files import REPORT_FILE
from tasks.store.output_files import read_json

if TYPE_CHECKING:
    from jinja2 import Environment

    from feature_jobs.schema import Scenario
    from models.metrics.comparison import Comparison, Quality
    from models.metrics.judgement import Judgement
    from tasks.evaluation.scored_day import ScoredDay, Scores

TEMPLATES = Path(__file__).parent / "templates"


def write_report(
    scenario: Scenario,
    result: Mapping[str, Any],
    day: ScoredDay,
    *,
    champion: Scores | None,
    validation: Path,
    output: Path,
) -> None:
    """Writes report.html beside evaluation.json, whose content is `result`; `champion` are its scores of the day."""
    with figures.plain_style():
        drawn = {
            "history": figures.draw_history(result["history"]),
            "calibration": figures.draw_calibration(day, champion),
            "histogram": figures.draw_histogram(day, champion),
            "drift": figures.draw_drift(read_json(validation, VERDICT_FILE)),
        }
    page = _environment().get_template("report.html.j2").render(**_values(scenario, result, drawn))
    (output / REPORT_FILE).write_text(page, encoding="utf-8")


def _values(scenario: Scenario, result: Mapping[str, Any], drawn: Mapping[str, str | None]) -> dict[str, Any]:
    """Returns the values that the template shows, by the names that it uses."""
    from models.metrics.judgement import WORDS

    def judge_calibration(facts: Comparison, min_rows: int) -> Judgement:
        return judge_scores(scenario, facts, min_rows)

    judged = {task: facts["judgement"] for task, facts in result["overall"].items()}
    return {
        "scenario": scenario,
        "per_request": any("per_request" in facts["challenger"] for facts in result["overall"].values()),
        "rules": scenario.deploy,
        "confidence": scenario.evaluate.confidence,
        "result": result,
        "words": WORDS,
        "judge_calibration": judge_calibration,
        "uncalibrated": [
            f"{task}: {found.reason}"
            for task, facts in result["overall"].items()
            if (found := judge_scores(scenario, facts)).verdict == "worse"
        ],
        "better": [task for task, found in judged.items() if found and found["verdict"] == "better"],
        "segment_rows": [
            (f"{name} · {task}", facts) for name, tasks in result["segments"].items() for task, facts in tasks.items()
        ],
        "figures": drawn,
    }


def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from models.metrics.judgement import counted, shown

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,  # names and texts are a user's
        undefined=StrictUndefined,  # a misspelt name fails instead of leaving a gap
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"number": shown, "counted": counted, "calibration_interval": _calibration_interval}
    return environment


def _calibration_interval(quality: Quality) -> str:
    from models.metrics.judgement import calibration_interval_text, calibration_numbers

    return calibration_interval_text(*calibration_numbers(quality["calibration"], quality["calibration_interval"]))
