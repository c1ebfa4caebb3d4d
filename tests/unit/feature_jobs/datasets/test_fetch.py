"""Fetching: known data comes whole or not at all; any failure is one line."""

import functools
import hashlib
import http.server
import io
import os
import re
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from feature_jobs.datasets import fetch as fetching
from feature_jobs.datasets import kuairand
from feature_jobs.datasets.fetch import fetch, unpack_movielens
from feature_jobs.errors import BadInputError, RetryLaterError
from feature_jobs.schema import Scenario, load_scenario
from tests.paths import KUAIRAND, SCENARIOS, needs_kuairand

MOVIELENS = load_scenario(SCENARIOS / "movielens.yaml")


def scenario_with(tmp_path: Path, line: str) -> Scenario:
    text = (SCENARIOS / "movielens.yaml").read_text()
    file = tmp_path / "scenario.yaml"
    file.write_text("\n".join(line if "fetch:" in old else old for old in text.splitlines()))
    return load_scenario(file)


def test_unknown_and_missing_names(tmp_path: Path) -> None:
    with pytest.raises(
        BadInputError, match=r"scenario.yaml:8: data.fetch: 'movielens': .*did you mean movielens-100k\?"
    ):
        list(fetch(scenario_with(tmp_path, "  fetch: movielens"), tmp_path))
    with pytest.raises(BadInputError, match=r"nothing to fetch; put the files into"):
        list(fetch(scenario_with(tmp_path, ""), tmp_path))
    with pytest.raises(BadInputError, match=r"takes no options \(rows\)"):
        list(fetch(MOVIELENS, tmp_path, {"rows": 5}))


def test_movielens_that_is_there_stays(tmp_path: Path) -> None:
    for name in ("ml-100k.inter", "ml-100k.user", "ml-100k.item"):
        (tmp_path / name).write_text("kept")
    assert list(fetch(MOVIELENS, tmp_path)) == [f"{tmp_path}: MovieLens 100K is there"]
    assert (tmp_path / "ml-100k.inter").read_text() == "kept"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "recbole-1.2.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for end in ("inter", "user", "item", "link"):
            archive.writestr(f"recbole/dataset_example/ml-100k/ml-100k.{end}", f"{end} of a stand-in\n")
        archive.writestr("recbole/__init__.py", "raise SystemExit('never run')")
    return path


def test_three_files_come_out_of_the_wheel_and_no_more(wheel: Path, tmp_path: Path) -> None:
    folder, scratch = tmp_path / "data", tmp_path / "scratch"
    folder.mkdir()
    scratch.mkdir()
    unpack_movielens(wheel, folder, scratch, hashlib.sha256(wheel.read_bytes()).hexdigest())
    assert sorted(p.name for p in folder.iterdir()) == ["ml-100k.inter", "ml-100k.item", "ml-100k.user"]
    assert (folder / "ml-100k.user").read_text() == "user of a stand-in\n"


def test_another_wheel_is_not_unpacked(wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"sha256 is .*, not 9c9948202011.*; not unpacked"):
        unpack_movielens(wheel, tmp_path / "data", tmp_path)
    assert not (tmp_path / "data").exists()


def test_a_registry_that_is_away_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.upper().startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(RetryLaterError) as caught:
        list(fetch(MOVIELENS, tmp_path / "data"))
    assert "pip download recbole==1.2.1: " in str(caught.value)
    assert "check the network and try again" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "data").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInputError, match=r"file/data: Not a directory; check space and permissions"):
        list(fetch(MOVIELENS, tmp_path / "file" / "data"))


# KuaiRand-Pure: a stand-in archive with the layout of the official one.

