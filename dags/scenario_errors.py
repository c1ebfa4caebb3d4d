"""Shows broken scenarios as this file's import error in Airflow, so that they never take the healthy DAGs with them."""

from __future__ import annotations

from dags.common import read_scenarios
from feature_jobs.errors import BadInputError

_problems = read_scenarios()[1]
if _problems:
    raise BadInputError("\n".join(_problems.values()))
