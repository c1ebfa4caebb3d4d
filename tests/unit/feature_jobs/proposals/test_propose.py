"""`recloop init`: what it proposes loads, passes the check, and trains two days unedited, on data it has never seen."""

import datetime
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from feature_jobs.checks.check import check
from feature_jobs.datasets.fetch import fetch
from feature_jobs.errors import BadInputError
from feature_jobs.joins.join import join_day
from feature_jobs.proposals import propose as proposals
from feature_jobs.proposals.days import choose_days
from feature_jobs.proposals.discover import find_tables
from feature_jobs.proposals.propose import write_proposal
from feature_jobs.proposals.yaml_text import scalar
from feature_jobs.schema import Scenario, load_scenario
from feature_jobs.schema.features import IdFeature
from feature_jobs.sources.ingest import ingest_day
from models.training.day import train_day
from models.training.job import TrainJob
from tasks.commands.cli import main
from tests.paths import KUAIRAND, ROOT, SCENARIOS, needs_kuairand
from tests.small import write_csv
from tests.unit.feature_jobs import fabricated
from tests.unit.feature_jobs.proposals import shapes

MOVIELENS = ROOT / "data" / "movielens"


def proposed(data: Path, out: Path) -> Scenario:
    write_proposal(data, out, "found")
    return load_scenario(out / "found.yaml")


def train_two_days(scenario: Scenario, root: Path) -> dict[str, Any]:
    """Ingest, join and train on the first two days; the second day's progressive metrics."""
    history: dict[str, Path] = {}
    parent = None
    metrics: Mapping[str, Any] = {}
    for ds in (str(scenario.data.days.first + datetime.timedelta(days=i)) for i in range(2)):
        events, samples, checkpoint = (root / ds / part for part in ("events", "samples", "checkpoint"))
        for folder in (events, samples, checkpoint):
            folder.mkdir(parents=True)
        ingest_day(scenario, ds, events)
        join_day(scenario, ds, events, history, samples)
        metrics = train_day(TrainJob(scenario, ds, samples, parent, checkpoint))
        history[ds], parent = events, checkpoint
    progressive: dict[str, Any] = metrics["progressive"]
    return progressive


EXPECTED: dict[str, dict[str, Any]] = {
    "shop": {
        "path": "events/{ds}.csv",
        "time": "time",
        "keys": ("customer_id", "product_id"),
        "labels": {"cart": "event_type == 'cart'", "purchase": "event_type == 'purchase'"},
        "outcomes": (),
        "entities": {"user": "customers.csv", "item": "products.csv"},
        "absent": {"session_token", "title", "event_type"},
    },
    "library": {
        "path": "reads.csv",
        "time": "time",
        "keys": ("Reader_ID", "Article"),
        "labels": {"finished": "Finished"},
        "outcomes": ("Scrolled",),
        "entities": {"item": "meta/articles.csv"},
        "absent": {"scrolled", "finished", "title"},
    },
    "ads": {
        "path": "logs/*.parquet",
        "time": "int",
        "keys": ("cookie", "creative_id"),
        "labels": {"clicked": "clicked"},
        "outcomes": ("charged",),
        "entities": {},
        "absent": {"charged", "clicked"},
    },
    "lake": {
        "path": "ratings/dt={ds}/*.parquet",
        "time": "time",
        "keys": ("userId", "movieId"),
        "labels": {"like": "rating >= 8", "love": "rating >= 10"},
        "outcomes": (),
        "entities": {"profiles": "profiles.parquet"},
        "absent": {"rating", "vector"},
    },
}


@pytest.mark.parametrize("name", EXPECTED)
def test_unknown_data_is_found_out_and_trains_unedited(name: str, tmp_path: Path) -> None:
    data, expected = tmp_path / name, EXPECTED[name]
    data.mkdir()
    getattr(fabricated, name)(data)
    fabricated.junk(data)
    scenario = proposed(data, tmp_path)
    assert scenario.data.events.path == expected["path"]
    time = scenario.data.events.time
    assert scenario.data.events.columns[time.column].type == expected["time"]
    assert (scenario.data.user, scenario.data.item) == expected["keys"]
    assert scenario.labels == expected["labels"]
    assert scenario.outcomes == expected["outcomes"]
    assert {n: e.path for n, e in scenario.data.entities.items()} == expected["entities"]
    assert not expected["absent"] & scenario.features.keys()
    facts = check(scenario)
    assert facts["days"].keys() == {f"2024-03-0{day}" for day in range(2, 7)}
    assert "malformed" not in facts
    progressive = train_two_days(scenario, tmp_path / "out")
    assert all(progressive[task]["auc"] > 0.55 for task in scenario.tasks), progressive


