"""Commands at a terminal: their help, and their end where the operating system says no."""

import errno
import os
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from tasks.commands.cli import main
from tasks.commands.common import Commands
from tasks.steps import DAILY


@pytest.mark.parametrize(
    ("number", "exit_code", "remedy"),
    [
        (errno.EROFS, 4, "choose another path"),
        (errno.EACCES, 4, "change its rights"),
        (errno.ENOSPC, 6, "make room"),
    ],
)
def test_an_error_of_the_disk_has_a_remedy_and_no_traceback(number: int, exit_code: int, remedy: str) -> None:
    group = Commands()

    @group.command()
    def write() -> None:
        raise OSError(number, os.strerror(number), "/store/movielens")

    done = CliRunner().invoke(group, ["write"])
    assert done.exit_code == exit_code
    assert done.stderr.startswith(f"recloop: /store/movielens: {os.strerror(number)}; ")
    assert remedy in done.stderr


def test_another_error_of_the_system_keeps_its_traceback() -> None:
    group = Commands()

    @group.command()
    def write() -> None:
        raise OSError(errno.EIO, "Input/output error", "/store")

    assert isinstance(CliRunner().invoke(group, ["write"]).exception, OSError)


def _pages(command: click.Command, context: click.Context, words: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    yield " ".join(words), command.get_help(context)
    for name, inner in command.commands.items() if isinstance(command, click.Group) else ():
        if not inner.hidden:
            below = click.Context(inner, parent=context, info_name=name, terminal_width=78)  # as click takes of 80
            yield from _pages(inner, below, (*words, name))


def test_help_fits_on_a_terminal_of_80_columns() -> None:
    pages = dict(_pages(main, click.Context(main, info_name="recloop", terminal_width=78)))
    assert {"", "run", "train", "chain replay"} <= pages.keys()
    for words, page in pages.items():
        assert max(map(len, page.splitlines())) <= 80, words
        assert "..." not in page.partition("Options:")[2], words  # click cuts a short help like this
    for title in ("\nCommands:\n", "\nSteps of a day, which `recloop run` runs in this order:\n"):
        listed = pages[""].partition(title)[2].partition("\n\n")[0].splitlines()
        assert listed and all(line.startswith("  ") and line[2] != " " for line in listed)  # one line each
    assert [line.split()[0] for line in listed] == list(DAILY)