USERS = [
    "full_active,0,1,1,514,500+,150,\"[100,1k)\",34,\"[30,60)\",799,730+,1,1,29,949,1.0,0,0,14,135,6,3,0,0.0,1.0,0.0,0.0,0.0,0.0",
    "UNKNOWN,0,-124,0,5,\"(0,10]\",0,0,0,0,12,15-30,1,1,29,949,,0,0,14,135,6,3,0,,,,,,",
]  # fmt: skip
HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,"
    "is_forward,is_hate,long_view,play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab"
)
VIDEOS = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,"
    "video_duration,server_width,server_height,music_id,music_type,tag\n"
)
DAY_MS = 86_400_000
START_MS = 1650816000000  # 2022-04-25 in Shanghai


def log_row(user: int, video: int, date: int, time_ms: int, *labels: int) -> str:
    like, long_view = labels or (0, 0)
    return f"{user},{video},{date},1200,{time_ms},1,{like},0,0,0,0,{long_view},5,10,0,0,0,0,1"


EARLY = [log_row(0, i % 7000, 20220410, START_MS - 15 * DAY_MS + i, i % 2, int(i % 3 == 0)) for i in range(120)]
LATE = [
    log_row(0, 7001, 20220424, START_MS - 5),
    log_row(1, 3, 20220425, START_MS + 20),
    log_row(0, 4, 20220425, START_MS + 10),
    log_row(0, 4, 20220425, START_MS + 10),
]


def archive(path: Path, log: list[str] = LATE, leave_out: str = "") -> Path:
    files = {
        "log_standard_4_08_to_4_21_pure.csv": "\n".join([HEADER, *EARLY]) + "\n",
        "log_standard_4_22_to_5_08_pure.csv": "\n".join([HEADER, *log]) + "\n",
        "log_random_4_22_to_5_08_pure.csv": HEADER + "\n",
        "user_features_pure.csv": "\n".join([",".join(kuairand._USER_TYPES), f"0,{USERS[0]}", f"1,{USERS[1]}"]),
        "video_features_basic_pure.csv": VIDEOS + '1,5,NORMAL,2022-04-10,Kmovie,0.0,12.5,720.0,1280.0,7,9.0,"39,2"\n'
        + "0,4,AD,2022-04-10,Kmovie,,,720.0,1280.0,7,,\n",
    }  # fmt: skip
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            if name != leave_out:
                info = tarfile.TarInfo(f"KuaiRand-Pure/data/{name}")
                info.size = len(text.encode())
                tar.addfile(info, io.BytesIO(text.encode()))
    return path


NUM_ROWS = len(EARLY) + len(LATE)


def test_kuairand_is_converted_to_the_schema_of_the_scenario(tmp_path: Path) -> None:
    archive(tmp_path / kuairand.ARCHIVE)
    lines = list(kuairand.bring(tmp_path, num_rows=NUM_ROWS))
    assert "CC BY-SA 4.0" in lines[-1]
    events = pq.read_table(tmp_path / "events.parquet")
    assert events["time_ms"].to_pylist() == [START_MS + 10, START_MS + 10, START_MS + 20]
    assert "is_rand" not in events.column_names
    history = pq.read_table(tmp_path / "user_history_to_0424.parquet").to_pylist()
    assert [row["user_id"] for row in history] == [0]
    assert history[0]["history_len"] == 121
    assert history[0]["shown_seq"] == [*range(71, 120), 7001]
    assert history[0]["like_seq"] == list(range(21, 120, 2))
    assert history[0]["long_watch_seq"] == list(range(0, 120, 3))
    users, videos = pq.read_table(tmp_path / "users.parquet"), pq.read_table(tmp_path / "videos.parquet")
    assert users["onehot_feat4"].to_pylist() == [1.0, None]
    assert users["fans_user_num_range"].to_pylist() == ["[100,1k)", "0"]
    assert videos["video_id"].to_pylist() == [0, 1]
    assert videos["tag"].to_pylist() == [None, "39,2"]
    declared = load_scenario(SCENARIOS / "kuairand.yaml").data
    assert set(declared.events.columns) <= set(events.column_names)
    for entity in declared.entities.values():
        assert set(entity.columns) <= set(pq.read_schema(tmp_path / entity.path).names)
    assert list(kuairand.bring(tmp_path)) == [f"{tmp_path}: KuaiRand-Pure is there"]
    assert not list(tmp_path.glob(".fetch-*"))


