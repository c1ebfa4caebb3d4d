"""Imported by the process that `tests.warm` forks: numba fills its tables of known functions when it first compiles,
which takes 0.4 s, and every fork has them then."""

import numba

numba.njit(lambda x: x + 1)(0)
