"""Expressions of a scenario: a safe part of Python, read as such and run as DuckDB SQL.

    rating >= 4        item.genres is None        'Drama' in item.genres and not user.age < 18
    hour(event_time)   bucket(video.duration, 5)  gender in ['F', 'M']   coalesce(age, 0) // 10
    event_time - user.signed_up     item.published >= '2022-04-01'       bucket(event_time - state.since, 3600)

Names are columns, `entity.column`, and `event_time`. Null is SQL's: whatever touches a null is null, `and`/`or` are
three-valued, and only `is None`, `== None` and `coalesce` see it. Where Python would fail, dividing by zero or taking
the logarithm of -1, the result is null. `//` and `%` round down as Python's do.

`event_time` and columns of type `time` are times, held as microseconds since 1970 UTC. The difference of two is a
number of seconds; a time plus or minus seconds is a time. A time is compared with a time, or with a text such as
'2022-04-01' or '2022-04-01T10:00:00+02:00' (without an offset: in the scenario's zone).

Only the listed syntax and functions pass, and every name and value is quoted, so text of a scenario never becomes SQL.
"""

from __future__ import annotations

import ast
import datetime
import difflib
import functools
import re
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from feature_jobs.errors import BadInputError

EVENT_TIME = "event_time"
_MAX_LENGTH = 2_000
_MAX_SQL = 100_000  # some operators repeat their operands; nesting must not blow up
_ALLOWED = "comparisons, and/or/not, + - * / // %, in [..], is None, numbers, strings, columns and functions"


@dataclass(frozen=True)
class Function:
    """A function of expressions: how many arguments it takes (`most` None: any number) and one line of help."""

    least: int
    most: int | None
    help: str


FUNCTIONS: dict[str, Function] = {
    "abs": Function(1, 1, "abs(x): distance from zero"),
    "min": Function(2, None, "min(a, b, ...): the smallest; null if one is null"),
    "max": Function(2, None, "max(a, b, ...): the largest; null if one is null"),
    "floor": Function(1, 1, "floor(x): whole number below"),
    "log1p": Function(1, 1, "log1p(x): log(1 + x)"),
    "coalesce": Function(2, None, "coalesce(a, b, ...): the first that is not null"),
    "length": Function(1, 1, "length(x): characters of a text, or values of a list"),
    "lower": Function(1, 1, "lower(x): text in small letters"),
    "hour": Function(1, 1, "hour(t): 0..23 in the scenario's zone; t is a time, such as event_time"),
    "weekday": Function(1, 1, "weekday(t): Monday 0 .. Sunday 6 in the scenario's zone; t as for hour"),
    "bucket": Function(2, 2, "bucket(x, width): number of the step that x falls into, floor(x / width)"),
}

_COMPARE: dict[type[ast.cmpop], str] = {
    ast.Eq: "=",
    ast.NotEq: "<>",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
}
_ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod)
_FOREIGN = {"null": "None", "none": "None", "nan": "None", "nil": "None", "true": "True", "false": "False"}


def columns_of(expression: str) -> set[str]:
    """Names that the expression reads: `rating`, `user.gender`, `event_time`.

    Raises BadInputError where it is not a valid expression.
    """
    return set(_names(parse(expression)))


def to_sql(expression: str, column_sql: Callable[[str], str], *, zone: str = "UTC", times: Collection[str] = ()) -> str:
    """The expression as one DuckDB SQL expression, in parentheses where needed.

    `column_sql` maps each name of `columns_of` to its (quoted) SQL; `times` are the names of columns that are times,
    besides `event_time`. `zone` is that of `hour`, `weekday` and texts that are compared with a time.
    Raises BadInputError where it is not a valid expression.
    """
    tree = parse(expression)
    return _Sql(expression, column_sql, zone, {EVENT_TIME, *times}).of(tree)


def is_time(expression: str, times: Collection[str]) -> bool:
    """Whether the expression yields a time; `times` are the columns that are, besides `event_time`."""
    return _Sql(expression, str, "UTC", {EVENT_TIME, *times}).is_time(parse(expression))