def test_types_and_lists(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    fabricated.library(tmp_path / "data")
    item = proposed(tmp_path / "data", tmp_path).data.entities["item"]
    assert item.columns["Tags"].type == "list[string]"
    assert item.columns["Tags"].separator == ","
    assert item.columns["Title"].type == "string"  # a comma or a semicolon in a title is not a list
    assert item.columns["Words_count"].source == "Words count"


def test_rows_that_change_over_time_become_an_entity_with_time(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    fabricated.lake(tmp_path / "data")
    entity = proposed(tmp_path / "data", tmp_path).data.entities["profiles"]
    assert entity.time is not None
    assert (entity.time.column, entity.key) == ("updated_at", "userId")


@pytest.mark.skipif(not MOVIELENS.is_dir(), reason="no MovieLens; recloop fetch brings it")
def test_movielens_unedited(tmp_path: Path) -> None:
    scenario = proposed(MOVIELENS, tmp_path)
    assert scenario.labels == {"like": "rating >= 4", "love": "rating >= 5"}
    assert (scenario.data.user, scenario.data.item) == ("user_id", "item_id")
    assert scenario.data.events.columns["rating"].source == "rating:float"
    assert scenario.data.entities["item"].columns["class_"].separator == " "
    check(scenario)
    assert train_two_days(scenario, tmp_path / "out")["like"]["auc"] > 0.65


@pytest.mark.slow
@needs_kuairand
def test_kuairand_unedited(tmp_path: Path) -> None:
    scenario = proposed(KUAIRAND, tmp_path)
    assert set(scenario.labels) == {"is_click", "long_view", "is_like", "is_profile_enter"}
    assert {"play_time_ms", "profile_stay_time", "comment_stay_time", "is_hate"} <= set(scenario.outcomes)
    assert (scenario.data.user, scenario.data.item) == ("user_id", "video_id")
    assert scenario.features["long_watch_seq"].model_dump()["table"] == "video_id"
    check(scenario)
    assert train_two_days(scenario, tmp_path / "out")["is_click"]["auc"] > 0.7


def test_synthetic_unedited_and_the_truth_is_not_a_source(tmp_path: Path) -> None:
    list(fetch(load_scenario(SCENARIOS / "synthetic.yaml"), tmp_path / "data", {"rows": 3000}))
    scenario = proposed(tmp_path / "data", tmp_path)
    assert scenario.data.events.path == "events/{ds}.parquet"
    assert {n: e.path for n, e in scenario.data.entities.items()} == {
        "user": "users/*.parquet",
        "item": "items/*.parquet",
    }
    assert scenario.outcomes == ("watch_s",)
    check(scenario)
    assert train_two_days(scenario, tmp_path / "out")["click"]["auc"] > 0.55


def test_the_file_is_commented_and_its_suite_is_beside_it(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    fabricated.ads(tmp_path / "data")
    lines = write_proposal(tmp_path / "data", tmp_path / "scenarios", "ad_log")
    text = (tmp_path / "scenarios" / "ad_log.yaml").read_text()
    assert "charged" in text and "# predicts clicked alone with an AUC of 1.000: it knows the answer" in text
    assert "path: ../data" in text
    assert "never a feature: charged, predicts clicked alone with an AUC of 1.000: it knows the answer" in lines
    suite = json.loads((tmp_path / "scenarios" / "ad_log.expectations.json").read_text())
    assert suite["name"] == "ad_log"


def test_it_proposes_the_same_twice(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    fabricated.shop(tmp_path / "data")
    texts = []
    for out in ("a", "b"):
        write_proposal(tmp_path / "data", tmp_path / out, "same")
        texts.append((tmp_path / out / "same.yaml").read_text())
    assert texts[0] == texts[1]


def test_a_scenario_that_exists_stays(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("kept")
    fabricated.ads(tmp_path / "data")
    with pytest.raises(BadInputError, match=r"mine.yaml: exists already, and is left as it is; give another --name"):
        write_proposal(tmp_path / "data", tmp_path, "mine")
    assert (tmp_path / "mine.yaml").read_text() == "kept"


def test_a_proposal_that_fails_its_own_check_leaves_nothing(tmp_path: Path) -> None:
    """Expectations that stayed behind, of a feature that the proposal doesn't have, make the check fail."""
    fabricated.ads(tmp_path / "data")
    out = tmp_path / "new" / "scenarios"
    out.mkdir(parents=True)
    kept = {
        "name": "mine",
        "expectations": [{"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "gone"}}],
    }
    (out / "mine.expectations.json").write_text(json.dumps(kept))
    with pytest.raises(BadInputError, match=r"(?s)fails its own check; nothing was written.*mine.expectations.json"):
        write_proposal(tmp_path / "data", out, "mine")
    assert [file.name for file in out.iterdir()] == ["mine.expectations.json"]
    assert json.loads((out / "mine.expectations.json").read_text()) == kept


def test_a_scenario_that_comes_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fabricated.ads(tmp_path / "data")
    out = tmp_path / "new" / "scenarios"
    check_of_proposal = proposals._checked

    def another_comes(path: Path, file: Path, text: str) -> Any:
        result = check_of_proposal(path, file, text)
        file.write_text("kept")
        return result

    monkeypatch.setattr(proposals, "_checked", another_comes)
    with pytest.raises(BadInputError, match=r"mine.yaml: exists already, and is left as it is"):
        write_proposal(tmp_path / "data", out, "mine")
    assert [(file.name, file.read_text()) for file in out.iterdir()] == [("mine.yaml", "kept")]


def csv_file(*rows: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "log.csv").write_text("\n".join(rows) + "\n")  # type: ignore[return-value]


HOURS = [f"2024-03-0{day}T{hour:02}:00:00" for day in (1, 2, 3) for hour in range(24)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "no table (CSV with a header, Parquet or JSON lines)"),
        (fabricated.junk, "unrelated.csv: no column of times"),
        (csv_file("user,item,click", "1,2,0", "2,3,1"), "log.csv: no column of times"),
        (
            csv_file("time,click", *(f"{hour},{i % 2}" for i, hour in enumerate(HOURS))),
            "no columns that identify a user and an item",
        ),
        (
            csv_file("time,user,item", *(f"{hour},{i % 20},{i % 15}" for i, hour in enumerate(HOURS))),
            "no column that says what became of a row (click, rating, ...)",
        ),
    ],
)
def test_what_is_not_a_log_is_reported(make: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    make(tmp_path / "data")
    with pytest.raises(BadInputError) as caught:
        write_proposal(tmp_path / "data", tmp_path / "out")
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_no_such_path(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no such file or folder"):
        write_proposal(tmp_path / "absent", tmp_path)


def test_one_file_will_do(tmp_path: Path) -> None:
    rows = [f"{hour};u{i % 20};{i % 15};{int(i % 3 == 0)}" for i, hour in enumerate(HOURS)]
    csv_file("at;user;page;clicked", *rows)(tmp_path)
    scenario = proposed(tmp_path / "log.csv", tmp_path)
    assert scenario.data.events.delimiter == ";"
    assert (scenario.data.user, scenario.data.item, scenario.tasks) == ("user", "page", ("clicked",))
    assert check(scenario)["days"]


def test_names_that_expressions_cannot_take_are_renamed(tmp_path: Path) -> None:
    header = "class,event_time,User-Id,2nd item,is,null,Click"
    rows = [f"k{i % 3},{hour},{i % 20},{i % 15},{i % 4},{i % 5},{int(i % 3 == 0)}" for i, hour in enumerate(HOURS)]
    csv_file(header, *rows)(tmp_path)
    columns = proposed(tmp_path / "log.csv", tmp_path).data.events.columns
    assert {name: c.source for name, c in columns.items() if c.source} == {
        "class_": "class",
        "event_time_": "event_time",
        "User_Id": "User-Id",
        "c_2nd_item": "2nd item",
        "is_": "is",
        "null_": "null",
    }


def test_rows_without_a_user_are_allowed_for(tmp_path: Path) -> None:
    rows = [f"{hour},{'' if i % 36 == 0 else i % 20},{i % 15},{int(i % 3 == 0)}" for i, hour in enumerate(HOURS)]
    csv_file("at,user,item,click", *rows)(tmp_path)
    scenario = proposed(tmp_path / "log.csv", tmp_path)
    assert 0.02 < scenario.ingest.max_quarantined_share < 0.1
    assert check(scenario)["malformed"] == {"events": {"user: missing": 1}}


def test_features_never_take_the_name_of_another_column(tmp_path: Path) -> None:
    rows = [f"{hour},{i % 20},{i % 15},{int(i % 3 == 0)},a,{i % 7}" for i, hour in enumerate(HOURS)]
    csv_file("at,user,item,click,user_events,hour", *rows)(tmp_path)
    scenario = proposed(tmp_path / "log.csv", tmp_path)
    assert scenario.evaluate.segments == {"new_user": "user_events_2 < 5"}
    assert scenario.features["hour_2"].model_dump()["of"] == "hour(event_time)"
    assert "hour" not in scenario.features


def test_partitions_that_hold_other_days_are_read_as_one_table(tmp_path: Path) -> None:
    """Files named after the day of export, not of the events."""
    fabricated.shop(tmp_path / "data")
    events = tmp_path / "data" / "events"
    for day in reversed(range(1, 7)):
        (events / f"2024-03-0{day}.csv").rename(events / f"2024-03-0{day + 1}.csv")
    scenario = proposed(tmp_path / "data", tmp_path)
    assert scenario.data.events.path == "events/*.csv"
    assert set(check(scenario)["days"]) == {f"2024-03-0{day}" for day in range(2, 7)}


def test_files_that_look_alike_are_one_table(tmp_path: Path) -> None:
    for name in ("log_a_20240301.parquet", "log_b_20240302.parquet", "other.parquet"):
        pq.write_table(pa.table({"x" if name.startswith("log") else "y": [1]}), tmp_path / name)
    groups, _ = find_tables(tmp_path)
    assert [group.path for group in groups] == ["log_*.parquet", "other.parquet"]


D = datetime.date(2024, 3, 1)
DAY = datetime.timedelta(days=1)


@pytest.mark.parametrize(
    ("rows", "partitioned", "expected"),
    [
        ([100], False, (None, 0, 0)),
        ([100, 100], False, (None, 0, 1)),
        ([100] * 8, False, (0, 2, 7)),  # a quarter warms up
        ([100] * 30, False, (0, 20, 29)),  # the last ten
        ([100] * 8 + [5], False, (0, 2, 7)),  # a last day cut short
        ([100, 100, 0] + [100] * 8, False, (0, 3, 10)),  # a gap: what is before it warms up
        ([100, 100, 0] + [100] * 8, True, (None, 0, 10)),  # a warm-up has no partition to read on the missing day
        ([3, 0, 4] + [100] * 4, False, (0, 3, 6)),
        ([34] * 40 + [60_000] * 3 + [34] * 20, False, (0, 40, 42)),  # busy days, not those of the long tail
        (([100] * 5 + [0, 0]) * 4, False, (0, 14, 25)),  # weekends are skipped
    ],
)
def test_choice_of_days(rows: list[int], partitioned: bool, expected: tuple[int | None, int, int]) -> None:
    counts = {D + i * DAY: num for i, num in enumerate(rows) if num}
    choice = choose_days(counts, partitioned=partitioned)
    warm_up = None if choice.warm_up_from is None else (choice.warm_up_from - D).days
    assert (warm_up, (choice.first - D).days, (choice.last - D).days) == expected


@pytest.mark.parametrize(
    ("days", "partitioned", "reason"),
    [
        (dict.fromkeys(range(0, 270, 30), 100), False, "they lie more than 90 days before 2024-10-27, farther than"),
        (dict.fromkeys(range(0, 270, 30), 100), True, "the log has no partition of 2024-10-26, and a warm-up must not"),
        (dict.fromkeys(range(120), 100), False, "10 days are enough to begin with"),
        ({0: 3, 150: 100, 151: 100}, False, "none of them has more than 3 rows, where a usual day has 100"),
        (
            {**dict.fromkeys(range(10), 100), 20: 100},
            False,
            "after a gap of over 7 days without a usual number of rows they have under half the rows of the busiest 10",
        ),
    ],
)
def test_the_reason_for_leaving_days_out_is_true(days: dict[int, int], partitioned: bool, reason: str) -> None:
    choice = choose_days({D + day * DAY: num for day, num in days.items()}, partitioned=partitioned)
    left = [line for line in choice.why if line.startswith("days: left out")]
    assert len(left) == 1 and reason in left[0], left
    assert "10 days are enough" not in left[0] or (choice.last - choice.first).days == 9


@pytest.mark.parametrize(
    "text", ["a", "a b", "x == 1", "no", "null", "1", "a: b", "a #b", "'x'", "é", "-", "{ds}.csv", "*"]
)
def test_scalars_come_back(text: str) -> None:
    from ruamel.yaml import YAML

    assert YAML(typ="safe").load(f"{{a: {scalar(text)}}}") == {"a": text}


def lines_of(make: Callable[[Path], None], folder: Path) -> tuple[Scenario, str]:
    make(folder / "data")
    lines = write_proposal(folder / "data", folder / "scenarios", "found")
    return load_scenario(folder / "scenarios" / "found.yaml"), "\n".join(lines)


def test_invoices_of_a_shop(tmp_path: Path) -> None:
    """Customers and stock codes with gaps rather than invoices and descriptions; busy days; a space to search."""
    scenario, said = lines_of(shapes.invoices, tmp_path)
    assert (scenario.data.user, scenario.data.item) == ("CustomerID", "StockCode")
    assert "user: CustomerID (80 values, 25.2% of rows lack it and will be quarantined)" in said
    assert "passed over as user or item: InvoiceNo (new in each row or visit), Description (a text)" in said
    columns = scenario.data.events.columns
    assert (columns["CustomerID"].type, columns["StockCode"].type) == ("int", "string")
    assert columns["InvoiceDate"].date_format == "%m/%d/%Y %H:%M"
    assert not {"invoiceno", "description"} & scenario.features.keys()
    assert "Description (free text: 50 values, " in said
    assert isinstance(scenario.features["country"], IdFeature)
    assert (str(scenario.data.days.first), str(scenario.data.days.last)) == ("2011-01-18", "2011-01-28")
    assert [str(day) for day in scenario.data.days.skip] == ["2011-01-22"]
    assert "skipped between them: 2011-01-22; they have under 40 rows, 0 in all" in said
    assert scenario.tune.space
    facts = check(scenario)
    assert set(facts["days"].values()) == {400}


@pytest.mark.slow
@pytest.mark.parametrize("make", [shapes.invoices, shapes.news, shapes.json_lines, shapes.nested])
def test_a_proposal_runs_a_day_unedited(make: Callable[[Path], None], tmp_path: Path) -> None:
    """From init's own last line, as a person would copy it."""
    _, said = lines_of(make, tmp_path)
    options = said.rpartition("recloop run ")[2].split()
    store = ["--store", str(tmp_path / "store"), "--no-track", "--json"]
    result = CliRunner().invoke(main, ["run", *options, *store])
    assert result.exit_code == 0, result.output


def test_news_with_ids_of_rows_and_a_second_log(tmp_path: Path) -> None:
    scenario, said = lines_of(shapes.news, tmp_path)
    assert not {"row_id", "impression_id", "session_id", "split"} & scenario.features.keys()
    assert "split (says how somebody split the rows" in said
    assert scenario.outcomes == ("scroll_pct",)  # filled for clicks only
    assert (scenario.data.events.delimiter, scenario.join.label_delay_s) == (";", 300)
    assert scenario.data.entities["reads"].time is not None
    feature = scenario.features["reads_article_id"]
    assert isinstance(feature, IdFeature)
    assert (feature.of, feature.table) == ("reads.article_id", "article_id")
    assert "entity reads is a second log: an event sees the user's last row in it" in said
    check(scenario)


@pytest.mark.parametrize(
    ("make", "path", "kind"),
    [
        (shapes.compressed, "ads.csv.gz", "csv"),
        (shapes.json_lines, "{yyyy}/{mm}/{dd}/*.jsonl", "jsonl"),
        (shapes.nested, "year={yyyy}/month={m}/day={d}/*.parquet", "parquet"),
    ],
)
def test_ways_to_lay_out_files(make: Callable[[Path], None], path: str, kind: str, tmp_path: Path) -> None:
    scenario, said = lines_of(make, tmp_path)
    assert (scenario.data.events.path, scenario.data.events.format) == (path, kind)
    assert f"log: {path}: 6,000 rows" in said
    facts = check(scenario)
    assert sum(facts["days"].values()) == 4986
    (tmp_path / "events").mkdir()
    ingest_day(scenario, str(scenario.data.days.first), tmp_path / "events")


def test_inf_is_judged_as_check_does(tmp_path: Path) -> None:
    """A price that is infinite in one row of fifty is not a number for ingest, so it is not proposed as one."""
    scenario, said = lines_of(shapes.compressed, tmp_path)
    assert scenario.data.events.columns["price"].type == "string"
    assert "column price is declared as text: 2.0% of its cells are not finite numbers" in said
    assert "malformed" not in check(scenario)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (lambda hour: str(28_488_000 + hour * 60), "minutes since 1970 would fit"),
        (lambda hour: f"day {hour // 24} at {hour % 24}", "does not read as a time; write 2024-03-01T10:00:00"),
    ],
)
def test_times_that_nothing_reads_are_named(cell: Callable[[int], str], message: str, tmp_path: Path) -> None:
    csv_file("time,user,item,click", *(f"{cell(i)},{i % 20},{i % 15},{i % 2}" for i in range(100)))(tmp_path)
    with pytest.raises(BadInputError, match=message):
        write_proposal(tmp_path / "log.csv", tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "date_format"),
    [
        ("%d.%m.%Y %H:%M", "%d.%m.%Y %H:%M"),
        ("%Y%m%d%H%M%S", "%Y%m%d%H%M%S"),
        ("%m/%d/%Y %I:%M %p", "%m/%d/%Y %I:%M %p"),
        ("%Y/%m/%d %H:%M:%S", None),  # read as it is
    ],
)
def test_formats_of_times(text: str, date_format: str | None, tmp_path: Path) -> None:
    times = [datetime.datetime(2024, 3, 13) + datetime.timedelta(hours=i) for i in range(72)]
    rows = [f"{time.strftime(text)},{i % 20},{i % 15},{int(i % 3 == 0)}" for i, time in enumerate(times)]
    csv_file("at,user,item,click", *rows)(tmp_path)
    column = proposed(tmp_path / "log.csv", tmp_path).data.events.columns["at"]
    assert (column.type, column.date_format) == ("time", date_format)


def test_an_ambiguous_date_is_said(tmp_path: Path) -> None:
    rows = [f"{1 + i // 24}/3/2024 {i % 24}:00,{i % 20},{i % 15},{int(i % 3 == 0)}" for i in range(72)]
    csv_file("at,user,item,click", *rows)(tmp_path)
    said = write_proposal(tmp_path / "log.csv", tmp_path / "out")
    both = "%d/%m/%Y %H:%M and %m/%d/%Y %H:%M"
    assert f"log.csv: column at reads as {both}; the first is taken, as its days follow each other: check it" in said


@pytest.mark.parametrize(
    ("date_format", "names", "why"),
    [
        ("%d/%m/%Y", None, "as its days follow each other"),
        ("%m/%d/%Y", None, "as its days follow each other"),
        ("%d/%m/%Y", "%Y-%m-%d.csv", "as the files' names have its days"),
        ("%m/%d/%Y", "%Y-%m-%d.csv", "as the files' names have its days"),
    ],
)
def test_the_reading_of_an_ambiguous_date(date_format: str, names: str | None, why: str, tmp_path: Path) -> None:
    """Day first or month first, 1 to 9 November: by the days that it makes, and by the names of the files."""
    days = [datetime.date(2024, 11, 1) + i * DAY for i in range(9)]
    if names:  # far apart in the right reading, and close together in the wrong one: the names decide
        days = [datetime.date(2024, month, 3) for month in range(1, 9)]
    (tmp_path / "data").mkdir()
    for day in days:
        rows = [f"{day.strftime(date_format)},{i % 20},{i % 15},{int(i % 3 == 0)}\n" for i in range(40)]
        file = tmp_path / "data" / (day.strftime(names) if names else "log.csv")
        file.write_text((file.read_text() if file.exists() else "day,user,item,click\n") + "".join(rows))
    said = "\n".join(write_proposal(tmp_path / "data", tmp_path / "out", "found"))
    scenario = load_scenario(tmp_path / "out" / "found.yaml")
    assert scenario.data.events.columns["day"].date_format == date_format
    assert f"the first is taken, {why}: check it" in said
    assert f"on {len(days)} days, {days[0]} to {days[-1]}" in said


def test_clicks_beside_their_impressions_are_not_a_second_log(tmp_path: Path) -> None:
    """They are answers to the same rows: as an entity they would say what the next row of the user is about."""
    shapes.news(tmp_path / "data")
    clicks = [
        [row["user_id"], row["article_id"], row["shown_at"], i]
        for i, row in enumerate(shapes.impressions())
        if row["clicked"]
    ]
    write_csv(tmp_path / "data" / "reads.csv", ["user_id", "article_id", "shown_at", "n"], clicks)
    said = write_proposal(tmp_path / "data", tmp_path / "out", "found")
    assert any(line.startswith("left out reads.csv: its rows repeat those of the log") for line in said)
    assert not load_scenario(tmp_path / "out" / "found.yaml").data.entities


def test_an_entity_larger_than_the_sample_is_matched_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("feature_jobs.proposals.profiles.SAMPLE_ROWS", 1000)
    fabricated.shop(tmp_path / "data")
    users = [f"{i},{i % 7}" for i in range(5000)]
    (tmp_path / "data" / "customers.csv").write_text("\n".join(["customer_id,tier", *users]) + "\n")
    said = write_proposal(tmp_path / "data", tmp_path / "out", "found")
    assert (
        "entity user: customers.csv: 5,000 rows in 1 file, 1,000 of them, evenly taken, looked at; "
        "knows 100% of customer_id" in said
    )


def test_ids_and_counters_are_not_quantities(tmp_path: Path) -> None:
    """By their values, as none of the names says it; true quantities beside them stay."""
    random = np.random.default_rng(7)
    users: dict[int, int] = {}
    header = "at,user_id,item_id,pid,ticket,seen,visitor,account,label_text,price_cents,pause_ms,gap,click"
    rows = []
    for i in range(3000):
        user, item = int(random.integers(0, 300)), int(random.integers(0, 60))
        visit = i // 4  # four rows in a row are of one user and one request
        user = users.setdefault(visit, user)
        rows.append(
            f"{datetime.datetime(2024, 3, 1) + i * datetime.timedelta(minutes=2)},{user},{900 + item},"
            f"{500 + visit},{(i * 7919) % 3001},{visit * 7919 % 751},{'' if i % 5 == 0 else 7 * user + 3},{user // 2},"
            f"Big Green Thing of kind {item},{100 + 7 * item},{(i * 7919) % 3001},{i * 37 % 600},{int(i % 3 == 0)}"
        )
    csv_file(header, *rows)(tmp_path)
    said = "\n".join(write_proposal(tmp_path / "log.csv", tmp_path / "out", "found"))
    features = load_scenario(tmp_path / "out" / "found.yaml").features
    assert "pid (its numbers grow with the event time: an id of rows or requests, or a counter)" in said
    assert "ticket (3,000 whole numbers in 3,000 rows: an id of rows)" in said
    assert "seen (750 values in 3,000 rows, each of one user: an id of requests or visits)" in said
    assert "visitor (one-to-one with user_id, which is a feature already)" in said
    assert "label_text (free text: 60 values, " in said
    assert not {"pid", "ticket", "seen", "visitor", "label_text"} & features.keys()
    assert isinstance(features["account"], IdFeature)  # two users share it: an id, though its name is less likely
    assert {features[name].kind for name in ("price_cents", "pause_ms", "gap")} == {"number"}


def test_short_texts_beside_an_item_are_not_a_second_id(tmp_path: Path) -> None:
    rows = [f"{hour},{i % 20},{i % 15},sku{i % 15},{i % 4},{int(i % 3 == 0)}" for i, hour in enumerate(HOURS)]
    csv_file("at,user,item,label,slot,click", *rows)(tmp_path)
    said = write_proposal(tmp_path / "log.csv", tmp_path / "out", "found")
    assert any("label (one-to-one with item, which is a feature already)" in line for line in said)
    assert "slot" in load_scenario(tmp_path / "out" / "found.yaml").features
