"""40 faults planted into days of KuaiRand and of the company's logs: `validate`, with expectations proposed from the
days before, reports each by its name, and lets the clean days pass.

Faults of one day that touch different columns are planted together: each still has to be reported by its own name.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from feature_jobs.datasets import company
from feature_jobs.errors import GateError
from feature_jobs.joins.join import join_from_events
from feature_jobs.proposals.expectations import propose_expectations, see_day
from feature_jobs.schema import Scenario, load_scenario
from feature_jobs.sources.ingest import ingest_day
from feature_jobs.validation import drift
from feature_jobs.validation.day_facts import ROWS, day_facts, rows_of_days
from feature_jobs.validation.day_samples import read_samples
from feature_jobs.validation.expectations import suite_text
from tasks.contract import DayConfig
from tasks.validate import validate
from tests.paths import KUAIRAND, SCENARIOS, needs_kuairand
from tests.unit.feature_jobs.joins.small_log import Carried

pytestmark = pytest.mark.slow

HOUR_US = 3_600_000_000
BETWEEN, MEAN = "expect_column_values_to_be_between", "expect_column_mean_to_be_between"
IN_SET, UNIQUE = "expect_column_values_to_be_in_set", "expect_column_values_to_be_unique"
KNOWN = "expect_column_values_to_not_be_null"


@dataclass
class Day:
    """A joined day that a fault may damage: its samples, counts.json and join.json."""

    ds: str
    rows: pd.DataFrame
    counts: dict[str, Any]
    joined: dict[str, Any]

    def copy(self) -> Day:
        return Day(self.ds, self.rows.copy(), json.loads(json.dumps(self.counts)), json.loads(json.dumps(self.joined)))


Damage = Callable[[Day], None]


@dataclass(frozen=True)
class Fault:
    """`name` in words, its damage, and the problem that validation must report."""

    name: str
    damage: Damage
    column: str
    expectation: str = BETWEEN
    severity: str = "blocking"
    together: int = 0  # faults with the same number are planted into one day


def put(column: str, change: Callable[[pd.Series], Any]) -> Damage:
    def damage(day: Day) -> None:
        day.rows[column] = change(day.rows[column])

    return damage


def first(column: str, share: float, value: Any) -> Damage:
    """`value` in this share of the rows."""

    def damage(day: Day) -> None:
        values = day.rows[column].astype(object if isinstance(value, list | str) or value is None else "float64")
        num = max(1, int(len(values) * share))
        day.rows[column] = pd.Series([*[value] * num, *values.iloc[num:]])

    return damage


def count(key: str, share: float, *place: str) -> Damage:
    """Another number in counts.json: a share of the rows of the table at `place`."""

    def damage(day: Day) -> None:
        table = day.counts
        for name in place:
            table = table[name]
        table[key] = int(share * table["rows_read"])

    return damage


def joined(entity: str, share: float) -> Damage:
    def damage(day: Day) -> None:
        day.joined["entities"][entity] = share

    return damage


def lines(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Damage:
    """Other rows, in the samples as in the ingested log."""

    def damage(day: Day) -> None:
        before, changed = len(day.rows), change(day.rows)
        day.rows = changed.assign(**{"key.event_row": np.arange(len(changed))}).reset_index(drop=True)
        day.counts["rows"] += len(changed) - before

    return damage


def shuffled(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.iloc[np.random.default_rng(0).permutation(len(rows))]


def repeated(times: int) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda rows: pd.concat([rows] * times).sort_values("key.event_time", kind="stable")


def robots(rows: pd.DataFrame) -> pd.DataFrame:
    """Four rows for each: those that are added are of users of their own."""
    more = [rows.assign(**{"key.user": rows["key.user"] + 1_000_000 * number}) for number in (1, 2, 3)]
    return pd.concat([rows, *more])


def knows(column: str, label: str) -> Damage:
    def damage(day: Day) -> None:
        day.rows[column] = day.rows[label].astype("float64")

    return damage


def rarer(label: str) -> Damage:
    """Two of three positives are lost."""

    def damage(day: Day) -> None:
        positives = day.rows.index[day.rows[label] == 1]
        day.rows.loc[positives[np.arange(len(positives)) % 3 > 0], label] = 0

    return damage


def without_hours(begin: int, end: int) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(rows: pd.DataFrame) -> pd.DataFrame:
        since = rows["key.event_time"] - rows["key.event_time"].max() // (24 * HOUR_US) * 24 * HOUR_US
        return rows[(since < begin * HOUR_US) | (since >= end * HOUR_US)]

    return change


BETWEEN, MEAN, IN_SET = (
    f"expect_column_{name}" for name in ("values_to_be_between", "mean_to_be_between", "values_to_be_in_set")
)
KNOWN, UNIQUE = "expect_column_values_to_not_be_null", "expect_column_values_to_be_unique"

COMPANY = [
    Fault("prices in cents", put("price", lambda price: price * 100), "price"),
    Fault("kinds have other numbers", put("kind", lambda kind: kind + 100), "kind", IN_SET),
    Fault("countries in small letters", put("country", lambda text: text.str.lower()), "country", IN_SET),
    Fault("users created in the future", put("age_s", lambda age: -age), "age_s"),
    Fault("a third of the positions is lost", first("position", 0.34, None), "position", KNOWN),
    Fault("no impression is counted", put("shown_item", lambda num: num * 0), "shown_item", MEAN, "warning"),
    Fault("a count is negative", first("clicks_item", 0, -1.0), "clicks_item"),
    Fault("no clicked items are remembered", first("clicked", 1, []), "clicked.length", MEAN, "warning"),
    Fault("nobody clicks", put("label.click", lambda label: label * 0), "day.label_mean.click"),
    Fault("orders find no exposure", put("label.order", lambda label: label * 0), "day.attributed_share.order"),
    Fault("a third of the log is malformed", count("quarantined", 0.3), "day.quarantined_share"),
    Fault("orders were delivered twice", count("duplicates", 0.5, "logs", "orders"), "day.duplicate_share.orders"),
    Fault("the click log is empty", count("rows", 0, "logs", "clicks"), "day.rows.clicks"),
    Fault("most orders came a day late", count("late", 0.9, "logs", "orders"), "day.late_share.orders"),
    Fault("items have other keys than events", joined("items", 0.31), "day.hit_share.items"),
    Fault("the table of users was cut off", joined("users", 0.6), "day.hit_share.users"),
    Fault("most of the log is missing", lines(lambda rows: rows[::4]), "day.rows_by_weekday", together=1),
    Fault("an evening is missing", lines(without_hours(17, 21)), "day.longest_gap_s", together=1),
    Fault("each row came four times", lines(repeated(4)), "day.repeated_share", together=2),
    Fault("a robot makes four times the rows", lines(robots), "day.rows_by_weekday", together=3),
    Fault("rows are not in order of time", lines(shuffled), "day.out_of_order_rows", together=3),
]  # fmt: skip

KUAI = [
    Fault("durations in seconds", put("duration", lambda ms: ms / 1000), "duration", MEAN),
    Fault("the app numbers its tabs otherwise", put("tab", lambda tab: tab + 50), "tab", IN_SET),
    Fault("upload types in capital letters", put("upload_type", lambda text: text.str.upper()), "upload_type", IN_SET),
    Fault("videos without tags", first("tag", 1, []), "tag.length", MEAN),
    Fault("half of the authors are unknown", first("author_id", 0.5, None), "author_id", KNOWN),
    Fault("a video without an id", first("key.item", 0, None), "key.item", KNOWN),
    Fault("a user without an id", first("key.user", 0, None), "key.user", KNOWN),
    Fault("a row number came twice", first("key.event_row", 0, 7), "key.event_row", UNIQUE),
    Fault("a label that is neither 0 nor 1", first("label.is_like", 0, 2), "label.is_like", IN_SET),
    Fault("everybody clicks", put("label.is_click", lambda label: label * 0 + 1), "label.is_click", MEAN),
    Fault("a fifth of the labels is unknown", first("label.long_view", 0.2, None), "label.long_view", KNOWN),
    Fault("a rate above one", first("user_3day_click_rate", 0, 1.5), "user_3day_click_rate"),
    Fault("a code for missing followers", first("follow_user_num", 0.05, 999_999_999), "follow_user_num"),
    Fault("only new users", put("register_days", lambda days: days // 4), "register_days", "drift", "warning"),
    Fault("a feature that knows the label", knows("past_len", "label.long_view"), "past_len", "likely leak"),
    Fault("visits are lost", rarer("label.is_profile_enter"), "label.is_profile_enter", "label shift", "warning"),
    Fault("a list that is too long", first("clicked", 0, [1] * 21), "clicked.length"),
    Fault("half of the videos are not in their table", joined("video", 0.5), "day.hit_share.video"),
    Fault("malformed users", count("quarantined", 0.3, "entities", "user"), "day.quarantined_share.user"),
    Fault("the join lost a row", count("rows", 0.999), "", "one sample for each event"),
]  # fmt: skip


def _company(root: Path, patch: pytest.MonkeyPatch) -> tuple[Scenario, dict[str, Day]]:
    """Nine days of the company's logs with fewer requests a day."""
    patch.setattr(company, "NUM_REQUESTS", 400)
    overrides = {"data.days.last": "2024-03-10", "labels.order.maturity_days": 1}
    (root / "company.yaml").write_text((SCENARIOS / "company.yaml").read_text())
    scenario = load_scenario(root / "company.yaml", data=str(root / "data"), overrides=overrides)
    list(company.generate(scenario, root / "data"))
    carried, events, days = Carried(root), dict[str, Path](), dict[str, Day]()
    for ds in (f"2024-03-{day:02}" for day in range(1, 11)):
        before = max(events, default=None)
        events[ds] = root / "ingested" / ds
        ingest_day(scenario, ds, events[ds], yesterday=events[before] if before else None)
        carried.add(scenario, ds, events[ds], events)
        days[ds] = _day(ds, events[ds], carried.samples(scenario, ds, events[ds], events).parent)
    return scenario, days


