"""A small scenario over files that a test writes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from feature_jobs.schema import Scenario, load_scenario

SCENARIO: dict[str, Any] = {
    "name": "small",
    "data": {
        "path": "data",
        "events": {
            "path": "events.csv",
            "format": "csv",
            "time": {"column": "t", "unit": "s"},
            "columns": {
                "user": {"type": "int", "required": True},
                "item": {"type": "int", "required": True},
                "rating": {"type": "float", "min": 1, "max": 5},
                "t": {"type": "int"},
            },
        },
        "user": "user",
        "item": "item",
        "days": {"first": "1970-01-02", "last": "1970-01-05"},
    },
    "labels": {"like": "rating >= 4"},
    "features": {"user": {"kind": "id"}},
    "ingest": {"max_quarantined_share": 1.0},
}
DAY_S = 86_400
HEADER = "user,item,rating,t"


def scenario_in(folder: Path, changes: dict[str, Any] | None = None) -> Scenario:
    """The small scenario with `changes` (config path → value; None removes) written to `folder` and loaded."""
    document = copy.deepcopy(SCENARIO)
    for dotted, value in (changes or {}).items():
        *parents, leaf = dotted.split(".")
        node = document
        for key in parents:
            node = node.setdefault(key, {})
        if value is None:
            node.pop(leaf)
        else:
            node[leaf] = copy.deepcopy(value)  # later changes may reach into it
    (folder / "data").mkdir(parents=True, exist_ok=True)
    file = folder / "small.yaml"
    with file.open("w") as text:
        YAML().dump(document, text)
    return load_scenario(file)


def write_lines(file: Path, lines: Sequence[str]) -> None:
    """Lines as a text file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n")
