"""One column against a label: by its values, its nulls and its lengths."""

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from feature_jobs.joins.values import cross, joined_texts
from feature_jobs.schema import load_scenario
from feature_jobs.validation.leaks import BLOCKING_AUC, Leak, _Column, find_leaks, judge, rank_auc
from models.metrics.scores import auc
from tests.paths import SCENARIOS

RNG = np.random.default_rng(5)
LABELS_N = (RNG.random(2000) < 0.3).astype(np.float64)
NOISE_N = RNG.random(2000)


def present(share_of_positives: float) -> np.ndarray:
    return (LABELS_N == 1) & (RNG.random(2000) < share_of_positives)


def leak_of(values: Any, labels_N: np.ndarray = LABELS_N, name: str = "column") -> Leak | None:
    return next(iter(judge(name, values, {"click": labels_N})), None)


def even(label: float, luck: float, num_values: int) -> int:
    """One of many numbers, even where the label is 1."""
    return 2 * int(luck * num_values / 2) + int(label == 0)


@pytest.mark.parametrize(
    ("values", "by"),
    [
        (np.where(LABELS_N == 1, NOISE_N, np.nan), "nulls"),
        ([x if label else None for x, label in zip(NOISE_N.tolist(), LABELS_N, strict=True)], "nulls"),
        (pd.Series(["a" if label else None for label in LABELS_N]), "nulls"),
        (pd.Series(np.arange(2000)).where(LABELS_N == 1).astype("Int64"), "nulls"),
        (LABELS_N + NOISE_N / 10, "values"),
        (np.where(LABELS_N == 1, NOISE_N, np.where(NOISE_N < 0.5, 3 + NOISE_N, -3 - NOISE_N)), "bins"),
        (np.where(LABELS_N == 1, "yes", np.where(NOISE_N < 0.5, "no", "maybe")), "ids"),
        ([["a"] * (3 if label else int(n * 3)) for n, label in zip(NOISE_N, LABELS_N, strict=True)], "values"),
        ([f"p{even(*row, 120)}" for row in zip(LABELS_N, NOISE_N, strict=True)], "ids"),
        ([f"p{even(*row, 300)}" for row in zip(LABELS_N, NOISE_N, strict=True)], "ids"),
        ([even(*row, 200) for row in zip(LABELS_N, NOISE_N, strict=True)], "ids"),
        (
            [[f"r{int(900 * n)}", "view", "buy" if y else "back"] for n, y in zip(NOISE_N, LABELS_N, strict=True)],
            "elements",
        ),
        ([[int(900 * n)] if y else [int(900 * n), 7] for n, y in zip(NOISE_N, LABELS_N, strict=True)], "values"),
    ],
    ids=[
        *("nulls", "none", "text", "many ids", "values", "two sides", "words", "lengths"),
        *("120 words", "300 words", "parity", "elements", "an element that says no"),
    ],
)
def test_a_column_that_knows_the_label_is_found_by_the_way_that_shows_it(values, by):
    leak = leak_of(values)
    assert leak is not None and leak.by == by and leak.auc >= BLOCKING_AUC and leak.severity == "blocking"


def test_a_column_that_most_positives_have_is_a_warning_and_an_honest_one_is_neither():
    leak = leak_of(np.where(present(0.9), NOISE_N, np.nan))
    assert leak is not None and leak.severity == "warning" and leak.by == "nulls" and 0.9 <= leak.auc < 0.97
    assert leak_of(NOISE_N + 0.5 * LABELS_N) is None
    assert Leak("scroll_pct", "click", 0.99, "nulls", enabled=False).severity == "warning"


def test_unknown_labels_are_left_out_and_too_few_rows_or_positives_are_not_judged():
    labels_N = np.where(NOISE_N < 0.5, LABELS_N, np.nan)
    known = leak_of(LABELS_N, labels_N)
    assert known is not None and known.auc == 1
    lists = leak_of([["yes" if label else "no"] for label in LABELS_N], labels_N)
    assert lists is not None and lists.auc == 1
    assert leak_of(LABELS_N[:400], LABELS_N[:400]) is None
    few_N = np.zeros(2000)
    few_N[:19] = 1
    assert leak_of(few_N, few_N) is None


@pytest.mark.parametrize("num_values", [2000, 1000, 300, 40])
def test_values_that_know_nothing_are_not_leaks_however_many(num_values):
    """No row predicts itself, so neither an id of rows nor a rare value learns a label by heart."""
    drawn_N = (NOISE_N * num_values).astype(int)
    for values in (
        drawn_N,
        drawn_N.astype(str),
        [[f"t{i}", "all"] for i in drawn_N],
        [[i, -i][: i % 3] for i in drawn_N],
    ):
        assert leak_of(values) is None
        auc_of = max(_Column.of(values).scores(LABELS_N, LABELS_N >= 0).values())
        assert auc_of < 0.56


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
    frame = pd.DataFrame({"skip": cross([part, items], "here", joined_texts).to_pandas()})
    for name, feature in scenario.features.items():
        if name != "skip":
            frame[f"{name}.length" if feature.kind in ("ids", "sequence") else name] = NOISE_N
    for task in scenario.tasks:
        frame[f"label.{task}"] = LABELS_N
    found = find_leaks(frame, scenario, {})
    assert {(leak.feature, leak.severity, leak.way) for leak in found} == (
        {("skip", "blocking", way)} if way else set()
    )
