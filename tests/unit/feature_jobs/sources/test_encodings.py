"""Text in a declared encoding: the rows of the same text in UTF-8, or a line or a file that is refused by name."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from feature_jobs.checks.check import check
from feature_jobs.errors import BadInputError
from feature_jobs.schema import Scenario
from feature_jobs.sources import copies as copies_module
from feature_jobs.sources import encodings
from feature_jobs.sources.copies import Copies
from feature_jobs.sources.encodings import copy_as_utf8
from feature_jobs.sources.ingest import ingest_day
from tests.object_store import ObjectServer
from tests.unit.feature_jobs.small_source import DAY_S, HEADER, scenario_in

DS = "1970-01-02"
T = DAY_S + 10
TEXTS = {
    "gbk": '数据，"引号"',
    "gb18030": "龍€😀\n第二行",
    "big5": "功許蓋",  # the second byte of each is a backslash or a bar
    "shift_jis": "ソ表ﾃｽﾄ",
    "cp1252": "Köln,\n€ “x”",
    "euc-kr": "한국어",
    "koi8-r": "Привет",
    "iso2022_jp": "日本語, ASCII",  # changes its state by escapes
    "utf-16-le": "é😀",
    "utf-16-be": "\n漢",
    "cp037": "EBCDIC £",
}


def changed(**more: Any) -> dict[str, Any]:
    return {"data.events.columns.name": {"type": "string"}, **{f"data.events.{k}": v for k, v in more.items()}}


def text_of(name: str, file_format: str = "csv") -> str:
    """Rows of two days with awkward names; equal in number and order in both formats."""
    rows = [(i, i % 3, 1 + i % 5, T + i * 600, f"{name}{i}") for i in range(180)]
    keys = [*HEADER.split(","), "name"]
    if file_format == "jsonl":
        lines = [json.dumps(dict(zip(keys, row, strict=True)), ensure_ascii=False) for row in rows]
    else:
        quoted = name.replace('"', '""')
        lines = [",".join(keys), *(f'{u},{i},{r},{t},"{quoted}{n}"' for n, (u, i, r, t, _) in enumerate(rows))]
    return "\n".join(lines) + "\n"


def outputs(folder: Path, content: bytes, changes: dict[str, Any], copies: Copies | None = None) -> dict[str, bytes]:
    """Content of all files of a day whose source has this content."""
    scenario = scenario_in(folder, changes)
    (folder / "data" / changes.get("data.events.path", "events.csv")).write_bytes(content)
    ingest_day(scenario, DS, folder / "out", copies)
    return {file.name: file.read_bytes() for file in (folder / "out").rglob("*") if file.is_file()}


def refusal(folder: Path, content: bytes, changes: dict[str, Any]) -> str:
    with pytest.raises(BadInputError) as caught:
        outputs(folder, content, changes)
    assert caught.value.exit_code == 4 and not (folder / "out/events.parquet").exists()
    assert not [*(folder / "out").glob(".scratch*")]
    return str(caught.value)


@pytest.mark.parametrize("file_format", ["csv", "jsonl"])
@pytest.mark.parametrize("encoding", TEXTS)
def test_text_in_an_encoding_gives_the_rows_of_utf8(
    tmp_path: Path, encoding: str, file_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encodings, "_BLOCK_BYTES", 7)  # characters and escapes across blocks
    text, changes = text_of(TEXTS[encoding], file_format), changed(format=file_format, path="e")
    expected = outputs(tmp_path / "utf8", text.encode(), changes)
    names = pq.read_table(tmp_path / "utf8/out/events.parquet")["name"].to_pylist()
    assert names[0] == f"{TEXTS[encoding]}0" and len(names) == 144
    assert outputs(tmp_path / "own", text.encode(encoding), changes | changed(encoding=encoding)) == expected


def test_compressed_text_gives_the_rows_of_utf8(tmp_path: Path) -> None:
    text, changes = text_of(TEXTS["gbk"]), changed(path="e.csv.gz")
    expected = outputs(tmp_path / "utf8", text.encode(), changes)
    assert outputs(tmp_path / "own", gzip.compress(text.encode("gbk")), changes | changed(encoding="GBK")) == expected


def test_a_byte_order_mark_stays_out_of_the_names_of_columns(tmp_path: Path) -> None:
    text, changes = text_of("é😀"), changed()
    expected = outputs(tmp_path / "utf8", text.encode(), changes)
    for encoding in ("utf-16-le", "utf-16-be", "utf-32-le"):
        content = f"\ufeff{text}".encode(encoding)
        assert outputs(tmp_path / encoding, content, changes | changed(encoding=encoding)) == expected


def test_names_of_columns_and_folders(tmp_path: Path) -> None:
    changes = {
        "data.events.columns.extra": {"type": "int", "from": "用户"},
        "data.events.columns.country": {"type": "string"},
        "data.events.encoding": "gbk",
        "data.events.path": "country=DE/e.csv",
    }
    (tmp_path / "data/country=DE").mkdir(parents=True)
    outputs(tmp_path, f"{HEADER},用户\n1,2,3,{T},7\n".encode("gbk"), changes)
    (row,) = pq.read_table(tmp_path / "out/events.parquet").to_pylist()
    assert (row["extra"], row["country"]) == (7, "DE")


def test_bytes_that_the_encoding_lacks_are_quarantined_with_their_line(tmp_path: Path) -> None:
    changes = changed(encoding="gbk") | {"data.days.last": DS}
    lines = [f"{HEADER},name".encode(), *(f"{i},1,3,{T + i},名".encode("gbk") for i in range(5))]
    lines[2] = lines[2][:-1]  # cut in the middle of a character
    lines[4] = lines[4][:-2] + b"\xff"
    scenario = scenario_in(tmp_path, changes)
    (tmp_path / "data/events.csv").write_bytes(b"\n".join(lines))
    counts = ingest_day(scenario, DS, tmp_path / "out")
    assert counts["rows"] == 3 and counts["reasons"] == {"line: not gbk": 2}
    bad = pq.read_table(tmp_path / "out/quarantine.parquet").to_pylist()
    assert [json.loads(row["row"])["line"] for row in bad] == [3, 5]
    assert check(scenario)["malformed"] == {"events": {"line: not gbk": 2}}
    strict = changes | {"ingest.max_quarantined_share": 0.1}
    message = refusal(tmp_path / "strict", b"\n".join(lines), strict)
    assert f"{tmp_path}/strict/data/events.csv" in message and "line 3" in message
    assert message.endswith("correct the table's `encoding`, or save the file in it")


def test_check_reads_each_file_in_its_encoding(tmp_path: Path) -> None:
    changes = changed(encoding="gbk", path="{ds}.csv") | {"data.days.last": "1970-01-03"}
    scenario = scenario_in(tmp_path, changes | {"ingest.max_quarantined_share": 0.01})
    header, *lines = text_of("名").splitlines()
    for day, rows in ((2, lines[:140]), (3, lines[150:])):
        (tmp_path / f"data/1970-01-0{day}.csv").write_bytes("\n".join([header, *rows]).encode("gbk"))
    assert "malformed" not in check(scenario)
    second = tmp_path / "data/1970-01-03.csv"
    wider = "\n".join([f"{header},new", *(f"{line},1" for line in lines[150:])])
    good = second.read_bytes()
    second.write_bytes(wider.encode("gbk"))
    assert f"{second}: " in str(check(scenario))
    second.write_bytes(good)
    second.write_bytes(second.read_bytes() + b"\n1,2,3,4,\xff")
    with pytest.raises(BadInputError, match=r"1970-01-03.csv: 1 of 31 lines are malformed: line: not gbk"):
        check(scenario)
    second.write_bytes(text_of("名").encode())
    with pytest.raises(BadInputError, match=r"1970-01-03.csv: it is UTF-8, not gbk"):
        check(scenario)


def test_adjacent_bytes_that_ascii_lacks_never_become_a_letter(tmp_path: Path) -> None:
    changes = changed(encoding="ascii")
    scenario = scenario_in(tmp_path, changes)
    (tmp_path / "data/events.csv").write_bytes(f"{HEADER},name\n1,2,3,{T},é\n1,2,3,{T},e\n".encode())
    assert ingest_day(scenario, DS, tmp_path / "out")["reasons"] == {"line: not ascii": 1}


UTF_8 = text_of("数据").encode()
REFUSED: list[tuple[str, bytes, str]] = [
    ("cp1252", UTF_8, "it is UTF-8, not cp1252; take out data.events.encoding, or save the file as cp1252"),
    ("gbk", f"\ufeff{HEADER},name\n".encode(), "it is UTF-8 with a byte order mark, not gbk"),
    ("cp1252", f"\ufeff{text_of('a')}".encode("utf-16-le"), "it is UTF-16 with a byte order mark, not cp1252"),
    ("cp1252", text_of("a").encode("utf-16-le"), "row 1 holds zero bytes"),
    ("gbk", f"{HEADER},name,é \n".encode("latin-1"), "is not gbk; correct the table's `encoding`"),
    (
        "gbk",
        gzip.compress(text_of("数").encode("gbk"), mtime=0)[:-20],
        "not readable as csv (Compressed file ended before",
    ),
    ("gbk", b"PAR1" + bytes(20), "not readable as csv: it is a Parquet file"),
    ("gbk", b"", "empty, without even a header"),
]


@pytest.mark.parametrize(("encoding", "content", "problem"), REFUSED)
def test_a_file_that_is_not_in_its_encoding_is_refused_by_name(
    tmp_path: Path, encoding: str, content: bytes, problem: str
) -> None:
    message = refusal(tmp_path, content, changed(encoding=encoding))
    assert message.startswith(f"{tmp_path}/data/events.csv: ") and problem in message and "\n" not in message


def test_a_file_that_is_gone_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"gone.csv: not readable as csv \(.*No such file.*\); copy it again"):
        copy_as_utf8(tmp_path / "gone.csv", "gbk", tmp_path / "copy", file_format="csv", place="data.events.encoding")
    assert not [*tmp_path.iterdir()]


def test_a_file_in_another_encoding_names_the_key(tmp_path: Path) -> None:
    content = text_of("Köln").encode("cp1252")
    message = refusal(tmp_path, content, changed() | {"ingest.max_quarantined_share": 0.1})
    assert "declare its `encoding` at the table, such as gb18030, big5, shift_jis, cp1252 or latin-1, or" in message


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (changed(encoding="gkb"), "'gkb': must be an encoding of text; did you mean 'gbk'?"),
        (changed(encoding="windows"), "such as gb18030, big5, shift_jis, cp1252 or latin-1"),
        (changed(encoding="rot13"), "'rot13': must be an encoding of text"),
        (changed(encoding="punycode"), "'punycode': must be an encoding of text"),
        (changed(encoding="utf-16"), "write utf-16-le or utf-16-be. UTF-16 with a byte order mark is found without"),
        (changed(encoding="gbk", format="parquet"), "encoding: 'gbk': only with format csv or jsonl, not parquet"),
        (changed(encoding="gbk", format="delta"), "only with format csv or jsonl, not delta"),
    ],
)
def test_an_encoding_that_is_none_is_refused(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(BadInputError) as caught:
        scenario_in(tmp_path, changes)
    assert "data.events" in str(caught.value) and problem in str(caught.value)


@pytest.mark.parametrize("name", ["UTF8", "utf_8_sig", "utf-8"])
def test_utf8_by_any_name_is_the_default(tmp_path: Path, name: str) -> None:
    assert scenario_in(tmp_path, changed(encoding=name)).data.events.encoding == "utf-8"


def test_a_file_of_many_days_is_copied_once_and_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies_module, "_LEAST_BYTES", 0)
    monkeypatch.setattr(copies_module, "SETTLED_S", -1)
    (tmp_path / "copies").mkdir()
    copies, scenario = Copies(lambda: tmp_path / "copies"), scenario_in(tmp_path, changed(encoding="gbk"))
    file = tmp_path / "data/events.csv"
    made, write = [], encodings.copy_as_utf8
    monkeypatch.setattr("feature_jobs.sources.bring.copy_as_utf8", lambda *a, **b: (made.append(a[0]), write(*a, **b)))
    for text in (text_of("名"), text_of("字").replace("180", "181")):
        file.write_bytes(text.encode("gbk"))
        for i, ds in enumerate((DS, "1970-01-03", DS)):
            ingest_day(scenario, ds, tmp_path / f"out-{i}", copies)
            ingest_day(scenario, ds, tmp_path / f"plain-{i}")
            with_copies, without = (
                {path.name: path.read_bytes() for path in (tmp_path / f"{kind}-{i}").rglob("*") if path.is_file()}
                for kind in ("out", "plain")
            )
            assert with_copies == without
        assert len([path for path in (tmp_path / "copies").iterdir() if path.name.endswith("-text")]) == 1
    assert len(made) == 2 * (1 + 3)  # one a text for all days, and one for each day without copies


def test_an_object_gives_the_rows_of_utf8(
    tmp_path: Path, object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in object_server.environment().items():
        monkeypatch.setenv(name, value)
    text, changes = text_of(TEXTS["gbk"]), changed(path="e.csv.gz")
    expected = outputs(tmp_path / "utf8", text.encode(), changes)
    outputs(tmp_path / "own", gzip.compress(text.encode("gbk")), changes | changed(encoding="gbk"))
    url = object_server.filled(tmp_path / "own/data")
    scenario = scenario_in(tmp_path / "own", changed(path=f"{url}/e.csv.gz", encoding="gbk"))
    (tmp_path / "copies").mkdir()
    copies = Copies(lambda: tmp_path / "copies")
    for ds in (DS, "1970-01-03", DS):  # of an object of many days the copy in UTF-8 is kept
        ingest_day(scenario, ds, tmp_path / "out", copies)
        assert len([*(tmp_path / "copies").glob("*-object*")]) == 1
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()} == expected
    message = refusal_of(scenario_in(tmp_path / "own", changed(path=f"{url}/e.csv.gz", encoding="utf-16-le")), tmp_path)
    assert message.startswith(f"{url}/e.csv.gz: ")


def refusal_of(scenario: Scenario, folder: Path) -> str:
    with pytest.raises(BadInputError) as caught:
        ingest_day(scenario, DS, folder / "refused")
    return str(caught.value)
