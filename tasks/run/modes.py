"""Execution modes: the one registry of the places where a step can run.

A mode answers two questions. Who runs the command `recloop STEP` when Airflow schedules it, and where does that command
call the step's function? Both are given as `module:name` and imported when they are needed, so that the rooms above can
be named without being imported, and a mode costs nothing where it is not used.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.run.launchers import Launcher

SETTING = "RECLOOP_EXECUTION"


@dataclass(frozen=True)
class Mode:
    """`launcher`: makes the Launcher of a command, None where only Airflow can use the mode. `execution`: makes the
    object that Airflow's tasks run commands with, from the environment (`dags.execution.Execution`)."""

    launcher: str | None
    execution: str


MODES: Mapping[str, Mode] = {
    "process": Mode("tasks.run.launchers:InProcess", "dags.execution:ProcessExecution.from_environment"),
    "docker": Mode(
        "tasks.run.container:ContainerLauncher.from_environment", "dags.execution:ProcessExecution.from_environment"
    ),
    "kubernetes": Mode(None, "dags.kubernetes_execution:KubernetesExecution.from_environment"),
}
LAUNCHABLE = tuple(name for name, mode in MODES.items() if mode.launcher)
"""Modes that a command can use by itself."""


def launcher_of(mode: str) -> Launcher:
    """The launcher of a mode, one of LAUNCHABLE."""
    make = pkgutil.resolve_name(str(MODES[mode].launcher))
    launcher: Launcher = make()
    return launcher


def execution_of(environment: Mapping[str, str]) -> Any:
    """Returns the object that runs the commands of Airflow's tasks, in the mode that `RECLOOP_EXECUTION` names.

    Raises ValueError for an unknown mode, or where a setting of the mode is missing.
    """
    name = environment.get(SETTING) or "process"
    if name not in MODES:
        raise ValueError(f"{SETTING}={name}: no such mode; one of {', '.join(MODES)}")
    return pkgutil.resolve_name(MODES[name].execution)(environment)
