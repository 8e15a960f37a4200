"""Arithmetic text -> exact value, the literals used, and the canonical equation. Never `eval`.

Grammar (blanks are ASCII space, tab, newline and may stand between any two tokens)::

    sum     = product { ("+" | "-") product }
    product = factor  { ("*" | "/") factor }
    factor  = { "+" | "-" } ( integer | "(" sum ")" )
    integer = "0" | nonzero digit { digit }

A text of more than `MAX_CHARACTERS` characters or `MAX_DEPTH` nested brackets is malformed, so the work for any text is
bounded. Nodes are n-ary: a chain of 250 operands is one flat node, and recursion is bounded by the nesting of brackets.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple, TypeAlias

MAX_CHARACTERS = 500
MAX_DEPTH = 50


class MalformedExpression(ValueError):
    """The text does not follow the grammar."""


@dataclass(frozen=True, slots=True)
class Number:
    """An integer literal, zero or above."""

    value: int


@dataclass(frozen=True, slots=True)
class Sum:
    """Signed terms: `terms` holds (sign, node) with sign +1 or -1. A lone negative term is a negation."""

    terms: tuple[tuple[int, Node], ...]


@dataclass(frozen=True, slots=True)
class Product:
    """Factors above the line (exponent +1) and below it (exponent -1), in the order written."""

    factors: tuple[tuple[int, Node], ...]


Node: TypeAlias = "Number | Sum | Product"

_TOKEN = re.compile(r"[ \t\n]*([0-9]+|[-+*/()])")
_BLANKS = " \t\n"


def parse(text: str) -> Node:
    """Parse `text` by the grammar of this module.

    Raises:
        MalformedExpression: the text does not follow the grammar or exceeds its bounds.
    """
    if len(text) > MAX_CHARACTERS:
        raise MalformedExpression(f"longer than {MAX_CHARACTERS} characters")
    parser = _Parser(_tokens(text))
    node = parser.sum(depth=0)
    if parser.position != len(parser.tokens) - 1:
        raise MalformedExpression(f"unexpected {parser.tokens[parser.position]!r}")
    return node


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    text = text.rstrip(_BLANKS)
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise MalformedExpression(f"unexpected character at {position}")
        tokens.append(match[1])
        position = match.end()
    tokens.append("")  # the end: neither operator nor operand
    return tokens


class _Parser:
    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.position = 0

    def sum(self, depth: int) -> Node:
        first = self.product(depth)
        if self.tokens[self.position] not in ("+", "-"):
            return first
        terms = [(1, first)]
        while (operator := self.tokens[self.position]) in ("+", "-"):
            self.position += 1
            terms.append((1 if operator == "+" else -1, self.product(depth)))
        return Sum(tuple(terms))

    def product(self, depth: int) -> Node:
        first = self.factor(depth)
        if self.tokens[self.position] not in ("*", "/"):
            return first
        factors = [(1, first)]
        while (operator := self.tokens[self.position]) in ("*", "/"):
            self.position += 1
            factors.append((1 if operator == "*" else -1, self.factor(depth)))
        return Product(tuple(factors))

    def factor(self, depth: int) -> Node:
        sign = 1
        while (token := self.tokens[self.position]) in ("+", "-"):
            self.position += 1
            sign = -sign if token == "-" else sign
        self.position += 1
        if token == "(":
            if depth == MAX_DEPTH:
                raise MalformedExpression(f"more than {MAX_DEPTH} nested brackets")
            node = self.sum(depth + 1)
            if self.tokens[self.position] != ")":
                raise MalformedExpression("a bracket is not closed")
            self.position += 1
        elif token[:1].isdigit():
            if token[0] == "0" and token != "0":
                raise MalformedExpression(f"leading zero in {token}")
            node = Number(int(token))
        else:
            raise MalformedExpression(f"expected a number, found {token or 'the end'!r}")
        return node if sign > 0 else Sum(((-1, node),))


def literals(node: Node) -> list[int]:
    """The integer literals in `node`, in the order written, repeats kept."""
    if isinstance(node, Number):
        return [node.value]
    children = node.terms if isinstance(node, Sum) else node.factors
    return [value for _, child in children for value in literals(child)]


def evaluate(node: Node) -> Fraction:
    """The exact value of `node`.

    Raises:
        ZeroDivisionError: a factor below a line is zero, wherever it stands.
    """
    return Fraction(*_ratio(node))


def _ratio(node: Node) -> tuple[int, int]:
    """Value as (numerator, denominator), not reduced: at this size quicker than `Fraction` at every step."""
    if isinstance(node, Number):
        return node.value, 1
    if isinstance(node, Sum):
        numerator, denominator = 0, 1
        for sign, child in node.terms:
            above, below = _ratio(child)
            numerator, denominator = numerator * below + sign * above * denominator, denominator * below
        return numerator, denominator
    numerator, denominator = 1, 1
    for exponent, child in node.factors:
        above, below = _ratio(child)
        if exponent < 0:
            if above == 0:
                raise ZeroDivisionError
            above, below = below, above
        numerator, denominator = numerator * above, denominator * below
    return numerator, denominator


class _Term(NamedTuple):
    """A signed product: sorted factor texts above and below the line."""

    sign: int
    above: tuple[str, ...]
    below: tuple[str, ...]
    value: Fraction  # without the sign; zero or above
    symmetric: bool  # holds a factor such as (5 - 5) that is its own negation: then the sign means nothing

    def negated(self) -> _Term:
        return self if self.symmetric else self._replace(sign=-self.sign)


def canonical(node: Node) -> str:
    """The canonical equation of `node`: equal texts for equations that are the same, and only for those.

    Two answers are the same equation if they differ only by order within sums and products, by bracketing that
    associativity allows, or by where signs stand. Sums become a multiset of signed terms, products a multiset of
    factors above and below the line, and signs are pulled out of products: a sum inside a product is turned so that its
    value is positive. `x*1` and `x/1` stay different. The text obeys the grammar above and is its own canonical form:
    "19 + 35 + 44", "5 * (7 - 3)".

    Raises:
        ZeroDivisionError: as `evaluate`.
    """
    return _sum_text(_terms(node))


def _terms(node: Node) -> list[_Term]:
    """`node` as a flat sum."""
    if isinstance(node, Number):
        return [_Term(1, (str(node.value),), (), Fraction(node.value), False)]
    if isinstance(node, Sum):
        return [term if sign > 0 else term.negated() for sign, child in node.terms for term in _terms(child)]
    sign, value, symmetric = 1, Fraction(1), False
    above: list[str] = []
    below: list[str] = []
    for exponent, child in node.factors:
        factor = _as_factor(_terms(child))
        sign *= factor.sign
        symmetric |= factor.symmetric
        if exponent > 0:
            above += factor.above
            below += factor.below
            value *= factor.value
        else:
            above += factor.below
            below += factor.above
            value /= factor.value
    above.sort(key=_sort_key)
    below.sort(key=_sort_key)
    return [_Term(1 if symmetric else sign, tuple(above), tuple(below), value, symmetric)]


def _as_factor(terms: list[_Term]) -> _Term:
    """A flat sum as one factor: a lone term as it is, a true sum in brackets, turned to a positive value."""
    if len(terms) == 1:
        return terms[0]
    value = sum((term.sign * term.value for term in terms), Fraction(0))
    text, turned = _sum_text(terms), _sum_text([term.negated() for term in terms])
    flip = value < 0 or (value == 0 and turned < text)
    return _Term(-1 if flip else 1, (f"({turned if flip else text})",), (), abs(value), text == turned)


def _sum_text(terms: list[_Term]) -> str:
    positive = sorted((_product_text(term) for term in terms if term.sign > 0), key=_sort_key)
    negative = sorted((_product_text(term) for term in terms if term.sign < 0), key=_sort_key)
    if not positive:
        return "-" + " - ".join(negative)
    return " - ".join([" + ".join(positive), *negative])


def _product_text(term: _Term) -> str:
    # Nothing above the line happens only for a quotient of quotients written without a literal there; the grammar has
    # no such text, since the first factor written always stands above.
    return " / ".join([" * ".join(term.above), *term.below])


def _sort_key(text: str) -> tuple[bool, int, str]:
    """Plain numbers first, by value; then the rest by text."""
    return (False, int(text), "") if text.isdigit() else (True, 0, text)
