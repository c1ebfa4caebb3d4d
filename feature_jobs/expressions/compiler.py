"""Writes expressions as DuckDB SQL, for queries over files: the checks and proposals of `recloop check` and `init`.

Steps evaluate expressions with `feature_jobs.expressions.evaluate`, whose results are the same but for what its tests
name. Every name and value is quoted, so text of a scenario never becomes SQL.
"""

from __future__ import annotations

import ast
import datetime
from collections.abc import Callable, Collection
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from feature_jobs.expressions.functions import FUNCTIONS
from feature_jobs.expressions.parser import (
    EVENT_TIME,
    column_name,
    columns_of,
    custom_name,
    is_none,
    parse,
    problem,
)

__all__ = ["EVENT_TIME", "columns_of", "has_sql", "is_time", "literal", "time_of", "to_sql"]

_MAX_SQL = 100_000  # some operators repeat their operands; nesting must not blow up
_COMPARE: dict[type[ast.cmpop], str] = {
    ast.Eq: "=",
    ast.NotEq: "<>",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
}


def to_sql(expression: str, column_sql: Callable[[str], str], *, zone: str = "UTC", times: Collection[str] = ()) -> str:
    """The expression as one DuckDB SQL expression, in parentheses where needed.

    `column_sql` maps each name of `columns_of` to its (quoted) SQL; `times` are the names of columns that are times,
    besides `event_time`. `zone` is that of `hour`, `weekday` and texts that are compared with a time.
    Raises BadInputError where it is not a valid expression.
    """
    tree = parse(expression)
    return _Sql(expression, column_sql, zone, {EVENT_TIME, *times}).of(tree)


def has_sql(expression: str) -> bool:
    """Says if DuckDB can compute it: not functions of texts and lists such as `lookup`."""
    return not any(isinstance(node, ast.Call) and _is_of_features(node) for node in ast.walk(parse(expression)))


def _is_of_features(call: ast.Call) -> bool:
    """Says if numpy and Arrow compute the function, and not DuckDB."""
    return custom_name(call) is not None or bool(FUNCTIONS[ast.unparse(call.func)].takes)


def is_time(expression: str, times: Collection[str]) -> bool:
    """Says if the expression yields a time; `times` are the columns that are times, besides `event_time`."""
    return _Sql(expression, str, "UTC", {EVENT_TIME, *times}).is_time(parse(expression))


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
            case ast.IfExp(test=test, body=body, orelse=orelse):
                sql = f"(CASE WHEN {self.of(test)} THEN {self.of(body)} ELSE {self.of(orelse)} END)"
            case ast.UnaryOp(op=op, operand=operand):
                sign = {ast.Not: "NOT ", ast.USub: "-", ast.UAdd: ""}[type(op)]
                sql = f"({sign}{self.of(operand)})"
            case ast.BinOp():
                sql = self._arithmetic(node)
            case ast.Compare():
                sql = self._compare(node)
            case ast.Call(func=function) if _is_of_features(node):
                what = f"{ast.unparse(function)} is a function of features alone"
                raise problem(self.expression, node, what, "compute it in the source")
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
                return f"({left} / nullif({right}, 0))"  # a division by zero is unknown in one row, not an error of all
        # DuckDB's % has the sign of the left side and its // rounds to zero; Python's round down.
        mod = f"((({left} % nullif({right}, 0)) + {right}) % nullif({right}, 0))"
        # Between floats DuckDB's // does not round; round() takes the whole number that the quotient nearly is.
        return mod if isinstance(node.op, ast.Mod) else f"round(({left} - {mod}) // nullif({right}, 0))"

    def is_time(self, node: ast.expr) -> bool:
        """Says if the value is a time; `feature_jobs.expressions.types` refuses types that do not fit."""
        match node:
            case ast.Name() | ast.Attribute():
                return column_name(node) in self.times
            case ast.BinOp(op=ast.Add()):
                return self.is_time(node.left) or self.is_time(node.right)
            case ast.BinOp(op=ast.Sub()):
                return self.is_time(node.left) and not self.is_time(node.right)
            case ast.IfExp():
                return self.is_time(node.body) or self.is_time(node.orelse)
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
        if is_none(left) or is_none(right):
            word = "IS NULL" if isinstance(op, ast.Is | ast.Eq) else "IS NOT NULL"
            return f"({self.of(left if is_none(right) else right)} {word})"
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
                word = "least" if name == "min" else "greatest"  # DuckDB's skip nulls, ours pass them on
                sql = f"(CASE WHEN {any_null} THEN NULL ELSE {word}({joined}) END)"
            case "floor":
                sql = f"TRY_CAST(floor({first}) AS BIGINT)"  # TRY: null where it exceeds 64 bits
            case "bucket":
                sql = f"TRY_CAST(floor({first} / {arguments[1]}) AS BIGINT)"
            case "log1p":
                sql = f"(CASE WHEN {first} > -1 THEN ln(1 + CAST({first} AS DOUBLE)) END)"
            case "sqrt":
                sql = f"(CASE WHEN {first} >= 0 THEN sqrt(CAST({first} AS DOUBLE)) END)"
            case "exp":
                sql = f"exp(CAST({first} AS DOUBLE))"
            case "matches":
                sql = f"regexp_matches({joined})"
            case "hour":
                sql = f"TRY(date_part('hour', {self._local(first)}))"
            case "weekday":
                # TRY: a time beyond DuckDB's calendar is null, not an error of the whole day.
                sql = f"TRY(isodow({self._local(first)}) - 1)"
            case _:  # abs, coalesce, length, lower, starts_with, contains: the same in DuckDB
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
    # Not by timestamp(), a float, which loses microseconds.
    return since_1970 // datetime.timedelta(microseconds=1)


def literal(value: object) -> str:
    """A Python value as a typed SQL literal."""
    if value is None:
        return "NULL"
    # Before int, of which Python's bool is a kind.
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, int):
        return f"{value}::BIGINT"  # DuckDB would make 1 an INTEGER, and a product of two would overflow
    if isinstance(value, float):
        return f"{value!r}::DOUBLE"  # repr is the shortest text that reads back as the same float
    return "'" + str(value).replace("'", "''") + "'::VARCHAR"
