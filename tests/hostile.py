"""Command lines that nobody should type: words, paths and scenarios for each parameter of each command.

Commands and parameters are read from the command line itself, so a new one is driven too. One in about six words is
wrong, and often the scenario; the others are right, so that a line gets as far as its first mistake.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from hypothesis import strategies as st

from feature_jobs.schema.bounded_yaml import parse_yaml
from tests.small import days, write_small

FIRST, SECOND, THIRD = days(3)
HEAVY = ("check", "init")  # import and read more than the others: drawn less often
COSTLY = ("try", "tune")  # start processes where their days are right
LONG = "x" * 300

# All that UTF-8 can encode; without /, so that no text is an absolute path.
_LETTERS = st.characters(exclude_categories=["Cs"], exclude_characters="/")
TEXT = st.text(_LETTERS, max_size=12) | st.sampled_from(
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
        "\n",
        LONG,
        "{",
        "%s",
    ]
)
NOT_DAYS = [
    "",
    "nonsense",
    "2024-3-1",
    "20240301",
    "2024-W09-5",
    "0001-01-01",
    "9999-12-31",
    "2024-02-30",
    f"../{FIRST}",
]
OTHER_DAYS = st.sampled_from([THIRD, "1970-01-01", "2199-12-31", *NOT_DAYS])
NEAR = ["", ".", "..", "~", "folder", "file", "file/x", "out", "out/new", "nowhere", "nowhere/deep/er", "scenarios"]
NOT_FILES = ["fifo", "socket", "loop", "loop/x", "dangling", "a\0b", "out\udcff", LONG, "y/" * 3000 + "z"]
SYSTEM = ["/dev/null", "/dev/zero", "/dev/full", "/proc", "/proc/1/mem", "/proc/kmsg", "/proc/none/x", "/sys/none"]
PATHS = st.sampled_from(
    [*NEAR, *NOT_FILES, *SYSTEM, "../outside/file", "s3://b/x", "file:///proc/x", "a;touch X;.yaml"]
)

_DEEP = ["((((", "not " * 400 + "bought", "-" * 1500 + "price", "+".join(["1"] * 900), "price" + " + price" * 60]
_WORDS = [
    "",
    "a",
    "a/b",
    "../x",
    "\0",
    "é",
    LONG,
    "x" * 5000,
    "/proc",
    "fifo",
    "/dev/zero",
    "loop",
    "/etc/passwd",
    "**/*",
    "[",
]
_KNOWN = [
    "csv",
    "parquet",
    "jsonl",
    "{ds}",
    "*",
    "list[int]",
    "time",
    "iso",
    "ns",
    "synthetic",
    "Asia/Shanghai",
    "no/zone",
]
_ALSO = ["0 3 * * *", "99 * * * *", "@daily", "torchrec", "mmoe", "dcnv2", "dlrm", "bought == 1", "bought.a.b", "a, b"]
_NUMBERS = [None, True, False, 0, -1, 1, 2, 7, 2**63, -(2**70), 1e308, 0.5]
_NESTED: list[Any] = [[], ["a"], [[1]], [None], {}, {"a": 1}, {"kind": "id"}, {"kind": "count", "by": []}]
VALUES = [*_NUMBERS, *_NESTED, *_WORDS, *_KNOWN, *_ALSO, *_DEEP, FIRST, "0001-01-01", "9999-12-31"]

BOMB = "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))])
_BROKEN = [
    "",
    "a",
    "- a",
    "a: [1",
    "a: 'b",
    "\t",
    "a: b: c",
    "%YAML 9.9\n---\na: 1",
    "%TAG",
    "a: 1\n---\nb: 2",
    "a: 1\na: 2",
]
_KEYS = [
    "? [a]\n: b",
    "? {a: b}\n: c",
    "1: 2",
    "null: 1",
    "2024-01-01: 1",
    "<<: a",
    "<<: [a]",
    "<<: *x",
    "name: " + LONG,
]
_TAGS = [
    "!!python/object:os.system x",
    "!!int x",
    "!!float x",
    "!!timestamp x",
    "!!binary x",
    "!!set {x}",
    "!!omap [a: b]",
]
_SCALARS = [
    "2024-13-45",
    "99999999-01-01",
    "1" * 6000,
    "1:99:99",
    "0x",
    ".inf",
    ".nan",
    "1e999999",
    "\x07",
    "\ud800",
    "\0",
]
_ENDLESS = ["a: &x *x", "a: &x [*x]", "a: &x {b: *x}", BOMB, "[" * 3000, "{a: " * 3000, "- " * 3000, "#" * 600_000]
YAMLS = [
    *_BROKEN,
    *_KEYS,
    *(f"a: {text}" for text in [*_TAGS, *_SCALARS]),
    *_ENDLESS,
    "&a",
    "*a",
    "!a b",
    "\ufeffname: a",
]

_COLUMN = ("data", "events", "columns")
_EXTRA: list[tuple[str, ...]] = [
    ("validate", "suite"), ("deploy", "model"), ("data", "fetch"), ("data", "options"), ("data", "days", "skip"),
    ("data", "days", "warm_up_from"), ("data", "days", "day_starts"), ("schedule", "daily"), ("schedule", "zone"),
    ("train", "backend"), ("model", "architecture"), ("evaluate", "segments"), ("validate", "drift_columns"),
    ("outcomes",), ("a b",), (*_COLUMN, "a\nb"), ("data", "entities", "../x"), ("features", LONG), ("labels", "../x"),
    ("tune", "space", "a.b"), ("tune", "space", "features.*.enabled"), ("data", "events", "delimiter"),
]  # fmt: skip
_GOOD_SETTINGS = ["train.batch_size=32", "join.lookback_days=3", "deploy.model=other", "features.price.enabled=false"]


@dataclass(frozen=True)
class Line:
    """A command line, the values of its parameters by name, and the text of scenarios/fuzz.yaml."""

    words: tuple[str, ...]
    given: dict[str, str]
    scenario: str


class Workplace:
    """A folder to call commands in: a small scenario and its data, and odd files: links, sockets, a pipe."""

    def __init__(self, top: Path) -> None:
        self.folder, self.outside = top / "work" / "place", top / "work" / "outside"
        for folder in (self.outside, *(self.folder / name for name in ("scenarios", "folder", "out"))):
            folder.mkdir(parents=True)
        (self.outside / "file").write_text("untouched")
        scenario = write_small(self.folder, num_days=3, rows=60)
        text = scenario.read_text().replace("path: data\n", "path: ../data\n", 1)
        self.document = parse_yaml(text, "shop")
        (self.folder / "scenarios" / "shop.yaml").write_text(text)
        scenario.unlink()
        (self.folder / "file").write_text("a,b\n1,2\n")
        os.mkfifo(self.folder / "fifo")
        os.chdir(self.folder)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("socket")
        Path("loop").symlink_to("loop")
        Path("dangling").symlink_to("nowhere/at/all")

    def outputs(self, line: Line) -> list[Path]:
        """Paths to which a command line may write: its outputs, and the defaults."""
        given = [line.given[name] for name in ("store", "out", "output") if name in line.given]
        found = [Path(os.path.realpath(path.removeprefix("file://"))) for path in given if "\0" not in path]
        defaults = {"init": "scenarios", "expectations": "scenarios", "fetch": "", "dvc-render": "dvc.yaml"}
        return [*found, self.folder / defaults.get(line.words[0], ".recloop"), self.folder / ".recloop"]


def _places(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in node.items() if isinstance(node, dict) else ():
        yield (*path, key)
        yield from _places(value, (*path, key))


def _put(node: Any, path: tuple[str, ...], value: Any) -> Any:
    head, *rest = path
    node = node if isinstance(node, dict) else {}
    return {**node, head: _put(node.get(head), tuple(rest), value) if rest else value}


def scenario_texts(document: Any) -> st.SearchStrategy[str]:
    """The scenario with one to three values replaced, as JSON, which is YAML; or text that is not one."""

    def changed(changes: list[tuple[tuple[str, ...], Any]]) -> str:
        made = document
        for path, value in changes:
            made = _put(made, path, value)
        return json.dumps(made, default=str)

    edit = st.tuples(st.sampled_from([*_places(document), *_EXTRA]), st.sampled_from(VALUES))
    edits = st.lists(edit, min_size=1, max_size=3).map(changed)
    return edits | edits | edits | st.sampled_from(YAMLS) | st.text(max_size=40)


def _settings(document: Any) -> st.SearchStrategy[str]:
    """`PATH=VALUE` of --set, and `NAME: PATH=VALUE` of --variant."""
    place = st.sampled_from([".".join(path) for path in [*_places(document), *_EXTRA]]) | TEXT
    value = st.sampled_from([json.dumps(value) for value in VALUES]) | st.sampled_from(YAMLS) | TEXT
    return st.builds("{}={}".format, place, value) | st.builds("a: {}={}".format, place, value) | TEXT


def _commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with the words that call it."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from _commands(command, (*path, name))
        elif not command.hidden:
            yield (*path, name), command


SIXTH = st.integers(0, 5)
Words = tuple[st.SearchStrategy[str], st.SearchStrategy[str]]


def _values(command: str, param: click.Parameter, settings: st.SearchStrategy[str]) -> Words:
    """Right and wrong words for a parameter of a command."""
    days_of = (st.just("2024-03-09"), st.sampled_from(NOT_DAYS)) if command in COSTLY else (
        st.sampled_from([FIRST, SECOND]), OTHER_DAYS
    )  # fmt: skip
    sides = st.sampled_from(["committed", "g0", FIRST]), st.sampled_from(["g1", "g99999", "try-3f9a2c1b"]) | TEXT
    scenarios = st.sampled_from(["shop", "fuzz", "fuzz", "scenarios/fuzz.yaml"]), PATHS | TEXT
    known: dict[str, Words] = {
        "scenario": scenarios,
        "store": (st.sampled_from(["made", "out/store"]), PATHS),
        "data": (st.just("data"), PATHS),
        "out": (st.sampled_from(["out/new", "out/dvc.yaml"]), PATHS),
        "path": (st.just("data/events"), PATHS),
        "output": (st.just("out/x"), PATHS),
        "settings": (st.sampled_from(_GOOD_SETTINGS), settings),
        "variants": (st.sampled_from([f"a: {one}" for one in _GOOD_SETTINGS]), settings),
        "options": (st.just("rows=20"), st.sampled_from(["rows=x", "rows", "=", "users=1e400"]) | TEXT),
        "name": scenarios if command == "dvc-render" else (st.sampled_from(["one", "two"]), TEXT | PATHS),
        "first": sides if command == "compare" else days_of,
        "second": sides,
        **dict.fromkeys(("ds", "last", "base_ds", "target_ds"), days_of),
        **dict.fromkeys(("base", "delta"), (st.just("folder"), PATHS)),
    }
    if isinstance(param.type, click.Choice):
        return st.sampled_from([*param.type.choices]), TEXT
    if isinstance(param.type, click.IntRange):
        return st.sampled_from(["1", "2"]), st.sampled_from(["0", "-1", "9" * 30, "x", "1.5", ""])
    return known.get(str(param.name), (TEXT, TEXT))


def lines(group: click.Group, document: Any) -> st.SearchStrategy[Line]:
    """Lines for all commands that a person may call."""
    drawn = [one for one in _commands(group) for _ in range(1 if one[0][0] in HEAVY else 4)]
    settings, texts = _settings(document), scenario_texts(document)
    # Made once: to make a strategy takes longer than to draw from it.
    values = {(path, p.name): _values(path[0], p, settings) for path, command in drawn for p in command.params}

    @st.composite
    def line(draw: st.DrawFn) -> Line:
        path, command = draw(st.sampled_from(drawn))
        words, given = list(path), {}
        for param in command.params:
            is_costly = path[0] in COSTLY and param.name == "first"  # without days these take the committed ones
            is_needed = param.required or param.name == "scenario"
            if draw(SIXTH) > (5 if is_costly else 4 if is_needed else 1):
                continue
            if isinstance(param, click.Option) and param.is_flag:
                words.append(param.opts[0])
                continue
            good, wrong = values[path, param.name]
            value = given[str(param.name)] = draw(wrong if draw(SIXTH) == 0 else good)
            words += [value] if isinstance(param, click.Argument) else [param.opts[0], value]
        if draw(st.integers(0, 19)) == 0:
            words.insert(draw(st.integers(0, len(words))), draw(TEXT))
        return Line(tuple(words), given, draw(texts))

    return line()
