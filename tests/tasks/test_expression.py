"""The parser against Python's own, walked with Fraction, and against values worked out by hand."""

from __future__ import annotations

import ast
import operator
import random
from fractions import Fraction
from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsr.tasks.countdown.expression import MAX_CHARACTERS, MAX_DEPTH, MalformedExpression, evaluate, literals, parse

Outcome: TypeAlias = "tuple[list[int], Fraction | None] | None"
"""None if malformed, else the literals and the value, None where it is not defined."""

# Where Python's grammar is wider than ours: each of these parses there, and is malformed here.
WIDER = [
    "2**3",
    "7//2",
    "7%2",
    "5@3",
    "1<<2",
    "6&3",
    "6|3",
    "6^3",
    "~5",
    "not 5",
    "5 and 3",
    "5==3",
    "5<3",
    "5 in 3",
    "5 if 3 else 2",
    "1.5*2",
    "5.",
    ".5",
    "1e3",
    "2j",
    "0x10",
    "0b11",
    "0o17",
    "1_000",
    "00",
    "0_0",
    "5+000",
    "x",
    "int(5)",
    "5(3)",
    "(5)(3)",
    "5[3]",
    "x.y",
    "True",
    "None",
    "...",
    "'5'",
    "5,3",
    "(5,3)",
    "5,",
    "()",
    "[5]",
    "{5}",
    "(x:=5)",
    "lambda: 5",
    "(*x,)",
    "5 # five",
    "5\\\n+3",
    "5\f+3",
    "5+3\r",
    "\uff58",  # a full-width letter, a name to Python
]

_OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


class Outside(Exception):
    """Python's grammar, but not ours."""


def by_python(text: str) -> Outcome:
    """What Python's own parser and Fraction say, with the narrower parts of our grammar checked one by one."""
    if len(text) > MAX_CHARACTERS or set(text) - set("0123456789+-*/() \t\n"):
        return None
    text = text.translate({ord("\t"): " ", ord("\n"): " "}).strip(" ")  # no blank means more to us than another
    depth = 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if depth > MAX_DEPTH:
            return None
    try:
        tree = ast.parse(text, mode="eval").body
        numbers = sorted((node.col_offset, node.value) for node in ast.walk(tree) if isinstance(node, ast.Constant))
        return [value for _, value in numbers], walked(tree, text)
    except (SyntaxError, Outside):
        return None


