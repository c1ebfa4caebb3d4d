"""The one reader of YAML: bounded in size, depth and aliases, because a short text can stand for endless work."""

from __future__ import annotations

import copy
import functools
import warnings
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, ComposerError, MaxDepthExceededError
from ruamel.yaml.error import YAMLError
from ruamel.yaml.tokens import ScalarToken

from feature_jobs.errors import BadInputError

MAX_BYTES = 300_000  # ruamel reads 60 to 150 KB a second; a scenario of 1,000 columns has about 100 KB
MAX_DEPTH = 50
MAX_ALIASED = 10_000


def parse_yaml(text: str, place: str, *, remedy: str = "correct the line", round_trip: bool = False) -> Any:
    """The document of a text; with `round_trip` its mappings know their lines and comments.

    Raises BadInputError `PLACE:LINE: problem; remedy` for everything that YAML, or a limit above, does not allow.
    """
    if len(text) > MAX_BYTES:
        raise BadInputError(f"{place}: holds more than {MAX_BYTES:,} characters; shorten it")
    try:
        # A command needs its scenario up to three times, and a copy takes a tenth of the time of reading.
        return copy.deepcopy(_loaded_once(text)) if round_trip else _loaded(text, "safe")
    except MaxDepthExceededError as error:
        raise BadInputError(_message(place, error.problem_mark, f"more than {MAX_DEPTH} levels", remedy)) from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise BadInputError(_message(place, mark, problem, remedy)) from None
    except Exception as error:  # ruamel passes on the errors that int(), datetime() and others raise for a scalar
        problem = str(error).partition("\n")[0][:200] or type(error).__name__
        # They don't say where, and a date that does not exist is an easy mistake.
        if (scalar := _unreadable_scalar(text)) is not None:
            problem, remedy = f"{scalar.value[:80]!r}: {problem}", "correct it, or write it in quotes if it is a text"
        raise BadInputError(_message(place, scalar and scalar.start_mark, problem, remedy)) from None


def _loaded(text: str, kind: str) -> Any:
    # pure: libyaml's parser, the other choice, would not call the composer below.
    yaml = YAML(typ=kind, pure=True)
    yaml.Composer, yaml.max_depth = _BoundedComposer, MAX_DEPTH
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an anchor that is used twice
        return yaml.load(text)


def _unreadable_scalar(text: str) -> Any:
    """The first plain value that is not readable by itself; None where each one is."""
    for token in YAML(typ="safe", pure=True).scan(text):
        if isinstance(token, ScalarToken) and token.plain:
            try:
                _loaded(token.value, "safe")
            except Exception:
                return token
    return None


@functools.lru_cache(maxsize=2)
def _loaded_once(text: str) -> Any:
    return _loaded(text, "rt")


def _message(place: str, mark: Any, problem: str, remedy: str) -> str:
    line = f":{mark.line + 1}" if mark else ""
    return f"{place}{line}: not readable as YAML: {problem}; {remedy}"


class _BoundedComposer(Composer):
    """Counts the values that aliases stand for: a few nested ones can mean more than memory holds. And refuses text,
    written as an escape, that can't be printed or stored."""

    num_aliased = 0

    def compose_scalar_node(self, anchor: Any) -> Any:
        node = super().compose_scalar_node(anchor)
        if "\0" in node.value or any("\ud800" <= letter <= "\udfff" for letter in node.value):
            problem = "a zero character or half of a surrogate pair; leave it out"
            raise ComposerError(None, None, problem, node.start_mark)
        return node

    def return_alias(self, a: Any) -> Any:
        pending = [a]
        while pending:
            node = pending.pop()
            self.num_aliased += 1
            # ruamel sets the end of a list or mapping when it has read all of it.
            if node.end_mark is None:
                raise ComposerError(None, None, "an alias stands inside the value that it names", node.start_mark)
            if self.num_aliased > MAX_ALIASED:
                problem = f"aliases stand for more than {MAX_ALIASED:,} values"
                raise ComposerError(None, None, problem, node.start_mark)
            if isinstance(node.value, list):
                for item in node.value:
                    pending += item if isinstance(item, tuple) else [item]
        return a
