"""Numbers on the scales on which a network reads them, and as ids of buckets."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from feature_jobs.exact_columns import as_floats

LARGEST_NUMBER = float(np.finfo(np.float32).max)
Doubles = npt.NDArray[np.float64]


def doubles(values: pa.Array, name: str) -> Doubles:
    """Numbers [N] with NaN for null. Raises BadInputError for values that are none."""
    floats = values if values.type == pa.float64() else as_floats(values, name)
    if floats.null_count:
        return np.asarray(floats.fill_null(float("nan")))
    return np.frombuffer(floats.buffers()[1] or b"", np.float64, len(floats), floats.offset * 8)


def scaled(values_CN: Doubles, scale: str) -> Doubles:
    """Numbers on a scale, NaN where they are beyond float32."""
    found: Doubles = _SCALES[scale](values_CN)
    # An infinite value would stay in the running moments of its number forever.
    return np.where(np.abs(found) < LARGEST_NUMBER, found, np.nan)


def bucketized(scaled_CN: Doubles, buckets_C: list[int]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.bool_]]:
    """The number of the bucket of each scaled number, as a raw id, and whether there is one."""
    known_CN = np.isfinite(scaled_CN)
    steps_CN = np.floor(np.where(known_CN, scaled_CN, 0.0) * np.array(buckets_C)[:, None])
    # A cast of a float beyond int64 is undefined, and its result differs between processors.
    return np.clip(steps_CN, -(2**53), 2**53).astype(np.int64).view(np.uint64), known_CN


def _signed_log(x: Doubles) -> Doubles:
    return np.sign(x) * np.log1p(np.abs(x))


def _logit(x: Doubles) -> Doubles:
    # 0 and 1 have no finite logit.
    share = np.clip(x, 1e-6, 1 - 1e-6)
    return np.log(share) - np.log1p(-share)


_SCALES = {
    "none": lambda x: x,
    "quantile": lambda x: x,
    "minmax": lambda x: x,
    "log": _signed_log,
    "log1p": lambda x: np.log1p(np.maximum(x, 0.0)),
    "logit": _logit,
}
