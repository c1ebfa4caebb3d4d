"""Metrics per request against scikit-learn and against every order of tied rows."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score, roc_auc_score

from models.metrics.requests import judge_requests

ROW = st.tuples(st.integers(-1, 3), st.booleans(), st.sampled_from([0.1, 0.25, 0.7]))


def _reciprocal_rank(labels: list[bool], scores: list[float]) -> float:
    """Mean over all orders that the scores allow."""
    orders = [
        o
        for o in itertools.permutations(range(len(scores)))
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(o))
    ]
    return float(np.mean([1 / (1 + next(i for i, row in enumerate(o) if labels[row])) for o in orders]))


@settings(deadline=None)
@given(st.lists(ROW, min_size=1, max_size=16), st.integers(1, 4))
def test_metrics_are_means_over_requests_with_both_classes(rows, k):
    requests, labels, scores = (np.array(column) for column in zip(*rows, strict=True))
    parts = [requests == r for r in set(requests.tolist()) - {-1}]
    parts = [p for p in parts if len(set(labels[p].tolist())) == 2 and p.sum() <= 7]
    kept = np.logical_or.reduce([*parts, np.zeros(len(rows), bool)])
    found = judge_requests(requests[kept], labels[kept], scores[kept].astype(np.float32), k=k)
    assert found["requests"] == len(parts)
    if not parts:
        assert all(np.isnan(found[name]) for name in ("auc", "ndcg", "mrr"))
        return
    assert found["auc"] == pytest.approx(np.mean([roc_auc_score(labels[p], scores[p]) for p in parts]))
    assert found["ndcg"] == pytest.approx(np.mean([ndcg_score([labels[p]], [scores[p]], k=k) for p in parts]))
    expected = [_reciprocal_rank(labels[p].tolist(), scores[p].tolist()) for p in parts]
    assert found["mrr"] == pytest.approx(np.mean(expected))


@given(st.lists(ROW, min_size=2, max_size=40), st.randoms())
def test_neither_the_order_of_the_log_nor_other_requests_matter(rows, random):
    shuffled = random.sample(rows, len(rows))
    one_class = [(9, True, 0.3), (9, True, 0.4), (-1, False, 0.9)]
    found, other = (
        judge_requests(*(np.array(column) for column in zip(*given, strict=True)), k=3)
        for given in (rows, shuffled + one_class)
    )
    assert other == pytest.approx(found, nan_ok=True)


def test_a_score_that_is_not_a_number_makes_all_undefined():
    found = judge_requests(np.zeros(3, int), np.array([0, 1, 1]), np.array([0.1, np.nan, 0.3]), k=3)
    assert found["requests"] == 0 and np.isnan(found["ndcg"])
