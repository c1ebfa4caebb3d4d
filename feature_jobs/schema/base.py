"""Base class of a scenario's sections, and the types of their values."""

from __future__ import annotations

import datetime
import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from feature_jobs.schema.user_file import path_problem

FIRST_DAY, LAST_DAY = datetime.date(1900, 1, 1), datetime.date(2199, 12, 31)
"""Between them every day has neighbours, and its moments fit a signed 64-bit count of microseconds."""


def _clock_time(text: str) -> str:
    if not re.fullmatch(r"([01][0-9]|2[0-3]):[0-5][0-9]", text):
        raise ValueError('not a time of day; write hours and minutes in quotes, as in "07:00"')
    return text


def _day(day: datetime.date) -> datetime.date:
    if not FIRST_DAY <= day <= LAST_DAY:
        raise ValueError(f"must be a day from {FIRST_DAY} to {LAST_DAY}; correct the year")
    return day


def _path(text: str) -> str:
    if problem := path_problem(text):
        raise ValueError(problem)
    return text


def _model_name(text: str) -> str:
    if not re.fullmatch(r"\w[\w .-]{0,99}", text):
        raise ValueError("is not a name of a model; write at most 100 letters, digits, spaces and any of _ . -")
    return text


# Scenarios' names become folders of a store and ids of DAGs, where not every letter is safe.
NAME_PATTERN = r"^[a-z][a-z0-9_]{0,99}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Day = Annotated[datetime.date, AfterValidator(_day), Field(description="A day, 2022-04-25.")]
DAY_PATTERN = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"
DayName = Annotated[str, Field(pattern=DAY_PATTERN)]  # as a step gets it, and as files are named
Micros = Annotated[int, Field(ge=-62_135_596_800_000_000, lt=253_402_300_800_000_000)]
"""A time in µs since 1970 UTC, of the years 1 to 9999, which a date can show."""
ClockTime = Annotated[str, AfterValidator(_clock_time)]
PathText = Annotated[str, AfterValidator(_path)]
ModelName = Annotated[str, AfterValidator(_model_name)]
Whole = Annotated[int, Field(strict=True)]  # else true would be 1
Number = Annotated[float, Field(strict=True)]
"""Each number of a scenario has a least and a largest value, beyond which it is a mistake: a test looks at them all."""
Positive = Annotated[Whole, Field(gt=0)]
LARGEST_WIDTH = 4_096
VectorWidth = Annotated[Positive, Field(le=LARGEST_WIDTH)]
LayerWidth = Annotated[Positive, Field(le=16_384)]
NumDays = Annotated[Positive, Field(le=3_650)]
NumRows = Annotated[Positive, Field(le=1_000_000_000_000)]
Buckets = Annotated[Whole, Field(ge=0, le=1_000_000)]
Tolerance = Annotated[Number, Field(ge=0, le=1e9)]
AnyNumber = Annotated[Number, Field(ge=-1e300, le=1e300)]
AnyWhole = Annotated[Whole, Field(ge=-(2**63), lt=2**63)]


class Section(BaseModel):
    """A part of a scenario: unknown keys are refused, values never change after loading."""

    # populate_by_name: our code writes `source`, a scenario's file the alias `from`.
    model_config = ConfigDict(
        # A misspelt key would be a setting that silently does nothing; and YAML reads .inf and .nan as numbers.
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        populate_by_name=True,
        allow_inf_nan=False,
    )
