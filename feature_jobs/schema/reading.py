"""Reads a scenario file, fills the defaults, and refuses it with one message for each problem."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from feature_jobs.errors import BadInputError, listed
from feature_jobs.schema.explain import explain
from feature_jobs.schema.fan_out import fan_out
from feature_jobs.schema.sections import Scenario
from feature_jobs.schema.user_file import resolved
from feature_jobs.schema.yaml_file import read_yaml, setting

MAX_PATH_PARTS = 20


def load_scenario(
    path: str | Path, *, data: str | Path | None = None, overrides: Mapping[str, Any] | None = None
) -> Scenario:
    """Reads and checks a scenario.

    `data` replaces `data.path`; a relative path in the file is relative to the file. `overrides` are config paths
    and values, `{"train.learning_rate": 0.01}`, applied before the check: any path that the file could hold works.

    Raises BadInputError with a line for each problem.
    """
    file = resolved(path)
    document = fan_out(read_yaml(file), file)
    given = tuple(part for path, value in (overrides or {}).items() for part in setting(path, value))
    for dotted, value in (overrides or {}).items():
        _set_path(document, dotted, value)
    try:
        scenario = Scenario.model_validate(document)
    except ValidationError as error:
        lines = [explain(file, document, e, given) for e in error.errors(include_url=False)]
        # Each once: pydantic reports a value that fits no member of a union once for each member.
        raise BadInputError(listed(list(dict.fromkeys(lines)))) from None
    root = resolved(data or file.parent / scenario.data.path)
    scenario = scenario.model_copy(update={"data": scenario.data.model_copy(update={"path": str(root)})})
    scenario._file = file
    scenario._given = (*(["--data", str(root)] if data else []), *given)
    return scenario


def _set_path(document: Any, dotted: str, value: Any) -> None:
    *parents, leaf = dotted.split(".")
    if len(parents) >= MAX_PATH_PARTS:
        raise BadInputError(f"config path {dotted[:40]}...: {len(parents) + 1} parts; name a path of the scenario")
    if dotted.startswith("tune.space."):
        remedy = "write tune.space={PATH: {low: ..., high: ...}}"
        raise BadInputError(f"config path {dotted[:80]}: the keys of tune.space hold dots themselves; {remedy}")
    node = document
    for key in parents:
        # A section may be absent from the file: its fields have defaults.
        node = node.setdefault(key, {}) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            raise BadInputError(f"config path {dotted}: {key} holds no fields; name a path of the scenario")
    node[leaf] = value
