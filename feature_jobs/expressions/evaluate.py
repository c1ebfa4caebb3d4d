"""Evaluates expressions over columns with numpy and Arrow alone: the same code for a day of rows and for a request.

`feature_jobs.expressions.parser` describes the language. An expression is compiled once for the types of its columns,
into functions inside one another; then a call costs a few microseconds for each operator and 500 rows.
"""

from __future__ import annotations

import ast
import functools
import itertools
import operator
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feature_jobs.errors import BadInputError
from feature_jobs.expressions import clock, lists
from feature_jobs.expressions.compiler import time_of
from feature_jobs.expressions.custom import CustomFunction, custom_function
from feature_jobs.expressions.functions import FUNCTIONS, Function
from feature_jobs.expressions.parser import (
    EVENT_TIME,
    LISTS,
    column_name,
    columns_of,
    custom_name,
    is_none,
    parse,
    problem,
)
from feature_jobs.expressions.types import Types
from feature_jobs.expressions.vectors import (
    DTYPES,
    FLOAT_ORDER,
    NULL,
    NULL_CONDITION,
    Columns,
    Numbers,
    Vector,
    among,
    array_of,
    chosen,
    combined,
    constant,
    converted,
    exp,
    first_known,
    floor_divided,
    is_null,
    kind_of,
    larger,
    length,
    log1p,
    mapped,
    member,
    null_of,
    numbers,
    python_mod,
    rounded,
    smaller,
    sqrt,
    text_test,
    vector,
    whole,
)

Run = Callable[[Columns], Vector]
Pair = Callable[[Vector, Vector, int], Vector]
"""A function of two sides and the number of rows."""

_COMPARE: dict[type[ast.cmpop], str] = {
    ast.Eq: "equal",
    ast.NotEq: "not_equal",
    ast.Lt: "less",
    ast.LtE: "less_equal",
    ast.Gt: "greater",
    ast.GtE: "greater_equal",
}
_FLOATS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.divide,
    ast.FloorDiv: floor_divided,
    ast.Mod: python_mod,
}
_WHOLE: dict[type[ast.operator], tuple[Callable[[Any, Any], Any], Callable[[int, int], int]]] = {
    ast.Add: (np.add, operator.add),
    ast.Sub: (np.subtract, operator.sub),
    ast.Mult: (np.multiply, operator.mul),
    ast.FloorDiv: (np.floor_divide, operator.floordiv),
    ast.Mod: (np.remainder, operator.mod),
}
"""Between integers: numpy's function, and Python's without a limit."""


def evaluate(
    expression: str, columns: Columns | Mapping[str, pa.Array], *, zone: str = "UTC", times: Collection[str] = ()
) -> pa.Array:
    """One value a row: int64 (also for times), float64, bool, string or list.

    `times` are the columns that are times, besides `event_time`; `zone` is that of `hour`, `weekday` and texts that are
    compared with a time. Raises BadInputError where the expression does not fit the columns, and where a whole number
    does not fit 64 bits.
    """
    if not isinstance(columns, Columns):
        columns = Columns(columns, len(next(iter(columns.values()))))
    kinds = []
    # Sorted, because a set has no order and the kinds are part of the key of the cache below.
    for name in sorted(columns_of(expression)):
        if name not in columns.arrays:
            raise BadInputError(f"expression {expression!r}: {name} is not a column; give its values")
        is_time = name == EVENT_TIME or name in times
        kinds.append((name, "time" if is_time else kind_of(columns.arrays[name].type)))
    return compiled(expression, tuple(kinds), zone)(columns)


# A server asks for the same expressions with each request, and compiling one takes about as long as 500 rows of it.
@functools.lru_cache(maxsize=4096)
def compiled(expression: str, kinds: tuple[tuple[str, str], ...], zone: str = "UTC") -> Callable[[Columns], pa.Array]:
    """The expression as a function of columns; `kinds` are their names and types (`feature_jobs.expressions.types`)."""
    tree = parse(expression)
    compiler = _Compiler(expression, dict(kinds), zone)
    kind, run = compiler.types.of(tree), compiler.of(tree)
    if name := column_name(tree):
        return operator.methodcaller("whole", name)

    def call(columns: Columns) -> pa.Array:
        # Where a row is null its value is arbitrary, so a warning about it means nothing.
        with np.errstate(all="ignore"):
            return array_of(run(columns), kind, columns.num_rows)

    return call


