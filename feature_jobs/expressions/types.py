"""Types of a scenario's expressions, found before any data is read."""

from __future__ import annotations

import ast
from collections.abc import Callable

from feature_jobs.expressions.compiler import time_of
from feature_jobs.expressions.functions import FUNCTIONS, Function
from feature_jobs.expressions.parser import EVENT_TIME, LISTS, column_name, custom_name, parse, problem

NUMBERS = ("int", "float")
_KIND = {
    "int": "a number",
    "float": "a number",
    "string": "text",
    "bool": "a yes/no value",
    "time": "a time",
    "null": "nothing",
}
_RESULT = {
    "log1p": "float",
    "exp": "float",
    "sqrt": "float",
    "floor": "int",
    "bucket": "int",
    "hour": "int",
    "weekday": "int",
}
_TEXT_TESTS = ("starts_with", "contains", "matches")


def type_of(expression: str, column_type: Callable[[str], str]) -> str:
    """`int`, `float`, `string`, `bool`, `time`, `list[int]`, `list[string]`, or `null` where it is None alone.

    `column_type` gives the type of each name of `columns_of`, except `event_time`. Raises BadInputError where an
    operator or a function does not fit its arguments.
    """
    return Types(expression, column_type).of(parse(expression))


def _kind(kind: str) -> str:
    return _KIND.get(kind, "a list")


