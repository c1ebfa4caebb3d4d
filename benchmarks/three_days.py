"""Three days of a log, ingested and summarized: what benchmarks of the join and of the online store begin with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from feature_jobs.joins.summaries import days_of_entities, days_to_merge
from feature_jobs.joins.summarize import summarize_day
from feature_jobs.schema import Scenario
from feature_jobs.sources.ingest import ingest_day

DAY_US = 86_400_000_000
START_US = 1_704_067_200_000_000  # 2024-01-01
DAYS = ("2024-01-01", "2024-01-02", "2024-01-03")
ZIPF = 1.1


def zipf_ids(random: np.random.Generator, most: int, num: int) -> npt.NDArray[np.int64]:
    """Ids below `most`, of which few are frequent. [num]"""
    shares = np.arange(1, most + 1) ** -ZIPF
    return random.choice(most, num, p=shares / shares.sum())


def summarize_days(scenario: Scenario, root: Path) -> dict[str, Path]:
    """Ingests the days into `root/events` and summarizes them into `root/summaries`; returns the latter by day."""
    outputs, before = dict[str, Path](), ""
    for ds in DAYS:
        events = root / "events" / ds
        ingest_day(scenario, ds, events)
        merged, carried = (
            chosen(choose, scenario, ds, outputs, before) for choose in (days_to_merge, days_of_entities)
        )
        output, yesterday = root / "summaries" / ds, outputs.get(before)
        summarize_day(
            scenario, ds, events, yesterday=yesterday, past=merged, past_events={}, carried=carried, output=output
        )
        outputs[ds], before = output, ds
    return outputs


def chosen(
    choose: Callable[..., list[str]], scenario: Scenario, ds: str, outputs: Mapping[str, Path], reads: str
) -> dict[str, Path]:
    """The outputs of the days that `choose` names for a day, by what the output of the day `reads` holds."""
    if not reads:
        return {}
    return {day: outputs[day] for day in choose(scenario, ds, lambda name: (outputs[reads] / name).read_bytes())}
