"""Command lines that nobody should type: words, paths and scenarios for each parameter of each command.

The commands and their parameters are read from the command line itself, so that a new one is driven without a word here.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from hypothesis import strategies as st

from tests.small import days, write_small

SECRET = "outside"  # a folder beside the working folder, which no command may touch
FIRST, SECOND, THIRD, *_ = days(3)
LETTERS = st.characters(codec="utf-8", exclude_characters="/")
TEXT = st.text(LETTERS, max_size=12) | st.sampled_from(
    [
        "",
        " ",
        "-",
        "--",
        "=",
        ":",
        "a=",
        "=a",
        "null",
        "../..",
        "\0",
        "a\0b",
        "\udcff",
        "\x1b[31m",
        "é",
        "\n",
        "x" * 300,
        "{",
        "%s",
        "${x}",
    ]
)
DAYS = st.sampled_from([FIRST, SECOND, THIRD]) | st.sampled_from(
    [
        "",
        "nonsense",
        "2024-3-1",
        "20240301",
        "2024-W09-5",
        "0001-01-01",
        "9999-12-31",
        "2024-02-30",
        "1970-01-01",
        f"{FIRST} ",
        f"../{FIRST}",
    ]
)
PATHS = st.sampled_from(
    [
        "",
        ".",
        "..",
        "nowhere",
        "nowhere/deep/er",
        "folder",
        "file",
        "fifo",
        "socket",
        "loop",
        "loop/x",
        "dangling",
        "file/x",
        "out",
        "out/new",
    ]
    + [
        "/dev/null",
        "/dev/zero",
        "/dev/full",
        "/dev/stdin",
        "/proc",
        "/proc/1/mem",
        "/proc/kmsg",
        "/proc/none/x",
        "/sys/x",
        "~",
        "a\0b",
    ]
    + [
        "x" * 300,
        "y/" * 3000 + "z",
        "s3://bucket/x",
        "file:///proc/x",
        f"../{SECRET}/file",
        "out\udcff",
        "a;touch X;.yaml",
        "scenarios",
    ]
)
VALUES = [
    None, True, False, 0, -1, 1, 2, 7, 2**63, -(2**70), 1e308, 0.5, "", "a", "a/b", "../x", "\0", "é", "x" * 300, "x" * 5000,
    [], ["a"], [[1]], [None], {}, {"a": 1}, {"kind": "id"}, FIRST, "0001-01-01", "9999-12-31", "/proc", "fifo", "/dev/zero", "loop",
    "bought == 1", "((((", "not " * 400 + "bought", "-" * 1500 + "price", "+".join(["1"] * 900), "bought" + ".a" * 500, "a, b",
    "csv", "parquet", "jsonl", "{ds}", "**/*", "*", "[", "list[int]", "time", "iso", "ns", "synthetic", "Asia/Shanghai", "nowhere/zone", "/etc/passwd",
    "0 3 * * *", "99 * * * *", "@daily", "torchrec", "mmoe", "dcnv2", "dlrm",
]  # fmt: skip
BOMB = "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))])
YAMLS = [
    "", "a", "- a", "a: [1", "a: 'b", "\t", "a: b: c", "%YAML 9.9\n---\na: 1", "%TAG", "---\n---\n", "a: 1\n---\nb: 2", "a: 1\na: 2", "? [a]\n: b", "? {a: b}\n: c",
    "1: 2", "null: 1", "2024-01-01: 1", "a: !!python/object:os.system x", "a: !!int x", "a: !!float x", "a: !!timestamp x", "a: !!binary x", "a: !!set {x}", "!!omap [a: b]",
    "a: 2024-13-45", "a: 99999999-01-01", "a: " + "1" * 6000, "a: 1:99:99", "a: 0x", "a: 0o9", "a: .inf", "a: .nan", "a: 1e999999", "<<: a", "<<: [a]", "<<: *x",
    "a: &x *x", "a: &x [*x]", "a: &x {b: *x}", BOMB, "[" * 3000, "{a: " * 3000, "- " * 3000, "\n".join(" " * i + "a:" for i in range(1500)), "#" * 100_000, "a: " + "b" * 600_000,
    "\ufeffname: a", "a: \x07", "a: \ud800", "name: " + "n" * 300, "\x00", "a: |\n" + " x\n" * 1000, "a: >99\n b", "!a b", "a: !b c", "&a", "*a", "a: *", "a: @b", "a: `b",
]  # fmt: skip


class Workplace:
    """A folder to call commands in: a small scenario and its data, a store, and things that are not what they seem."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.folder = top / "work" / "place"
        (self.folder / "scenarios").mkdir(parents=True)
        (top / "work" / SECRET).mkdir()
        (top / "work" / SECRET / "file").write_text("untouched")
        scenario = write_small(self.folder, num_days=3, rows=60)
        scenario.write_text(scenario.read_text().replace("path: data\n", "path: ../data\n", 1))
        scenario.rename(self.folder / "scenarios" / "shop.yaml")
        self.document = _plain(self.folder / "scenarios" / "shop.yaml")
        for name in ("folder", "out"):
            (self.folder / name).mkdir()
        (self.folder / "file").write_text("a,b\n1,2\n")
        os.mkfifo(self.folder / "fifo")
        listening = socket.socket(socket.AF_UNIX)
        os.chdir(self.folder)
        listening.bind("socket")
        listening.close()
        (self.folder / "loop").symlink_to("loop")
        (self.folder / "dangling").symlink_to("nowhere/at/all")

    def outputs(self, arguments: Mapping[str, Any]) -> list[Path]:
        """Where a command with these arguments may write."""
        found = [self.folder / ".recloop"]
        for name in ("store", "out", "output"):
            value = arguments.get(name)
            if isinstance(value, str) and "\0" not in value:
                found.append(_resolved(value))
        return found


