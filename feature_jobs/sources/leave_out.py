"""A day's ingested events, written again without the rows of some users.

A user's rows are the events with that value in `data.user`, the rows of entities that have this column as their key,
and the quarantined rows that name the user. Nothing else is looked at: an id in another column is data of another row.
"""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from feature_jobs.errors import BadInputError
from feature_jobs.schema import Scenario
from feature_jobs.sources.ingest import DayCounts, TableCounts
from feature_jobs.sources.output_files import COUNTS_FILE, EVENTS_FILE, QUARANTINE_FILE
from feature_jobs.sources.tables import write_parquet

User = int | str
EVENTS = Path(EVENTS_FILE).stem
_BETWEEN_IDS = re.compile(r"""[\s,;|"':={}\[\]()<>\\]+""")
_CELL = re.compile("'.*'", re.DOTALL)


def users_of(scenario: Scenario, texts: Iterable[str]) -> list[User]:
    """The ids in the type of the scenario's user column, each once. Raises BadInputError where one does not read."""
    column = scenario.data.events.columns[scenario.data.user]
    place = f"{scenario.file}: data.events.columns.{scenario.data.user} is {column.type}"
    found: dict[User, None] = {}
    for text in texts:
        if column.type == "string":
            found[text] = None
        elif column.type == "int" and re.fullmatch(r"[+-]?\d+", text) and -(2**63) <= int(text) < 2**63:
            found[int(text)] = None
        else:
            raise BadInputError(f"--user {text!r} is not the id of a user: {place}; give ids as the events hold them")
    return list(found)


def num_rows(scenario: Scenario, folder: Path, users: Sequence[User]) -> int:
    """How many rows of these users the folder of a day holds, as ingest wrote it."""
    columns = [pq.read_table(folder / name, columns=[key])[key] for name, key in _tables(scenario, folder)]
    named = _names_them(scenario, pq.read_table(folder / QUARANTINE_FILE), users)
    return sum(int(pc.sum(_is_theirs(column, users)).as_py() or 0) for column in columns) + sum(named)


def leave_out(scenario: Scenario, folder: Path, users: Sequence[User], output: Path) -> DayCounts:
    """Writes the day to `output` without the rows of these users; returns the counts as ingest does.

    The files are those that ingest would have written if the rows had never been in the source. The counts are, too,
    but for exact duplicates of their rows: how many of the day's duplicates were theirs is not known any more.
    Raises BadInputError where no events are left.
    """
    (output / "entities").mkdir(parents=True, exist_ok=True)
    for file in (folder / "entities").iterdir():
        shutil.copyfile(file, output / "entities" / file.name)
    counts: DayCounts = json.loads((folder / COUNTS_FILE).read_text(encoding="utf-8"))
    for name, key in _tables(scenario, folder):
        table = pq.read_table(folder / name)
        left = table.filter(pc.invert(_is_theirs(table[key], users)))
        if name == EVENTS_FILE:
            _refuse_empty(scenario, folder, left)
            # Numbered again, as ingest would number the rows that are left.
            place = left.schema.get_field_index("key.event_row")
            left = left.set_column(place, left.schema.field(place), pa.array(np.arange(len(left)), pa.int64()))
        write_parquet(left.to_batches(), left.schema, output / name)
        own = _of_table(counts, Path(name).stem)
        own["rows"] -= len(table) - len(left)
        own["rows_read"] -= len(table) - len(left)
    quarantine = pq.read_table(folder / QUARANTINE_FILE)
    named = _names_them(scenario, quarantine, users)
    kept = quarantine.filter(pc.invert(pa.array(named, pa.bool_())))
    write_parquet(kept.to_batches(), kept.schema, output / QUARANTINE_FILE)
    _subtract(counts, quarantine.filter(pa.array(named, pa.bool_())))
    text = json.dumps(counts, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    (output / COUNTS_FILE).write_text(text, encoding="utf-8")
    return counts


def _refuse_empty(scenario: Scenario, folder: Path, left: pa.Table) -> None:
    if not left.num_rows:
        raise BadInputError(
            f"{folder / EVENTS_FILE}: all events of the day belong to these users, so that nothing would be left; list"
            f" the day under data.days.skip in {scenario.file}, then give the same command again"
        )


def names_one_of(text: str, users: Sequence[User]) -> bool:
    """Whether a text names one of the users, between spaces or punctuation."""
    return not {str(user) for user in users}.isdisjoint(_BETWEEN_IDS.split(text))


def _tables(scenario: Scenario, folder: Path) -> list[tuple[str, str]]:
    """Files that hold rows of users, each with the column that names the user."""
    user = scenario.data.user
    entities = [(f"entities/{name}.parquet", user) for name, e in scenario.data.entities.items() if e.key == user]
    return [(EVENTS_FILE, user), *(entity for entity in entities if (folder / entity[0]).is_file())]


def _is_theirs(column: pa.ChunkedArray, users: Sequence[User]) -> pa.ChunkedArray:
    text = pa.types.is_string(column.type)
    return pc.is_in(column, value_set=pa.array([str(user) if text else int(user) for user in users], column.type))


def _names_them(scenario: Scenario, quarantine: pa.Table, users: Sequence[User]) -> list[bool]:
    """Which quarantined rows name one of the users: in the cell of the user, or anywhere in a line without cells."""
    wanted = {str(user) for user in users}
    return [any(cell in wanted for cell in _cells(scenario, row)) for row in quarantine["row"].to_pylist()]


def _cells(scenario: Scenario, row: str) -> list[str]:
    """What may be the user's id in a quarantined row, which is JSON with the columns' names in the file."""
    user = scenario.data.user
    names = {user, *(table.columns[user].source or user for table in _with_user(scenario))}
    try:
        cells = json.loads(row)
    except ValueError:
        cells = None
    named = [str(cells[name]) for name in names if cells.get(name) is not None] if isinstance(cells, dict) else []
    texts = named or ([row] if not isinstance(cells, dict) or "text" in cells else [])
    return [cell for text in texts for cell in (text, text.strip(), *_BETWEEN_IDS.split(text), *_whole(text))]


def _with_user(scenario: Scenario) -> list[Any]:
    data = scenario.data
    return [data.events, *(entity for entity in data.entities.values() if entity.key == data.user)]


def _whole(text: str) -> list[str]:
    """The whole number that a cell such as "+7" or "7.0" stands for."""
    found = re.fullmatch(r"\s*([+-]?\d+)(\.0*)?\s*", text)
    return [str(int(found[1]))] if found else []


def _of_table(counts: DayCounts, name: str) -> TableCounts:
    return counts if name == EVENTS else counts["entities"][name]


def _subtract(counts: DayCounts, gone: pa.Table) -> None:
    """Takes rows that left the quarantine out of the counts."""
    for name, reason in zip(gone["table"].to_pylist(), gone["reason"].to_pylist(), strict=True):
        own = _of_table(counts, name)
        if own["quarantined"]:
            own["quarantined"] -= 1
            own["rows_read"] -= 1
        else:  # a row without a time belongs to no day, so it was not counted as read
            own["undated"] -= 1
        # Counter's minus drops what falls to 0, as ingest lists no reason without rows.
        reasons = Counter(_positive(own["reasons"])) - Counter([_CELL.sub("...", reason)])
        own["reasons"] = dict(reasons)


def _positive(reasons: Mapping[str, int]) -> dict[str, int]:
    return {reason: num for reason, num in reasons.items() if num > 0}
