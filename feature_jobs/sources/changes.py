"""Changes of an entity: the rows that say something new on a day, and all that the day after needs to know of them.

An entity with time is a log of changes: a day lands the rows of its own time whose values differ from those that the
key had before. Its time column then says since when the values hold. A table without time, or with a partition a day,
is a snapshot: a day lands it whole, or not at all where it is as it was.

A day looks at the source of the day before once more. Where that has other rows by now (late, corrected or taken out),
or where the entity is declared otherwise, the day lands the entity whole: the newest row of each key at the day's
beginning, and the day's own rows.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from typing_extensions import TypedDict

from feature_jobs.control_records import read_record
from feature_jobs.expressions.compiler import literal
from feature_jobs.schema import Scenario
from feature_jobs.schema.days import day_start, day_window, previous_day
from feature_jobs.sources.output_files import LANDED_FILE
from feature_jobs.sources.source import Source
from feature_jobs.sources.tables import Reader


class Landed(TypedDict):
    """An entity on a day. `declared`: digest of its declaration. `whole`: rows of earlier days do not count any more.

    `rows`: number of rows before the day's end; `digest`: of the rows of the day itself, of a snapshot's all.
    """

    declared: str
    whole: bool
    rows: int
    digest: str


class LandedFile(TypedDict):
    """The entities by name."""

    entities: dict[str, Landed]


def read_landed(events: Path) -> dict[str, Landed]:
    """The entities of a day's folder, by name; none where a release before this one has written it."""
    file = events / LANDED_FILE
    if not file.exists():
        return {}
    return read_record(file.read_bytes(), LandedFile, str(file), "run ingest again for this day")["entities"]


def write_landed(entities: dict[str, Landed], events: Path) -> None:
    """Writes the entities of a day."""
    text = json.dumps({"entities": entities}, indent=1, sort_keys=True) + "\n"
    (events / LANDED_FILE).write_text(text, encoding="utf-8")


def stage_changes(reader: Reader, ds: str, yesterday: Landed | None) -> Landed:
    """Makes the tables `staged` (see Reader.stage) and `earlier`: of a log of changes the good rows of the day before.

    `reader` reads all that was known before the day's end.
    """
    scenario, source = reader.scenario, reader.source
    declared = _declared(scenario, source)
    known = yesterday if yesterday and yesterday["declared"] == declared else None
    before, end = previous_day(scenario, ds), day_window(scenario, ds)[1]
    nothing = "CREATE OR REPLACE TEMP TABLE earlier AS FROM staged LIMIT 0"
    if source.is_snapshot:
        reader.stage()
        reader.connection.execute(nothing)
        found = _digest(reader, "true")
        (num,) = reader.connection.execute("SELECT count(*) FROM staged").fetchall()[0]
        return {"declared": declared, "whole": known is None or known["digest"] != found, "rows": num, "digest": found}
    is_whole, nums = True, list[int]()
    if known and before:
        oldest, since = day_start(scenario, before), day_window(scenario, before)[1]
        replace(reader, window=(oldest, end)).stage()
        is_earlier = f"time >= {oldest} AND time < {since}"
        nums = reader.nums_before(since, end)
        is_whole = known["digest"] != _digest(reader, is_earlier) or known["rows"] != nums[0]
        reader.connection.execute(
            "DROP TABLE staged"
            if is_whole
            else f"CREATE TEMP TABLE earlier AS FROM staged WHERE {is_earlier} AND reason IS NULL;"
            f" DELETE FROM staged WHERE {is_earlier}; DELETE FROM not_wanted WHERE {is_earlier}"
        )
    if is_whole:
        reader.stage()
        reader.connection.execute(nothing)
    own = _digest(reader, f"time >= {day_start(scenario, ds)}")
    num = (nums or reader.nums_before(end))[-1]
    return {"declared": declared, "whole": is_whole, "rows": num, "digest": own}


def changed_rows(reader: Reader, ds: str, *, whole: bool) -> str:
    """SQL of the rows to land, out of the view `good`, the day's rows without a reason."""
    source = reader.source
    if source.is_snapshot and not whole:
        return "SELECT * FROM good WHERE false"
    key = ", ".join(source.key_cells)
    own = (*source.keys, source.time.column if source.time else None)
    values = ", ".join(f"c{i}" for i, name in enumerate(source.columns) if name not in own)
    said = f"row({values})" if values else "true"
    # Of one time the first row counts, so it comes last.
    by_key = f"WINDOW w AS (PARTITION BY {key} ORDER BY time, file DESC, row DESC)"
    changed = (
        f"SELECT * FROM (SELECT *, row_number() OVER w = 1 OR {said} IS DISTINCT FROM lag({said}) OVER w AS is_new"
        f" FROM (SELECT *, true AS own FROM good UNION ALL SELECT *, false AS own FROM earlier) {by_key})"
        f" WHERE own AND is_new"
    )
    if not whole:
        return changed
    begin = day_window(reader.scenario, ds)[0]
    until = "lead(time) OVER w"
    return f"SELECT * FROM ({changed}) {by_key} QUALIFY time >= {begin} OR coalesce({until} >= {begin}, true)"


def _declared(scenario: Scenario, source: Source) -> str:
    """Digest of all that decides how the rows are read."""
    entity = scenario.data.entities[source.name].model_dump(mode="json", by_alias=True)
    return hashlib.sha256(json.dumps([entity, source.zone], sort_keys=True).encode()).hexdigest()


def _digest(reader: Reader, condition: str) -> str:
    """Digest of staged rows, whatever their order."""
    columns = ", ".join(f"c{i}" for i in range(len(reader.source.columns)))
    sql = f"SELECT coalesce(sum(hash(time, raw, {columns})), 0)::VARCHAR || {literal(' ')} || count(*) FROM staged"
    return str(reader.connection.execute(f"{sql} WHERE {condition}").fetchall()[0][0])
