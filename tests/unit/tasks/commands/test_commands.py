"""The end of a command where the operating system says no."""

import errno
import os

import pytest
from click.testing import CliRunner

from tasks.commands.common import Commands


@pytest.mark.parametrize(
    ("number", "exit_code", "remedy"),
    [
        (errno.EROFS, 4, "choose another path"),
        (errno.EACCES, 4, "change its rights"),
        (errno.ENOSPC, 6, "make room"),
    ],
)
def test_what_the_disk_refuses_is_told_with_a_remedy_and_no_traceback(number: int, exit_code: int, remedy: str) -> None:
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
