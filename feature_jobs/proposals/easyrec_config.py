"""A config of EasyRec or TorchEasyRec, whose settings are taken one by one: what nobody takes was not carried over."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from feature_jobs.proposals.easyrec_tables import AS_ALWAYS, REASONS, UNKNOWN
from feature_jobs.proposals.protobuf_text import Scalar, Setting

NUMBER, WHOLE, TEXT = (int, float), (int,), (str,)


@dataclass(frozen=True)
class Lost:
    """A setting that was not carried over, or a whole feature with its settings as `value`."""

    path: str
    value: str
    line: int
    why: str

    @property
    def name(self) -> str:
        """The last name of the path, printable."""
        return shown(self.path.rpartition(".")[2], 100)[1:-1]


class Part:
    """A message of the config; `path` is where it stands. Paths below it are dotted, and * is any one name."""

    def __init__(self, settings: tuple[Setting, ...], path: str = "", taken: set[Setting] | None = None) -> None:
        self.settings = settings
        self.path = path
        self.taken: set[Setting] = set() if taken is None else taken

    def at(self, dotted: str) -> list[Setting]:
        """The settings at a path, in the order of the file."""
        return [setting for _, setting in self._at(dotted)]

    def parts(self, dotted: str) -> list[Part]:
        """The messages at a path."""
        found = ((path, setting.value) for path, setting in self._at(dotted))
        return [Part(value, path, self.taken) for path, value in found if isinstance(value, tuple)]

    def values(self, dotted: str, kinds: tuple[type, ...] = TEXT) -> list[Any]:
        """All values of these types at a path; takes them."""
        found = [setting for setting in self.at(dotted) if type(setting.value) in kinds]
        self.taken.update(found)
        return [setting.value for setting in found]

    def value(self, dotted: str, kinds: tuple[type, ...] = TEXT, fits: Callable[[Any], bool] = lambda _: True) -> Any:
        """The last value at a path, as protobuf reads it; takes it. None, and not taken, where it does not fit."""
        found = self.at(dotted)[-1:]
        if not found or type(found[0].value) not in kinds or not fits(found[0].value):
            return None
        self.taken.update(found)
        return found[0].value

    def leaves(self) -> Iterator[tuple[str, Setting]]:
        """The settings that hold no other settings, with their paths."""
        for setting in self.settings:
            path = f"{self.path}.{setting.name}".lstrip(".")
            if isinstance(setting.value, tuple) and setting.value:
                yield from Part(setting.value, path, self.taken).leaves()
            else:
                yield path, setting

    def left(self) -> list[tuple[str, Setting]]:
        """The leaves that nobody took, without those that ask for what Recloop does anyway."""
        return [(path, one) for path, one in self.leaves() if one not in self.taken and not _as_always(path, one)]

    def lost(self) -> list[Lost]:
        """The leaves that nobody took, with the reason."""
        return [Lost(path, shown(one.value), one.line, _reason(path)) for path, one in self.left()]

    def _at(self, dotted: str) -> Iterator[tuple[str, Setting]]:
        name, _, below = dotted.partition(".")
        for setting in (one for one in self.settings if name in ("*", one.name)):
            path = f"{self.path}.{setting.name}".lstrip(".")
            if not below:
                yield path, setting
            elif isinstance(setting.value, tuple):
                yield from Part(setting.value, path)._at(below)


def shown(value: Scalar | tuple[Setting, ...], most: int = 60) -> str:
    """A value as a comment shows it: printable, on one line."""
    text = "{}" if isinstance(value, tuple) else json.dumps(value, ensure_ascii=False)
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def grouped(lost: Iterable[Lost]) -> list[str]:
    """A line for each reason: the settings with the line where each stands first, how often, and its first values."""
    reasons: dict[str, dict[str, list[Lost]]] = {}
    for one in lost:
        reasons.setdefault(one.why, {}).setdefault(one.name, []).append(one)
    return [f"{', '.join(_times(name, ones) for name, ones in names.items())}: {why}" for why, names in reasons.items()]


def _times(name: str, ones: list[Lost]) -> str:
    values = list(dict.fromkeys(one.value for one in ones))
    more = f", ... {len(ones):,} times" if len(ones) > len(values[:3]) else ""
    return f"{name} {', '.join(values[:3])}{more} (line {ones[0].line})"


def _as_always(path: str, setting: Setting) -> bool:
    return any(setting.value == usual and re.fullmatch(pattern, path) for pattern, usual in AS_ALWAYS)


@functools.cache  # a feature's paths are those of a thousand others
def _reason(path: str) -> str:
    return next((why for pattern, why in REASONS if re.fullmatch(pattern, path)), UNKNOWN)
