"""Any kind of file at a path that a user gives: it is read, or refused with the path, and never waited for."""

import os
import socket
from pathlib import Path

import pytest

from feature_jobs.errors import BadInputError
from feature_jobs.schema import load_scenario
from feature_jobs.schema.user_file import read_user_text, resolved
from tests.unit.tasks.little import SCENARIO


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with things that are not files."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
    Path("loop").symlink_to("loop")
    Path("folder").mkdir()
    Path("latin").write_bytes(b"name: caf\xe9")
    Path("to-fifo").symlink_to("fifo")
    return tmp_path


NOT_FILES = (
    "fifo",
    "to-fifo",
    "socket",
    "folder",
    "loop",
    "loop/x",
    "latin/x",
    "latin",
    "x" * 300,
    "y/" * 3000,
    "a\0b",
)
DEVICES = ("/dev/zero", "/dev/null", "/dev/full", "/proc/kmsg", "/proc/self/mem")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("path", [*NOT_FILES, *DEVICES], ids=lambda path: ascii(path[:20]))
def test_no_scenario_is_read_from_it(place: Path, path: str) -> None:
    with pytest.raises(BadInputError) as caught:
        load_scenario(path)
    assert "; " in str(caught.value)
    assert len(str(caught.value)) < 10_000


def test_of_hundreds_of_problems_some_are_listed_and_the_others_counted(place: Path) -> None:
    unknown = "".join(f"{n}{'x' * 200}: 1\n" for n in range(300))
    Path("log.yaml").write_text(f"{SCENARIO}\n{unknown}")
    with pytest.raises(BadInputError) as caught:
        load_scenario("log.yaml")
    lines = str(caught.value).splitlines()
    assert (len(lines), lines[-1]) == (21, "and 280 more problems")
    assert len(str(caught.value)) < 10_000


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "path", ["fifo", "socket", "folder", "x" * 300, "deep.json", "long.json"], ids=lambda p: p[:20]
)
def test_no_suite_is_read_from_it(place: Path, path: str) -> None:
    from feature_jobs.checks.check import check

    Path("deep.json").write_text("[" * 100_000)
    Path("long.json").write_text("1" * 6000)
    Path("little.yaml").write_text(f"{SCENARIO}\nvalidate: {{suite: {path}}}")
    with pytest.raises(BadInputError, match=path[:20]):
        check(load_scenario("little.yaml"), with_data=False)


def test_a_file_behind_a_symlink_is_read(place: Path) -> None:
    Path("little.yaml").write_text(SCENARIO)
    Path("current.yaml").symlink_to("little.yaml")  # as a ConfigMap of Kubernetes is mounted
    assert load_scenario("current.yaml").name == "little"
    assert read_user_text(Path("current.yaml"), 10_000) == SCENARIO
    with pytest.raises(FileNotFoundError):
        read_user_text(resolved("nothing"), 10)
    with pytest.raises(BadInputError, match="more than the 10 bytes"):
        read_user_text(Path("little.yaml"), 10)


@pytest.mark.parametrize("field", ["data.path", "data.events.path", "validate.suite", "train.rows_folder"])
def test_paths_in_a_scenario_are_checked_where_they_stand(place: Path, field: str) -> None:
    Path("little.yaml").write_text(SCENARIO)
    for path in ("a\0b", "x" * 300, "\udcff"):
        with pytest.raises(BadInputError, match=rf"{field}: .*; (leave it out|shorten it|rename it|save the file)"):
            load_scenario("little.yaml", overrides={field: path})