def _kuairand(root: Path, patch: pytest.MonkeyPatch) -> tuple[Scenario, dict[str, Day]]:
    """Five days of KuaiRand, two of them a week after two others, each joined with its own history alone."""
    text = yaml.safe_load((SCENARIOS / "kuairand.yaml").read_text())
    kept = (
        "user_id", "video_id", "author_id", "music_type", "tag", "upload_type", "duration", "tab", "follow_user_num",
        "register_days", "past_len", "user_events", "user_3day_click_rate", "clicked",
    )  # fmt: skip
    text["features"] = {name: text["features"][name] for name in kept}
    text["evaluate"] = text["tune"] = {}
    (root / "kuairand.yaml").write_text(yaml.safe_dump(text))
    scenario, days = load_scenario(root / "kuairand.yaml", data=str(KUAIRAND)), dict[str, Day]()
    for ds in ("2022-04-25", "2022-04-26", "2022-04-27", "2022-05-02", "2022-05-03"):
        events, samples = root / "ingested" / ds, root / "joined" / ds
        ingest_day(scenario, ds, events)
        join_from_events(scenario, ds, events, {}, samples)
        days[ds] = _day(ds, events, samples)
    return scenario, days


def _day(ds: str, events: Path, samples: Path) -> Day:
    counts, facts = ((folder / name).read_text() for folder, name in ((events, "counts.json"), (samples, "join.json")))
    return Day(ds, pq.read_table(samples / "samples.parquet").to_pandas(), json.loads(counts), json.loads(facts))


