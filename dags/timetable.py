"""Timetable of a scenario's DAGs: one run for each day of the data, named by that day."""

from __future__ import annotations

import datetime
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Literal
from zoneinfo import ZoneInfo

from airflow.timetables.base import DagRunInfo, DataInterval, TimeRestriction
from airflow.timetables.interval import CronDataIntervalTimetable
from pendulum import DateTime, instance

if TYPE_CHECKING:
    from airflow.utils.types import DagRunType

ONE_DAY = datetime.timedelta(days=1)
SCHEDULED = "scheduled"  # a DagRunType, which is a string; its module is slow to import
Picks = Literal["first", "last"]


def day_of(start: datetime.datetime, end: datetime.datetime, zone: str, picks: Picks) -> str:
    """The day of the data that the run of an interval is about: its first day, or its last that is over at its end."""
    moment = start if picks == "first" else end - ONE_DAY
    return str(moment.astimezone(ZoneInfo(zone)).date())


def require_past(logical_date: datetime.datetime) -> None:
    """Raises ValueError for a logical date in the future."""
    if logical_date > datetime.datetime.now(datetime.UTC):
        raise ValueError(
            f"the logical date {logical_date.isoformat()} is in the future; give a day whose data is there, such as"
            " 2022-04-25T00:00:00Z"
        )


class DayTimetable(CronDataIntervalTimetable):
    """A cron schedule that knows the days of a scenario's data.

    A run starts after its day is over, so Airflow's usual id names the day after. Here the id names the run's own day,
    in the scenario's time zone: `scheduled__2022-04-25`; see `day_of`. No run is created for days after `last`, in
    `skip`, or on weekdays in `closed` (0: Monday). A backfill has the days from its first date to its last, both
    included, at any hour of the runs.
    """

    def __init__(
        self,
        cron: str,
        zone: str,
        *,
        picks: Picks = "first",
        last: str | None = None,
        skip: Collection[str] = (),
        closed: Collection[int] = (),
    ) -> None:
        super().__init__(cron, ZoneInfo(zone))
        self._zone = zone
        self._picks = picks
        self._last = last
        # In one order: Airflow would take the same days in another order for a new version of the DAG.
        self._skip = sorted(skip)
        self._closed = sorted(closed)

    def serialize(self) -> dict[str, Any]:
        """The arguments of the constructor, for Airflow's database; Airflow's interface asks for a dict."""
        return {
            "cron": self._expression,
            "zone": self._zone,
            "picks": self._picks,
            "last": self._last,
            "skip": self._skip,
            "closed": self._closed,
        }

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> DayTimetable:
        """See `serialize`."""
        return cls(**data)

    def next_dagrun_info(
        self, *, last_automated_data_interval: DataInterval | None, restriction: TimeRestriction
    ) -> DagRunInfo | None:
        """The next run; None where the data has ended."""
        interval = last_automated_data_interval
        first, last = "", self._last
        if restriction.latest is not None:  # a backfill's: our DAGs have no end date
            first = self._day_meant(restriction.earliest) if restriction.earliest else ""
            last = min(filter(None, (last, self._day_meant(restriction.latest))))
            restriction = self._from_the_run_before(restriction)
        while True:
            info = super().next_dagrun_info(last_automated_data_interval=interval, restriction=restriction)
            if info is None or info.data_interval is None:
                return None
            interval = info.data_interval
            ds = day_of(interval.start, interval.end, self._zone, self._picks)
            if last is not None and ds > last:
                return None
            # run_after is changed only for a day that is over: before, Airflow must wait for its real moment.
            is_closed = datetime.date.fromisoformat(ds).weekday() in self._closed
            if ds >= first and ds not in self._skip and not is_closed:
                return _named_by(ds, info) if interval.end <= datetime.datetime.now(datetime.UTC) else info

    def _day_meant(self, moment: DateTime) -> str:
        """The day that a date of a backfill means: `--to-date 2022-04-25` arrives as midnight UTC in every zone."""
        utc = moment.astimezone(datetime.UTC)
        is_date = utc.time() == datetime.time()
        return str((utc if is_date else moment.astimezone(ZoneInfo(self._zone))).date())

    def _from_the_run_before(self, restriction: TimeRestriction) -> TimeRestriction:
        """Begins so early that no run of a wanted day is missed; days before the wanted ones are left out later."""
        if restriction.earliest is None:
            return restriction._replace(latest=None)
        return TimeRestriction(self._align_to_prev(restriction.earliest.subtract(days=1)), None, restriction.catchup)

    def infer_manual_data_interval(self, *, run_after: DateTime) -> DataInterval:
        """A run that a person triggers is about the day of its logical date, whole.

        Raises ValueError, which Airflow answers to that person, for a date in the future: Airflow would keep the run
        waiting until then, and with it all later ones.
        """
        require_past(run_after)
        day = run_after.astimezone(ZoneInfo(self._zone)).date()
        start, end = (
            instance(datetime.datetime.combine(date, datetime.time(), ZoneInfo(self._zone)))
            for date in (day, day + ONE_DAY)
        )
        return DataInterval(start, end)

    def generate_run_id(
        self, *, run_type: DagRunType, run_after: DateTime, data_interval: DataInterval | None, **extra: Any
    ) -> str:
        """`scheduled__2022-04-25`, `manual__2022-04-25__STARTED`.

        Airflow has at most one run of a logical date, so a scheduled one needs no more than the day. A backfill does
        not ask: see `_named_by`. `airflow dags trigger` gives today's interval with any logical date: an
        id with that day would be wrong.
        """
        if data_interval is None or data_interval.end > datetime.datetime.now(datetime.UTC):
            return str(super().generate_run_id(run_type=run_type, run_after=run_after, data_interval=None, **extra))
        ds = day_of(data_interval.start, data_interval.end, self._zone, self._picks)
        suffix = ds if run_type == SCHEDULED else f"{ds}__{run_after.isoformat()}"
        # A day can be run by hand several times: the start makes the id unique.
        return str(run_type.generate_run_id(suffix=suffix))


def _named_by(ds: str, info: DagRunInfo) -> DagRunInfo:
    """The run of a past day, which may start at once: `backfill__2022-04-25T00:00:00+00:00`.

    Airflow takes a backfill's run ids, and the dates in its lists of runs, from `run_after` and from nothing else. For
    a day that is over any past moment does, so this one says the day in the time zone that Airflow prints: UTC.
    """
    return info._replace(run_after=instance(datetime.datetime.fromisoformat(f"{ds}T00:00:00+00:00")))
