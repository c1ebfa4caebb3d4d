"""Roles: the table that is the log, the columns of user and item, the tables that are joined to it."""

import datetime
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from feature_jobs.checks.check import check
from feature_jobs.errors import BadInputError
from feature_jobs.proposals.propose import write_proposal
from feature_jobs.schema import load_scenario
from feature_jobs.schema.features import IdFeature
from tests.unit.feature_jobs import fabricated
from tests.unit.feature_jobs.fabricated import START
from tests.unit.feature_jobs.proposals import shapes
from tests.unit.feature_jobs.proposals.proposing import HOURS, csv_file, lines_of, proposed


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


def test_what_knows_the_label_is_not_the_user_and_an_id_with_gaps_may_be(tmp_path: Path) -> None:
    """`household_id` is not among the words for users, and lacks a tenth of its values; `span` has none of the words
    for quantities, but only clicked rows are long."""
    random = np.random.default_rng(3)
    rows = []
    for i in range(3000):
        click, household = int(random.random() < 0.3), "" if i % 10 == 0 else f"h{random.integers(0, 90)}"
        span = random.integers(3000, 9000) if click else random.integers(0, 3000)
        rows.append(f"{START + i * datetime.timedelta(minutes=1)},{household},k{random.integers(0, 40)},{span},{click}")
    scenario, said = lines_of(csv_file("at,household_id,sku,span,click", *rows), tmp_path)
    assert (scenario.data.user, scenario.data.item) == ("household_id", "sku")
    assert scenario.outcomes == ("span",) and "never a feature: span, predicts click alone with an AUC of 1.000" in said


def test_a_time_without_a_time_of_day_is_reported(tmp_path: Path) -> None:
    """Its hour would be 0 everywhere, and the column that has it is not said by event_time."""
    rows = [f"{t[:10]},{t[11:]},{i % 20},{i % 15},{int(i % 3 == 0)}" for i, t in enumerate(HOURS)]
    scenario, said = lines_of(csv_file("date,time,user,item,click", *rows), tmp_path)
    assert "time: date has no time of day, so each event is at midnight" in said
    assert "time ('00:00:00') may hold it: write both into one column" in said
    assert "event_time says it" not in said
    assert "weekday" in scenario.features and not {"hour", "time"} & scenario.features.keys()


def test_an_unnamed_time_is_read_as_any_other(tmp_path: Path) -> None:
    """Seconds in a column that is not named like a time: its midnights and its days are seen as well."""
    rows = [f"{1709251200 + 86400 * (i // 24)},{i % 20},{i % 15},{i % 7 if i < 48 else ''},{i % 2}" for i in range(72)]
    data = csv_file("x,user,item,slot,click", *rows)
    scenario, said = lines_of(data, tmp_path)
    assert scenario.data.events.columns["x"].unit == "s"
    assert "time: x has no time of day, so each event is at midnight" in said
    suite = json.loads((tmp_path / "scenarios" / "found.expectations.json").read_text())
    # On the third day no row has a slot, so nothing can be expected of it.
    kinds = {e["type"] for e in suite["expectations"] if e["kwargs"].get("column") == "slot"}
    assert not any("null" in kind for kind in kinds), kinds


def test_rows_without_a_user_are_allowed_for(tmp_path: Path) -> None:
    rows = [f"{hour},{'' if i % 36 == 0 else i % 20},{i % 15},{int(i % 3 == 0)}" for i, hour in enumerate(HOURS)]
    csv_file("at,user,item,click", *rows)(tmp_path)
    scenario = proposed(tmp_path / "log.csv", tmp_path)
    assert 0.02 < scenario.ingest.max_quarantined_share < 0.1
    assert check(scenario)["malformed"] == {"events": {"user: missing": 1}}


