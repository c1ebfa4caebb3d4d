"""Airflow for tests: its home is a folder of the test session, set before the first import."""

import os
import tempfile
from pathlib import Path

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


if "AIRFLOW_HOME" not in os.environ:
    os.environ.update(airflow_environment(Path(tempfile.mkdtemp(prefix="recloop-airflow-"))))
