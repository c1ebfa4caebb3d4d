"""Expressions of a scenario: a safe part of Python, read as such and computed for all rows of a column at once.

    rating >= 4        item.genres is None        'Drama' in item.genres and not user.age < 18
    hour(event_time)   bucket(video.duration, 5)  gender in ['F', 'M']   coalesce(age, 0) // 10
    event_time - user.signed_up     item.published >= '2022-04-01'       bucket(event_time - state.since, 3600)
    starts_with(title, 'The ')      matches(url, '^https?://[^/]*[.]org/')
    tokenize(lower(title))          lookup(user.clicks_by_tag, item.tags, 'sum')    cosine(user.vector, item.vector)

Names are columns, `entity.column`, and `event_time`. Null is SQL's: a result that reads a null is null, `and`/`or` are
three-valued, and only `is None`, `== None`, `coalesce` and `x if test else y` (y where the test is null) see it. Where
Python would fail, dividing by zero or taking the logarithm of -1, the result is null. `//` and `%` round down
as Python's do.

Whole numbers have 64 bits and are exact: a result that does not fit is an error that names the expression, also where
`coalesce`, `and`, `or` or `if` would not need it. Beside a number with a fraction they become one. Fractions are 64-bit
floats: a result too large is infinite, NaN equals itself and is larger than every number. `True` and `False` beside a
number are 1 and 0, and a number as a condition is true where it is not 0. Texts are ordered by their bytes in UTF-8.

`event_time` and columns of type `time` are times, held as microseconds since 1970 UTC. The difference of two is a
number of seconds; a time plus or minus seconds is a time, null where it does not fit 64 bits. A time is compared with
a time, or with a text such as '2022-04-01' or '2022-04-01T10:00:00+02:00' (without an offset: in the scenario's zone).
`hour` and `weekday` are null before the year 2 and after 9998.

`custom.NAME(...)` is a function of a user's own package (`feature_jobs.expressions.custom`).
"""

from __future__ import annotations

import ast
import difflib
import functools
import re
import warnings
from collections.abc import Iterator

from feature_jobs.errors import BadInputError
from feature_jobs.expressions.functions import FUNCTIONS, Function

EVENT_TIME = "event_time"
CUSTOM = "custom."
_MAX_LENGTH, _MAX_DEPTH = 2_000, 100  # the functions that read the tree recurse, several calls a level
_ALLOWED = (
    "comparisons, and/or/not, x if .. else y, + - * / // %, in [..], is None, numbers, strings, columns and functions"
)


LISTS = (ast.List, ast.Tuple, ast.Set)
_ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod)
_FOREIGN = {"null": "None", "none": "None", "nan": "None", "nil": "None", "true": "True", "false": "False"}


@functools.lru_cache(maxsize=4096)  # a request asks for the names of the same texts again
def columns_of(expression: str) -> frozenset[str]:
    """Names that the expression reads: `rating`, `user.gender`, `event_time`.

    Raises BadInputError where it is not a valid expression.
    """
    return frozenset(_names(parse(expression)))


@functools.lru_cache(maxsize=4096)  # check, init and join parse the same texts many times
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
        _check_depth(text, tree)
        _check(text, tree)
    except SyntaxError as error:
        raise _syntax(text, error) from None
    # ast.parse raises these for a zero byte (ValueError) and for nesting beyond its own stack.
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


def custom_name(node: ast.AST) -> str | None:
    """`edit_distance` where the node calls `custom.edit_distance`, else None."""
    if isinstance(node, ast.Call) and (name := column_name(node.func)) and name.startswith(CUSTOM):
        return name.removeprefix(CUSTOM)
    return None


def custom_functions_of(expression: str) -> set[str]:
    """Names of the functions of a user's own that the expression calls."""
    return {name for node in ast.walk(parse(expression)) if (name := custom_name(node))}


def _names(node: ast.AST) -> Iterator[str]:
    if (name := column_name(node)) is not None:
        yield name
        return
    for child in node.args if isinstance(node, ast.Call) else ast.iter_child_nodes(node):
        yield from _names(child)  # of a call the arguments: its function's name is not a column


def problem(expression: str, node: ast.AST, what: str, remedy: str) -> BadInputError:
    """The error for a node of an expression; the position counts characters from 1."""
    text = _one_line(expression)
    offset = getattr(node, "col_offset", 0)  # in UTF-8 bytes
    position = len(text.encode()[:offset].decode(errors="ignore")) + 1
    return BadInputError(f"expression {text!r}, position {position}: {what}; {remedy}")


def _one_line(expression: str) -> str:
    # YAML keeps line breaks in a block of text; for Python one would end the expression.
    return expression.strip().replace("\r", " ").replace("\n", " ")


def _syntax(text: str, error: SyntaxError) -> BadInputError:
    position = min(error.offset or 1, len(text) + 1)
    # Texts in quotes may hold anything.
    outside = re.sub(r"'[^']*'|\"[^\"]*\"", lambda quoted: "_" * len(quoted.group()), text)
    # People write these out of the habit of SQL or C; Python's own message for them is "invalid syntax" alone.
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


