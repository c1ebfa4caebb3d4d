"""Reports broken scenarios as the import error of this file in Airflow, so that the DAGs of the others still load."""

from __future__ import annotations

from dags.common import read_scenarios
from feature_jobs.errors import BadInputError

_problems = read_scenarios()[1]
if _problems:
    raise BadInputError("\n".join(_problems.values()))
