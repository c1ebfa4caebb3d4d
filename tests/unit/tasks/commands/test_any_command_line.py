"""Any command line, however wrong: no traceback, no exit 1, no write but to its store and its outputs."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, seed, settings

from tasks.commands.cli import main
from tests.hostile import FIRST, YAMLS, Line, Workplace, lines
from tests.own_process import in_own_process

EXIT_CODES = {0, 2, 3, 4, 5, 6}
MOVES = ("os.rename", "os.link", "os.symlink")
CHANGES = (*MOVES, "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.chown", "os.utime")
KERNELS = Path.home() / ".cache" / "recloop"
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Writes:
    """Paths that this process opened for writing, made, moved or removed while `seen` is a list.

    An audit hook can't be taken off, so there is one, and it looks away most of the time.
    """

    seen: list[Path] | None = None

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self.seen is None:
            return
        if event == "open" and not isinstance(args[0], int) and args[2] & WRITING:
            self.seen.append(self._path(args[0], -1))
        elif event in CHANGES and not isinstance(args[0], int):
            folder = args[-1] if event in ("os.mkdir", "os.remove", "os.rmdir") else -1
            self.seen += [self._path(path, folder) for path in (args[:2] if event in MOVES else args[:1])]

    @staticmethod
    def _path(path: Any, folder: int) -> Path:
        """Absolute, its folders without symlinks; `folder` is the open one that it is relative to."""
        base = Path(f"/proc/self/fd/{folder}").readlink() if folder >= 0 else Path()
        whole = base / os.fsdecode(path)
        return Path(os.path.realpath(whole.parent)) / whole.name


WRITES = Writes()
sys.addaudithook(WRITES)


@pytest.fixture
def workplace(tmp_path: Path, empty_mlflow: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Workplace]:
    """Scratch folders and MLflow's database are beside the working folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'tmp' / 'mlflow.db'}")
    monkeypatch.setenv("RECLOOP_NO_TRACK", "1")
    (tmp_path / "tmp" / "mlflow.db").write_bytes(empty_mlflow.read_bytes())
    yield Workplace(tmp_path)
    WRITES.seen = None


def drive(workplace: Workplace, num_lines: int, lines_from: int = 0) -> None:
    """Calls that many command lines, one after the other, in one folder. Another `lines_from`, other lines."""
    usual = [Path(tempfile.gettempdir()), Path("/dev/null"), KERNELS]

    @seed(lines_from)
    @settings(max_examples=num_lines, suppress_health_check=list(HealthCheck))
    @given(lines(main, workplace.document))
    def call(line: Line) -> None:
        (workplace.folder / "scenarios" / "fuzz.yaml").write_bytes(line.scenario.encode("utf-8", "surrogatepass"))
        before = contents(workplace)
        WRITES.seen = []
        done = CliRunner().invoke(main, line.words)
        seen, WRITES.seen = WRITES.seen, None
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code in EXIT_CODES, done.output
        allowed = [*workplace.outputs(line), *usual]
        after = contents(workplace)  # also what libraries of C++ write, which no hook sees
        changed = [path for path in before.keys() | after.keys() if before.get(path) != after.get(path)]
        written = [path for path in [*seen, *changed] if "__pycache__" not in path.parts]
        assert not [path for path in written if not any(_is_at(path, output) for output in allowed)]

    call()


def drive_there(workplace: Workplace, scratch: str, num_lines: int) -> None:
    """The same in another process, which has neither the working folder nor the scratch folder yet."""
    os.chdir(workplace.folder)
    tempfile.tempdir = scratch
    # Not watched: libraries make folders of their own when they are first imported.
    words = ["run", "-s", "shop", "--store", "made", "--to", FIRST, "--until", "quantize"]
    assert CliRunner().invoke(main, words).exit_code == 0
    drive(workplace, num_lines // 5, lines_from=1)
    # Whole days and replays take most of the time: the others end at a day's first step, and read what is there.
    shutil.rmtree(workplace.folder / "data" / "events")
    drive(workplace, num_lines - num_lines // 5, lines_from=2)


def _is_at(path: Path, output: Path) -> bool:
    """Below an output, or a folder that had to be made for it, or the folder beside it that is renamed to it."""
    beside = [part for part in (path, *path.parents) if part.parent == output.parent]
    aside = any(part.name.startswith(f".{output.name}.part-") for part in beside)
    return aside or path.is_relative_to(output) or output.is_relative_to(path)


def contents(workplace: Workplace) -> dict[Path, int]:
    """Files, with the times of their last change, that a command may change only where they are below its outputs."""
    folders = (workplace.outside, workplace.folder / "data", workplace.folder / "folder")
    files = [workplace.folder / "scenarios" / "shop.yaml", *(path for top in folders for path in top.rglob("*"))]
    return {path: path.lstat().st_mtime_ns for path in files}


def test_any_command_line_is_served_or_refused(workplace: Workplace) -> None:
    shutil.rmtree(workplace.folder / "data" / "events")  # a line without a mistake ends at its first step
    drive(workplace, 300)


def test_any_yaml_is_a_value_or_refused(workplace: Workplace) -> None:
    for text in YAMLS:
        words = ["chain", "log", "-s", "shop", "--json", "--set", f"name={text}", "--set", f"model.bottom=[{text}]"]
        done = CliRunner().invoke(main, words)
        assert done.exit_code in EXIT_CODES and isinstance(done.exception, SystemExit | None), (text, done.exception)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_five_thousand_command_lines_are_served_or_refused(workplace: Workplace) -> None:
    in_own_process(drive_there, workplace, tempfile.gettempdir(), 5_000)
