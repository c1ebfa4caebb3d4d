"""dvc.yaml, rendered from the step declarations: a stage for each step, with the same command for each day.

Stages read and write a store of their own (.recloop/dvc), so that DVC may delete an output before it makes it again.
A step reads outputs of its day and of the day before, and nothing older that these do not name by its digest; so the
stages of all days are one template. The first day reads folders of `genesis` as the outputs of the day before.
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
from feature_jobs.schema.days import trailing_days
from feature_jobs.schema.yaml_file import read_yaml
from tasks.contract import Step, value_at
from tasks.run.inputs import window_of
from tasks.run.runner import output_name_of
from tasks.steps import DAILY, STEPS, WRITERS, daily_steps, writer_of
from tasks.store.source_digest import step_files

STORE = ".recloop/dvc"
REPORT = f"{STORE}/report"
GENESIS = ".recloop/genesis"
"""Outputs of the day before the first, with nothing in them."""
DAY, BEFORE = "${key}", "${item.before}"
"""The day of a stage, and the folder of the outputs of the day before."""
REPORTED = ("checkpoint", "evaluation", "export")
"""The outputs of a day that `recloop report` waits for."""
HEADER = """\
# Rendered by `recloop dvc-render --scenario {name}`; edit the scenario, not this file, and render again.
# A stage for each step and day. `dvc repro` runs what changed, `dvc repro {end}@{last}` one day and all before it.
"""


def render(scenario: Scenario, file: Path, days: list[str]) -> str:
    """The text of dvc.yaml for these days."""
    stages: dict[str, Stage | EachDay] = {}
    before = [GENESIS, *(f"{STORE}/{scenario.name}/g0000/{ds}" for ds in days)]
    if scenario.data.fetch:
        stages["fetch"] = {
            "cmd": _command("fetch", "--scenario", str(file)),
            "deps": ["feature_jobs/datasets/fetch.py"],
            # Or DVC deletes the download first.
            "outs": [{_relative(Path(scenario.data.path), file): {"persist": True}}],
        }
    daily = daily_steps(scenario)
    read = {name: _read(scenario, STEPS[name], DAY, BEFORE) for name in daily}
    steps = sorted({path.removeprefix(f"{BEFORE}/") for paths in read.values() for path in paths if BEFORE in path})
    # With a file in each, because DVC does not keep empty folders.
    command = f"for step in {' '.join(steps)}; do mkdir -p {GENESIS}/$step && touch {GENESIS}/$step/empty; done"
    stages["genesis"] = {"cmd": command, "outs": [GENESIS]}
    for name in daily:
        stage = _stage(STEPS[name], scenario, file, DAY, read[name])
        stages[name] = {"foreach": "${days}", "do": stage}
    for name, declared in STEPS.items():
        # A step that is not daily, such as a search, needs days before it; it runs once, on the last.
        if len(days) > 1 and not declared.daily and declared.has_work(scenario):
            paths = _read(scenario, declared, days[-1], before[-2])
            stages[name] = _stage(declared, scenario, file, days[-1], paths)
    reported = [WRITERS[output] for output in REPORTED]
    stages["report"] = {
        "cmd": _command(
            "report", "--scenario", str(file), "--store", STORE, "--from", days[0], "--to", days[-1], "--out", REPORT
        ),
        "deps": [_out(scenario, day, step) for day in days for step in reported],
        "outs": [f"{REPORT}/metrics.json", f"{REPORT}/progressive.csv"],
    }
    document = {
        "vars": [{"days": {ds: {"before": folder} for ds, folder in zip(days, before, strict=False)}}],
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
    yaml.dump(_compact(document), text)
    return HEADER.format(name=scenario.name, end=DAILY[-1], last=days[-1]) + text.getvalue()


def _compact(value: Any) -> Any:
    """The document with lists of names, and mappings of one name to a name, in a line."""
    from ruamel.yaml.comments import CommentedMap, CommentedSeq

    if isinstance(value, dict):
        found: CommentedMap | CommentedSeq = CommentedMap({key: _compact(child) for key, child in value.items()})
        is_plain = len(value) == 1 and all(isinstance(child, str) for child in value.values())
    elif isinstance(value, list):
        found = CommentedSeq([_compact(child) for child in value])
        is_plain = all(isinstance(child, str) for child in value)
    else:
        return value
    if is_plain:
        found.fa.set_flow_style()
    return found


class Stage(TypedDict, total=False):
    """A stage of dvc.yaml. `params` and an output may be a mapping: a file to its config paths, a path to settings."""

    cmd: str
    deps: list[str]
    params: list[dict[str, list[str]]]
    outs: list[str | dict[str, dict[str, bool]]]


class EachDay(TypedDict):
    """A stage for each of the days."""

    foreach: str
    do: Stage


def _stage(declared: Step, scenario: Scenario, file: Path, ds: str, read: list[str]) -> Stage:
    """The stage of a day, or of each one. `read` are the outputs that it reads."""
    deps = [*read, *_wings(declared)]
    # DVC sees no change of what is on other machines.
    if declared.source and not all(table.is_elsewhere for table in scenario.data.tables):
        deps.append(_relative(Path(scenario.data.path), file))
    deps += [_relative(path, file) for name in declared.files if (path := getattr(scenario, name)).is_file()]
    # DVC compares the values that are written in the file: a default that nobody wrote is not a parameter.
    written = read_yaml(scenario.file)
    paths = sorted(path for name in declared.config for path in _storable(name, value_at(written, name)))
    # DVC knows no skipped stage: a no that stops only its own day must not stop `dvc repro`.
    flags = ["--no-is-done"] if declared.on_no == "skip" else []
    command = _command(declared.name, "--scenario", str(file), "--store", STORE, *flags)
    stage: Stage = {"cmd": f"{command} --ds {ds}", "deps": sorted(set(deps))}
    if paths:
        stage["params"] = [{_literal(str(file)): paths}]
    stage["outs"] = [_out(scenario, ds, output_name_of(declared, scenario))]
    return stage


def _wings(declared: Step) -> list[str]:
    """The code of a step: folders of the rooms, and files outside of them."""
    files = (Path(name) for name in step_files(declared.name))
    return sorted({str(Path(*path.parts[:2])) for path in files if path.name != "__init__.py"})


def _read(scenario: Scenario, declared: Step, ds: str, before: str) -> list[str]:
    """Outputs that a step reads on a day, or on each one; `before` is the folder of the day before."""
    found = []
    for argument, source in declared.reads.items():
        writer = writer_of(declared, argument)
        # What it names follows from an output that the step reads anyway; of labels that mature, only by the calendar.
        if source.choice:
            continue
        if source.days == "same":
            found.append(_out(scenario, ds, writer))
        elif source.days != "trailing":
            # An input of the champion depends on all that the day before did, down to its last step.
            found.append(f"{before}/{writer if source.days == 'previous' else DAILY[-1]}")
        elif ds == DAY:
            raise ValueError(f"{declared.name}: {argument}: a daily step reads its day and the day before, see Choice")
        else:
            found += [_out(scenario, day, writer) for day in trailing_days(scenario, ds, window_of(scenario, source))]
    return found


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
