"""The evaluation as one HTML file that needs nothing else: verdicts, plots, tables. The page is in templates/."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feature_jobs.validation.files import VERDICT_FILE
from tasks.evaluation import figures
from tasks.evaluation.files import REPORT_FILE
from tasks.store.output_files import read_json

if TYPE_CHECKING:
    from jinja2 import Environment

    from feature_jobs.schema import Scenario
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
    """What the template shows, by the names that it uses."""
    from models.metrics.judgement import WORDS

    judged = {task: facts["judgement"] for task, facts in result["overall"].items()}
    return {
        "scenario": scenario,
        "rules": scenario.deploy,
        "confidence": scenario.evaluate.confidence,
        "result": result,
        "words": WORDS,
        "better": [task for task, found in judged.items() if found and found["verdict"] == "better"],
        "segment_rows": [
            (f"{name} · {task}", facts) for name, tasks in result["segments"].items() for task, facts in tasks.items()
        ],
        "figures": drawn,
    }


def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["number"] = _number
    return environment


def _number(value: float | None, form: str = "{:.4f}", missing: str = "–") -> str:
    return missing if value is None else form.format(value)