@functools.lru_cache(maxsize=4096)
def parse(expression: str) -> ast.expr:
    """The checked syntax tree: every node is of the allowed kinds, calls have the right number of arguments.

    Raises BadInputError naming the expression, the position and a remedy.
    """
    text = _one_line(expression)
    if not text:
        raise BadInputError("expression '' is empty; write something like rating >= 4")
    if len(text) > _MAX_LENGTH:
        raise BadInputError(f"expression {text[:40]!r}...: {len(text)} characters; at most {_MAX_LENGTH}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd escapes and literals are refused or harmless, never worth a warning
            tree = ast.parse(text, mode="eval").body
        _check(text, tree)
    except SyntaxError as error:
        raise _syntax(text, error) from None
    except (ValueError, MemoryError, RecursionError):
        raise BadInputError(f"expression {text[:60]!r}: cannot be read; write it simpler") from None
    return tree


def column_name(node: ast.AST) -> str | None:
    """`rating` or `user.gender` where the node is a column, else None."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return f"{node.value.id}.{node.attr}"
    return None


def _names(node: ast.AST) -> Iterator[str]:
    if (name := column_name(node)) is not None:
        yield name
        return
    for child in node.args if isinstance(node, ast.Call) else ast.iter_child_nodes(node):
        yield from _names(child)


def problem(expression: str, node: ast.AST, what: str, remedy: str) -> BadInputError:
    """The error for a node of an expression; the position counts characters from 1."""
    text = _one_line(expression)
    offset = getattr(node, "col_offset", 0)  # in UTF-8 bytes
    position = len(text.encode()[:offset].decode(errors="ignore")) + 1
    return BadInputError(f"expression {text!r}, position {position}: {what}; {remedy}")


def _one_line(expression: str) -> str:
    return expression.strip().replace("\r", " ").replace("\n", " ")


def _syntax(text: str, error: SyntaxError) -> BadInputError:
    position = min(error.offset or 1, len(text) + 1)
    outside = re.sub(r"'[^']*'|\"[^\"]*\"", lambda quoted: "_" * len(quoted.group()), text)
    hints = (
        (r"(?<![=!<>])=(?![=])", "a single ="),
        (r"&&?", "&"),
        (r"\|\|?", "|"),
        (r"<>", "<>"),
        (r"!(?!=)", "!"),
        (r"(?i)\bis\s+not\s+null\b|\bis\s+null\b", "is null"),
        (r"\b(AND|OR|NOT|IN|IS)\b", "capital letters"),
    )
    remedies = {
        "a single =": "write == to compare",
        "&": "write and",
        "|": "write or",
        "<>": "write !=",
        "!": "write not",
        "is null": "write is None",
        "capital letters": "write and, or, not, in, is in small letters",
    }
    for pattern, what in hints:
        if found := re.search(pattern, outside):
            return BadInputError(f"expression {text!r}, position {found.start() + 1}: {what}; {remedies[what]}")
    return BadInputError(f"expression {text!r}, position {position}: {error.msg}; allowed: {_ALLOWED}")


def _check(text: str, node: ast.AST) -> None:
    """Refuses every node that is not on the list."""
    match node:
        case ast.Constant():
            _check_constant(text, node)
        case ast.Name():
            if right := _FOREIGN.get(node.id.lower()):
                raise problem(text, node, f"{node.id} is not a column", f"write {right}")
        case ast.Attribute():
            if not isinstance(node.value, ast.Name):
                raise problem(text, node, "a name of more than two parts", "write column or entity.column")
        case ast.BoolOp() | ast.UnaryOp(op=ast.Not() | ast.USub() | ast.UAdd()):
            _check_all(text, node)
        case ast.BinOp(op=op) if isinstance(op, _ARITHMETIC):
            _check_all(text, node)
        case ast.BinOp(op=ast.BitAnd() | ast.BitOr()):
            raise problem(text, node, "& and | are not for conditions", "write and, or")
        case ast.Compare():
            _check_compare(text, node)
        case ast.Call():
            _check_call(text, node)
        case _:
            raise problem(text, node, f"{ast.unparse(node)!r} is not allowed", f"allowed: {_ALLOWED}")


def _check_all(text: str, node: ast.AST) -> None:
    for child in node.args if isinstance(node, ast.Call) else ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            _check(text, child)


def _check_constant(text: str, node: ast.Constant) -> None:
    value = node.value
    if isinstance(value, str) and "\0" in value:
        raise problem(text, node, "a zero character in text", "leave it out")
    if isinstance(value, int) and not -(2**63) < value < 2**63:
        raise problem(text, node, f"{value} does not fit 64 bits", "write it with a decimal point")
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        raise problem(text, node, "an infinite number", "write a finite one")
    if not (value is None or isinstance(value, bool | int | float | str)):
        raise problem(text, node, f"a value of type {type(value).__name__}", "use numbers, texts, None, True, False")


def _check_compare(text: str, node: ast.Compare) -> None:
    _check(text, node.left)
    left = node.left
    for op, right in zip(node.ops, node.comparators, strict=True):
        match op:
            case ast.In() | ast.NotIn() if isinstance(right, ast.List | ast.Tuple | ast.Set):
                _check_members(text, right)
            case ast.In() | ast.NotIn() if column_name(right) is None:
                raise problem(text, right, "in needs a list", "write x in [1, 2], or value in list_column")
            case ast.In() | ast.NotIn():
                _check(text, right)
            case ast.Is() | ast.IsNot():
                _check(text, right)
                if not _is_none(right):
                    raise problem(text, right, "is only asks for None", "write == to compare")
            case _ if isinstance(op, ast.Eq | ast.NotEq):
                _check(text, right)
            case _:
                _check(text, right)
                if _is_none(left) or _is_none(right):
                    raise problem(text, right, "None has no order", "write is None or is not None")
        left = right


def _check_members(text: str, node: ast.List | ast.Tuple | ast.Set) -> None:
    if not node.elts:
        raise problem(text, node, "an empty list", "name at least one value")
    for element in node.elts:
        value = element.operand if isinstance(element, ast.UnaryOp) else element
        if not isinstance(value, ast.Constant):
            raise problem(text, element, "only numbers and texts in a list", "compare columns with == and or")
        if _is_none(value):
            raise problem(text, element, "None in a list", "write x is None or x in [..]")
        _check(text, element)


def _check_call(text: str, node: ast.Call) -> None:
    name = node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)
    function = FUNCTIONS.get(name)
    if function is None:
        close = difflib.get_close_matches(name, FUNCTIONS, n=1)
        remedy = f"did you mean {close[0]}?" if close else f"functions: {', '.join(FUNCTIONS)}"
        raise problem(text, node, f"{name} is not a function", remedy)
    num = len(node.args)
    starred = any(isinstance(argument, ast.Starred) for argument in node.args)
    if node.keywords or starred or num < function.least or (function.most is not None and num > function.most):
        raise problem(text, node, f"{name} with {num} arguments", function.help)
    _check_all(text, node)
    if name == "bucket":
        width = node.args[1]
        if not (isinstance(width, ast.Constant) and isinstance(width.value, int | float) and width.value > 0):
            raise problem(text, width, "the width of bucket is a number above zero", function.help)


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


class _Sql:
    """Writes a checked tree as SQL."""

    def __init__(self, expression: str, column_sql: Callable[[str], str], zone: str, times: Collection[str]) -> None:
        self.expression = expression
        self.column_sql = column_sql
        self.zone = zone
        self.times = times

    def of(self, node: ast.expr) -> str:
        """SQL of one node; anything that has operators is in parentheses."""
        sql = self._of(node)
        if len(sql) > _MAX_SQL:
            raise problem(self.expression, node, "nested too deep", "write it simpler")
        return sql

    def _of(self, node: ast.expr) -> str:
        sql = ""
        match node:
            case ast.Name() | ast.Attribute():
                sql = self.column_sql(column_name(node) or "")
            case ast.Constant():
                sql = literal(node.value)
            case ast.BoolOp(op=op, values=values):
                word = " AND " if isinstance(op, ast.And) else " OR "
                sql = f"({word.join(self.of(value) for value in values)})"
            case ast.UnaryOp(op=op, operand=operand):
                sign = {ast.Not: "NOT ", ast.USub: "-", ast.UAdd: ""}[type(op)]
                sql = f"({sign}{self.of(operand)})"
            case ast.BinOp():
                sql = self._arithmetic(node)
            case ast.Compare():
                sql = self._compare(node)
            case ast.Call(func=ast.Name(id=name)):
                sql = self._call(name, [self.of(argument) for argument in node.args])
        return sql

    def _arithmetic(self, node: ast.BinOp) -> str:
        left, right = self.of(node.left), self.of(node.right)
        if isinstance(node.op, ast.Add | ast.Sub) and (self.is_time(node.left) or self.is_time(node.right)):
            return self._time_arithmetic(node, left, right)
        match node.op:
            case ast.Add() | ast.Sub() | ast.Mult():
                sign = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*"}[type(node.op)]
                return f"({left} {sign} {right})"
            case ast.Div():
                return f"({left} / nullif({right}, 0))"
        # DuckDB's % has the sign of the left side and its // rounds to zero; Python's round down.
        mod = f"((({left} % nullif({right}, 0)) + {right}) % nullif({right}, 0))"
        return mod if isinstance(node.op, ast.Mod) else f"round(({left} - {mod}) // nullif({right}, 0))"

    def is_time(self, node: ast.expr) -> bool:
        """Whether the value is a time; `feature_jobs.expressions.types` refuses what does not fit."""
        match node:
            case ast.Name() | ast.Attribute():
                return column_name(node) in self.times
            case ast.BinOp(op=ast.Add()):
                return self.is_time(node.left) or self.is_time(node.right)
            case ast.BinOp(op=ast.Sub()):
                return self.is_time(node.left) and not self.is_time(node.right)
            case ast.Call(func=ast.Name(id="min" | "max" | "coalesce")):
                return any(self.is_time(argument) for argument in node.args)
        return False

    def _time_arithmetic(self, node: ast.BinOp, left: str, right: str) -> str:
        """Times are added and subtracted as 128-bit integers, so that no microsecond is lost and none overflows."""
        if isinstance(node.op, ast.Sub) and self.is_time(node.left) and self.is_time(node.right):
            return f"(CAST(CAST({left} AS HUGEINT) - {right} AS DOUBLE) / 1000000)"
        time, seconds = (left, right) if self.is_time(node.left) else (right, left)
        sign = "-" if isinstance(node.op, ast.Sub) else "+"
        us = f"TRY_CAST(round(CAST({seconds} AS DOUBLE) * 1000000) AS HUGEINT)"
        return f"TRY_CAST(CAST({time} AS HUGEINT) {sign} {us} AS BIGINT)"

    def _compare(self, node: ast.Compare) -> str:
        sides = [node.left, *node.comparators]
        pairs = [
            self._compare_two(op, left, right) for op, left, right in zip(node.ops, sides[:-1], sides[1:], strict=True)
        ]
        return pairs[0] if len(pairs) == 1 else f"({' AND '.join(pairs)})"

    def _compare_two(self, op: ast.cmpop, left: ast.expr, right: ast.expr) -> str:
        if isinstance(op, ast.In | ast.NotIn):
            negate = "NOT " if isinstance(op, ast.NotIn) else ""
            if isinstance(right, ast.List | ast.Tuple | ast.Set):
                return f"({self.of(left)} {negate}IN ({', '.join(self.of(value) for value in right.elts)}))"
            return f"({negate}contains({self.of(right)}, {self.of(left)}))"
        if _is_none(left) or _is_none(right):
            word = "IS NULL" if isinstance(op, ast.Is | ast.Eq) else "IS NOT NULL"
            return f"({self.of(left if _is_none(right) else right)} {word})"
        return f"({self._side(left, right)} {_COMPARE[type(op)]} {self._side(right, left)})"

    def _side(self, node: ast.expr, other: ast.expr) -> str:
        """SQL of one side of a comparison; a text beside a time is a time."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and self.is_time(other):
            return literal(time_of(self.expression, node, self.zone))
        return self.of(node)

    def _call(self, name: str, arguments: list[str]) -> str:
        joined, first = ", ".join(arguments), arguments[0]
        match name:
            case "min" | "max":
                any_null = " OR ".join(f"{argument} IS NULL" for argument in arguments)
                word = "least" if name == "min" else "greatest"
                sql = f"(CASE WHEN {any_null} THEN NULL ELSE {word}({joined}) END)"
            case "floor":
                sql = f"TRY_CAST(floor({first}) AS BIGINT)"
            case "bucket":
                sql = f"TRY_CAST(floor({first} / {arguments[1]}) AS BIGINT)"
            case "log1p":
                sql = f"(CASE WHEN {first} > -1 THEN ln(1 + CAST({first} AS DOUBLE)) END)"
            case "hour":
                sql = f"TRY(date_part('hour', {self._local(first)}))"
            case "weekday":
                sql = f"TRY(isodow({self._local(first)}) - 1)"
            case _:  # abs, coalesce, length, lower are called the same in DuckDB
                sql = f"{name}({joined})"
        return sql

    def _local(self, time_us: str) -> str:
        """SQL timestamp of microseconds since 1970 UTC, as a clock in the zone shows it."""
        utc = f"make_timestamp(CAST({time_us} AS BIGINT))"
        return utc if self.zone == "UTC" else f"timezone({literal(self.zone)}, timezone('UTC', {utc}))"


def time_of(expression: str, node: ast.Constant, zone: str) -> int:
    """A text such as '2022-04-01' as microseconds since 1970 UTC, read in `zone` where it has no offset.

    Raises BadInputError where it is not a time.
    """
    try:
        moment = datetime.datetime.fromisoformat(str(node.value).strip())
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=ZoneInfo(zone))
        since_1970 = moment - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    except (ValueError, OverflowError, ZoneInfoNotFoundError):
        raise problem(expression, node, f"{node.value!r} is not a time", "write it as '2022-04-01T10:00:00'") from None
    return since_1970 // datetime.timedelta(microseconds=1)


def literal(value: object) -> str:
    """A Python value as a typed SQL literal."""
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, int):
        return f"{value}::BIGINT"
    if isinstance(value, float):
        return f"{value!r}::DOUBLE"
    return "'" + str(value).replace("'", "''") + "'::VARCHAR"
