"""Metrics of a ranking inside each request: AUC, NDCG@k, MRR, averaged over requests.

A request counts where it holds both classes, as each metric is the same for any order of one class alone. All requests
weigh the same, so that a long list does not decide for many short ones. Rows of equal score stand in a random order:
the metrics are the expected ones (McSherry and Najork 2008), so ties gain nothing from the order of the log.
Shapes: N rows, G requests, R runs of rows of one request with equal scores.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from models.metrics.scores import Floats, group_aucs

Ints = NDArray[np.int64]


class RequestQuality(TypedDict):
    """Means over the requests that hold both classes, and their number; NaN where there are none."""

    requests: int
    auc: float
    ndcg: float
    mrr: float


def judge_requests(
    requests_N: NDArray[Any], labels_N: NDArray[Any], scores_N: NDArray[Any], *, k: int
) -> RequestQuality:
    """Judges the order of each request's rows. `requests_N` are numbers; rows of a negative one are in no request."""
    kept = requests_N >= 0
    request_N, labels, scores = requests_N[kept], labels_N[kept], scores_N[kept]
    nan = float("nan")
    if not len(labels) or np.isnan(scores).any():
        return {"requests": 0, "auc": nan, "ndcg": nan, "mrr": nan}
    auc_G, _ = group_aucs(request_N, labels, scores)
    if not len(auc_G):
        return {"requests": 0, "auc": nan, "ndcg": nan, "mrr": nan}
    runs = _runs(request_N, labels > 0, scores)
    return {
        "requests": len(auc_G),
        "auc": float(auc_G.mean()),
        "ndcg": float(_ndcg(runs, k).mean()),
        "mrr": float(_reciprocal_rank(runs).mean()),
    }


class _Runs(NamedTuple):
    """Rows of one request with equal scores, best first: request, number of rows and of positives, rows above them."""

    request_R: Ints
    rows_R: Ints
    positives_R: Ints
    above_R: Ints


def _runs(request_N: Ints, positive_N: NDArray[np.bool_], scores_N: NDArray[Any]) -> _Runs:
    """The runs of requests with both classes, which are numbered from 0."""
    order = np.lexsort((-scores_N.astype(np.float64), request_N))
    request_N, positive_N, scores_N = request_N[order], positive_N[order], scores_N[order]
    new_request = np.r_[True, request_N[1:] != request_N[:-1]]
    starts = np.flatnonzero(new_request | np.r_[True, scores_N[1:] != scores_N[:-1]])
    request_R = (np.cumsum(new_request) - 1)[starts]
    rows_R = np.diff(np.r_[starts, len(order)])
    positives_R = np.add.reduceat(positive_N.astype(np.int64), starts)
    above_R = starts - np.flatnonzero(new_request)[request_R]
    positives_G, rows_G = (np.bincount(request_R, values).astype(np.int64) for values in (positives_R, rows_R))
    both_G = (positives_G > 0) & (positives_G < rows_G)
    kept = both_G[request_R]
    return _Runs((np.cumsum(both_G) - 1)[request_R[kept]], rows_R[kept], positives_R[kept], above_R[kept])


def _ndcg(runs: _Runs, k: int) -> Floats:
    """NDCG@k of each request (Järvelin and Kekäläinen 2002), with a gain of 1 for a positive. [G]"""
    # The discounts of the first j places; places from k on count nothing.
    discounts = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(k) + 2))])
    below_R = runs.above_R + runs.rows_R
    sum_R = discounts[np.minimum(below_R, k)] - discounts[np.minimum(runs.above_R, k)]
    gained_G = np.bincount(runs.request_R, runs.positives_R / runs.rows_R * sum_R)
    positives_G = np.bincount(runs.request_R, runs.positives_R).astype(np.int64)
    return np.asarray(gained_G / discounts[np.minimum(positives_G, k)])


def _reciprocal_rank(runs: _Runs) -> Floats:
    """Expected 1 / place of each request's first positive. [G]"""
    with_positive = np.flatnonzero(runs.positives_R > 0)
    # Runs are in the order of requests, best first.
    request_G, first = np.unique(runs.request_R[with_positive], return_index=True)
    at_G = with_positive[first]
    rows_G, positives_G, above_G = runs.rows_R[at_G], runs.positives_R[at_G], runs.above_R[at_G]
    found_G, none_yet_G = np.zeros(len(request_G)), np.ones(len(request_G))
    for place in range(int((rows_G - positives_G).max()) + 1):
        left_G = np.maximum(rows_G - place, 1)
        found_G += none_yet_G * positives_G / left_G / (above_G + place + 1)
        none_yet_G = none_yet_G * np.maximum(rows_G - positives_G - place, 0) / left_G
    return found_G
