"""Airflow for tests: its home is a folder of the test session, set before the first import."""

import os
import tempfile
from pathlib import Path
from typing import Any

SETTINGS = {
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
}


def airflow_environment(home: Path) -> dict[str, str]:
    """Environment variables for an Airflow that touches nothing outside `home`."""
    return {
        **SETTINGS,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
    }


def executed(operator: Any, context: Any) -> Any:
    """Calls an operator's `execute` outside a task's runner, which Airflow's wrapper refuses. Returns its result."""
    execute = type(operator).execute
    return getattr(execute, "__wrapped__", execute)(operator, context)


if "AIRFLOW_HOME" not in os.environ:
    HOME = tempfile.TemporaryDirectory(prefix="recloop-airflow-")  # removed when the session ends
    os.environ.update(airflow_environment(Path(HOME.name)))