def _check_depth(text: str, tree: ast.expr) -> None:
    # Level by level, without recursion, because it guards the functions that recurse.
    level: list[ast.AST] = [tree]
    for _ in range(_MAX_DEPTH):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    if level:
        raise problem(text, level[0], f"more than {_MAX_DEPTH} operators inside one another", "write it simpler")


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
        case ast.BoolOp() | ast.IfExp() | ast.UnaryOp(op=ast.Not() | ast.USub() | ast.UAdd()):
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
    if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
        raise problem(text, node, "half a surrogate pair in text", r"write the character itself, or as \U0001F600")
    # Integers become BIGINT in SQL, see `literal`.
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
                if not is_none(right):
                    raise problem(text, right, "is only asks for None", "write == to compare")
            case _ if isinstance(op, ast.Eq | ast.NotEq):
                _check(text, right)
            case _:
                _check(text, right)
                if is_none(left) or is_none(right):
                    raise problem(text, right, "None has no order", "write is None or is not None")
        left = right


def _check_members(text: str, node: ast.List | ast.Tuple | ast.Set) -> None:
    if not node.elts:
        raise problem(text, node, "an empty list", "name at least one value")
    for element in node.elts:
        value = element.operand if isinstance(element, ast.UnaryOp) else element
        if not isinstance(value, ast.Constant):
            raise problem(text, element, "only numbers and texts in a list", "compare columns with == and or")
        if is_none(value):
            raise problem(text, element, "None in a list", "write x is None or x in [..]")
        _check(text, element)


def _check_call(text: str, node: ast.Call) -> None:
    name = node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)
    if custom_name(node) and not node.keywords and not any(isinstance(one, ast.Starred) for one in node.args):
        _check_all(text, node)
        return
    function = FUNCTIONS.get(name)
    if function is None:
        close = difflib.get_close_matches(name, FUNCTIONS, n=1)
        remedy = f"did you mean {close[0]}?" if close else f"functions: {', '.join(FUNCTIONS)}"
        raise problem(text, node, f"{name} is not a function", remedy)
    num = len(node.args)
    starred = any(isinstance(argument, ast.Starred) for argument in node.args)
    if node.keywords or starred or num < function.least or (function.most is not None and num > function.most):
        raise problem(text, node, f"{name} with {num} arguments", function.help)
    for place, argument in enumerate(node.args):
        if place in function.listed and isinstance(argument, LISTS):
            _check_members(text, argument)
        else:
            _check(text, argument)
    _check_quoted(text, name, function, node.args)
    if name == "bucket":
        width = node.args[1]
        if not (isinstance(width, ast.Constant) and isinstance(width.value, int | float) and width.value > 0):
            raise problem(text, width, "the width of bucket is a number above zero", function.help)


def _check_quoted(text: str, name: str, function: Function, arguments: list[ast.expr]) -> None:
    """Checks the arguments that are texts in quotes or regular expressions, and boundaries."""
    for place, allowed in function.quoted.items():
        if place < len(arguments) and place != function.pattern:
            value = _quoted(text, arguments[place], f"argument {place + 1} of {name}", function.help)
            if allowed and value not in allowed:
                raise problem(text, arguments[place], f"{value!r} is not one of them", function.help)
    if function.pattern is not None:
        pattern = _quoted(text, arguments[function.pattern], f"the pattern of {name}", function.help)
        replacement = _quoted(text, arguments[-1], "the replacement", function.help) if name == "regex_replace" else ""
        _check_pattern(text, arguments[function.pattern], pattern, replacement)
    if name == "split" and not _quoted(text, arguments[1], "the separator", function.help):
        raise problem(text, arguments[1], "the separator is empty", "write at least one character")
    if name == "bucketize":
        bounds = ast.literal_eval(arguments[1]) if isinstance(arguments[1], LISTS) else []
        if not bounds or any(isinstance(one, bool | str) for one in bounds) or list(bounds) != sorted(set(bounds)):
            raise problem(text, arguments[1], "the boundaries are not numbers in rising order", function.help)


def _quoted(text: str, node: ast.expr, what: str, remedy: str) -> str:
    if not (isinstance(node, ast.Constant) and isinstance(node.value, str)):
        raise problem(text, node, f"{what} is a text in quotes", remedy)
    return node.value


def _check_pattern(text: str, node: ast.expr, pattern: str, replacement: str) -> None:
    import pyarrow as pa  # here, because a DAG file that is parsed must not load it
    import pyarrow.compute as pc

    try:
        pc.match_substring_regex(pa.array([""]), pattern)
        pc.replace_substring_regex(pa.array([""]), pattern, replacement)
    except pa.ArrowInvalid as error:
        raise problem(text, node, f"{pattern!r}: {error}".splitlines()[0], "correct the pattern (RE2)") from None


def is_none(node: ast.AST) -> bool:
    """Says if the node is the constant None."""
    return isinstance(node, ast.Constant) and node.value is None
