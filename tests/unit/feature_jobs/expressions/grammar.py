"""Random expressions and columns for tests of the evaluator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import pyarrow as pa

ARROW = {"a": pa.int64(), "b": pa.int64(), "x": pa.float64(), "y": pa.float64(), "s": pa.string(), "r": pa.string()}
ARROW |= {"f": pa.bool_(), "event_time": pa.int64(), "t": pa.int64()}
ARROW |= {"user.tags": pa.list_(pa.string()), "nums": pa.list_(pa.int64())}
KINDS = {"a": "int", "b": "int", "x": "float", "y": "float", "s": "string", "r": "string", "f": "bool", "t": "time"}
KINDS |= {"user.tags": "list[string]", "nums": "list[int]"}

TEXTS = ["", "a", "ab", "b", "A%_", "\u00c9\u0130", "it's", "x\ny", "(", "\U0001f642b"]
FLOATS = [0.0, -0.0, 0.5, -0.5, 1.5, -2.25, 0.1, 0.49999999999999994, 7.0, 1e19, -1e300, 5e-324, 2.0**53 + 2]
FLOATS += [float("inf"), float("-inf"), float("nan"), 2.0**63, -(2.0**63)]
INTS = [0, 1, -1, 2, 3, -7, 2**31, -(2**31), 3 * 10**9, 2**53 + 1, 2**62, 2**63 - 1, -(2**63)]
TESTS = ["f", "a < b", "x >= y", "s is None", "not f", "x", "None"]
ORDER = ["==", "!=", "<", "<=", ">", ">="]


class Grammar:
    """Makes expressions of at most `depth` operators inside one another."""

    def __init__(self, random: Random) -> None:
        self.pick = random.choice

    def number(self, depth: int) -> str:
        """An expression of a number."""
        if depth <= 0 or self.pick(range(6)) == 0:
            leaves = ["a", "b", "x", "y", "length(s)", "length(nums)", "length(user.tags)", "hour(t)", "weekday(t)"]
            return self.pick(
                [*leaves, "a", "x", "(event_time - t)", "2", "0", "-3", "0.5", "1e300", f"hour({self.time(1)})"]
            )
        p, q = self.number(depth - 1), self.number(depth - 2)
        return self.pick(
            [
                f"({p} {self.pick(['+', '-', '*', '/', '//', '%'])} {q})",
                f"({q} {self.pick(['+', '-', '*'])} {p})",
                f"(-{p})",
                f"{self.pick(['abs', 'floor', 'log1p', 'exp', 'sqrt'])}({p})",
                f"({p} if {self.pick(TESTS)} else {q})",
                f"bucket({p}, {self.pick(['3', '0.5', '1e-3'])})",
                f"{self.pick(['min', 'max', 'coalesce'])}({p}, {q}, {self.number(0)})",
            ]
        )

    def text(self, depth: int) -> str:
        """An expression of a text."""
        if depth <= 0:
            return self.pick(["s", "r", repr(self.pick(TEXTS))])
        return self.pick(
            [
                f"({self.text(0)} if {self.pick(TESTS)} else {self.text(0)})",
                f"lower({self.text(depth - 1)})",
                f"coalesce({self.text(depth - 1)}, {self.text(0)})",
                "s",
            ]
        )

    def time(self, depth: int) -> str:
        """An expression of a time."""
        if depth <= 0:
            return self.pick(["t", "event_time"])
        moved = f"({self.time(0)} {self.pick('+-')} {self.pick(['x', 'a', '3600', '1e-6', '5e-7', '0.5'])})"
        return self.pick([moved, f"coalesce({self.time(0)}, {moved})", f"max({moved}, {self.time(0)})"])

    def condition(self, depth: int) -> str:
        """An expression that is true or false."""
        if depth <= 0:
            return self._test()
        p, q = self.condition(depth - 1), self.condition(depth - 2)
        other = self.pick([q, self.number(1), "None"])
        return self.pick(
            [
                f"({p} {self.pick(['and', 'or'])} {other})",
                f"({q} or {p} and f)",
                f"(not {p})",
                f"({p} == {q})",
                f"({p} < {self.pick(['a', '1', q])})",
                f"coalesce({p}, {q}, b)",
                f"({p} if {q} else {self.pick([q, 'None'])})",
                self._test(),
            ]
        )

    def _test(self) -> str:
        sign, n, s = self.pick(ORDER), self.number(1), self.text(1)
        texts = ", ".join(repr(self.pick(TEXTS)) for _ in range(3))
        moment = self.pick([self.time(1), "'2001-03-25T01:30:00'", "'1999-01-01'"])
        return self.pick(
            [
                f"({self.number(2)} {sign} {self.number(1)})",
                f"({n} < {self.number(1)} <= {self.number(0)})",
                f"({s} {sign} {self.text(1)})",
                f"({self.time(1)} {sign} {moment})",
                f"({n} {self.pick(['in', 'not in'])} [{self.number_list()}])",
                f"({s} {self.pick(['in', 'not in'])} ({texts}))",
                f"({s} {self.pick(['in', 'not in'])} {self.pick(['s', 'user.tags'])})",
                f"({self.pick(['a', 'b', '1', 'hour(t)'])} {self.pick(['in', 'not in'])} nums)",
                f"({self.pick([n, s, 'user.tags'])} {self.pick(['is None', '!= None'])})",
                f"{self.pick(['starts_with', 'contains'])}({s}, {self.text(0)})",
                f"matches({s}, {self.pick(PATTERNS)!r})",
                "f",
            ]
        )

    def number_list(self) -> str:
        """Some numbers for `in`."""
        return ", ".join(self.pick([["2", "0", "7", "-1"], ["0.5", "3", "-0.0", "1"]]))

    def any(self) -> str:
        """An expression of any type."""
        return self.pick([self.number, self.condition, self.text, self.time])(self.pick([1, 2, 3]))


PATTERNS = ["^a", "b$", "a.b|x.y", "[[:punct:]]", r"\bb", ".", "", "(?i)é", r"\p{So}"]


def random_columns(random: Random, num_rows: int, *, extreme: bool) -> dict[str, pa.Array]:
    """Columns with nulls; with `extreme` integers near 64 bits too."""

    def ints() -> int:
        return random.choice(INTS) if extreme else random.randint(-50, 50)

    def times() -> int:
        return random.choice(
            [random.randint(-(10**15), 2 * 10**15), 985_485_600_000_000 + random.randint(-2, 2) * 10**9]
        )

    def several(cell: Callable[[], Any]) -> Callable[[], Any]:
        return lambda: [random.choice([None, cell(), cell()]) for _ in range(random.randint(0, 3))]

    def texts() -> str:
        return random.choice(TEXTS)

    cells: dict[str, Callable[[], Any]] = {
        **dict.fromkeys(("a", "b"), ints),
        **dict.fromkeys(("x", "y"), lambda: random.choice(FLOATS)),
        **dict.fromkeys(("s", "r"), texts),
        **dict.fromkeys(("event_time", "t"), times),
        "f": lambda: random.random() < 0.5,
        "user.tags": several(texts),
        "nums": several(ints),
    }

    def column(name: str) -> Sequence[Any]:
        return [None if random.random() < 0.15 else cells[name]() for _ in range(num_rows)]

    return {name: pa.array(column(name), kind) for name, kind in ARROW.items()}
