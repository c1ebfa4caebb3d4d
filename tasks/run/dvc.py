"""dvc.yaml, rendered from the step declarations: a stage for each step of each day.

Stages read and write a store of their own (.recloop/dvc), so that DVC may delete an output before it makes it again.
A day's inputs are paths of that day and of earlier days, so a chain fits into a graph without cycles.
"""

from __future__ import annotations

import datetime
import io
import os.path
import shlex
from pathlib import Path
from typing import Any, TypedDict

from ruamel.yaml import YAML

from feature_jobs.schema import Scenario
from feature_jobs.schema.days import previous_day, trailing_days
from feature_jobs.schema.yaml_file import read_yaml
from tasks.contract import Input, Step
from tasks.run.runner import has_work, output_name_of, value_at, window_of
from tasks.steps import DAILY, STEPS, WRITERS, writer_of
from tasks.store.source_digest import step_files

STORE = ".recloop/dvc"
REPORT = f"{STORE}/report"
REPORTED = ("checkpoint", "evaluation", "export")
"""The outputs of a day that `recloop report` waits for."""
HEADER = """\
# Rendered by `recloop dvc-render --scenario {name}`; edit the scenario, not this file, and render again.
# A stage for each step and day. `dvc repro` runs what changed, `dvc repro {end}-{last}` one day and all before it.
"""


def render(scenario: Scenario, file: Path, days: list[str]) -> str:
    """The text of dvc.yaml for these days."""
    stages: dict[str, Stage] = {}
    if scenario.data.fetch:
        stages["fetch"] = {
            "cmd": _command("fetch", "--scenario", str(file)),
            "deps": ["feature_jobs/datasets/fetch.py"],
            # Or DVC deletes the download first.
            "outs": [{_relative(Path(scenario.data.path), file): {"persist": True}}],
        }
    for ds in days:
        for name in DAILY:
            stages[f"{name}-{ds}"] = _stage(STEPS[name], scenario, file, ds)
    for name, declared in STEPS.items():
        # A step that is not daily, such as a search, needs days before it; it runs once, on the last.
        if len(days) > 1 and not declared.daily and has_work(declared, scenario):
            stages[f"{name}-{days[-1]}"] = _stage(declared, scenario, file, days[-1])
    reported = [WRITERS[output] for output in REPORTED]
    stages["report"] = {
        "cmd": _command(
            "report", "--scenario", str(file), "--store", STORE, "--from", days[0], "--to", days[-1], "--out", REPORT
        ),
        "deps": [_out(scenario, day, step) for day in days for step in reported],
        "outs": [f"{REPORT}/metrics.json", f"{REPORT}/progressive.csv"],
    }
    document = {
        "stages": stages,
        "metrics": [f"{REPORT}/metrics.json"],
        "plots": [
            {
                f"{REPORT}/progressive.csv": {
                    "x": "ds",
                    "y": [f"{task}.auc" for task in scenario.tasks],
                    "title": "Progressive AUC: each day scored before it is learned",
                }
            }
        ],
    }
    text = io.StringIO()
    yaml = YAML()
    yaml.width, yaml.default_flow_style = 120, False
    yaml.dump(document, text)
    return HEADER.format(name=scenario.name, end=DAILY[-1], last=days[-1]) + text.getvalue()


class Stage(TypedDict, total=False):
    """A stage of dvc.yaml. `params` and an output may be a mapping: a file to its config paths, a path to settings."""

    cmd: str
    deps: list[str]
    params: list[dict[str, list[str]]]
    outs: list[str | dict[str, dict[str, bool]]]


def _stage(declared: Step, scenario: Scenario, file: Path, ds: str) -> Stage:
    deps = list(step_files(declared.name))
    if not declared.reads:
        deps.append(_relative(Path(scenario.data.path), file))
    deps += [_relative(path, file) for name in declared.files if (path := getattr(scenario, name)).is_file()]
    for argument, source in declared.reads.items():
        writer = writer_of(declared, argument)
        deps += [_out(scenario, day, step) for day, step in _days_read(scenario, writer, source, ds)]
    # DVC compares the values that are written in the file: a default that nobody wrote is not a parameter.
    written = read_yaml(scenario.file)
    paths = sorted(path for name in declared.config for path in _storable(name, value_at(written, name)))
    # DVC knows no skipped stage: a no that stops only its own day must not stop `dvc repro`.
    flags = ["--no-is-done"] if declared.on_no == "skip" else []
    stage: Stage = {"cmd": _command(declared.name, "--scenario", str(file), "--ds", ds, "--store", STORE, *flags)}
    stage["deps"] = sorted(set(deps))
    if paths:
        stage["params"] = [{_literal(str(file)): paths}]
    stage["outs"] = [_out(scenario, ds, output_name_of(declared, scenario))]
    return stage


def _days_read(scenario: Scenario, writer: str, source: Input, ds: str) -> list[tuple[str, str]]:
    """(day, step) whose outputs an input reads; the champion is known once the day before is done."""
    before = previous_day(scenario, ds)
    if source.days == "same":
        return [(ds, writer)]
    if source.days == "trailing":
        return [(day, writer) for day in trailing_days(scenario, ds, window_of(scenario, source))]
    if before is None:
        return []
    # An input of the champion depends on all that the day before did, down to its last step.
    return [(before, writer if source.days == "previous" else DAILY[-1])]


def _storable(path: str, value: Any) -> list[str]:
    """The config paths, as short as can be, that hold all of a value but its dates: DVC's lock can't hold those."""
    if value is None or isinstance(value, datetime.date):
        return []
    if not _has_date(value):
        return [path]
    children = value.items() if isinstance(value, dict) else ()
    return [found for key, child in children for found in _storable(f"{path}.{key}", child)]


def _has_date(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_date, value.values()))
    return any(map(_has_date, value)) if isinstance(value, list) else isinstance(value, datetime.date)


def _out(scenario: Scenario, ds: str, step: str) -> str:
    return f"{STORE}/{scenario.name}/g0000/{ds}/{step}"


def _relative(path: Path, file: Path) -> str:
    """A path as seen from the folder that holds dvc.yaml, the one above the scenarios."""
    return _literal(os.path.relpath(path, file.resolve().parent.parent))


def _command(*words: str) -> str:
    """A call of recloop, for the shell that DVC starts."""
    return _literal(shlex.join(["recloop", *words]))


def _literal(text: str) -> str:
    """Text in which DVC replaces nothing: it takes ${NAME} for a parameter."""
    return text.replace("${", "\\${")
