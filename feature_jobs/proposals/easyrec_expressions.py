"""Expressions of EasyRec and TorchEasyRec, which are C, as expressions of ours."""

from __future__ import annotations

import ast
import re
import warnings

from feature_jobs.expressions.functions import FUNCTIONS
from feature_jobs.proposals import easyrec_tables as tables
from feature_jobs.proposals.easyrec_columns import MissingError
from feature_jobs.proposals.easyrec_config import shown

# Of conditions C's & and | are `and` and `or`; of numbers they are of their bits.
_BITWISE = re.compile(r"(?<!&)&(?!&)|(?<!\|)\|(?!\|)")
_CONDITION = (ast.Compare, ast.BoolOp)


def ours(text: str, names: dict[str, str]) -> str:
    """The same in the language of scenarios; `names` are those of its variables there.

    Raises MissingError where it means something that ours can't say, and RecursionError or MemoryError where it has too
    many parts inside one another.
    """
    # The patterns below would also replace operators inside a text.
    if len(text) > 2_000 or '"' in text or "'" in text:
        raise MissingError(f"its expression {shown(text)} holds texts, or is too long; write it by hand")
    if "~" in text:
        raise MissingError(f"its expression {shown(text)} computes with bits; {tables.IN_LOG}")
    python = text
    for pattern, replacement in tables.REWRITES:
        python = re.sub(pattern, replacement, python, flags=re.DOTALL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rewriter = _Rewriter(names, has_bits=bool(_BITWISE.search(text)))
            return ast.unparse(rewriter.visit(ast.parse(python_choice(python).strip(), mode="eval")))
    except SyntaxError:
        raise MissingError(f"its expression {shown(text)} is not one of Recloop's; write it by hand") from None


class _Rewriter(ast.NodeTransformer):
    """Columns by their names in the scenario, and functions that our expressions lack by those that they have.

    Raises MissingError where C means something else by an operator than Python.
    """

    def __init__(self, names: dict[str, str], *, has_bits: bool) -> None:
        self.names, self.has_bits = names, has_bits

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        raise MissingError(f"its expression reads {ast.unparse(node)}, which is not a variable; write it by hand")

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        if len(node.ops) > 1:
            what = f"its expression compares {ast.unparse(node)}, of which C compares the first result with the rest"
            raise MissingError(f"{what}; write it by hand")
        return self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        if self.has_bits and not all(isinstance(one, _CONDITION) or _is_not(one) for one in node.values):
            raise MissingError(f"its expression computes with the bits of {ast.unparse(node)}; {tables.IN_LOG}")
        return self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        if isinstance(node.op, ast.Invert):
            node.op = ast.Not()
        return self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.op, ast.Mod):
            return node
        # The remainder has the sign of the left side in C, that of the right side here.
        left, right = ast.unparse(node.left), ast.unparse(node.right)
        size = f"(abs({left}) % abs({right}))"
        return ast.parse(f"{size} if ({left}) >= 0 else -{size}", mode="eval").body

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id not in self.names:
            raise MissingError(f"its expression reads {node.id}, which is not among its variables; write it by hand")
        return ast.parse(self.names[node.id], mode="eval").body

    def visit_Call(self, node: ast.Call) -> ast.AST:
        # Not node.func: visit_Name would look for a column with the function's name.
        node.args = [self.visit(argument) for argument in node.args]
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name not in FUNCTIONS and name in tables.FUNCTIONS and len(node.args) == 1:
            # In parentheses, because an operator around the argument may bind closer than those in it.
            return ast.parse(tables.FUNCTIONS[name].format(f"({ast.unparse(node.args[0])})"), mode="eval").body
        return node


def _is_not(node: ast.expr) -> bool:
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert | ast.Not)


def python_choice(text: str) -> str:
    """C's `test ? body : other` as Python writes it, also in parentheses. Raises SyntaxError where one has no colon."""
    places = _outside(text)
    # Commas first, because they bind weaker: each argument may be a choice of its own.
    if commas := [place for place in places if text[place] == ","]:
        parts = [
            text[begin:end] for begin, end in zip([0, *(c + 1 for c in commas)], [*commas, len(text)], strict=True)
        ]
        return ",".join(map(python_choice, parts))
    if question := next((place for place in places if text[place] == "?"), 0):
        depth = 0
        for place in (place for place in places if place > question):
            # A choice within the body has a colon of its own before ours.
            depth += {"?": 1, ":": -1}.get(text[place], 0)
            if depth < 0:
                test, body, other = text[:question], text[question + 1 : place], text[place + 1 :]
                return f"(({python_choice(body)}) if ({python_choice(test)}) else ({python_choice(other)}))"
        raise SyntaxError("a ? without its colon")
    begin = text.find("(")
    if begin < 0:
        return text
    end = next((p for p in places if p > begin and text[p] == ")"), -1)
    if end < 0:
        raise SyntaxError("a parenthesis that is never closed")
    return f"{text[: begin + 1]}{python_choice(text[begin + 1 : end])}){python_choice(text[end + 1 :])}"


def _outside(text: str) -> list[int]:
    """Places outside of all parentheses, those that close one included."""
    found, depth = [], 0
    for place, letter in enumerate(text):
        depth -= letter == ")"
        if depth == 0:
            found.append(place)
        depth += letter == "("
    return found
