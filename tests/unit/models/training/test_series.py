"""Curves of a day's training stay short and lose no row."""

import pytest

from models.training.series import MAX_POINTS, Series


def test_many_batches_become_few_points_that_cover_all_rows():
    series = Series(0.01)
    for batch in range(1001):
        series.add(10 if batch < 1000 else 4, 1.0 if batch < 500 else 0.0)
    points = series.report()["training/loss"]
    assert MAX_POINTS / 2 <= len(points) <= MAX_POINTS
    assert [points[0][0], points[-1][0]] == [40, 10004]
    rows = [end - begin for begin, end in zip([0, *(x for x, _ in points)], (x for x, _ in points), strict=False)]
    assert sum(n * loss for n, (_, loss) in zip(rows, points, strict=True)) == pytest.approx(5000)
    assert {value for _, value in series.report()["training/learning_rate"]} == {0.01}


def test_a_day_without_a_batch_has_no_points():
    assert set(map(len, Series(0.01).report().values())) == {0}