class _Compiler:
    """Turns a checked tree into functions."""

    def __init__(self, expression: str, kinds: Mapping[str, str], zone: str) -> None:
        self.expression, self.zone = expression, zone
        self.types = Types(expression, kinds.__getitem__)

    def of(self, node: ast.expr) -> Run:
        """A function that yields values of the kind that `types` gives the node."""
        match node:
            case ast.Constant(value=value):
                run = _always(constant(value))
            case ast.Name() | ast.Attribute():
                run = operator.methodcaller("vector", column_name(node))
            case ast.BoolOp(op=op, values=values):
                run = _combined([self.to("bool", value) for value in values], decides=isinstance(op, ast.Or))
            case ast.IfExp():
                run = self._chosen(node)
            case ast.UnaryOp(op=op, operand=operand):
                run = self._unary(node, op, operand)
            case ast.BinOp() if "time" in (self.types.of(node.left), self.types.of(node.right)):
                run = self._time_arithmetic(node)
            case ast.BinOp():
                run = self._arithmetic(node, node.op, node.left, node.right)
            case ast.Compare():
                run = self._compare(node)
            case ast.Call(args=arguments) if (custom := custom_name(node)) is not None:
                run = self._custom(custom_function(custom), arguments)
            case ast.Call(func=ast.Name(id=name), args=arguments) if FUNCTIONS[name].takes:
                run = self._row_function(name, FUNCTIONS[name], arguments, self.types.of(node))
            case ast.Call(func=ast.Name(id=name), args=arguments):
                run = self._call(name, arguments, self.types.of(node))
            case _:  # a list is only read by the `in` beside it
                run = _always(NULL)
        return run

    def to(self, kind: str, node: ast.expr) -> Run:
        """The same, converted to a kind that the types allow."""
        run, convert = self.of(node), self._conversion(node, kind)
        return run if convert is None else lambda columns: convert(run(columns))

    def _conversion(self, node: ast.expr, kind: str) -> Callable[[Vector], Vector] | None:
        given = self.types.of(node)
        if kind == given:
            return None
        if kind in DTYPES:
            return functools.partial(converted, dtype=DTYPES[kind])
        return lambda _: null_of(kind)  # only null is converted to a text or a list

    def _common(self, *nodes: ast.expr) -> str:
        kinds = {self.types.of(node) for node in nodes} - {"null"}
        return next((kind for kind in ("float", "int") if kind in kinds), min(kinds, default="null"))

    def _chosen(self, node: ast.IfExp) -> Run:
        kind = self.types.of(node)
        test, body, orelse = self.to("bool", node.test), self.to(kind, node.body), self.to(kind, node.orelse)
        return lambda columns: chosen(test(columns), body(columns), orelse(columns), columns.num_rows)

    def _unary(self, node: ast.expr, op: ast.unaryop, operand: ast.expr) -> Run:
        if isinstance(op, ast.UAdd):
            return self.of(operand)
        if isinstance(op, ast.USub) and self.types.of(operand) == "int":
            # As a difference, because the negative of the smallest integer does not fit.
            return self._arithmetic(node, ast.Sub(), ast.Constant(0), operand)
        function = np.logical_not if isinstance(op, ast.Not) else np.negative
        return _mapped(function, self.to("bool", operand) if isinstance(op, ast.Not) else self.of(operand))

    def _arithmetic(self, node: ast.expr, op: ast.operator, left: ast.expr, right: ast.expr) -> Run:
        is_float = isinstance(op, ast.Div) or self._common(left, right) == "float"
        first, second = (self.to("float" if is_float else "int", side) for side in (left, right))
        divides = isinstance(op, ast.Div | ast.FloorDiv | ast.Mod)

        def run(columns: Columns) -> Vector:
            (p, p_known), (q, q_known) = first(columns), second(columns)
            known = p_known & q_known
            # A division by zero is unknown in one row, not an error of all.
            if divides and (is_zero := q == 0).any():
                known, q = known & ~is_zero, np.where(is_zero, q.dtype.type(1), q)
            return Vector(_FLOATS[type(op)](p, q) if is_float else self._whole(node, op, p, q, known), known)

        return run

    def _whole(self, node: ast.expr, op: ast.operator, p: Any, q: Any, known: Any) -> Any:
        """An operation between integers. Raises BadInputError where a known result does not fit 64 bits."""
        function, exact = _WHOLE[type(op)]
        far = (np.abs(function(p.astype(np.float64), q.astype(np.float64))) > 9.2e18) & known
        if far.any():  # near the limit a float is too coarse to decide
            for a, b in zip(*(np.broadcast_to(side, far.shape)[far].tolist() for side in (p, q)), strict=True):
                if not -(2**63) <= exact(a, b) < 2**63:
                    what = f"the result of {a} and {b} does not fit 64 bits"
                    raise problem(self.expression, node, what, "multiply one of them by 1.0, which makes it a float")
        return function(p, q)

    def _time_arithmetic(self, node: ast.BinOp) -> Run:
        kinds = [self.types.of(node.left), self.types.of(node.right)]
        if kinds == ["time", "time"]:
            return _mapped(clock.seconds_between, self.of(node.left), self.of(node.right))
        time, seconds = (node.left, node.right) if kinds[0] == "time" else (node.right, node.left)
        start, distance = self.of(time), self.to("float", seconds)
        sign = -1 if isinstance(node.op, ast.Sub) else 1

        def run(columns: Columns) -> Vector:
            (p, p_known), (q, q_known) = start(columns), distance(columns)
            moved, fits = clock.moved(p, sign * rounded(q * 1_000_000))
            return Vector(moved, p_known & q_known & fits)

        return run

    def _compare(self, node: ast.Compare) -> Run:
        nodes = [node.left, *node.comparators]
        pairs = [self._pair(op, *sides) for op, sides in zip(node.ops, itertools.pairwise(nodes), strict=True)]
        # Each side once: in a chain it belongs to two pairs, and chains inside one another would double the work.
        runs = [self.of(side) for side in nodes]

        def run(columns: Columns) -> Vector:
            sides = itertools.pairwise([side(columns) for side in runs])
            found = [pair(*both, columns.num_rows) for pair, both in zip(pairs, sides, strict=True)]
            return found[0] if len(found) == 1 else combined(found, decides=False)

        return run

    def _pair(self, op: ast.cmpop, left: ast.expr, right: ast.expr) -> Pair:
        if isinstance(op, ast.In | ast.NotIn):
            pair = self._in_constants(left, right.elts) if isinstance(right, LISTS) else self._in(left, right)
            return pair if isinstance(op, ast.In) else lambda *sides: mapped(np.logical_not, pair(*sides))
        if isinstance(left, LISTS):
            raise problem(self.expression, left, "a list is compared", "put (x in [..]) in parentheses")
        if is_none(left) or is_none(right):
            index, wanted = int(is_none(left)), isinstance(op, ast.Is | ast.Eq)
            return lambda *sides: Vector(is_null(sides[index]) == wanted)
        kind = self._common(left, right) if "time" not in (self.types.of(left), self.types.of(right)) else "time"
        if kind.startswith("list"):  # beside a null, or the types would refuse it
            return lambda *_: NULL_CONDITION
        first, second, order = self._side(left, kind), self._side(right, kind), _COMPARE[type(op)]
        if kind == "string":
            compare = getattr(pc, order)
            return lambda p, q, _: numbers(compare(first(p).values, second(q).values))
        function = FLOAT_ORDER[order] if kind == "float" else getattr(np, order)
        return lambda p, q, _: mapped(function, first(p), second(q))

    def _side(self, node: ast.expr, kind: str) -> Callable[[Vector], Vector]:
        """The conversion of one side of a comparison; a text beside a time is a time."""
        if kind == "time" and isinstance(node, ast.Constant) and isinstance(node.value, str):
            moment = constant(time_of(self.expression, node, self.zone))
            return lambda _: moment
        return self._conversion(node, kind) or _same

    def _in_constants(self, left: ast.expr, elements: list[ast.expr]) -> Pair:
        kind = self._common(left, *elements)
        convert, nothing = self._side(left, kind), Columns({}, 1)
        members = [array_of(self.to(kind, element)(nothing), kind, 1)[0].as_py() for element in elements]
        if kind == "string":
            texts = pa.array(members, pa.string())
            return lambda p, _q, _num: among(convert(p).values, texts)
        wanted: Numbers = np.array(members, DTYPES[kind])
        return lambda p, _q, _num: mapped(lambda values: np.isin(values, wanted), convert(p))

    def _in(self, left: ast.expr, right: ast.expr) -> Pair:
        kind = self.types.of(left)
        if self.types.of(right) == "string":
            convert = self._side(left, "string")
            return lambda p, q, num: text_test("contains", q, convert(p), num)
        if kind == "null":
            return lambda *_: NULL_CONDITION
        return lambda p, q, num: member(array_of(p, kind, num), array_of(q, "list", num))

    def _call(self, name: str, arguments: list[ast.expr], kind: str) -> Run:
        first = arguments[0]
        match name:
            case "coalesce" | "min" | "max":
                fold = {"coalesce": first_known, "min": smaller, "max": larger}[name]
                # A None alone has no type; only coalesce can skip it.
                known = [a for a in arguments if name != "coalesce" or self.types.of(a) != "null"] or arguments
                runs = [self.to(kind, argument) for argument in known]
                return lambda columns: functools.reduce(fold, [run(columns) for run in runs])
            case "starts_with" | "contains" | "matches":
                text, part = (self.to("string", argument) for argument in arguments)
                return lambda columns: text_test(name, text(columns), part(columns), columns.num_rows)
            case "lower":
                text = self.to("string", first)
                return lambda columns: Vector(pc.utf8_lower(text(columns).values))
            case "length":
                given = self.of(first) if self.types.of(first) != "null" else self.to("string", first)
                return lambda columns: length(given(columns).values)
            case "hour" | "weekday":
                return self._clock(getattr(clock, name), first)
        return self._number(name, arguments)

    def _row_function(self, name: str, function: Function, arguments: list[ast.expr], kind: str) -> Run:
        """A function of texts and lists; a list in brackets is one for all rows."""
        quoted = {n: ast.literal_eval(a) for n, a in enumerate(arguments) if n in function.quoted}
        given = [argument for n, argument in enumerate(arguments) if n not in quoted]
        kinds = [self.types.known.get(argument, "list") for argument in given]
        if "null" in kinds:
            return _always(null_of(kind))
        runs = [_listed(a) if isinstance(a, LISTS) else self._array(a, k) for a, k in zip(given, kinds, strict=True)]
        return lambda columns: lists.call(name, [run(columns) for run in runs], quoted)

    def _custom(self, function: CustomFunction, arguments: list[ast.expr]) -> Run:
        """A function of a user's own, which computes row by row."""
        runs = [self._array(a, kind) for a, kind in zip(arguments, function.takes, strict=True)]

        def run(columns: Columns) -> Vector:
            found = function(*(one(columns) for one in runs))
            return vector(found) if function.gives in DTYPES else Vector(found)

        return run

    def _array(self, node: ast.expr, kind: str) -> Callable[[Columns], pa.Array]:
        run = self.to(kind, node)
        return lambda columns: array_of(run(columns), kind, columns.num_rows)

    def _clock(self, function: Callable[[Any, str], tuple[Any, Any]], node: ast.expr) -> Run:
        run, is_time = self.of(node), self.types.of(node) in ("time", "int")

        def call(columns: Columns) -> Vector:
            values, known = run(columns) if is_time else whole(run(columns), np.rint)
            found, in_calendar = function(values, self.zone)
            return Vector(found, known & in_calendar)

        return call

    def _number(self, name: str, arguments: list[ast.expr]) -> Run:
        """abs, floor, log1p, exp, sqrt and bucket."""
        first, is_float = arguments[0], self._common(*arguments) == "float"
        if name in ("log1p", "exp", "sqrt"):
            number, function = self.to("float", first), {"log1p": log1p, "exp": exp, "sqrt": sqrt}[name]
            return lambda columns: function(number(columns))
        if name == "abs" and not is_float:
            # Of the negative number, which does not fit for the smallest integer.
            first = ast.copy_location(ast.UnaryOp(ast.USub(), first), first)
        kind = "float" if is_float else "int"
        run = self.to(kind, first)
        if name == "bucket":
            run = _mapped(np.divide if is_float else np.floor_divide, run, self.to(kind, arguments[1]))
        if is_float and name != "abs":
            return lambda columns: whole(run(columns), np.floor)
        return _mapped(np.abs, run) if name == "abs" else run


def _mapped(function: Callable[..., Any], *runs: Run) -> Run:
    return lambda columns: mapped(function, *(run(columns) for run in runs))


def _listed(node: ast.expr) -> Callable[[Columns], pa.Scalar]:
    one = pa.scalar(list(ast.literal_eval(node)))
    return lambda _: one


def _same(found: Vector) -> Vector:
    return found


def _always(found: Vector) -> Run:
    return lambda _: found


def _combined(runs: list[Run], *, decides: bool) -> Run:
    return lambda columns: combined([run(columns) for run in runs], decides=decides)
