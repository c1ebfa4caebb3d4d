"""Imported by the process that `tests.warm` forks: Great Expectations as steps import it; and numba fills its tables of
known functions when it first compiles, which takes 0.4 s, and every fork has them then."""

import numba

from feature_jobs.validation.expectations import import_gx

numba.njit(lambda x: x + 1)(0)
import_gx()