def test_invoices_of_a_shop(tmp_path: Path) -> None:
    """Customers and stock codes with gaps rather than invoices and descriptions; busy days; a space to search."""
    scenario, said = lines_of(shapes.invoices, tmp_path)
    assert (scenario.data.user, scenario.data.item) == ("CustomerID", "StockCode")
    assert "user: CustomerID (80 values, 25.2% of rows lack it and will be quarantined)" in said
    assert (
        "passed over as user or item: InvoiceNo (an id of a row or a visit: it never comes again), Description (a text)"
        in said
    )
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


def test_rows_that_change_over_time_become_an_entity_with_time(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    fabricated.lake(tmp_path / "data")
    entity = proposed(tmp_path / "data", tmp_path).data.entities["profiles"]
    assert entity.time is not None
    assert (entity.time.column, entity.key) == ("updated_at", "userId")


def test_news_with_ids_of_rows_and_a_second_log(tmp_path: Path) -> None:
    scenario, said = lines_of(shapes.news, tmp_path)
    assert not {"row_id", "impression_id", "session_id", "split"} & scenario.features.keys()
    assert "split (a split into rows to train and to test on" in said
    assert scenario.outcomes == ("scroll_pct",)  # filled for clicks only
    assert (scenario.data.events.delimiter, scenario.join.label_delay_s) == (";", 300)
    assert scenario.data.entities["reads"].time is not None
    feature = scenario.features["reads_article_id"]
    assert isinstance(feature, IdFeature)
    assert (feature.of, feature.table) == ("reads.article_id", "article_id")
    assert "entity reads is a second log: an event sees the user's last row in it" in said
    check(scenario)


def test_clicks_beside_their_impressions_are_not_a_second_log(tmp_path: Path) -> None:
    """They are answers to the same rows: as an entity they would say what the next row of the user is about."""
    shapes.news(tmp_path / "data")
    clicks = [
        [row["user_id"], row["article_id"], row["shown_at"], i]
        for i, row in enumerate(shapes.impressions())
        if row["clicked"]
    ]
    fabricated.write_csv(tmp_path / "data" / "reads.csv", ["user_id", "article_id", "shown_at", "n"], clicks)
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


@pytest.mark.parametrize(("rows_each", "found"), [(4, "request_id"), (1, None)])
def test_a_column_that_groups_rows_of_one_user_within_seconds_is_the_request(
    tmp_path: Path, rows_each: int, found: str | None
) -> None:
    """Four items are shown at a time. An impression group of an hour is not one request, nor is a row on its own."""
    random, rows = np.random.default_rng(5), []
    for number in range(300):
        user, begin = number // 3 % 40, START + number * datetime.timedelta(minutes=20)
        for place, item in enumerate(random.choice(30, 4, replace=False)):
            at, request = begin + datetime.timedelta(seconds=place), (4 * number + place) // rows_each
            rows.append(f"{at},{user},{item},r{request},q{number // 3},{int(random.random() < 0.3)}")
    scenario, said = lines_of(csv_file("at,user_id,item_id,request_id,impression_group,click", *rows), tmp_path)
    assert scenario.data.request == found
    assert ("request: request_id (4.0 rows on average, of one user within a minute)" in said) is (found is not None)
    assert "request_id" not in scenario.features


def test_an_item_that_never_comes_again_gives_way_to_one_that_does(tmp_path: Path) -> None:
    """`offer` is among the words for items, but here each row is another offer."""
    rows = [f"{t[:13]}:0{n}:00,o{i}-{n},{i * n % 20},{i * n % 15},{n % 2}" for i, t in enumerate(HOURS) for n in (3, 8)]
    scenario, said = lines_of(csv_file("at,offer_id,user,zone,click", *rows), tmp_path)
    assert (scenario.data.item, "offer_id" in scenario.features) == ("zone", False)
    assert "passed over as user or item: offer_id (an id of a row or a visit: it never comes again)" in said
    (tmp_path / "others").mkdir()
    without = [",".join(cell for place, cell in enumerate(row.split(",")) if place != 3) for row in rows]
    scenario, _ = lines_of(csv_file("at,offer_id,user,click", *without), tmp_path / "others")
    assert scenario.data.item == "offer_id"


@pytest.mark.parametrize(
    ("request_id", "user", "item"), [("page_id", "seeker_id", "vacancy_id"), ("bid_id", "k", "ad")]
)
def test_an_id_of_what_was_shown_together_is_neither_user_nor_item(
    tmp_path: Path, request_id: str, user: str, item: str
) -> None:
    """No word says who the user is, and the id of the request has the most values of all."""
    random = np.random.default_rng(4)
    rows = []
    for number in range(900):
        at, who = START + number * datetime.timedelta(minutes=5), random.integers(0, 90)
        for _ in range(4):
            rows.append(f"{at},p{number},s{who},v{random.integers(0, 40)},{int(random.random() < 0.3)}")
    data = lines_of(csv_file(f"at,{request_id},{user},{item},click", *rows), tmp_path)[0].data
    assert (data.user, data.item, data.request) == (user, item, request_id)


@pytest.mark.parametrize(
    "names", [("userId", "ITEM", "requestId"), ("用户ID", "商品ID", "请求ID"), ("User ID", "Größe", "Nr.")]
)
def test_columns_have_one_name_in_all_tables_whatever_their_letters(
    tmp_path: Path, names: tuple[str, str, str]
) -> None:
    """The log of clicks has its columns in another order, and no request."""
    random = np.random.default_rng(8)
    shown, clicked = [], []
    for number in range(700):
        at, who = START + number * datetime.timedelta(minutes=6), random.integers(100, 180)
        for item in random.permutation(30)[:4]:
            shown.append(f"p{number},{who},{item},{at}")
            if random.random() < 0.3:
                clicked.append(f"{item},{at + datetime.timedelta(seconds=90)},{who}")
    user, item, request = names
    data = tmp_path / "data"
    csv_file(f"{request},{user},{item},shown_at", *shown)(data)
    (data / "log.csv").rename(data / "exposures.csv")
    (data / "clicks.csv").write_text("\n".join([f"{item},ts,{user}", *clicked]) + "\n")
    write_proposal(data, tmp_path / "out", "shop")
    scenario = load_scenario(tmp_path / "out/shop.yaml")
    columns = scenario.data.events.columns
    read = [columns[name].source or name for name in (scenario.data.user, scenario.data.item)]
    assert (scenario.data.events.path, read) == ("exposures.csv", [user, item])
    label = scenario.outcome_labels["click"]
    assert [scenario.data.logs[label.source].columns[name].source or name for name in label.on] == [user, item]


@pytest.mark.parametrize(("clicks", "users"), [("events", "clicks"), ("user", "events"), ("users", "user")])
def test_a_table_is_not_called_like_another(tmp_path: Path, clicks: str, users: str) -> None:
    random, data = np.random.default_rng(8), tmp_path / "data"
    shown, clicked = [], []
    for number in range(2_000):
        at, who, item = START + number * datetime.timedelta(minutes=3), random.integers(60), random.integers(30)
        shown.append(f"{who},{item},{at}")
        if random.random() < 0.3:
            clicked.append(f"{who},{item},{at + datetime.timedelta(seconds=90)}")
    csv_file("user_id,item_id,shown_at", *shown)(data)
    (data / f"{clicks}.csv").write_text("\n".join(["user_id,item_id,ts", *clicked]) + "\n")
    (data / f"{users}.csv").write_text("\n".join(["user_id,age", *(f"{n},{20 + n % 40}" for n in range(60))]) + "\n")
    scenario = proposed(data, tmp_path / "out")
    assert [log.path for log in scenario.data.logs.values()] == [f"{clicks}.csv"]
    assert [entity.path for entity in scenario.data.entities.values()] == [f"{users}.csv"]