@dataclass
class Log:
    """Days of a log, the last two of them not seen by the proposal that is the scenario's suite."""

    root: Path
    scenario: Scenario
    days: dict[str, Day]
    yesterday: Path

    def problems(self, day: Day, name: str) -> dict[tuple[str, str], str]:
        """The problems that validation reports of a day: their severity by expectation and column."""
        samples, events, output = (self.root / name / part for part in ("samples", "events", "validation"))
        self.write(day, samples, events)
        output.mkdir()
        with contextlib.suppress(GateError):
            validate(
                DayConfig(self.scenario, day.ds), samples=samples, events=events, yesterday=self.yesterday,
                validation=output,
            )  # fmt: skip
        verdict = json.loads((output / "verdict.json").read_text())
        return {
            (one["expectation"], one["column"] or ""): one["severity"]
            for one in [*verdict["warnings"], *verdict["failures"]]
        }

    @staticmethod
    def write(day: Day, samples: Path, events: Path) -> None:
        samples.mkdir(parents=True)
        events.mkdir(exist_ok=True)
        day.rows.to_parquet(samples / "samples.parquet", index=False)
        (samples / "join.json").write_text(json.dumps(day.joined))
        (events / "counts.json").write_text(json.dumps(day.counts))


def _log(root: Path, scenario: Scenario, days: dict[str, Day], skipped: int) -> Log:
    """Proposes from all days but the last two and the first ones, whose history is short."""
    profiles, seen = dict[str, drift.DayProfile](), []
    log = Log(root, scenario, days, root / "yesterday")
    for ds in [*days][:-2]:
        samples = root / "profiled" / ds
        log.write(days[ds], samples, samples)
        day = read_samples(samples, scenario)
        profiles |= drift.profile_days(ds, day.frame, scenario)
        facts = day_facts(scenario, ds, day, days[ds].counts, rows_of_days(profiles))
        profiles[ds]["own_rows"] = facts[ROWS]
        seen.append(see_day(scenario, ds, day, facts))
    log.yesterday.mkdir()
    (log.yesterday / "profile.json").write_text(json.dumps({"days": profiles}))
    scenario.suite_file.write_text(suite_text(propose_expectations(scenario, seen[skipped:], None)))
    return log


