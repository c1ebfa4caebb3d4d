"""The sections of a scenario about its data: the log, tables of facts, their columns, and the days.

A text below a key is its sentence in docs/reference.md; a test requires one for each key.
"""

from __future__ import annotations

import datetime
import re
from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator, Field, model_validator

from feature_jobs.object_client import is_url
from feature_jobs.schema.base import (
    AnyNumber,
    AnyWhole,
    ClockTime,
    Day,
    Name,
    PathText,
    Section,
    VectorWidth,
    Whole,
)
from feature_jobs.schema.encodings import UTF_8, Encoding

Weekday = Literal["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"]
WEEKDAYS: tuple[Weekday, ...] = get_args(Weekday)


Format = Literal["csv", "parquet", "jsonl", "delta", "hive", "iceberg", "postgres", "kafka"]
_TABLE_NAME = re.compile(r"[^\s.{}]+[.][^\s{}]*[^\s.{}]")
_HIVE_NAME = re.compile(r"\w+[.]\w+(/\w+=[^/\s]+)*", re.ASCII)
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")


def _folder(text: str) -> str:
    if is_url(text):
        raise ValueError("is a URL, not a folder; write a URL as the path of a table, such as data.events.path")
    return text


class Column(Section):
    """A typed column of a source table. Values that do not fit are quarantined, with a reason. Empty cells and NaN are
    null, but for a value of a `list[float]`: a vector without one is malformed.

    A `list[string]` may be a map in a Parquet file, or an object in a line of JSON: its entries are then texts
    `key:value`.

    A `time` is a moment: a Parquet timestamp or date, a number in `unit`, text in ISO 8601 (2022-04-25T10:00:00), or
    text or an integer in `date_format`. Where it has no offset, it is read in the zone of the table's time (of the
    events' where the table has none). In expressions a difference of two times is a number of seconds.
    """

    type: Literal["int", "float", "string", "bool", "list[int]", "list[string]", "list[float]", "time"]
    """The type as which each cell is read; cells that do not read are quarantined."""
    source: str | None = Field(None, alias="from")
    """The column's name in the file, if it is not the name that the scenario uses."""
    separator: str | None = None
    """The text between the elements of a list that is one text cell."""
    width: VectorWidth | None = None
    """The number of values in each list of floats, which is then a vector; rows with another number are quarantined."""
    decimal: Literal[".", ","] = "."
    """The sign before the fraction of a float in text; with "," a point may stand between thousands: 1.234,50."""
    values: tuple[str | AnyWhole, ...] | None = None
    """The values allowed; rows with another one are quarantined."""
    min: AnyNumber | None = None
    """The smallest value allowed; rows with a smaller one are quarantined."""
    max: AnyNumber | None = None
    """The largest value allowed; rows with a larger one are quarantined."""
    required: bool = False
    """Quarantines rows without a value instead of reading a null."""
    optional: bool = False
    """Allows files without this column, which is then null; without it such a file refuses its day."""
    unit: Literal["s", "ms", "us", "ns", "iso"] = "iso"
    """The unit of a time in numbers, since 1970 UTC; iso is text."""
    date_format: str | None = None
    """The form of a time in text or in the digits of an integer, in the letters of Python's strptime: "%d/%m/%Y"."""


class Moment(Section):
    """A column with a time. A column of type `time` has its own unit; text without an offset is read in the zone of the
    log's time."""

    column: str
    """The column with the time."""
    unit: Literal["s", "ms", "us", "ns", "iso"] = "s"
    """The unit of a column of numbers, since 1970 UTC; iso for a column of text such as 2022-04-25T10:00:00."""


class Time(Moment):
    """The column that says when a row became known. A column of type `time` has its own unit."""

    zone: str = "UTC"
    """The time zone of text without an offset; that of the events also says where a day begins."""