def kinds(file: Path) -> dict[str, str]:
    """Types of a Parquet file's columns, however large its texts, and for any name of its list elements."""
    return {f.name: re.sub("large_|element|item|child", "", str(f.type)) for f in pq.read_schema(file)}


@needs_kuairand
def test_kuairand_comes_out_as_the_slice_has_it(tmp_path: Path) -> None:
    """The slice's own rows, written as the official CSV files, come back equal."""
    slice_events = pq.read_table(KUAIRAND / "events.parquet").slice(0, 3000)
    with_rand = slice_events.append_column("is_rand", pa.array([0] * len(slice_events)))
    sink = io.BytesIO()
    pyarrow.csv.write_csv(with_rand.select(HEADER.split(",")), sink)
    archive(tmp_path / kuairand.ARCHIVE, log=sink.getvalue().decode().splitlines()[1:])
    assert list(kuairand.bring(tmp_path, num_rows=len(EARLY) + 3000))
    for name in kuairand.OUTPUTS:
        assert kinds(tmp_path / name) == kinds(KUAIRAND / name), name
    assert pq.read_table(tmp_path / "events.parquet").to_pylist() == slice_events.to_pylist()


def test_kuairand_archives_that_are_wrong_leave_nothing(tmp_path: Path) -> None:
    path = tmp_path / kuairand.ARCHIVE
    cases = {
        "holds 124 rows of the standard policy, not 1,436,609": lambda: archive(path),
        "lacks video_features_basic_pure.csv": lambda: archive(path, leave_out="video_features_basic_pure.csv"),
        "Conversion Error": lambda: archive(path, log=[LATE[0].replace("7001", "x")]),
        "not a readable archive": lambda: path.write_bytes(archive(path).read_bytes()[:500]),
    }
    for message, make in cases.items():
        make()
        num_rows = NUM_ROWS - 3 if "Conversion" in message else kuairand.STANDARD_ROWS
        with pytest.raises(BadInputError) as caught:
            list(kuairand.bring(tmp_path, num_rows=num_rows))
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
        assert [p.name for p in tmp_path.iterdir()] == [kuairand.ARCHIVE]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    site = tmp_path / "site"
    site.mkdir()
    archive(site / kuairand.ARCHIVE)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(site))) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_kuairand_is_downloaded(server: str, tmp_path: Path) -> None:
    lines = list(kuairand.bring(tmp_path / "data", url=f"{server}/{kuairand.ARCHIVE}", num_rows=NUM_ROWS))
    assert lines[0].startswith("downloading http://127.0.0.1")
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == sorted(kuairand.OUTPUTS)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/x.tar.gz", "SERVER/absent.tar.gz", "http://no.such.host.invalid/x"]
)
def test_a_network_that_fails_is_one_line(server: str, tmp_path: Path, url: str) -> None:
    with pytest.raises(RetryLaterError) as caught:
        list(kuairand.bring(tmp_path / "data", url=url.replace("SERVER", server)))
    assert "try again, or put KuaiRand-Pure.tar.gz into" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "data").iterdir()) == []


def test_synthetic_days_come_with_options(tmp_path: Path) -> None:
    scenario = load_scenario(SCENARIOS / "synthetic.yaml")
    lines = list(fetch(scenario, tmp_path, {"rows": "1000"}))
    assert lines[0].endswith("2024-03-01.parquet: 1,000 rows")
    assert len(lines) == 6
    assert pq.read_metadata(tmp_path / "events" / "2024-03-06.parquet").num_rows == 1000


def test_every_shipped_scenario_names_data_that_is_known() -> None:
    names = {load_scenario(file).data.fetch for file in SCENARIOS.glob("*.yaml")}
    assert names <= fetching._FETCHERS.keys()
