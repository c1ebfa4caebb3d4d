"""Logs that are not UTF-8: `init` guesses their encoding, and the proposal reads them as it reads the same in UTF-8."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from feature_jobs.errors import BadInputError
from feature_jobs.proposals.discover import find_tables
from feature_jobs.proposals.encodings import guess_encoding
from feature_jobs.schema import Scenario
from feature_jobs.sources.ingest import ingest_day
from tests.unit.feature_jobs.proposals.proposing import HOURS, lines_of

TEXTS = {
    "gb18030": "用户喜欢这件商品，价格便宜",
    "big5": "使用者喜歡這件商品，品質很好",
    "shift_jis": "ユーザーは東京都の家電が好き",
    "cp1252": "Größe: Köln – Café “señor”",
}


@pytest.mark.parametrize("encoding", TEXTS)
@pytest.mark.parametrize("length", [None, 20, 21])
def test_the_encoding_of_a_few_words_is_guessed(encoding: str, length: int | None) -> None:
    assert guess_encoding(f"id,name\n1,{TEXTS[encoding]}\n".encode(encoding)[:length]) == encoding


@pytest.mark.parametrize("encoding", ["cp1251", "koi8-r", "cp855"])
def test_no_encoding_is_made_up(encoding: str) -> None:
    assert guess_encoding("id,name\n1,зритель смотрит кино\n".encode(encoding)) == ""


def days_in(folder: Path, text: str, encoding: str, file_format: str) -> None:
    """A file of each of three days; that of the second has ASCII alone."""
    folder.mkdir(parents=True)
    every = [(hour, f"u{i % 20}", i % 15, int(i % 3 == 0)) for i, hour in enumerate(HOURS)]
    for day in (1, 2, 3):
        name = "plain" if day == 2 else text
        rows = [(at, user, f"{name}{item}", clicked) for at, user, item, clicked in every if f"-0{day}T" in at]
        lines = ["at;user;item;clicked", *(f'{at};{user};"{item};";{clicked}' for at, user, item, clicked in rows)]
        if file_format == "jsonl":
            lines = [
                f'{{"at": "{at}", "user": "{user}", "item": "{item};", "clicked": {clicked}}}'
                for at, user, item, clicked in rows
            ]
        content = ("\n".join(lines) + "\n").encode(encoding)
        is_gzip = file_format.endswith(".gz")
        (folder / f"2024-03-0{day}.{file_format}").write_bytes(gzip.compress(content) if is_gzip else content)


def first_day(scenario: Scenario, folder: Path) -> bytes:
    ingest_day(scenario, "2024-03-01", folder / "day")
    return (folder / "day/events.parquet").read_bytes()


@pytest.mark.parametrize(
    ("encoding", "file_format"),
    [("gb18030", "csv"), ("big5", "csv.gz"), ("shift_jis", "jsonl"), ("cp1252", "csv")],
)
def test_a_log_that_is_not_utf8_is_proposed_with_its_encoding(encoding: str, file_format: str, tmp_path: Path) -> None:
    text = TEXTS[encoding]
    own, _ = lines_of(lambda folder: days_in(folder, text, encoding, file_format), tmp_path / "own")
    plain, _ = lines_of(lambda folder: days_in(folder, text, "utf-8", file_format), tmp_path / "utf8")
    proposed = (tmp_path / "own/scenarios/found.yaml").read_text()
    (line,) = [line for line in proposed.splitlines() if "encoding:" in line]
    assert line.strip().startswith(f"encoding: {encoding} ") and "a guess by its letters" in line
    assert proposed.replace(f"{line}\n", "") == (tmp_path / "utf8/scenarios/found.yaml").read_text()
    assert own.data.events.path == f"{{ds}}.{file_format}"
    assert first_day(own, tmp_path / "own") == first_day(plain, tmp_path / "utf8")
    items = pq.read_table(tmp_path / "own/day/events.parquet")["item"].to_pylist()
    assert items[0] == f"{text}0;"


def test_utf8_with_a_damaged_letter_stays_utf8(tmp_path: Path) -> None:
    rows = [f"{hour};u{i % 20};caf\xe9 {i % 15};{int(i % 3 == 0)}" for i, hour in enumerate(HOURS * 3)]
    content = "\n".join(["at;user;item;clicked", *rows]).encode()
    (tmp_path / "log.csv").write_bytes(content.replace("\xe9".encode(), b"\xc3", 1))
    (group,), _ = find_tables(tmp_path)
    assert group.encoding == "" and group.in_utf8(tmp_path / "copies") is group


def test_a_day_in_utf8_among_others_is_a_note(tmp_path: Path) -> None:
    def days(folder: Path) -> None:
        days_in(folder, TEXTS["gb18030"], "gb18030", "csv")
        (folder / "2024-03-03.csv").write_bytes((folder / "2024-03-03.csv").read_bytes().decode("gb18030").encode())

    with pytest.raises(
        BadInputError, match=r"2024-03-03.csv: it is UTF-8, not gb18030; take out the encoding, or save"
    ):
        lines_of(days, tmp_path)