class Table(Section):
    """A table of the source, below `data.path`.

    `{ds}` (2022-04-25) or `{yyyymmdd}` in `path` names one day's partition, as do `{yyyy}`, `{mm}` and `{dd}` (`{m}`
    and `{d}`: without leading zeros) in folders such as year={yyyy}/month={mm}/day={dd}. Folders such as country=DE
    are columns of text.

    Of a table in Delta, Hive, Iceberg or Postgres a day reads the rows of its time. They have no order of their own, so
    they are ordered by time, then by the values of the declared columns.
    """

    path: PathText
    """A file, a folder of files, or a glob; a path that exists is itself, even if it holds characters of a glob. Or a
    URL of these, such as s3://bucket/logs/{ds}. With `format: delta` the folder or URL of the table; with hive, iceberg
    or postgres its name, such as shop.events; with kafka the topic. A name of hive may go on with partitions:
    shop.events/dt={ds}."""
    format: Format
    """The format of the files; jsonl is one JSON object a line, in which an absent key is null. Or the kind of the
    table that `path` names; messages of kafka are JSON objects."""
    server: str | None = None
    """The environment variable with the URL of the Postgres server, postgresql://USER:PASSWORD@HOST/DATABASE, or of
    Kafka's brokers, kafka://HOST:PORT,HOST:PORT?SETTING=VALUE, or of the metastore of Hive, thrift://HOST:PORT; the URL
    itself never stands in a scenario."""
    catalog: str | None = None
    """The name of the Iceberg catalog in the settings of PyIceberg, such as shop for PYICEBERG_CATALOG__SHOP__URI."""
    delimiter: str = ","
    """The character between the cells of a CSV file."""
    encoding: Encoding = UTF_8
    """The encoding of CSV or JSON lines, by its name in Python: gb18030, big5, shift_jis, cp1252, latin-1. UTF-16 with
    a byte order mark is found without it."""
    columns: dict[str, Column]
    """The columns to read, by name; others are not read."""
    where: str | None = None
    """A condition over these columns: only rows for which it holds are read, as in `not is_test`. The others, and
    those for which it is null, are counted as left out, apart from malformed rows."""

    @property
    def is_url(self) -> bool:
        """Says if its path is a URL of an object store."""
        return is_url(self.path)

    @property
    def is_elsewhere(self) -> bool:
        """Says if it is not below `data.path`, but read over a network."""
        return self.is_url or self.format in ("hive", "iceberg", "kafka", "postgres")

    @model_validator(mode="after")
    def _check_place(self) -> Self:
        for field, kinds in (("server", ("postgres", "kafka", "hive")), ("catalog", ("iceberg",))):
            given = getattr(self, field)
            if (given is not None) != (self.format in kinds):
                problem = f"format {self.format} has none; remove it" if given else "missing; add its name"
                raise ValueError(f"{field}: {problem}")
            if given is not None and not _VARIABLE.fullmatch(given):
                # Not repeated: it may be a URL with a password.
                raise ValueError(f"{field}: is not a name; write letters, digits and _")
        if self.encoding != UTF_8 and self.format not in ("csv", "jsonl"):
            raise ValueError(
                f"encoding: {self.encoding!r}: only with format csv or jsonl, not {self.format}; remove it"
            )
        if self.is_url and "@" in self.path.partition("://")[2].partition("/")[0]:
            # Not repeated either, here and in no later message.
            raise ValueError("path: a URL has no user and password; set the store's credentials (docs/object-store.md)")
        if self.format in ("iceberg", "postgres") and not _TABLE_NAME.fullmatch(self.path):
            raise ValueError(f"path: {self.path!r} is not the name of a table; write it as shop.events")
        if self.format == "hive" and not _HIVE_NAME.fullmatch(self.path):
            raise ValueError(
                f"path: {self.path!r} is not the name of a table; write it as shop.events, or with a partition as"
                f" shop.events/dt={{ds}}"
            )
        if self.format == "kafka" and not _TOPIC.fullmatch(self.path):
            raise ValueError(f"path: {self.path!r} is not the name of a topic; write letters, digits and any of . _ -")
        if self.format == "delta" and "{" in self.path:
            raise ValueError(f"path: {self.path!r}: a Delta table is read by time; leave {{...}} out")
        return self


class Deduplicate(Section):
    """Repeated rows of a log, such as an item that is shown again when a page is reloaded: a row is left out where one
    with equal `on` was kept less than `within_s` before it, on the day before too. They are counted, apart from exact
    duplicates and from malformed rows. A row without a value of `on` repeats none."""

    on: tuple[str, ...] = Field(min_length=1)
    """The columns that repeated rows have in common: [user_id, item_id]."""
    within_s: Annotated[Whole, Field(ge=1, le=86_400)] = 1_800
    """The seconds after a kept row in which another one repeats it."""


class Events(Table):
    """The log: a row for each thing that was shown."""

    time: Time
    """The time of the event."""
    deduplicate: Deduplicate | None = None
    """The rule by which rows repeat others; without it only exact duplicates are left out."""


