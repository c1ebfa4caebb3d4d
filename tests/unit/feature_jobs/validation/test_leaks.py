"""One column against a label: what its values, its nulls and its lengths say."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from feature_jobs.joins.join import _cross
from feature_jobs.schema import load_scenario
from feature_jobs.validation.leaks import BLOCKING_AUC, Leak, find_leaks, judge, leak_score, rank_auc
from models.metrics.scores import auc
from tests.paths import SCENARIOS

RNG = np.random.default_rng(5)
LABELS_N = (RNG.random(2000) < 0.3).astype(np.float64)
NOISE_N = RNG.random(2000)


def present(share_of_positives: float) -> np.ndarray:
    return (LABELS_N == 1) & (RNG.random(2000) < share_of_positives)


@pytest.mark.parametrize(
    ("values", "is_id", "by"),
    [
        (np.where(LABELS_N == 1, NOISE_N, np.nan), False, "nulls"),
        ([x if label else None for x, label in zip(NOISE_N.tolist(), LABELS_N, strict=True)], False, "nulls"),
        (pd.Series(["a" if label else None for label in LABELS_N]), True, "nulls"),
        (pd.Series(np.arange(2000)).where(LABELS_N == 1).astype("Int64"), True, "nulls"),
        (LABELS_N + NOISE_N / 10, False, "values"),
        (np.where(LABELS_N == 1, NOISE_N, np.where(NOISE_N < 0.5, 3 + NOISE_N, -3 - NOISE_N)), False, "bins"),
        (np.where(LABELS_N == 1, "yes", np.where(NOISE_N < 0.5, "no", "maybe")), False, "ids"),
        ([["a"] * (3 if label else int(n * 3)) for n, label in zip(NOISE_N, LABELS_N, strict=True)], False, "values"),
    ],
    ids=["nulls", "none", "text", "many ids", "values", "two sides", "words", "lengths"],
)
def test_a_column_that_knows_the_label_is_found_by_the_way_that_shows_it(values, is_id, by):
    leak = judge("column", "click", values, LABELS_N, is_id=is_id)
    assert leak is not None and leak.by == by and leak.auc >= BLOCKING_AUC and leak.severity == "blocking"


def test_a_column_that_most_positives_have_is_a_warning_and_an_honest_one_is_neither():
    values = np.where(present(0.9), NOISE_N, np.nan)
    leak = judge("scroll_pct", "click", values, LABELS_N, is_id=False)
    assert leak is not None and leak.severity == "warning" and leak.by == "nulls" and 0.9 <= leak.auc < 0.97
    assert judge("age", "click", NOISE_N + 0.5 * LABELS_N, LABELS_N, is_id=False) is None
    assert Leak("scroll_pct", "click", 0.99, "nulls", enabled=False).severity == "warning"


def test_unknown_labels_are_left_out_and_too_few_rows_or_positives_are_not_judged():
    labels_N = np.where(NOISE_N < 0.5, LABELS_N, np.nan)
    assert leak_score(LABELS_N, labels_N, is_id=False) == 1
    assert leak_score(LABELS_N[:400], LABELS_N[:400], is_id=False) is None
    few_N = np.zeros(2000)
    few_N[:19] = 1
    assert leak_score(few_N, few_N, is_id=False) is None


def test_many_ids_are_not_judged_by_value():
    assert leak_score(np.arange(2000), LABELS_N, is_id=True) is None


def test_rank_auc_is_the_metric_of_models():
    scores_N = np.round(NOISE_N + 0.3 * LABELS_N, 1)
    assert rank_auc(LABELS_N, scores_N) == pytest.approx(auc(LABELS_N, scores_N), abs=1e-12)


@pytest.mark.parametrize(
    ("part", "way"),
    [
        (pa.array(["slow" if label else None for label in LABELS_N]), "where its part 'skip_reason' is null"),
        (pa.array(np.where(LABELS_N == 1, "yes", "no")), "the value of its part 'skip_reason'"),
        (pa.array((1000 * LABELS_N + 900 * NOISE_N).astype(np.int64)), "the value of its part 'skip_reason'"),
        (pa.array((NOISE_N * 40).astype(np.int64)), None),
    ],
    ids=["null", "word", "amount", "honest"],
)
def test_a_part_of_a_cross_that_knows_the_label_is_found_in_the_joined_text(tmp_path, part, way):
    text = (SCENARIOS / "movielens.yaml").read_text()
    text = text.replace("\nmodel:", "  skip: {kind: cross, of: [skip_reason, movie_id]}\n\nmodel:")
    text = text.replace("    columns:\n", "    columns:\n      skip_reason: {type: string}\n", 1)
    (tmp_path / "movielens.yaml").write_text(text)
    scenario = load_scenario(tmp_path / "movielens.yaml")
    items = pa.array((RNG.random(2000) * 900).astype(np.int64))
    frame = pd.DataFrame({"skip": _cross([part, items], "here").to_pandas()})
    for name, feature in scenario.features.items():
        if name != "skip":
            frame[f"{name}.length" if feature.kind in ("ids", "sequence") else name] = NOISE_N
    for task in scenario.tasks:
        frame[f"label.{task}"] = LABELS_N
    found = find_leaks(frame, scenario)
    assert {(leak.feature, leak.severity, leak.way) for leak in found} == (
        {("skip", "blocking", way)} if way else set()
    )
