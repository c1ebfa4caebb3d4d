"""Labels, outcomes, and the delay after which a label is known."""

import shlex
from pathlib import Path

import pytest

from feature_jobs.errors import BadInputError
from feature_jobs.proposals.propose import write_proposal
from feature_jobs.schema import load_scenario
from tasks.commands import arguments
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
        ("outcome", lambda i: ("ignored", "purchased")[i % 2], {"purchased": "outcome == 'purchased'"}, (), 0),
    ],
)
def test_labels(header, cells, labels, outcomes, delay_s, tmp_path: Path) -> None:
    rows = [f"{hour},{i % 20},{i % 15},{cells(i)}" for i, hour in enumerate(HOURS)]
    scenario, _ = lines_of(csv_file(f"at,user,item,{header}", *rows), tmp_path)
    assert scenario.labels == labels
    assert scenario.outcomes == outcomes
    assert scenario.join.label_delay_s == delay_s


def test_a_label_under_another_name_is_suggested_and_can_be_given(tmp_path: Path) -> None:
    rows = [f"{hour},{i % 20},{i % 15},{int(i % 3 == 0)},{'ab'[i % 2]}" for i, hour in enumerate(HOURS)]
    csv_file("at,user,item,geklickt,kanal", *rows)(tmp_path)
    with pytest.raises(BadInputError) as caught:
        write_proposal(tmp_path / "log.csv", tmp_path / "out", "found")
    assert "geklickt ('0' or '1'), kanal ('a' or 'b')" in str(caught.value)
    words = shlex.split(str(caught.value).splitlines()[-1])
    assert words[:-1] == ["recloop", "init", str(tmp_path / "log.csv"), "--label"]
    write_proposal(tmp_path / "log.csv", tmp_path / "out", "found", dict([arguments.pair(words[-1])]))
    scenario = load_scenario(tmp_path / "out" / "found.yaml")
    assert scenario.labels == {"geklickt": "geklickt == 1"} and "geklickt" not in scenario.features


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("clicked == 1", "--label seen names clicked, but its columns are at, user, item, click"),
        ("click == 7", "--label: these hold in too few rows, or in nearly all: click == 7"),
        ("user == 'x'", "label user == 'x': not a condition on these columns"),
    ],
)
def test_a_label_that_is_given_wrongly_is_refused(condition: str, message: str, tmp_path: Path) -> None:
    csv_file("at,user,item,click", *(f"{t},{i % 20},{i % 15},{i % 2}" for i, t in enumerate(HOURS)))(tmp_path)
    with pytest.raises(BadInputError) as caught:
        write_proposal(tmp_path / "log.csv", tmp_path / "out", "found", {"seen": condition})
    assert message in str(caught.value)
