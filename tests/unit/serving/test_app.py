"""The server as an application: its routes, ranking by ids, limits, and bodies that are wrong."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any
from unittest.mock import Mock

import numpy as np
import pyarrow as pa
import pytest

from feature_jobs.errors import CorruptError
from serving.app import App
from serving.release import Loaded
from serving.service import Limits, Service
from tests.paths import ROOT
from tests.unit.serving.asgi import Reply, ask, send
from tests.unit.serving.fuzzer import bodies
from tests.unit.serving.requests import binary_body, json_body
from tests.unit.serving.shop import BIG, Shop

INFER = "/v2/models/shop/infer"
TIME = {"time": "2024-03-03T12:00:00Z"}
pytestmark = pytest.mark.slow  # the shop takes seconds to make


@pytest.fixture(scope="module")
def loaded(shop: Shop) -> Loaded:
    return Loaded(shop.releases.newest())


def serving(loaded: Loaded | None, limits: Limits | None = None) -> tuple[App, Service]:
    service = Service("shop", limits)
    if loaded is not None:
        service.swap(loaded)
    return App(service), service


@pytest.fixture(scope="module")
def app(loaded: Loaded) -> App:
    return serving(loaded)[0]


def ids(user: str | None, items: list[int | None]) -> dict[str, tuple[str, list[Any]]]:
    return {"user": ("BYTES", [user]), "items": ("INT64", items)}


def outputs(reply: Reply) -> dict[str, list[Any]]:
    assert reply.status == 200, reply.body
    return {output["name"]: output["data"] for output in reply.json["outputs"]}


def test_pages(app: App, loaded: Loaded) -> None:
    def found(path: str) -> Any:
        reply = ask(app, "GET", path)
        assert reply.status == 200 and reply.headers["content-length"] == str(len(reply.body))
        head = ask(app, "HEAD", path)
        assert (head.status, head.headers["content-type"], head.body) == (200, reply.headers["content-type"], b"")
        return reply.json if reply.headers["content-type"] == "application/json" else reply.body

    assert b"Recloop serves" in found("/")
    assert found("/v2")["extensions"] == ["binary_tensor_data"]
    assert found("/v2/health/live") == found("/health") == {"live": True}
    assert found("/v2/health/ready") == found("/ping") == {"ready": True}
    assert found("/version") == b"1"
    for place in ("/v2/models/shop", "/v2/models/shop/versions/1"):
        facts = found(place)
        assert (facts["name"], facts["versions"]) == ("shop", ["1"])
        assert [output["name"] for output in facts["outputs"]] == list(loaded.tasks)
        assert found(f"{place}/ready") == {"name": "shop", "ready": True}
    assert found("/status")["learned_up_to"] == loaded.facts.ds


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/nothing", 404, "GET /nothing: see GET /"),
        ("GET", "/v2/models/shop/else", 404, "/else: see GET /"),
        ("GET", "/v2/models/other", 404, "the model 'other' is not here; this server has shop"),
        ("POST", "/v2/models/other/infer", 404, "the model 'other' is not here"),
        ("POST", "/v2/models/shop/versions/9/infer", 404, "version '9' does not serve; version 1 of shop does"),
        ("POST", "/v2", 404, "POST /v2: see GET /"),
        ("DELETE", "/v2/models/shop", 405, "DELETE /v2/models/shop: see GET /"),
    ],
)
def test_a_place_where_nothing_is(app: App, method: str, path: str, status: int, message: str) -> None:
    reply = ask(app, method, path, b"{}")
    assert reply.status == status and message in reply.json["error"]


def test_ranks_by_ids_alone(app: App, loaded: Loaded) -> None:
    """The same to the last bit: by ids in JSON and in binary, and by the features of the explanation."""
    items = [3, 1, 2, BIG]
    reply = ask(app, "POST", INFER, json_body(ids("s1", items), parameters={**TIME, "explain": True}, id="7"))
    found = outputs(reply)
    assert (reply.json["model_version"], reply.json["id"]) == ("1", "7")
    assert reply.json["parameters"] == {"state": loaded.facts.state}
    features = [json.loads(row) for row in found.pop("features")]
    assert [row["product"] for row in features] == items
    assert [row["price"] for row in features] == [14.0, 8.0, 11.0, 7.5]
    assert {(row["shopper"], row["age"]) for row in features} == {("s1", 21)}
    assert list(found) == ["buy", "loved"] and len({*found["buy"]}) == 4

    body, length = binary_body(ids("s1", items), parameters={**TIME, "binary_data_output": True})
    reply = ask(app, "POST", INFER, body, {"inference-header-content-length": str(length)})
    head = int(reply.headers["inference-header-content-length"])
    raw = np.frombuffer(reply.body[head:], "<f4").reshape(2, 4)
    for scores, task in zip(raw, ("buy", "loved"), strict=True):
        assert scores.tolist() == np.float32(found[task]).tolist()

    rows = {"dataframe_records": features}
    reply = ask(app, "POST", "/invocations", json.dumps(rows).encode(), {"content-type": "application/json"})
    predictions = reply.json["predictions"]
    for task in found:
        assert np.array([row[task] for row in predictions], np.float32).tolist() == np.float32(found[task]).tolist()
    columns = {name: ("BYTES" if isinstance(features[0][name], str) else "FP64", [row[name] for row in features])
               for name in features[0] if not isinstance(features[0][name], list)}  # fmt: skip
    columns |= {name: ("INT64", [row[name] for row in features]) for name in ("product",)}
    lists = loaded.columns.keys() - columns.keys()
    assert lists == {"colours", "bought_before"}
    reply = ask(app, "POST", INFER, json_body(columns))
    assert reply.status == 400 and "colours" in reply.json["error"]


@pytest.mark.parametrize("num", [0, 1, 5_000])
def test_any_number_of_items(app: App, num: int) -> None:
    items = [n % 40 for n in range(num)]
    found = outputs(ask(app, "POST", INFER, json_body(ids("s2", items), parameters=TIME)))
    assert [len(scores) for scores in found.values()] == [num, num]
    few = outputs(ask(app, "POST", INFER, json_body(ids("s2", list(range(40))), parameters=TIME)))
    assert found["buy"] == [few["buy"][item] for item in items]
    reply = ask(app, "POST", INFER, json_body(ids("s2", [1] * 5_001)))
    assert reply.status == 400 and reply.json["error"] == (
        "inputs[1] (items).shape: 5,001 values; give at most 5,000 a request"
    )


def test_unknown_users_and_items_are_answered_and_counted(loaded: Loaded) -> None:
    app, _ = serving(loaded)
    for user, items in (("nobody", [1, 999, 2**53, None]), (None, [1]), ("s1", [1])):
        found = outputs(ask(app, "POST", INFER, json_body(ids(user, items), parameters={**TIME, "explain": True})))
        assert len(found["buy"]) == len(items)
        features = [json.loads(row) for row in found["features"]]
        # 2**53 and not its neighbour, which is a product.
        assert [row["price"] for row in features] == [8.0, None, None, None][: len(items)]
    reply = ask(app, "POST", INFER, json_body({"items": ("INT64", [1])}, parameters=TIME))
    assert outputs(reply) == outputs(ask(app, "POST", INFER, json_body(ids(None, [1]), parameters=TIME)))
    text = ask(app, "GET", "/metrics").body.decode()
    assert 'recloop_unknown_total{kind="user",version="1"} 1.0' in text
    assert 'recloop_unknown_total{kind="items",version="1"} 2.0' in text
    assert 'recloop_items_total{version="1"} 8.0' in text
    assert 'recloop_requests_total{code="200",version="1",way="json"} 5.0' in text
    assert 'recloop_scores_count{task="buy",version="1"} 5.0' in text
    assert 'recloop_swaps_total{outcome="serves"} 1.0' in text
    for stage in ("read", "features", "score", "write", "all"):
        assert f'recloop_stage_seconds_count{{stage="{stage}",version="1"}} 5.0' in text
    assert "recloop_in_flight 0.0" in text


def test_the_page_of_the_docs_has_the_metrics(app: App) -> None:
    text = ask(app, "GET", "/metrics").body.decode()
    named = set(re.findall(r"`(recloop_[a-z_]+)`", (ROOT / "docs" / "serving.md").read_text()))
    assert named == {name for name in re.findall(r"# TYPE (\w+)", text) if not name.endswith("_created")}


@pytest.mark.parametrize(
    ("inputs", "parameters", "message"),
    [
        ({}, {}, "inputs: no items; give user and items, or the features by name"),
        ({"user": ("BYTES", ["s1", "s2"]), "items": ("INT64", [1])}, {}, "user: 2 values; give one user a request"),
        ({**ids("s1", [1]), "tab": ("INT64", [1])}, {}, "tab is given, but the log has no such column; leave it out"),
        ({**ids("s1", [1]), "user": ("INT64", [1])}, {}, "shopper: int64 instead of string; give it in its declared"),
        ({**ids("s1", [1]), "items": ("BYTES", ["1"])}, {}, "product: string instead of int64"),
        (ids("s1", [1]), {"time": "noon"}, "parameters.time: 'noon' is not a time; give 2024-03-06T10:00:00Z"),
        (ids("s1", [1]), {"time": "2024-03-02T10:00:00"}, "has no zone"),
    ],
)
def test_an_error_names_the_field_and_no_place_of_the_server(
    app: App, shop: Shop, inputs: Any, parameters: Any, message: str
) -> None:
    reply = ask(app, "POST", INFER, json_body(inputs, parameters=parameters))
    assert reply.status == 400 and message in reply.json["error"]
    assert str(shop.file.parent) not in reply.json["error"]


def test_an_output_that_is_none(app: App) -> None:
    reply = ask(app, "POST", INFER, json_body(ids("s1", [1]), outputs=[{"name": "click"}]))
    assert reply.status == 400 and "outputs: 'click' is none of buy, loved" in reply.json["error"]
    reply = ask(app, "POST", INFER, json_body(ids("s1", [1]), outputs=[{"name": "loved"}]))
    assert list(outputs(reply)) == ["loved"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"[", "the body is not JSON"),
        (b"{}", "the body has 0 of dataframe_split"),
        (b'{"instances": 3}', "instances: give rows with features by name"),
        (b'{"instances": []}', "the body has no feature; give some of"),
        (b'{"inputs": {"price": [1], "age": [1, 2]}}', "inputs: the columns differ in length"),
        (b'{"inputs": {"price": ["a"]}}', "price"),
        (b'{"dataframe_split": {"columns": ["price"], "data": [[1, 2]]}}', "each row needs 1 values"),
        (json.dumps({"inputs": {"price": [1.0] * 5_001}}).encode(), "5,001 rows; give at most 5,000"),
    ],
)  # fmt: skip
def test_invocations_that_are_wrong(app: App, body: bytes, message: str) -> None:
    reply = ask(app, "POST", "/invocations", body, {"content-type": "application/json; charset=utf-8"})
    assert reply.status == 400 and message in reply.json["error"]
    reply = ask(app, "POST", "/invocations", body, {"content-type": "text/csv"})
    assert reply.status == 400 and "content-type: 'text/csv' is not read; send application/json" in reply.json["error"]


def test_before_the_first_version_and_at_the_end(loaded: Loaded) -> None:
    app, service = serving(None)
    reply = ask(app, "POST", INFER, json_body(ids("s1", [1])))
    assert (reply.status, reply.headers["retry-after"]) == (503, "1")
    assert ask(app, "GET", "/v2/health/ready").status == 503 and ask(app, "GET", "/v2/health/live").status == 200
    service.refuse("2")
    assert ask(app, "GET", "/status").json["alarm"] == "version 2 does not serve; see the log of the server"
    service.warn("the store is gone")
    service.warn(None)  # version 2 still does not serve
    assert "version 2 does not" in ask(app, "GET", "/status").json["alarm"]
    assert b"recloop_alarm 1.0" in ask(app, "GET", "/metrics").body
    service.swap(loaded)
    assert ask(app, "GET", "/status").json["alarm"] is None
    assert b"recloop_alarm 0.0" in ask(app, "GET", "/metrics").body
    service.draining = True
    reply = ask(app, "POST", INFER, json_body(ids("s1", [1]), parameters=TIME))
    assert (reply.status, reply.headers["connection"]) == (200, "close")
    assert ask(app, "GET", "/ping").status == 503


def test_bodies_that_are_too_large_or_do_not_come_whole(loaded: Loaded) -> None:
    app, _ = serving(loaded, Limits(body=1_000, bodies=1_500))
    reply = ask(app, "POST", INFER, b"", {"content-length": "1001"})
    assert (reply.status, reply.headers["connection"]) == (413, "close")
    assert reply.json["error"] == "the body has more than 1,000 bytes; send fewer items"
    assert asyncio.run(send(app, "POST", INFER, [b" " * 600, b" " * 600])).status == 413
    reply = asyncio.run(send(app, "POST", INFER, [b"{", None]))
    assert reply.status == 400 and "did not come whole" in reply.json["error"]
    body = json_body(ids("s1", [1]), parameters=TIME)
    assert asyncio.run(send(app, "POST", INFER, [body[:9], body[9:]])).status == 200


def test_what_can_not_be_answered_in_time_is_refused_at_once(loaded: Loaded) -> None:
    body = json_body(ids("s1", list(range(40))), parameters=TIME)

    async def at_a_time(app: App, num: int) -> list[Reply]:
        return await asyncio.gather(*(send(app, "POST", INFER, [body]) for _ in range(num)))

    app, service = serving(loaded, Limits(wait_s=0.02))
    asyncio.run(at_a_time(app, 1))  # how long one takes
    for _ in range(30):
        ask(app, "POST", INFER, body)
    mean_s = service.status()["worker"]["mean_ms"] / 1e3
    replies = asyncio.run(at_a_time(app, 200))
    statuses = [reply.status for reply in replies]
    assert set(statuses) == {200, 503}
    # As many as fit in the time, and one: the first never waits.
    assert statuses.count(200) <= 0.02 / mean_s + 2 and statuses.index(503) == statuses.count(200)
    assert {reply.headers.get("retry-after") for reply in replies if reply.status == 503} == {"1"}
    assert ask(app, "POST", INFER, body).status == 200


def test_a_failure_of_the_server_says_nothing_of_it(
    loaded: Loaded, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, _ = serving(loaded)
    for error, status in ((CorruptError("/secret/file: damaged"), 503), (ZeroDivisionError("/secret"), 500)):
        monkeypatch.setattr(loaded, "answer", Mock(side_effect=error))
        reply = ask(app, "POST", INFER, json_body(ids("s1", [1])))
        assert reply.status == status and b"secret" not in reply.body
        assert "secret" in caplog.text
        caplog.clear()


def fuzz(app: App, place: str, seed: int, num: int) -> dict[int, int]:
    """Sends so many bodies; returns how often each status came."""
    counts: dict[int, int] = {}
    for body, headers in bodies(seed, num):
        reply = ask(app, "POST", INFER, body, headers)
        counts[reply.status] = counts.get(reply.status, 0) + 1
        assert reply.status in (200, 400), (reply.body, body, headers)
        if reply.status == 400:
            error = reply.json["error"]
            assert "; " in error and len(error) < 600, error
            assert place not in error and "Traceback" not in error, error
    return counts


def test_no_body_makes_the_server_fail(app: App, shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    counts = fuzz(app, str(shop.file.parent), seed=11, num=1_500)
    assert counts[200] > 200 and counts[400] > 500
    assert not caplog.text
    assert pa.total_allocated_bytes() < 1 << 30
