"""Control records and file names of other processes: the right ones are read, all others are CorruptError at once."""

import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import NotRequired

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import TypedDict

from feature_jobs.control_records import MAX_BYTES, checked_name, open_regular, read_record, read_record_file
from feature_jobs.errors import CorruptError


@dataclass(frozen=True)
class Entry:
    version: str
    sequence: int
    share: float | None = None


class Facts(TypedDict):
    files: dict[str, Entry]
    parent: NotRequired[str | None]


ENTRIES = st.builds(Entry, st.text(), st.integers(-(2**40), 2**40), st.none() | st.floats(0, 1))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
GOOD = {"files": {"a": {"version": "1", "sequence": 2}}}


def read(data: bytes, kind=Facts, **options):
    return read_record(data, kind, "delta.json", "send it again", **options)


@given(st.dictionaries(st.text(), ENTRIES))
def test_what_was_written_is_read(files):
    written = json.dumps({"files": {name: asdict(entry) for name, entry in files.items()}})
    assert read(written.encode()) == {"files": files}


@settings(deadline=None)
@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_anything_else_is_corrupt_with_place_and_remedy(data):
    try:
        assert set(read(data)) <= {"files", "parent"}
    except CorruptError as error:
        assert str(error).startswith("delta.json: ")
        assert str(error).endswith("; send it again")
        str(error).encode()


@settings(deadline=None)
@given(st.data())
def test_a_torn_record_is_corrupt(data):
    whole = json.dumps(GOOD).encode()
    with pytest.raises(CorruptError):
        read(whole[: data.draw(st.integers(0, len(whole) - 1))])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"files": {"a": {"version": "1", "sequence": "2"}}}', "files.a.sequence: input should be a valid integer"),
        ('{"files": {"a": {"version": "1", "sequence": true}}}', "not True"),
        ('{"files": {"a": {"version": 1, "sequence": 2}}}', "files.a.version"),
        ('{"files": {"a": {"version": "1"}}}', "files.a.sequence"),
        ('{"files": {}, "more": 1}', "more"),
        ('{"files": {}, "files": {}}', "'files' occurs twice"),
        ('{"files": {"a": {"version": "1", "sequence": 2, "share": NaN}}}', "'NaN' is not a finite number"),
        ('{"files": {"a": {"version": "1", "sequence": 2, "share": 1e999}}}', "'1e999' is not a finite number"),
        ('{"files": {"\\ud800": {"version": "1", "sequence": 2}}}', "surrogates not allowed"),
        ('{"files": ' + "9" * 5000 + "}", "limit"),
        ("", "Expecting value"),
        ("[]", "object"),
        ("null", "object"),
        ("[" * 1_000_000, "nested more than 64 deep"),
        ('{"files":' * 100_000, "nested more than 64 deep"),
        ('"' + '\\"' * 1_000_000, "Unterminated string"),
        ("{" + ",".join(f'"{i}":0' for i in range(100_000)) + ',"1":0}', "'1' occurs twice"),
        (" " * (MAX_BYTES + 1), "at most"),
    ],
)
def test_what_is_wrong_is_named_at_once(text, reason):
    began = time.process_time()
    with pytest.raises(CorruptError) as error:
        read(text.encode())
    assert reason in str(error.value)
    assert len(str(error.value)) < 500
    assert time.process_time() - began < 3


def test_other_keys_are_ignored_where_the_reader_says_so():
    assert read(json.dumps({**GOOD, "more": 1}).encode(), extra="ignore")["files"]["a"].sequence == 2


def test_only_regular_files_are_opened(tmp_path):
    file = tmp_path / "delta.json"
    file.write_text(json.dumps(GOOD))
    assert read_record_file(file, Facts)["files"]["a"].version == "1"
    (tmp_path / "link").symlink_to(file)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(tmp_path / "socket"))
    for name in ("link", "fifo", "folder", "socket"):
        with pytest.raises(CorruptError, match=name):
            open_regular(tmp_path / name)
    listening.close()
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "missing")


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    with (tmp_path / "delta.json").open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(CorruptError, match="more than the"):
        read_record_file(tmp_path / "delta.json", Facts)


PARTS = st.sampled_from(["..", ".", "", "a", "a.json", "…", "\\", "\0", "\n", "\ud800", "a" * 256, "~", "C:"])


@given(st.lists(PARTS | st.text(), min_size=1).map("/".join))
def test_a_checked_name_stays_in_its_folder(name):
    try:
        assert checked_name(name, "delta.json") == name
    except CorruptError as error:
        str(error).encode()
        return
    path = PurePosixPath("/folder") / name
    assert path.parts[:2] == ("/", "folder")
    assert os.path.normpath(path) == str(path)
    assert len(path.parts) == 2 + name.count("/") + 1
    assert name.isprintable()


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "../a", "a/../../b", "a//b", "a/", "./a", "a\\b", "a\0", "a\x1b[2J"]
)
def test_other_names_are_refused(name):
    with pytest.raises(CorruptError, match=r"delta\.json: .*file name.*; restore"):
        checked_name(name, "delta.json")


def test_names_of_outputs_are_allowed():
    for name in ("model.onnx", "docs/index.html", "docs/a b/ü-1.html", ".hidden"):
        assert checked_name(name, "manifest.json") == name
