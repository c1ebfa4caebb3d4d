"""Registers our timetable with Airflow, which reads no other from its database, and our listener.

Airflow finds this class by the entry point `airflow.plugins` of the installed project (pyproject.toml).
"""

from __future__ import annotations

from typing import ClassVar

from airflow.plugins_manager import AirflowPlugin

from dags import listener
from dags.timetable import DayTimetable


class RecloopPlugin(AirflowPlugin):
    """Airflow plugin with this project's timetable and listener."""

    name = "recloop"
    timetables: ClassVar = [DayTimetable]
    listeners: ClassVar = [listener]
