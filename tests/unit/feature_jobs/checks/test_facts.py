"""Facts of `check` for a person: plain lines, not Python's notation."""

from feature_jobs.checks.facts import Facts, fact_lines


def test_facts_are_plain_lines() -> None:
    facts = Facts(
        warnings=["not among them"],
        log="2,500 rows, 2025-03-01 to 2025-03-01",
        days={"2025-03-01": 2500},
        labels={"clicked": 0.476, "bought": None},
        entities={"person": {"rows": 5, "keys_found": 0.5}},
        malformed={"events": {"v: '-inf' is not a float": 2}},
        undated={"events": 1},
        sample_of="2025-03-01",
    )
    assert fact_lines(facts) == [
        "log: 2,500 rows, 2025-03-01 to 2025-03-01",
        "rows by day: 2025-03-01: 2,500",
        "malformed rows of events in the sample of 2025-03-01: v: '-inf' is not a float (2)",
        "rows of events without a readable time in the sample of 2025-03-01: 1; each day that reads the file "
        "quarantines them",
        "labels in the sample of 2025-03-01: clicked 47.6 %, bought unknown",
        "entity person: 5 rows, knows 50.0 % of the log's keys in the sample of 2025-03-01",
    ]
