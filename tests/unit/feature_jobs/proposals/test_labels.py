"""Labels, outcomes, and the delay after which a label is known."""

import datetime
import shlex
from pathlib import Path

import numpy as np
import pytest

from feature_jobs.errors import BadInputError
from feature_jobs.proposals.propose import write_proposal
from feature_jobs.schema import load_scenario
from tasks.commands import arguments
from tests.unit.feature_jobs.fabricated import START
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


def test_outcomes_are_known_by_their_values(tmp_path: Path) -> None:
    """A time of viewing that is 0 in half of the rows without a like, one that is longer with a like, and one that is
    null in two thirds of the others; a price that is 0 now and then stays a feature."""
    random = np.random.default_rng(4)
    rows = []
    for i in range(4000):
        like, luck = random.random() < 0.2, random.random()
        seen = int(1 + 9000 * random.random()) if like or luck < 0.5 else 0
        span, depth = int(1000 * (luck + 0.4 * like)), f"{1 + i * 7919 % 97}" if like or luck < 0.3 else ""
        price = random.integers(0, 40) * (random.random() < 0.7)
        at = START + i * datetime.timedelta(minutes=1)
        rows.append(
            f"{at},u{random.integers(0, 90)},k{random.integers(0, 40)},{seen},{span},{depth},{price},{int(like)}"
        )
    scenario, said = lines_of(csv_file("at,user,item,view_time_ms,verweilt,tiefe,price,like", *rows), tmp_path)
    assert scenario.outcomes == ("view_time_ms", "verweilt", "tiefe")
    assert "price" in scenario.features and scenario.join.label_delay_s == 60
    assert (
        "never a feature: view_time_ms, where it is 0 or null, like hardly ever holds: take it out of here if" in said
    )
    assert "never a feature: verweilt, predicts like alone with an AUC of 0.8" in said


def test_a_models_score_is_not_an_outcome(tmp_path: Path) -> None:
    """Two scores that were known before the event, one of them by its name alone; one that nothing says it of; and
    outcomes: a share watched, which is 0 or 1 in many rows, a time of viewing, and a fraction that knows the answer.
    """
    random = np.random.default_rng(4)
    rows = []
    for i in range(6000):
        # A chance of the label that was drawn first, as a model knows it; many are near 0 and some near 1.
        chance = random.beta(0.5, 1.5)
        like = random.random() < chance
        watched = min(1, max(0, round(0.5 * like - 0.2 + 0.7 * random.random(), 4)))
        span = int(1000 * (random.random() + 0.4 * like))
        certain = round(0.1 + 0.4 * like + 0.4 * random.random(), 5)
        at = START + i * datetime.timedelta(minutes=1)
        rows.append(
            f"{at},u{random.integers(0, 90)},k{random.integers(0, 40)},{chance:.9f},{chance / 4 + 0.1:.6f},"
            f"{chance / 3 + 0.2:.6f},{watched},{span},{certain},{int(like)}"
        )
    names = "vorab,pctr,wert,anteil,verweilt,sicher,like"
    scenario, said = lines_of(csv_file(f"at,user,item,{names}", *rows), tmp_path)
    text = (tmp_path / "scenarios" / "found.yaml").read_text()
    assert scenario.outcomes == ("anteil", "verweilt", "sicher")
    assert {"vorab", "pctr"} <= scenario.features.keys() and "wert" not in scenario.features
    assert "a feature, but look at it: vorab, predicts like alone with an AUC of 0.8" in said
    assert "as often as it says, like the score of a model; leave it out if it is made after the event" in text
    assert "by its name the score of a model" in text
    assert "# wert: left out, predicts like alone with an AUC of 0.8" in text
