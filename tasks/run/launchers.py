"""Launchers call a step's function: in this process, or elsewhere with access to its folders and nothing else.

Finding inputs, proving and committing stay with the runner, so a launcher decides on a step's access, never on its
output.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from feature_jobs.errors import GateError
from feature_jobs.imports import quick_imports
from tasks.contract import DayConfig, Metrics, Step
from tasks.run.resources import sampled_resources

Folder = Path | dict[str, Path] | None


@dataclass(frozen=True)
class Call:
    """Arguments for a step's function: `folders` by argument, and the `output` that it writes."""

    config: DayConfig
    folders: Mapping[str, Folder]
    output: Path


@dataclass(frozen=True)
class Ran:
    """Result of a call: metrics, system metrics by name, and seconds of `compute` and `imports`.

    `gate`: the reason, where the step said no.
    """

    metrics: Metrics
    system: dict[str, list[float]]
    seconds: dict[str, float]
    gate: str | None = None


class Launcher(Protocol):
    """A way to call a step's function."""

    def launch(self, declared: Step, call: Call) -> Ran:
        """Calls it and waits for its end. A GateError of the step is returned as `Ran.gate`; all else that it raises
        is raised, and KilledError where it was ended from outside."""


class InProcess:
    """Calls the function here."""

    def launch(self, declared: Step, call: Call) -> Ran:
        """See Launcher."""
        begun, gate = time.perf_counter(), None
        with quick_imports():
            for module in declared.imports:
                importlib.import_module(module)
        imported = time.perf_counter()
        with sampled_resources() as system:
            try:
                metrics = declared.function(call.config, **call.folders, **{declared.writes: call.output})
            except GateError as error:
                metrics, gate = error.metrics, str(error)
        compute_s = time.perf_counter() - imported
        return Ran(metrics, system, {"compute": round(compute_s, 3), "imports": round(imported - begun, 3)}, gate)
