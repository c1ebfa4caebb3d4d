"""Inputs of a day of training, passed by a function call and, for several ranks, as JSON. Imports no torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from feature_jobs.schema import Scenario

_FOLDERS = ("samples", "parent", "output", "resume")


@dataclass(frozen=True)
class TrainJob:
    """The day `ds` of a scenario, and its folders: the samples, the parent's checkpoint and the one that is written.

    `resume`: a folder for snapshots, from which the next run with the same inputs continues if this one is killed.
    `progress`: show a bar.
    """

    scenario: Scenario
    ds: str
    samples: Path
    parent: Path | None
    output: Path
    resume: Path | None = None
    progress: bool = False

    def to_json(self) -> str:
        """The job as JSON; `from_json` reads it."""
        folders: dict[str, Path | None] = {name: getattr(self, name) for name in _FOLDERS}
        document = {
            "scenario": self.scenario.model_dump(mode="json", by_alias=True),
            "ds": self.ds,
            "progress": self.progress,
            # The processes may run in another working directory.
            **{name: str(folder.resolve()) if folder else None for name, folder in folders.items()},
        }
        return json.dumps(document)

    @classmethod
    def from_json(cls, text: str) -> TrainJob:
        """Reads the JSON that `to_json` returns."""
        document = json.loads(text)
        folders = {name: Path(document[name]) if document[name] else None for name in _FOLDERS}
        scenario = Scenario.model_validate(document["scenario"])
        return cls(**{**document, **folders, "scenario": scenario})
