"""Every error that Recloop raises on purpose, and the exit code each ends a command with.

    RecloopError (1)
    ├── GateError (3)           a gate said no: validation, quantization allowance, promotion
    ├── BadInputError (4)       scenario or data is wrong; a person must change something
    │   └── CorruptError (4)    a committed file no longer has the digest of its manifest
    ├── ParentMissingError (5)  the step needs another day's committed output first
    ├── RetryLaterError (6)     nothing is wrong but the time: a lock, a server that is not up
    └── KilledError (128 + N)   signal N ended the step's container: 137 is also how a memory limit ends one

Exit codes: 0 done, 1 a defect of ours (traceback), 2 wrong command line, 3-6 as above. Only 6 and deaths by a signal
are worth an automatic retry. The message of an error names the value, the place (file, field, column, row) and the
remedy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MAX_LISTED = 20


def listed(problems: Iterable[str]) -> str:
    """A line for each problem, each once, up to `MAX_LISTED`; a file of another kind has hundreds."""
    lines = list(dict.fromkeys(problems))
    more = [f"and {len(lines) - MAX_LISTED:,} more problems"] if len(lines) > MAX_LISTED else []
    return "\n".join([*lines[:MAX_LISTED], *more])


def mistake(location: Sequence[str], value: object, what: str, remedy: str) -> str:
    """The message about a scenario's field; `value` None: left out, because it does not explain the problem."""
    return f"{'.'.join(location)}: {'' if value is None else f'{value!r}: '}{what}; {remedy}"


class RecloopError(Exception):
    """Base of all expected errors; `exit_code` is the exit code of the command."""

    exit_code = 1


class GateError(RecloopError):
    """A gate said no; the message gives the numbers that it decided on.

    This is the one way in which a step says no. The step writes its output first: the runner commits it or keeps it
    aside, as the step declares (`on_no`). `metrics` are reported as if the step had returned them.
    """

    exit_code = 3

    def __init__(self, message: str, metrics: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.metrics = dict(metrics or {})


class BadInputError(RecloopError):
    """The scenario or the data is wrong and stays wrong until a person acts."""

    exit_code = 4


class CorruptError(BadInputError):
    """A committed file differs from the digest in its manifest."""


class ParentMissingError(RecloopError):
    """An input that another step must commit first, on day `ds`, is not there."""

    exit_code = 5

    def __init__(self, message: str, ds: str | None = None) -> None:
        super().__init__(message)
        self.ds = ds


class RetryLaterError(RecloopError):
    """The same command may succeed later, unchanged."""

    exit_code = 6


class KilledError(RecloopError):
    """A step's container was ended from outside, with an exit code above 128."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
