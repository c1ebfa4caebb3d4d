"""The table of days explains its numbers."""

import io
from pathlib import Path
from typing import Any

from rich.console import Console

from feature_jobs.schema import load_scenario
from tasks.commands.day_table import table_of
from tasks.deploy import Decision
from tests.small import write_small


def _day(ds: str, **facts: Any) -> dict[str, Any]:
    gate_auc = {"champion": {"buy": 0.71, "loved": None}, "challenger": {"buy": 0.7, "loved": None}}
    known = {"ds": ds, "rows": 32810, "auc_progressive": {"buy": 0.734, "loved": None}, "gate_auc": gate_auc}
    return {**known, "gate": "promoted", "version": "5", "seconds": {"train": 1.25}, **facts}


def _shown(folder: Path, *days: dict[str, Any]) -> str:
    text = io.StringIO()
    Console(file=text, width=80).print(table_of(load_scenario(write_small(folder, num_days=1)), days))
    return text.getvalue()


def test_columns_say_which_rows_they_are_about_and_numbers_read_well(tmp_path: Path) -> None:
    shown = _shown(tmp_path, _day("2024-03-01"))
    assert "32,810" in shown
    assert "promoted version 5" in shown
    assert "whole day" in shown
    assert shown.count("last slice") == 2
    allowed = "A drop of up to 0.2 AUC passes (deploy.max_auc_drop), a larger one if its interval reaches 0."
    assert allowed in " ".join(shown.split())
    assert max(len(line) for line in shown.splitlines()) <= 80


def test_the_verdict_is_whole_beside_long_names_of_labels(tmp_path: Path) -> None:
    names = {"is_purchase": 0.71, "is_added_to_basket": 0.65}
    day = _day("2024-03-01", auc_progressive=names, gate_auc={"champion": names, "challenger": names})
    shown = _shown(tmp_path, day)
    assert "promoted version 5" in shown and "is_purch" in shown
    assert max(len(line) for line in shown.splitlines()) <= 80


def test_a_refused_day_says_why_and_an_unfinished_one_shows_dashes(tmp_path: Path) -> None:
    refused = _day("2024-03-01", gate="no: worse than the champion")
    nothing: dict[str, Any] = {"buy": None, "loved": None}
    unfinished = _day("2024-03-02", rows=None, gate=None, version=None, seconds={}, auc_progressive=nothing)
    shown = _shown(tmp_path, refused, unfinished)
    assert "refused version 5" in shown
    assert "2024-03-01 not promoted: worse than the champion" in shown
    assert "None" not in shown


def test_a_version_that_waits_is_held_and_not_refused(tmp_path: Path) -> None:
    waiting = "no: held, because deploy.when_unsure is hold and this is unjudged: 34 rows are too few"
    shown = _shown(tmp_path, _day("2024-03-01", gate=waiting))
    assert "held version 5" in shown
    assert "refused" not in shown
    both = Decision(wanted=False, refused=["held: the champion is of a later day", "worse"], unjudged=[])
    assert both.words(promoted=False) == "no: worse; held: the champion is of a later day"


def test_a_promotion_without_a_judgement_says_so(tmp_path: Path) -> None:
    shown = _shown(tmp_path, _day("2024-03-01", gate="promoted, unjudged: 34 rows are too few"))
    assert "promoted version 5" in shown
    assert "not promoted" not in shown
    assert "2024-03-01 promoted, unjudged: 34 rows are too few" in shown
