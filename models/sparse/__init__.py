"""Dynamic embedding tables of raw 64-bit ids: id map, rows, fused sparse optimizers. Kernels in numba on CPU."""

import models.kernels  # noqa: F401 (before any kernel is declared: where compiled ones are kept)