def _resolved(path: str) -> Path:
    try:
        return Path(os.path.realpath(path.removeprefix("file://")))
    except (OSError, ValueError):
        return Path("/nowhere")


def _plain(file: Path) -> Any:
    from ruamel.yaml import YAML

    return json.loads(json.dumps(YAML(typ="safe").load(file.read_text()), default=str))


def _places(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield (*path, key)
            yield from _places(value, (*path, key))


def _put(node: Any, path: tuple[str, ...], value: Any) -> Any:
    head, *rest = path
    return {**node, head: _put(node[head], tuple(rest), value) if rest else value}


EXTRA = [
    ("validate", "suite"), ("deploy", "model"), ("data", "fetch"), ("data", "options"), ("data", "days", "skip"), ("data", "days", "warm_up_from"), ("schedule", "daily"),
    ("train", "rows_folder"), ("train", "backend"), ("model", "architecture"), ("evaluate", "segments"), ("outcomes",), ("a b",), ("data", "events", "columns", "a\nb"), ("data", "entities", "../x"),
    ("features", "x" * 300), ("tune", "space", "a.b"), ("data", "days", "day_starts"), ("data", "events", "time", "zone"), ("labels", "../../x"), ("validate", "drift_columns"), ("tune", "space", "features.*.enabled"),
]  # fmt: skip


def scenario_texts(document: Any) -> st.SearchStrategy[str]:
    """The scenario with one to three values replaced, as JSON, which is YAML; or text that is not one."""
    place = st.sampled_from([*_places(document)] + EXTRA)

    def changed(changes: list[tuple[tuple[str, ...], Any]]) -> str:
        made = document
        for path, value in changes:
            try:
                made = _put(made, path, value)
            except (KeyError, TypeError):  # a change before has taken the section away, or there is none
                made = _put(made, path[:1], {path[-1]: value})
        return json.dumps(made)

    edits = st.lists(st.tuples(place, st.sampled_from(VALUES)), min_size=1, max_size=3).map(changed)
    return edits | edits | st.sampled_from(YAMLS) | st.text(max_size=40)


def settings(document: Any) -> st.SearchStrategy[str]:
    """`--set` and `--variant` values."""
    place = st.sampled_from([".".join(path) for path in [*_places(document)] + EXTRA])
    value = st.sampled_from([json.dumps(value) for value in VALUES]) | st.sampled_from(YAMLS) | TEXT
    return (
        st.builds("{}={}".format, place, value)
        | st.builds("{}={}".format, TEXT, value)
        | st.builds("a: {}={}".format, place, value)
        | TEXT
    )


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with the words that call it."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


class Line:
    """A command line, and what it was made of. `scenario`: the text of scenarios/fuzz.yaml."""

    def __init__(self, words: list[str], arguments: dict[str, Any], scenario: str) -> None:
        self.words, self.arguments, self.scenario = words, arguments, scenario

    def __repr__(self) -> str:
        return f"Line({self.words!r}, scenario={self.scenario[:300]!r})"


COSTLY = ("try", "tune")  # they start processes where their days are right
GOOD_SETTINGS = ["train.batch_size=32", "join.lookback_days=3", "deploy.model=other", "model.bottom=[8]", "features.price.enabled=false"]


def values(command: str, param: click.Parameter, document: Any) -> tuple[st.SearchStrategy[str], st.SearchStrategy[str]]:
    """Words for a parameter of a command: those that it takes, and others."""
    name = str(param.name)
    good_days = st.sampled_from([FIRST, SECOND] if command not in COSTLY else ["2024-03-09"])
    other_days = DAYS.filter(lambda ds: command not in COSTLY or ds not in (FIRST, SECOND, THIRD))
    sides = st.sampled_from(["committed", "g0", FIRST]), st.sampled_from(["g1", "g99999", "try-3f9a2c1b", "try-.."]) | TEXT
    scenarios = st.sampled_from(["shop", "fuzz", "fuzz", "scenarios/fuzz.yaml"]), PATHS | TEXT
    known = {
        "scenario": scenarios,
        "store": (st.sampled_from(["made", "out/store"]), PATHS),
        "data": (st.just("data"), PATHS),
        "out": (st.sampled_from(["out/new", "out/dvc.yaml"]), PATHS),
        "path": (st.just("data/events"), PATHS),
        "base": (st.just("folder"), PATHS), "delta": (st.just("folder"), PATHS), "output": (st.just("out/x"), PATHS),
        "settings": (st.sampled_from(GOOD_SETTINGS), settings(document)),
        "variants": (st.sampled_from([f"a: {one}" for one in GOOD_SETTINGS]), settings(document)),
        "options": (st.just("rows=20"), st.sampled_from(["rows=x", "rows", "=", "users=1e400"]) | TEXT),
        "name": scenarios if command == "dvc-render" else (st.sampled_from(["one", "two"]), TEXT | PATHS),
        "first": sides if command == "compare" else (good_days, other_days), "second": sides,
        **dict.fromkeys(("ds", "last", "base_ds", "target_ds"), (good_days, other_days)),
    }  # fmt: skip
    if isinstance(param.type, click.Choice):
        return st.sampled_from([*param.type.choices]), TEXT
    if isinstance(param.type, click.IntRange):
        return st.sampled_from(["1", "2"]), st.sampled_from(["0", "-1", "9" * 30, "x", "1.5", ""])
    return known.get(name, (TEXT, TEXT))


@st.composite
def lines(draw: st.DrawFn, group: click.Group, document: Any) -> Line:
    """A line for any command; of its words about one in six is wrong."""
    path, command = draw(st.sampled_from([*commands(group)]))
    words, arguments = list(path), {}
    for param in command.params:
        needed = param.required or param.name == "scenario" or (path[0] in COSTLY and param.name == "first")
        if draw(st.integers(0, 5)) > (1 if not needed else 5 if path[0] in COSTLY else 4):
            continue
        if isinstance(param, click.Option) and param.is_flag:
            words.append(param.opts[0])
            continue
        good, other = values(path[0], param, document)
        arguments[str(param.name)] = value = draw(other if draw(st.integers(0, 5)) == 0 else good)
        words += [value] if isinstance(param, click.Argument) else [param.opts[0], value]
    if draw(st.integers(0, 19)) == 0:
        words.insert(draw(st.integers(0, len(words))), draw(TEXT))
    return Line(words, arguments, draw(scenario_texts(document)))
