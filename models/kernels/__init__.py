"""Shared parts of the numba kernels: SIMD registers (`simd`) and the folder of compiled kernels."""

from pathlib import Path

from feature_jobs.kernel_cache import keep_kernels

MODELS = Path(__file__).resolve().parent.parent
keep_kernels([MODELS / wing for wing in ("kernels", "runtime", "sparse")])
