"""The verdict on a completion by means that share no code with the grader.

The tags are found in one forward scan. Python's own parser reads the answer, and its tree is walked with `Fraction`.
Python's grammar is the wider one. Of what is left after the characters are checked, these parse in Python and are
malformed here: `2**3` and `7//2`, a call `5(3)`, the empty tuple `()`, and zeros such as `00`. Python also has other
ideas of blanks: our tab and newline may stand anywhere, so they are turned to spaces first.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from fractions import Fraction

from nsr.tasks.countdown.grader import Verdict
from nsr.tasks.countdown.puzzle import Puzzle

LONGEST, DEEPEST = 500, 50  # as the design states them, not as the code does

_TAG = re.compile("<(/?)[aA][nN][sS][wW][eE][rR]>")
_ALPHABET = re.compile(r"[-+*/()0123456789 \t\n]*")
_BRACKETS = re.compile("[()]")
_TO_SPACES = str.maketrans("\t\n", "  ")
_OPERATIONS: dict[type, Callable[..., Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


def oracle(puzzle: Puzzle, completion: str) -> Verdict:
    """The verdict by other means."""
    answer = oracle_answer(completion)
    if answer is None:
        return Verdict.NO_ANSWER
    tree = _tree(answer)
    constants = tree and _constants(tree)
    if constants is None:
        return Verdict.MALFORMED
    if sorted(constants) != sorted(puzzle.numbers):
        return Verdict.WRONG_NUMBERS
    try:
        value = value_of(tree)
    except ZeroDivisionError:
        return Verdict.DIVISION_BY_ZERO
    return Verdict.CORRECT if value == puzzle.target else Verdict.WRONG_VALUE


def oracle_answer(completion: str) -> str | None:
    """One scan from the start that remembers where an answer was last open."""
    start = None
    found = None
    for tag in _TAG.finditer(completion):
        if not tag[1]:
            start = tag.end()
        elif start is not None:
            found = start, tag.start()
    return found and completion[slice(*found)]


def _tree(answer: str) -> ast.expr | None:
    """What Python's parser makes of an answer that keeps the bounds and has no other character."""
    if len(answer) > LONGEST or not _ALPHABET.fullmatch(answer):
        return None
    depth = 0
    for bracket in _BRACKETS.findall(answer):
        depth += 1 if bracket == "(" else -1
        if depth > DEEPEST:
            return None
    try:
        return ast.parse(answer.translate(_TO_SPACES).strip(" "), mode="eval").body
    except SyntaxError:
        return None


def _constants(tree: ast.expr) -> list[int] | None:
    """The integers in a tree; None where it holds anything but those and the four operations."""
    constants: list[int] = []
    nodes = [tree]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
            nodes += (node.left, node.right)
        elif isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATIONS:
            nodes.append(node.operand)
        elif isinstance(node, ast.Constant) and node.end_col_offset == node.col_offset + len(str(node.value)):  # not 00
            constants.append(node.value)
        else:
            return None
    return constants


def value_of(node: ast.AST) -> Fraction:
    """The value of a tree of Python's, exact."""
    if isinstance(node, ast.Constant):
        return Fraction(node.value)
    if isinstance(node, ast.UnaryOp):
        return _OPERATIONS[type(node.op)](value_of(node.operand))
    assert isinstance(node, ast.BinOp)
    return _OPERATIONS[type(node.op)](value_of(node.left), value_of(node.right))
