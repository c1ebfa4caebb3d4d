"""Words that a command refuses before it does anything: days, paths, pairs, names, settings."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from tasks.commands.cli import main
from tasks.commands.common import Context, with_context
from tests.small import days, write_small

FIRST, SECOND, THIRD = days(3)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the small shop's scenario, and things that are neither files nor folders."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////nowhere/mlflow.db")
    write_small(tmp_path, num_days=3, rows=30)
    Path("file").write_text("")
    os.mkfifo("fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
    Path("loop").symlink_to("loop")
    return tmp_path


def recloop(*words: str) -> Result:
    return CliRunner().invoke(main, [*words])


def refused(words: list[str], exit_code: int, message: str) -> None:
    """The command ends with that code and message, and has written nothing."""
    before = {path: path.lstat().st_mtime_ns for path in Path().rglob("*")}
    done = recloop(*words)
    assert (done.exit_code, isinstance(done.exception, SystemExit)) == (exit_code, True), done.exception
    assert message in " ".join(done.stderr.split()), done.stderr
    assert {path: path.lstat().st_mtime_ns for path in Path().rglob("*")} == before


SHOP = ["-s", "./shop.yaml", "--no-track"]


@pytest.mark.parametrize(("words", "engine"), [([], "duckdb"), (["--engine", "spark"], "spark")])
def test_the_engine_of_a_call(words: list[str], engine: str, shop: Path) -> None:
    @click.command()
    @with_context
    def show(context: Context) -> None:
        click.echo(context.scenario.engine)

    done = CliRunner().invoke(show, [*SHOP, "--set", "join.lookback_days=3", *words])
    assert (done.output, done.exit_code) == (f"{engine}\n", 0)
    refused(["join", *SHOP, "--ds", FIRST, "--engine", "flink"], 2, "'flink' is not one of 'duckdb', 'spark'")


NOT_DAYS = (
    "",
    "nonsense",
    "20240301",
    "2024-W09-5",
    "2024-3-1",
    f" {FIRST}",
    f"../{FIRST}",
    "0001-01-01",
    "9999-12-31",
)
WITH_DAYS = (
    ["run", *SHOP, "--ds"], ["run", *SHOP, "--from"], ["plan", *SHOP, "--to"], ["ingest", *SHOP, "--ds"],
    ["report", *SHOP, "--out", "out", "--ds"], ["chain", "replay", *SHOP, "--from"], ["try", *SHOP, "--ds"],
    ["accept", *SHOP, "--ds"], ["delta", *SHOP, "--from", FIRST, "--out", "out", "--to"],
    ["dvc-render", "-s", "./shop.yaml", "--to"],
)  # fmt: skip


@pytest.mark.parametrize("words", WITH_DAYS, ids=lambda words: f"{words[0]} {words[-1]}")
def test_other_spellings_of_days(shop: Path, words: list[str]) -> None:
    for ds in NOT_DAYS:
        refused([*words, ds], 2, "is not a day from 1900-01-01 to 2199-12-31; write it as 2022-04-25")


@pytest.mark.parametrize("command", [["run", *SHOP], ["plan", *SHOP], ["report", *SHOP, "--out", "out"]])
def test_days_that_the_scenario_has_not(shop: Path, command: list[str]) -> None:
    for words in (["--ds", "2024-02-01"], ["--from", "2024-02-01"], ["--to", "2024-04-01"]):
        refused([*command, *words], 4, f"is outside {FIRST}..{THIRD}; choose a day inside")
    refused([*command, "--from", "1900-01-01", "--to", "2199-12-31"], 4, "109,573 days; choose 1 to 3,660")


def test_a_day_whose_day_before_is_missing_is_refused_before_anything_runs(shop: Path) -> None:
    done = recloop("run", *SHOP, "--store", "store", "--ds", THIRD, "--json")
    assert done.exit_code == 5
    assert f"recloop run -s {shop}/shop.yaml --store {shop}/store --from {FIRST} --to {THIRD}" in done.stderr
    assert '"outcome": "ParentMissingError"' in done.stdout
    assert not Path("store").exists()
    assert recloop("run", *SHOP, "--store", "store", "--ds", THIRD, "--until", "ingest").exit_code == 5


NO_FOLDERS = (
    "file",
    "file/x",
    "fifo",
    "socket",
    "loop",
    "loop/x",
    "/dev/null",
    "x" * 300,
    "y/" * 3000,
    "",
    "/dev/zero/x",
)
FOLDERS = (
    ["status", *SHOP, "--store"], ["chain", "log", *SHOP, "--store"], ["run", *SHOP, "--store"],
    ["ingest", *SHOP, "--ds", FIRST, "--data"], ["init", ".", "--out"],
    ["report", *SHOP, "--out"], ["delta", *SHOP, "--from", FIRST, "--to", FIRST, "--out"],
    ["apply-delta", ".", "."], ["apply-delta", "."],
)  # fmt: skip


@pytest.mark.timeout(120)
@pytest.mark.parametrize("words", FOLDERS, ids=lambda words: f"{words[0]} {words[-1]}")
def test_folders_that_are_none(shop: Path, words: list[str]) -> None:
    for path in NO_FOLDERS:
        refused([*words, path, *([] if words != ["apply-delta", "."] else ["out"])], 4, "; ")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("path", ["fifo", "socket", "loop", "data", "/dev/null", "file/x", "x" * 300])
def test_files_that_are_none(shop: Path, path: str) -> None:
    refused(["dvc-render", "-s", "./shop.yaml", "--out", path], 4, "; ")


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    "path", ["fifo", "socket", "loop", "data", "nowhere", "/dev/zero", "/dev/null", "/proc/self/mem"]
)
def test_lists_of_users_that_are_none(shop: Path, path: str) -> None:
    refused(["forget", *SHOP, "--users", path], 4, f"{path}: ")


def test_lists_of_users_that_can_not_be_read(shop: Path) -> None:
    Path("file").write_bytes("s1\n".encode("utf-16"))
    refused(["forget", *SHOP, "--users", "file"], 4, "is not UTF-8; save the file as UTF-8")
    os.truncate("file", 1 << 40)
    refused(["forget", *SHOP, "--users", "file"], 4, "more than the 67108864 bytes")


NO_URLS = ["file:x", "file:/x", "file://x", "file://localhost/x", "FILE:/x", "file:///a%20b", "file:///a?b", "File:x"]
NO_URLS += ["s3://", "s3:///", "s3:///b/x", "s3:b/x", "gs:/b", "other:/b", "s3:"]


@pytest.mark.parametrize("url", NO_URLS)
def test_urls_that_would_be_folders(shop: Path, url: str) -> None:
    refused(["status", *SHOP, "--store", url], 4, "write a path, file:///PATH or s3://BUCKET/PREFIX")


HIDDEN = {"\n": r"'\n'", "%0d": r"'\r'", "\x7f": r"'\x7f'", "\u2028": r"'\u2028'"}
HIDDEN |= {"../": "'..'", "./": "'.'", "/": "''", "a/../": "'..'", "%2E%2e/": "'..'"}


@pytest.mark.parametrize("start", ["s3://b/", "gs://b/p/", "az://", "file:///tmp/"])
def test_urls_that_a_client_would_read_as_others(shop: Path, start: str) -> None:
    """It leaves control characters out and resolves `..`, so the store would be at another place."""
    for part, named in HIDDEN.items():
        if not (start.startswith("file:") and "%" in part) and (start, part) != ("az://", "/"):
            refused(["status", *SHOP, "--store", f"{start}{part}x"], 4, f"--store: the URL has {named}")
    refused(["status", *SHOP, "--store", "s3://user:secret\n@b/.."], 4, r"--store: the URL has '\n'; write")


def test_numbers_that_no_machine_computes(shop: Path) -> None:
    for setting in (
        "join.lookback_days=1000000", "join.label_delay_s=99999999999999999999999", "model.embedding_dim=999999999999",
        "model.bottom=[99999999999]", "train.threads=99999999", "evaluate.bootstrap=999999999999",
        "store.keep_days=true", "store.keep_days='3'", "store.keep_days=1.5", "train.learning_rate=true",
        "train.learning_rate=1e300",
    ):  # fmt: skip
        for command in ("check", "gc", "plan", "run"):
            refused([command, "-s", "./shop.yaml", "--set", setting], 4, "must be a")


def test_the_largest_model_is_planned_without_its_memory(shop: Path) -> None:
    largest = [
        "model.bottom=[16384, 16384, 16384]",
        "model.architecture=mmoe",
        "model.num_experts=256",
        "train.threads=1024",
    ]
    done = recloop("plan", *SHOP, "--ds", FIRST, *(word for one in largest for word in ("--set", one)))
    assert done.exit_code == 0
    assert "TiB with their moments" in done.output


@pytest.mark.parametrize(
    "words", [["run", *SHOP], ["dvc-render", "-s", "./shop.yaml"], ["init", "data", "--name", "two"]]
)
def test_outputs_where_nothing_can_be_written(shop: Path, words: list[str]) -> None:
    option = "--store" if words[0] == "run" else "--out"
    refused([*words, option, "/proc/none/x"], 4, "/proc/none")


def test_scenarios_that_are_none(shop: Path) -> None:
    for path in (
        "data",
        "fifo",
        "./fifo",
        "loop",
        "./loop",
        "/dev/zero",
        "x" * 300,
        "y/" * 3000,
        "",
        "nowhere",
        "a/b.yaml",
    ):
        refused(
            ["check", "-s", path], 4, "; " if path not in ("nowhere", "a/b.yaml", "data", "fifo", "loop", "") else ""
        )
    for path in ("a\0b", "\udcff"):
        refused(["check", "-s", path], 2, "is not UTF-8 text without zero characters")


@pytest.mark.parametrize(
    "setting", ["a=[1", "a='b", "model=&x {y: *x}", "train.seed=" + "1" * 6000, "a=!!int x", "a", "=1"]
)
def test_settings_that_can_not_be_read(shop: Path, setting: str) -> None:
    refused(["check", "-s", "./shop.yaml", "--set", setting], 4, "--set")


def test_a_setting_of_endless_parts(shop: Path) -> None:
    refused(
        ["check", "-s", "./shop.yaml", "--set", "a." * 10_000 + "b=1"], 4, "10001 parts; name a path of the scenario"
    )


@pytest.mark.timeout(60)
@pytest.mark.parametrize("path", ["../fifo", "../socket", "../loop", "/dev/zero", "/dev/stdin"])
def test_data_that_are_not_files(shop: Path, path: str) -> None:
    refused(["check", "-s", "./shop.yaml", "--set", f"data.events.path={path}"], 4, "no such file, folder or match")


def test_a_date_as_a_setting(shop: Path) -> None:
    done = recloop("run", *SHOP, "--set", f"data.days.last={SECOND}", "--ds", SECOND)
    assert done.exit_code == 5
    assert f'data.days.last="{SECOND}"\'' in done.stderr  # in the command to copy


def test_options_of_fetch_and_names_of_init(shop: Path) -> None:
    for option in ("rows", "=3", ""):
        refused(["fetch", *SHOP, "--option", option], 2, "write it as NAME=VALUE")
    for name in ("../x", "a/b", "A", "", "x" * 101):
        refused(["init", "data", "--name", name], 2, "write at most 100 small letters")
    refused(["try", *SHOP, "--jobs", "9" * 30], 2, "is not in the range")
    refused(["tune", *SHOP, "--ds", FIRST, "--worker", "-1"], 2, "is not in the range")
