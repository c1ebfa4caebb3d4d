from tasks.commands.summary import table_lines


def counts(**given):
    return {"rows": 1200, "lookups": 9000, "admitted": 40, "rejected": 0, "evicted": 0, "hit_rate": 0.995, **given}


def test_tables_are_told_of_where_ids_were_refused_or_left():
    tables = {"user": counts(), "item": counts(rejected=2000, hit_rate=0.7733), "tag": counts(evicted=7)}
    assert table_lines({"tables": tables, "skipped_steps": 0}) == [
        "item: rows 1,200  admitted 40  rejected 2,000  evicted 0  hit_rate 0.7733",
        "tag: rows 1,200  admitted 40  rejected 0  evicted 7  hit_rate 0.995",
    ]


def test_skipped_steps_are_told_of_and_other_steps_have_no_tables():
    assert table_lines({"tables": {}, "skipped_steps": 3}) == [
        "3 steps of the chain were skipped: their gradient was not finite"
    ]
    assert table_lines({"rows": 3}) == []