Reports = Callable[[int], dict[tuple[str, str], str]]


def _reports(log: Log, faults: list[Fault]) -> Reports:
    found: dict[int, dict[tuple[str, str], str]] = {}

    def of(together: int) -> dict[tuple[str, str], str]:
        if together not in found:
            day = [*log.days.values()][-1].copy()
            for fault in faults:
                if fault.together == together:
                    fault.damage(day)
            found[together] = log.problems(day, f"faults-{together}")
        return found[together]

    return of


@pytest.fixture(scope="module")
def company_log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    root = tmp_path_factory.mktemp("company")
    with pytest.MonkeyPatch.context() as patch:
        return _log(root, *_company(root, patch), skipped=2)


@pytest.fixture(scope="module")
def kuairand_log(tmp_path_factory: pytest.TempPathFactory) -> Log:
    root = tmp_path_factory.mktemp("kuairand")
    with pytest.MonkeyPatch.context() as patch:
        return _log(root, *_kuairand(root, patch), skipped=0)


@pytest.fixture(scope="module")
def company_reports(company_log: Log) -> Reports:
    return _reports(company_log, COMPANY)


@pytest.fixture(scope="module")
def kuairand_reports(kuairand_log: Log) -> Reports:
    return _reports(kuairand_log, KUAI)


def test_there_are_forty_faults_each_with_a_name_of_its_own() -> None:
    assert len({(fault.expectation, fault.column, fault.together) for fault in COMPANY}) == len(COMPANY)
    assert len({(fault.expectation, fault.column) for fault in KUAI}) == len(KUAI)
    assert len(COMPANY) + len(KUAI) >= 40


@pytest.mark.parametrize("fault", COMPANY, ids=lambda fault: fault.name)
def test_a_fault_of_the_company_is_reported_by_its_name(fault: Fault, company_reports: Reports) -> None:
    assert company_reports(fault.together).get((fault.expectation, fault.column)) == fault.severity


@needs_kuairand
@pytest.mark.parametrize("fault", KUAI, ids=lambda fault: fault.name)
def test_a_fault_of_kuairand_is_reported_by_its_name(fault: Fault, kuairand_reports: Reports) -> None:
    assert kuairand_reports(fault.together).get((fault.expectation, fault.column)) == fault.severity


def _expected_of_clean_days(log: Log, faults: list[Fault]) -> None:
    for ds in [*log.days][-2:]:
        found = log.problems(log.days[ds], f"clean-{ds}")
        assert "blocking" not in found.values(), found
        assert not found.keys() & {(fault.expectation, fault.column) for fault in faults}, found


def test_the_first_day_passes_too_which_has_no_history_and_no_orders(company_log: Log) -> None:
    day = company_log.days["2024-03-01"]
    assert day.rows["label.order"].isna().all()
    assert "blocking" not in company_log.problems(day, "first").values()


def test_clean_days_of_the_company_pass(company_log: Log) -> None:
    _expected_of_clean_days(company_log, COMPANY)


@needs_kuairand
def test_clean_days_of_kuairand_pass(kuairand_log: Log) -> None:
    _expected_of_clean_days(kuairand_log, KUAI)
