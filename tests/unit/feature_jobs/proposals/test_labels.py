"""What is predicted, which columns are outcomes, and how late a label is known."""

from pathlib import Path

import pytest

from tests.unit.feature_jobs.proposals.proposing import HOURS, csv_file, lines_of


@pytest.mark.parametrize(
    ("header", "cells", "labels", "outcomes", "delay_s"),
    [
        ("rating", lambda i: f"{i % 5 + 1}", {"like": "rating >= 4", "love": "rating >= 5"}, (), 0),
        ("clicked", lambda i: f"{int(i % 3 == 0)}", {"clicked": "clicked == 1"}, (), 300),
        (
            "clicked,watch_ms",
            lambda i: f"{int(i % 3 == 0)},{500 * i}",
            {"clicked": "clicked == 1"},
            ("watch_ms",),
            60,  # 35,500 ms, to the next minute
        ),
        (
            "hate,open,save,view,share",
            lambda i: ",".join(str(int(i % period == 0)) for period in (2, 2, 3, 4, 5)),
            {name: f"{name} == 1" for name in ("open", "save", "view", "share")},
            ("hate",),
            300,
        ),
        (
            "event_type",
            lambda i: ("view", "cart", "buy")[i % 3],
            {n: f"event_type == {n!r}" for n in ("buy", "cart")},
            (),
            0,
        ),
    ],
)
def test_labels(header, cells, labels, outcomes, delay_s, tmp_path: Path) -> None:
    rows = [f"{hour},{i % 20},{i % 15},{cells(i)}" for i, hour in enumerate(HOURS)]
    scenario, _ = lines_of(csv_file(f"at,user,item,{header}", *rows), tmp_path)
    assert scenario.labels == labels
    assert scenario.outcomes == outcomes
    assert scenario.join.label_delay_s == delay_s