def walked(node: ast.expr, text: str) -> Fraction | None:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        written = text[node.col_offset : node.end_col_offset]
        if written != str(node.value):  # 00
            raise Outside
        return Fraction(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
        value = walked(node.operand, text)
        return value if value is None or isinstance(node.op, ast.UAdd) else -value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        left, right = walked(node.left, text), walked(node.right, text)
        if left is None or right is None or (isinstance(node.op, ast.Div) and right == 0):
            return None
        return _OPERATIONS[type(node.op)](left, right)
    raise Outside


def by_us(text: str) -> Outcome:
    try:
        node = parse(text)
    except MalformedExpression:
        return None
    try:
        return literals(node), evaluate(node)
    except ZeroDivisionError:
        return literals(node), None


@pytest.mark.parametrize("text", WIDER, ids=ascii)
def test_where_python_is_wider(text: str) -> None:
    ast.parse(text, mode="eval")
    assert by_us(text) is None
    assert by_python(text) is None


@pytest.mark.parametrize(
    "text", ["05+3", "5 3", "5\n+3", " 5", "5=3", "5+", "(5", "5)", "", "5 5", "* 3", "5* *3", "5/ /3"]
)
def test_what_python_refuses_too(text: str) -> None:
    """A line break outside brackets and a blank in front are the two that our grammar allows."""
    with pytest.raises(SyntaxError):
        ast.parse(text, mode="eval")
    assert (by_us(text) is None) == (text not in ("5\n+3", " 5"))


@pytest.mark.parametrize(
    ("text", "numbers", "value"),
    [
        ("0", [0], Fraction(0)),
        ("7", [7], Fraction(7)),
        ("-7", [7], Fraction(-7)),
        ("--7", [7], Fraction(7)),
        ("+-+7", [7], Fraction(-7)),
        ("5--3", [5, 3], Fraction(8)),
        ("5-+-3", [5, 3], Fraction(8)),
        ("2-3-4", [2, 3, 4], Fraction(-5)),
        ("2-(3-4)", [2, 3, 4], Fraction(3)),
        ("2-3+4", [2, 3, 4], Fraction(3)),
        ("2+3*4", [2, 3, 4], Fraction(14)),
        ("(2+3)*4", [2, 3, 4], Fraction(20)),
        ("12/3/4", [12, 3, 4], Fraction(1)),
        ("12/(3/4)", [12, 3, 4], Fraction(16)),
        ("12/3*4", [12, 3, 4], Fraction(16)),
        ("2*-3", [2, 3], Fraction(-6)),
        ("2/-3", [2, 3], Fraction(-2, 3)),
        ("-2*3", [2, 3], Fraction(-6)),
        ("-(2+3)*-4", [2, 3, 4], Fraction(20)),
        ("1/3+1/6", [1, 3, 1, 6], Fraction(1, 2)),
        ("1/0", [1, 0], None),
        ("0*(1/0)", [0, 1, 0], None),
        ("1/(1/0)", [1, 1, 0], None),
        ("1/(1/(1/2-1/2))", [1, 1, 1, 2, 1, 2], None),
        ("0/(2-2)", [0, 2, 2], None),
        ("0/5", [0, 5], Fraction(0)),
        (" \n\t1 \n\t+ \n\t2 \n\t", [1, 2], Fraction(3)),
        ("9" * 500, [10**500 - 1], Fraction(10**500 - 1)),
        ("-" * 499 + "1", [1], Fraction(-1)),
        ("1" + "+1" * 249, [1] * 250, Fraction(250)),
        ("1" + "*1" * 249, [1] * 250, Fraction(1)),
        ("(" * 50 + "1" + ")" * 50, [1], Fraction(1)),
        ("+".join(["(1)"] * 100), [1] * 100, Fraction(100)),  # brackets side by side are one level
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_values_by_hand(text: str, numbers: list[int], value: Fraction | None) -> None:
    assert by_us(text) == (numbers, value)
    assert by_python(text) == (numbers, value)


@pytest.mark.parametrize(
    "text", ["1" * 501, " " * 501, "1" + " " * 500, "(" * 51 + "1" + ")" * 51, "-(" * 51 + "1" + ")" * 51]
)
def test_bounds(text: str) -> None:
    with pytest.raises(MalformedExpression):
        parse(text)


TOKENS = [*"0123456789", *"++--**//(()) \t\n", "10", "44", "(1+2)", "05"]


@settings(max_examples=300)
@given(st.lists(st.sampled_from(TOKENS), max_size=16).map("".join))
def test_token_soup_agrees_with_python(text: str) -> None:
    assert by_us(text) == by_python(text)


_NUMBERS = st.integers(0, 120).map(str)
_EXPRESSIONS = st.recursive(
    _NUMBERS,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", " - ", "\n/\t"]), inner).map("".join),
        inner.map("({})".format),
        st.tuples(st.sampled_from(["-", "+", "- ", "--"]), inner).map("".join),
    ),
    max_leaves=12,
)


@settings(max_examples=300)
@given(_EXPRESSIONS)
def test_well_formed_texts_agree_with_python(text: str) -> None:
    outcome = by_us(text)
    assert outcome == by_python(text)
    assert outcome is not None or len(text) > MAX_CHARACTERS


@settings(max_examples=300)
@given(st.text(alphabet=st.characters(exclude_categories=()), max_size=20))
def test_any_text_agrees_with_python(text: str) -> None:
    assert by_us(text) == by_python(text)


def random_text(rng: random.Random) -> str:
    """An expression or near it: a well-formed one, one with a character changed, or a soup of tokens."""
    kind = rng.random()
    if kind < 0.3:
        return "".join(rng.choices(TOKENS, k=rng.randrange(12)))
    text = random_expression(rng, rng.randrange(1, 6))
    if kind < 0.6:
        place = rng.randrange(len(text))
        text = (
            text[:place] + rng.choice(["", "*", "/", "0", "(", ")", " ", "-", ".", "=", "\u0665"]) + text[place + 1 :]
        )
    return text


def random_expression(rng: random.Random, size: int) -> str:
    if size == 1:
        text = str(rng.choice([0, 1, 2, 3, rng.randrange(100)]))
    else:
        left = rng.randrange(1, size)
        blank = rng.choice(["", "", " ", "\n"])
        text = random_expression(rng, left) + blank + rng.choice("+-*/") + blank + random_expression(rng, size - left)
    wrapping = rng.random()
    return f"({text})" if wrapping < 0.3 else rng.choice("+-") + text if wrapping < 0.4 else text


@pytest.mark.slow
def test_a_million_fuzzed_texts_agree_with_python() -> None:
    rng = random.Random(0)
    counts = {"malformed": 0, "undefined": 0, "value": 0}
    for _ in range(1_000_000):
        text = random_text(rng)
        outcome = by_us(text)
        assert outcome == by_python(text), ascii(text)
        counts["malformed" if outcome is None else "undefined" if outcome[1] is None else "value"] += 1
    assert min(counts.values()) > 10_000, counts  # every kind was tried often