class Log(Table):
    """A further log of what happened, such as clicks, orders or past history: trailing features count its rows, by
    their `source`.

    A row counts from the moment it was known: its `arrival` or its `time`, whichever is later. That moment decides its
    day and its place in windows, so that a row which came late is in no feature of an event before it came.
    """

    time: Time
    """The time at which it happened."""
    arrival: Moment | None = None
    """The time at which the row arrived, if that is not the time at which it happened."""
    deduplicate: Deduplicate | None = None
    """The rule by which rows repeat others, at the times from which they count; without it only exact duplicates are
    left out."""
    delay_s: Annotated[Whole, Field(ge=0, le=315_360_000)] = 0
    """Seconds that a row takes at least until features may see it, where no column says when it arrived."""


class Entity(Table):
    """A table of facts about users, items, …, joined to events by `key`."""

    key: str | Annotated[tuple[str, ...], Field(min_length=1)]
    """The column that the events have too, by which a row is found; or a list of columns, of which it is found by all
    together: [user_id, shop_id]."""
    time: Time | None = None
    """The moment from which a row holds, until the next one of its key: an event sees the newest row strictly before
    it. Without a time the rows hold for all days."""

    max_age_days: Annotated[Whole, Field(ge=0, le=366)] = 0
    """The greatest age of a partition, where the path names a day's: a day without one reads the newest before, and
    counts its age; with 0 such a day is refused."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The columns of `key`."""
        return (self.key,) if isinstance(self.key, str) else self.key

    @model_validator(mode="after")
    def _check_age(self) -> Self:
        if self.format == "hive" and self.max_age_days:
            raise ValueError("max_age_days: not with format hive, of which no older partition is searched; remove it")
        return self


class Days(Section):
    """The days of the data.

    On days on which clocks change a day has 23 or 25 hours. A time that the clock skips is read with the offset before
    the change, one that it shows twice is the first.
    """

    first: Day
    """The first day of the chain."""
    last: Day | None = None
    """The last day; without one, each new day belongs to the scenario."""
    warm_up_from: Day | None = None
    """An earlier day from which on the first day also ingests and learns everything, in one go."""
    skip: tuple[Day, ...] = ()
    """Days known to have no data, such as holidays, which the chain passes over."""
    closed: tuple[Weekday, ...] = ()
    """Days of the week without data, which the chain passes over: [sunday]."""
    day_starts: ClockTime = "00:00"
    """The time at which a day begins, on the clock of the events' zone: "07:00"."""

    def passes_over(self, day: datetime.date) -> bool:
        """Says if the chain has no such day between its first and its last."""
        return day in self.skip or WEEKDAYS[day.weekday()] in self.closed


class Data(Section):
    """The logs and their folder."""

    path: Annotated[PathText, AfterValidator(_folder)]
    """The folder of the files; a command can name another one with --data."""
    fetch: str | None = None
    """The data set that `recloop fetch` brings to the folder."""
    options: dict[str, AnyWhole | AnyNumber | str] = {}
    """Settings of a data set that is generated."""
    events: Events
    """The log of what was shown."""
    logs: dict[Name, Log] = {}
    """Further logs, by a name that features give as their `source`."""
    entities: dict[Name, Entity] = {}
    """Tables of facts about users, items, …, by a name that expressions write before their columns."""
    user: str
    """The event column that identifies the user."""
    anonymous: tuple[str | AnyWhole, ...] | None = None
    """The values of `user` that name nobody, such as 0 or unknown; with [] only an empty one does. Their rows, and rows
    without a user, are learned, but have no user: no history, no window and no entity by it, in all logs and in
    requests. GAUC leaves them out."""
    item: str
    """The event column that identifies the item."""
    request: str | None = None
    """The event column that names the request in which several items were shown together: rows of one day with the same
    user and request. A row without it is in no request. The features of these rows are those known at the earliest of
    their times, which is also their `event_time`; a request over two days is one request on each."""
    days: Days
    """The days of the data."""

    @property
    def tables(self) -> list[Table]:
        """All tables of the source, the events first."""
        return [self.events, *self.logs.values(), *self.entities.values()]

    @property
    def places(self) -> str:
        """The place of the source's rows, for messages."""
        here = [] if all(table.is_elsewhere for table in self.tables) else [self.path]
        return ", ".join(dict.fromkeys([*here, *(table.path for table in self.tables if table.is_elsewhere)]))

    def entities_by(self, column: str) -> list[str]:
        """The entities whose key is this column alone."""
        return [name for name, entity in self.entities.items() if entity.keys == (column,)]

    def log(self, source: str | None) -> Events | Log:
        """The log that a feature's `source` names."""
        return self.events if source is None else self.logs[source]
