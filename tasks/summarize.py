"""Step `summarize`: a day's events by the keys of features, added to the summaries of the days before."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from feature_jobs.schema import Scenario
from feature_jobs.schema.days import history_days
from feature_jobs.sources.user_ids import Found, Users
from tasks.contract import Choice, DayConfig, FolderOf, Forgetting, Input, Metrics, ReadFile, Resources, step


# These import inside: a DAG file loads the declaration, and must load neither numba nor DuckDB.
def _to_merge(scenario: Scenario, ds: str, read: ReadFile) -> Collection[str]:
    from feature_jobs.joins.summaries import days_to_merge

    return days_to_merge(scenario, ds, read)


def _to_read_again(scenario: Scenario, ds: str, read: ReadFile) -> Collection[str]:
    from feature_jobs.joins.summaries import days_to_read_again

    return days_to_read_again(scenario, ds, read)


def _of_entities(scenario: Scenario, ds: str, read: ReadFile) -> Collection[str]:
    from feature_jobs.joins.summaries import days_of_entities

    return days_of_entities(scenario, ds, read)


def _find(scenario: Scenario, summaries: Path, users: Users) -> Found:
    from feature_jobs.joins.summaries import find_carried

    return find_carried(scenario, summaries, users)


def _begin(scenario: Scenario, ds: str, events: Path, folder_of: FolderOf) -> None:
    from feature_jobs.joins.summaries import land_whole
    from feature_jobs.sources.changes import read_landed

    # A day that landed only what had changed needs the days before it, which the new chain does not have.
    if not all(landed["whole"] for landed in read_landed(events).values()):
        land_whole(scenario, events, folder_of("summaries", ds), lambda holder: folder_of("summaries", holder))


YESTERDAY = Input(of="summaries", days="previous")


@step(
    reads={
        "events": Input(),
        "yesterday": YESTERDAY,
        "past": Input("summaries", "trailing", history_days, Choice(YESTERDAY, _to_merge, by_digest=True)),
        "past_events": Input("events", "trailing", history_days, Choice(YESTERDAY, _to_read_again)),
        # With the rows of entities that these events saw: the index of yesterday has a digest of the newest ones alone.
        "past_entities": Input("summaries", "trailing", history_days, Choice(YESTERDAY, _to_read_again)),
        "carried": Input("summaries", "trailing", choice=Choice(YESTERDAY, _of_entities, by_digest=True)),
    },
    writes="summaries",
    config=("data", "join", "features", "labels", "outcomes"),
    touched_until="feature_jobs.joins.touched:summaries_until",
    forgetting=Forgetting(_find, begin={"events": _begin}),
    imports=("feature_jobs.joins.summarize",),
    resources=Resources(cpus=2, memory_gib=8),
)
def summarize(
    config: DayConfig,
    *,
    events: Path,
    yesterday: Path | None,
    past: Mapping[str, Path],
    past_events: Mapping[str, Path],
    past_entities: Mapping[str, Path],
    carried: Mapping[str, Path],
    summaries: Path,
) -> Metrics:
    """Summarizes the day's events for trailing features. It sorts them by the features' keys, and adds up whole days.

    Of each entity it carries the newest row of each key, and keeps the rows that the day's events may see.
    So the windows of later days read the events of two or three days, and one number a key for the days between. After
    a change of the features the days of the lookback are read again, once.
    """
    from feature_jobs.joins.summarize import summarize_day

    facts = summarize_day(
        config.scenario,
        config.ds,
        events,
        yesterday=yesterday,
        past={**past, **past_entities},
        past_events=dict(past_events),
        carried=dict(carried),
        output=summaries,
    )
    return {**facts}
