"""The step's side of a container: one request comes on stdin, the function is called, one JSON line answers on stdout.

Stdin stays open as a lifeline: when the command that asked is gone, however it ended, stdin ends and the step with it.
No part of the request is in the container's environment, arguments or files, so its credentials are not there either.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from typing_extensions import TypedDict

from feature_jobs.control_records import read_record
from feature_jobs.errors import BadInputError, RecloopError
from feature_jobs.schema import Scenario
from tasks.contract import DayConfig, Step
from tasks.run.launchers import Call, Folder, InProcess
from tasks.steps import STEPS
from tasks.store.places import is_remote, objects_at
from tasks.store.scenario_store import ScenarioStore
from tasks.store.source_digest import code_digest

ORPHANED = 143  # as if asked to end


Folders = str | dict[str, str] | None


REMEDY = "start steps with recloop STEP"


class Asked(TypedDict):
    """The part of a request that all versions have."""

    step: str
    code: str


class Request(TypedDict):
    """A call of a step's function, as JSON. `file` is the scenario's, `given` its values from the command line;
    `environment` is added to the process's own."""

    step: str
    code: str
    scenario: dict[str, Any]
    file: str
    given: list[str]
    ds: str
    generation: int
    options: dict[str, Any]
    resume: str | None
    store: str | None
    folders: dict[str, Folders]
    output: str
    environment: dict[str, str]


def request_of(declared: Step, call: Call, environment: Mapping[str, str]) -> Request:
    """A call as JSON, with the environment of its process."""
    config = call.config
    return {
        "step": declared.name,
        "code": code_digest(declared.name),
        "scenario": config.scenario.model_dump(mode="json", by_alias=True),
        "file": str(config.scenario.file),
        "given": list(config.scenario._given),
        "ds": config.ds,
        "generation": config.generation,
        "options": dict(config.options),
        "resume": str(config.resume) if config.resume else None,
        "store": _store_for(declared, config.store),
        "folders": {argument: _text(folder) for argument, folder in call.folders.items()},
        "output": str(call.output),
        "environment": dict(environment),
    }


def _store_for(declared: Step, store: ScenarioStore | None) -> str | None:
    """Returns the store as a step in a container sees it: None; its folder; or, if the step has a network, its URL."""
    if store is None or not declared.store_folder:
        return None
    return store.url if is_remote(store.url) and declared.registry else str(store.work)


def call_of(request: Request) -> Call:
    """The call that a request describes."""
    scenario = Scenario.model_validate(request["scenario"])
    scenario._file, scenario._given = Path(request["file"]), tuple(request["given"])
    config = DayConfig(
        scenario,
        request["ds"],
        ScenarioStore(objects_at(request["store"])) if request["store"] else None,
        request["generation"],
        options=request["options"],
        resume=Path(request["resume"]) if request["resume"] else None,
    )
    return Call(config, {name: _path(text) for name, text in request["folders"].items()}, Path(request["output"]))


def exec_step() -> int:
    """Serves one request; returns the exit code. Everything that the step prints goes to stderr."""
    # Libraries print to stdout as they like: the answer gets a stream of its own, and theirs goes to stderr.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    line = sys.stdin.readline().encode()
    try:
        # Before all else: other code may ask in another form, and after the work the hours of a training would be lost.
        asked = read_record(line, Asked, "stdin", REMEDY, extra="ignore")
        declared = STEPS.get(asked["step"])
        if declared is None:
            raise BadInputError(f"stdin: step: {asked['step'][:80]!r} is not a step; choose of {', '.join(STEPS)}")
        _check_code(declared, asked["code"])
        request = read_record(line, Request, "stdin", REMEDY)
        # Before the step's modules are imported: libraries read their settings then.
        os.environ.update(request["environment"])
        # The pipe's end shows that the caller is gone, also where it was killed and could stop no container.
        threading.Thread(target=_end_with, args=(sys.stdin,), daemon=True).start()
        ran = InProcess().launch(declared, call_of(request))
    except RecloopError as error:
        json.dump({"error": str(error)}, answer)
        answer.flush()
        return error.exit_code
    json.dump(vars(ran), answer)
    answer.flush()
    return 0


def _check_code(declared: Step, expected: str) -> None:
    """The manifest will name the code of the command that commits; the image must hold the same."""
    if (found := code_digest(declared.name)) != expected:
        raise BadInputError(
            f"{declared.name}: the image holds other code ({found[:12]}) than the project that started it"
            f" ({expected[:12]}); build the image again: make images"
        )


def _end_with(lifeline: IO[str]) -> None:
    lifeline.read()
    os._exit(ORPHANED)


def _text(folder: Folder) -> Folders:
    if isinstance(folder, dict):
        return {day: str(path) for day, path in folder.items()}
    return str(folder) if folder else None


def _path(text: Folders) -> Folder:
    if isinstance(text, dict):
        return {day: Path(path) for day, path in text.items()}
    return Path(text) if text else None
