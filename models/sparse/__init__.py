"""Dynamic embedding tables of raw 64-bit ids: id map, storages of rows, fused sparse optimizers, their kernels."""

import models.kernels  # noqa: F401 (sets numba's cache; must come before any kernel is declared)
