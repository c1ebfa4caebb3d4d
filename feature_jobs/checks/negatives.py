"""Negative sampling against a sample of the log: columns that a negative row must not copy from its positive one."""

from __future__ import annotations

import duckdb

from feature_jobs.checks.problems import Problems
from feature_jobs.expressions.compiler import columns_of
from feature_jobs.joins.rules import on_the_row, outcome_columns
from feature_jobs.sources.source import Source

# Of a few items each may have one value by chance; of many, some may have changed their value in between.
_FEWEST_ITEMS, _SHARE = 20, 0.99  # of the items with several rows


def check_copied_columns(problems: Problems, source: Source, connection: duckdb.DuckDBPyConnection) -> None:
    """Warns of features that read a column of the log which has one value for each item in the table `staged`."""
    scenario, data = problems.scenario, problems.scenario.data
    sampler = scenario.join.negative_sampler
    if sampler is None:
        return
    readers: dict[str, str] = {}
    for place, expression in on_the_row(scenario).items():
        for name in columns_of(expression):
            readers.setdefault(name, place.split(".")[1])
    known = {data.user, data.item, data.request, *sampler.item_columns, *outcome_columns(scenario)}
    item = f"c{source.place_of(data.item)}"
    for name in [name for name in source.columns if name in readers and name not in known]:
        column = f"c{source.place_of(name)}"
        num, same, values = connection.execute(
            # An item with one row has one value of any column, and a value that all items share describes none.
            f"SELECT count(*), count(*) FILTER (num = 1), count(DISTINCT value) FROM (SELECT min({column}) AS value, "
            f"count(DISTINCT {column}) AS num FROM staged WHERE reason IS NULL GROUP BY {item} "
            f"HAVING count({column}) > 1)"
        ).fetchall()[0]
        if num >= _FEWEST_ITEMS and same >= _SHARE * num and values > 1:
            what = (
                f"describes the item, it seems: {same:,} of {num:,} items have one value; a negative row would have"
                f" another item's"
            )
            remedy = "add it to join.negative_sampler.item_columns, or let the feature read an entity of the items"
            problems.warn(("features", readers[name]), name, what, remedy)
