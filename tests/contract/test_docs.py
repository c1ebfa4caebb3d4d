"""README and docs agree with the project: tree, commands, reference, links, and plain words."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import click
import pytest

from feature_jobs.expressions.functions import FUNCTIONS
from feature_jobs.schema import Scenario
from feature_jobs.schema.base import Section
from feature_jobs.schema.features import Feature
from infra import reference
from tasks.commands.cli import main
from tests.paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BANNED = re.compile(
    r"""(?<![a-z]) (?: told | (?<!\.)tells? | mend(?:s|ed|ing)? | anew | amiss | whoever | twins? | crews?
    | is[\s\#"'_]+no | leading[\s\#"'_]+ones? ) (?![a-z])""",
    re.IGNORECASE | re.VERBOSE,
)
"""Words that are not plain. Instead of "is no X": "is not a X", "has no X", "no X exists". Each may end a line
and be in a name. Optuna's `study.tell` is a name of theirs."""
TEXT = {".py", ".md", ".yaml", ".yml", ".toml", ".sh", ".sql", ".j2", ".ipynb", ".json", ".in", ""}
GENERATED = {"dvc.yaml"}


def _tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    return [ROOT / name for name in listed.stdout.split("\n") if name and (ROOT / name).is_file()]


def _blocks(page: Path) -> Iterator[str]:
    """Lines of the fenced blocks of a page."""
    for block in re.findall(r"```[a-z]*\n(.*?)```", page.read_text(), re.DOTALL):
        yield from block.splitlines()


def _commands(page: Path, program: str) -> list[str]:
    """Calls of a program: in blocks at the start of a line, in text between backticks."""
    text = page.read_text()
    inline = re.findall(rf"`((?:\.venv/bin/)?{program} [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    in_blocks = [line.strip() for line in _blocks(page) if re.match(rf"\s*(?:\.venv/bin/)?{program} ", line)]
    return [command.replace("\n", " ") for command in (*inline, *in_blocks)]


def test_every_folder_of_the_readmes_tree_exists_and_every_folder_is_in_it() -> None:
    tree = re.search(r"## Folders\n\n```\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert tree is not None
    top: set[str] = set()
    for line in tree[1].splitlines():
        if not line.startswith(" "):
            room = line.split("/")[0]
            top.add(room)
            assert (ROOT / room).is_dir(), f"README's tree names {room}/, which is not there"
        else:  # wings of the room above, two in a line
            for wing in re.findall(r"\s{2,}(\w+)/(?=\s)", line):
                assert (ROOT / room / wing).is_dir(), f"README's tree names {room}/{wing}/, which is not there"
    folders = {path.relative_to(ROOT).parts[0] for path in _tracked() if len(path.relative_to(ROOT).parts) > 1}
    assert {name for name in folders if not name.startswith(".")} == top


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_make_targets_that_a_page_names_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {target for command in _commands(page, "make") if (target := command.split()[1]).islower()}
    named |= set(re.findall(r"`make ([a-z-]+)`", page.read_text()))
    assert named - targets - {"git"} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_recloop_commands_that_a_page_names_exist_with_their_options(page: Path) -> None:
    for text in _commands(page, "recloop"):
        words = shlex.split(re.split(r"\s{2,}#|\s{3,}|;|\s#", text)[0].replace("|", " "))
        words = words[words.index("recloop") + 1 :] if "recloop" in words else words[1:]
        command: click.Command = main
        while isinstance(command, click.Group) and words and words[0] in command.commands:
            command = command.commands[words.pop(0)]
        if words and re.fullmatch(r"[A-Z]+|\.\.\.|…", words[0]):
            continue  # `recloop STEP ...`
        assert command is not main, f"{page.name}: `{text}`: recloop has no such command"
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        used = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)} - {"--help", "-h"}
        assert used <= known, f"{page.name}: `{text}`: {sorted(used - known)} is not an option"


def test_the_reference_is_what_the_schema_says() -> None:
    assert reference.FILE.read_text() == reference.page(), "run: make reference"


def test_every_key_and_function_has_a_sentence_in_the_reference() -> None:
    def sections(section: type[Section]) -> set[type[Section]]:
        inside = {found for field in section.model_fields.values() for found in _sections_in(field.annotation)}
        return {section}.union(*map(sections, inside))

    lacking = [
        f"{section.__name__}.{key}: {text!r}"
        for section in sections(Scenario)
        for key in section.model_fields
        # `kind` names the class, whose docstring is the sentence.
        if key != "kind" or not issubclass(section, Feature)
        if not re.match(r"[A-Z].*\s.*\s.*\S\.$", text := reference.meaning(section, key))
    ]
    lacking += [f"{name}: {f.help!r}" for name, f in FUNCTIONS.items() if not re.match(rf"{name}\(.+\) is \w", f.help)]
    assert lacking == []


def _sections_in(annotation: object) -> set[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return {annotation}
    return set().union(*map(_sections_in, get_args(annotation)))


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-d", tmp_path / "doctrees", "docs", tmp_path],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    assert "data.events" in (tmp_path / "reference.html").read_text()


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target} is not there"


def test_plain_words() -> None:
    """Words that are not plain, or that the field has another word for; the list is in the test."""
    found = []
    for file in _tracked():
        if file.suffix not in TEXT or file == Path(__file__) or file.name in GENERATED or file.suffix == ".lock":
            continue
        text = file.read_text(errors="replace")
        lines = {match.start(): text.count("\n", 0, match.start()) + 1 for match in BANNED.finditer(text)}
        found += [f"{file.relative_to(ROOT)}:{line}: {text[start:][:20]!r}" for start, line in lines.items()]
    assert found == []
