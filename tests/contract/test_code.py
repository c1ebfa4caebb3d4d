"""Counts and names over the production code that a review would miss: they may only get better."""

from __future__ import annotations

import ast
import io
import itertools
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.steps import STEPS
from tests.paths import ROOT

ROOMS = ("feature_jobs", "models", "tasks", "dags", "infra", "serving")
MAX_DICT_RESULTS = 20
MAX_SUPPRESSIONS = 40
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

GENERIC = ("tasks/run", "tasks/store", "tasks/commands", "tasks/tracking", "dags", "infra")
"""Folders whose code works with any steps, so it names none."""
NAMES_STEPS = {
    "tasks/run/tries_plan.py": "`train` and `join` are sections of the scenario there",
    "dags/recloop_tuning.py": "its subject is the tuning DAG",
    "infra/screenshots.py": "says which words to wait for on a page",
}
SAME_NAME = {
    "verdict.json": "validate and deploy each write a file of this name",
    "events.parquet": "KuaiRand's own source has a file of this name",
    "embeddings.safetensors": "a checkpoint's table with its training state, and the quantized one of an export",
    "manifest.json": "models leaves it out of a checkpoint's digest, and may not import the store that writes it",
    "metrics.json": "a checkpoint's metrics, and those of all days for `dvc metrics`",
}
"""File names that stand in more than one place, with the reason."""
CLAUSE = re.compile(r"(?:What|How|Whether|Where|Which|When|Why|Who)\b")
"""The beginning of a docstring that is a clause, or a question, instead of a verb or a noun."""
FILE_NAME = re.compile(r"[\w-]+\.(?:parquet|json|jsonl|html|onnx|safetensors|csv)")


def _files(*folders: str) -> list[Path]:
    return sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))


def _place(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def _functions(file: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def _texts(file: Path) -> Iterator[tuple[int, str]]:
    """Line and value of each string literal."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def _docstrings(file: Path) -> Iterator[tuple[int, str]]:
    """Line and text of each string that stands alone: of a module, a class, a function or a constant."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def _comments(file: Path) -> Iterator[str]:
    tokens = tokenize.generate_tokens(io.StringIO(file.read_text()).readline)
    return (token.string for token in tokens if token.type == tokenize.COMMENT)


def test_counts_of_rows_are_printed_with_commas() -> None:
    """`6,000 rows` beside `1,004` and not `6000 rows`: one form for one kind of number."""
    found = []
    for file in _files(*ROOMS):
        for node in ast.walk(ast.parse(file.read_bytes())):
            parts = node.values if isinstance(node, ast.JoinedStr) else []
            for part, after in itertools.pairwise(parts):
                plain = isinstance(part, ast.FormattedValue) and part.format_spec is None
                text = after.value if isinstance(after, ast.Constant) else None
                if plain and isinstance(text, str) and re.match(r" (?:such |good )?(?:rows|lines)\b", text):
                    found.append(f"{_place(file)}:{part.lineno}: {text[:30]}")
    assert found == []


def test_results_that_travel_say_what_is_in_them() -> None:
    """A dataclass or a TypedDict says it; a `dict[str, Any]` gives the reason in its docstring or its name."""
    found = [
        f"{_place(file)}:{function.lineno} {function.name}"
        for file in _files(*ROOMS)
        for function in _functions(file)
        if function.returns is not None and "dict[str, Any]" in ast.unparse(function.returns)
    ]
    assert len(found) <= MAX_DICT_RESULTS, "\n".join(found)


def test_suppressions_stay_few() -> None:
    found = [
        f"{_place(file)}: {comment}"
        for file in _files(*ROOMS, "tests", "benchmarks")
        for comment in _comments(file)
        if re.search(r"# *(?:noqa|type: *ignore)", comment)
    ]
    assert len(found) <= MAX_SUPPRESSIONS, "\n".join(found)


def test_generic_code_names_no_step() -> None:
    found = [
        f"{_place(file)}:{line}: {text!r}"
        for file in _files(*GENERIC)
        if _place(file) not in NAMES_STEPS
        for line, text in _texts(file)
        if text in STEPS
    ]
    assert found == []


@pytest.mark.parametrize("name", NAMES_STEPS)
def test_a_file_that_may_name_steps_still_does(name: str) -> None:
    assert any(text in STEPS for _, text in _texts(ROOT / name))


def test_a_file_of_an_output_is_named_once() -> None:
    places: dict[str, set[str]] = defaultdict(set)
    for file in _files(*ROOMS):
        for _, text in _texts(file):
            if FILE_NAME.fullmatch(text):
                places[text].add(_place(file))
    several = {name: sorted(files) for name, files in places.items() if len(files) > 1}
    assert several.keys() - SAME_NAME.keys() == set(), several
    assert SAME_NAME.keys() - several.keys() == set(), "no longer needed in SAME_NAME"


def test_files_and_functions_are_short() -> None:
    long = [
        f"{_place(file)}: {count} lines"
        for file in _files(*ROOMS)
        if (count := len(file.read_text().splitlines())) > MAX_FILE_LINES
    ]
    long += [
        f"{_place(file)}:{function.lineno} {function.name}: {count} lines"
        for file in _files(*ROOMS)
        if not file.stem.endswith("_kernels")  # numba compiles a kernel as one function
        for function in _functions(file)
        if function.end_lineno and (count := function.end_lineno - function.lineno + 1) > MAX_FUNCTION_LINES
    ]
    assert long == []


@pytest.mark.parametrize("folder", [*ROOMS, "benchmarks", "tests"])
def test_docstrings_begin_with_a_verb_or_a_noun(folder: str) -> None:
    found = [
        f"{_place(file)}:{line}: {text.splitlines()[0]}"
        for file in _files(folder)
        for line, text in _docstrings(file)
        if CLAUSE.match(text.lstrip())
    ]
    assert found == []