class Types:
    """Types of the nodes of one expression. Raises BadInputError where an operator or a function does not fit."""

    def __init__(self, expression: str, column_type: Callable[[str], str]) -> None:
        self.expression = expression
        self.column_type = column_type
        self.known: dict[ast.expr, str] = {}

    def of(self, node: ast.expr) -> str:
        """Type of one node, its parts checked once: a node is asked for several times by each of those above it."""
        if node not in self.known:
            self.known[node] = self._of(node)
        return self.known[node]

    def _of(self, node: ast.expr) -> str:
        kind = "bool"
        match node:
            case ast.Name() | ast.Attribute():
                name = column_name(node) or ""
                kind = "time" if name == EVENT_TIME else self.column_type(name)
            case ast.Constant(value=value):
                kind = {bool: "bool", int: "int", float: "float", str: "string"}.get(type(value), "null")
            case ast.BoolOp(values=parts):
                for part in parts:
                    self._condition(part)
            case ast.IfExp():
                kind = self._choice(node)
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                self._condition(operand)
            case ast.UnaryOp(operand=operand):
                kind = self._number(operand, "-")
            case ast.BinOp():
                kind = self._arithmetic(node)
            case ast.Compare():
                self._compare(node)
            case ast.Call() if (custom := custom_name(node)) is not None:
                kind = self._custom(custom, node)
            case ast.Call(func=ast.Name(id=name)) if FUNCTIONS[name].takes:
                kind = self._row_function(name, FUNCTIONS[name], node.args)
            case ast.Call(func=ast.Name(id=name)):
                kind = self._call(name, node.args)
        return kind

    def _choice(self, node: ast.IfExp) -> str:
        self._condition(node.test)
        kinds = (self.of(node.body), self.of(node.orelse))
        kind = kinds[0] if kinds[0] == kinds[1] else self._same(node.body, node.orelse)
        if "bool" in kinds and kind in NUMBERS:
            what = "a choice between a condition and a number"
            raise problem(self.expression, node, what, "write 1 or 0 for the condition")
        return kind

    def _arithmetic(self, node: ast.BinOp) -> str:
        kinds = (self.of(node.left), self.of(node.right))
        match node.op, kinds:
            case ast.Sub(), ("time", "time"):
                # In seconds, with a fraction of microseconds.
                return "float"
            case ast.Add(), ("time", "time"):
                raise problem(
                    self.expression, node, "a time is added to a time", "write - for the seconds between them"
                )
            case ast.Add(), ("time", _):
                self._number(node.right, "a time plus")
                return "time"
            case ast.Add(), (_, "time"):
                self._number(node.left, "a time plus")
                return "time"
            case ast.Sub(), ("time", _):
                self._number(node.right, "a time minus")
                return "time"
        kinds = (self._number(node.left, "arithmetic"), self._number(node.right, "arithmetic"))
        return "float" if "float" in kinds or isinstance(node.op, ast.Div) else "int"

    def _condition(self, node: ast.expr) -> None:
        kind = self.of(node)
        if kind not in ("bool", "null", *NUMBERS):
            raise problem(
                self.expression, node, f"{_kind(kind)} is not a condition", "compare it: == '...', is not None"
            )

    def _number(self, node: ast.expr, what: str) -> str:
        kind = self.of(node)
        if kind not in ("null", *NUMBERS):
            remedy = {
                "bool": "combine conditions with and, or",
                "time": "subtract another time from it, which gives seconds, or take hour(t) or weekday(t)",
            }.get(kind, "use a column of numbers")
            raise problem(self.expression, node, f"{what} with {_kind(kind)}", remedy)
        return kind

    def _text(self, node: ast.expr, what: str) -> None:
        if (kind := self.of(node)) not in ("string", "null"):
            raise problem(self.expression, node, f"{what} of {_kind(kind)}", "give it a text")

    def _compare(self, node: ast.Compare) -> None:
        left = node.left
        for op, right in zip(node.ops, node.comparators, strict=True):
            if isinstance(right, ast.List | ast.Tuple | ast.Set):
                for element in right.elts:
                    self._same(left, element)
            elif isinstance(op, ast.In | ast.NotIn):
                self._member(left, right)
            else:
                self._compared(left, right)
            left = right

    def _compared(self, left: ast.expr, right: ast.expr) -> None:
        """Two sides of a comparison; a text beside a time must be one."""
        for node, other in ((left, right), (right, left)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and self.of(other) == "time":
                time_of(self.expression, node, "UTC")  # any zone: it reads in all zones or in none
                return
        self._same(left, right)

    def _same(self, left: ast.expr, right: ast.expr) -> str:
        """Common type of two sides that are compared or chosen between."""
        return self._common(self.of(left), left, right)

    def _common(self, kind: str, left: ast.expr, right: ast.expr) -> str:
        kinds = [kind, self.of(right)]
        # None fits every type: a result that reads it becomes null.
        if "null" in kinds:
            return kinds[0] if kinds[1] == "null" else kinds[1]
        if any(kind.startswith("list") for kind in kinds):
            raise problem(self.expression, left, "a list is compared", "write value in list_column, or length(list)")
        what = f"{_kind(kinds[0])} is compared with {_kind(kinds[1])}"
        if "time" in kinds and kinds[0] != kinds[1]:
            raise problem(self.expression, right, what, "compare it with a time, or a text such as '2022-04-01'")
        if "string" in kinds and kinds[0] != kinds[1]:
            raise problem(self.expression, right, what, "texts stand in quotes, numbers without; or change the type")
        # A condition beside a number counts as 1 or 0.
        return next((number for number in ("float", "int") if number in kinds), kinds[0])

    def _member(self, left: ast.expr, right: ast.expr) -> None:
        kind, value = self.of(right), self.of(left)
        if kind == "string":
            self._text(left, "in a text: looked for is")
        elif not kind.startswith("list"):
            raise problem(self.expression, right, f"in needs a list, not {_kind(kind)}", "write x in [1, 2]")
        elif value not in (kind[5:-1], "null"):
            raise problem(self.expression, left, f"{_kind(value)} in a {kind}", f"look for {_kind(kind[5:-1])}")

    def _call(self, name: str, arguments: list[ast.expr]) -> str:
        kind = _RESULT.get(name, "int")
        if name == "length":
            if (given := self.of(arguments[0])) in ("bool", "time", *NUMBERS):
                raise problem(self.expression, arguments[0], f"length of {_kind(given)}", "give it a text or a list")
        elif name == "lower" or name in _TEXT_TESTS:
            for argument in arguments:
                self._text(argument, name)
            kind = "string" if name == "lower" else "bool"
        elif name == "coalesce" or (name in ("min", "max") and "time" in map(self.of, arguments)):
            kind = self.of(arguments[0])
            for argument in arguments[1:]:
                kind = self._common(kind, arguments[0], argument)
        elif name in ("hour", "weekday") and self.of(arguments[0]) == "time":
            kind = "int"
        else:
            kinds = [self._number(argument, name) for argument in arguments]
            if name not in _RESULT:
                kind = next((number for number in ("float", "int") if number in kinds), "null")
        return kind

    def _row_function(self, name: str, function: Function, arguments: list[ast.expr]) -> str:
        """A function of texts and lists."""
        kinds = [self._list(one) if isinstance(one, LISTS) else self.of(one) for one in arguments]
        # Not strict, because the last arguments may be left out.
        for argument, kind, allowed in zip(arguments, kinds, function.takes, strict=False):
            if kind not in (*allowed, "null"):
                raise problem(self.expression, argument, f"{name} with {kind}", f"give it {' or '.join(allowed)}")
        if function.alike and "null" not in kinds and kinds[0] != kinds[1]:
            raise problem(self.expression, arguments[1], f"{name} of {kinds[0]} and {kinds[1]}", "give it one type")
        return function.gives or kinds[0]

    def _custom(self, name: str, node: ast.Call) -> str:
        """A function of a user's own."""
        from feature_jobs.expressions.custom import custom_function  # needs Arrow, which a DAG file must not load

        function = custom_function(name)
        if len(node.args) != len(function.takes):
            takes = f"it takes {', '.join(function.takes)}"
            raise problem(self.expression, node, f"custom.{name} with {len(node.args)} arguments", takes)
        for argument, wanted in zip(node.args, function.takes, strict=True):
            kind = self.of(argument)
            if kind not in (wanted, "null") and (kind, wanted) not in (("int", "float"), ("bool", "int")):
                raise problem(self.expression, argument, f"custom.{name} with {kind}", f"give it {wanted}")
        return function.gives

    def _list(self, node: ast.List | ast.Tuple | ast.Set) -> str:
        """Type of a list in brackets."""
        kinds = {self.of(element) for element in node.elts}
        if kinds <= {*NUMBERS}:
            return "list[float]" if "float" in kinds else "list[int]"
        if kinds != {"string"}:
            raise problem(self.expression, node, "numbers and texts in one list", "write one type")
        return "list[string]"
