import pytest

from tasks.commands.summary import outcome_lines, table_lines
from tasks.run.runner import Outcome


def counts(**given):
    return {"rows": 1200, "lookups": 9000, "admitted": 40, "rejected": 0, "evicted": 0, "hit_rate": 0.995, **given}


def test_tables_that_refused_or_evicted_ids_are_shown():
    tables = {"user": counts(), "item": counts(rejected=2000, hit_rate=0.7733), "tag": counts(evicted=7)}
    assert table_lines({"tables": tables, "skipped_steps": 0}) == [
        "item: rows 1,200  admitted 40  rejected 2,000  evicted 0  hit_rate 0.7733",
        "tag: rows 1,200  admitted 40  rejected 0  evicted 7  hit_rate 0.995",
    ]


def test_skipped_steps_are_shown_and_other_steps_have_no_tables():
    assert table_lines({"tables": {}, "skipped_steps": 3}) == [
        "3 steps of the chain were skipped: their gradient was not finite"
    ]
    assert table_lines({"rows": 3}) == []


def test_a_line_says_what_was_decided_with_whole_numbers_in_thousands(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    metrics = {"rows": 32810, "promoted": True, "version": 5, "like": {"auc": 0.76543, "gauc": 0.7}, "quarantined": 0}
    outcome = Outcome("deploy", "2024-01-01", "done", "d", "u", metrics, {"total": 4.26})
    assert outcome_lines(outcome) == ["2024-01-01 deploy       4.3 s  promoted version 5  rows 32,810  like.auc 0.7654"]
    said = "promoted version 5, unjudged: " + "long " * 20
    deployed = Outcome("deploy", "2024-01-01", "done", "d", "u", {**metrics, "verdict": said}, {"total": 4.26})
    assert outcome_lines(deployed) == [
        f"2024-01-01 deploy       4.3 s  {said}",
        "                       rows 32,810  like.auc 0.7654",
    ]
    judged = Outcome(
        "evaluate", "2024-01-01", "done", "d", "u", {"not_worse": False, "next_day_ok": True}, {"total": 1}
    )
    assert outcome_lines(judged) == ["2024-01-01 evaluate     1.0 s  worse, next day ok"]
    assert outcome_lines(Outcome("deploy", "2024-01-01", "already_done", "d", "u")) == [
        "2024-01-01 deploy    done before"
    ]


def test_rows_of_no_day_are_explained() -> None:
    lines = outcome_lines(Outcome("ingest", "2024-03-01", "done", "d", "u", {"rows": 5, "undated": 1}))
    assert "undated 1" in lines[0]
    assert "undated: rows without a readable time belong to no day" in lines[1]
