"""Which equations are the same. Trees here are tuples: an int, ("-", x) for a sign, or (operator, left, right)."""

from __future__ import annotations

import itertools
import random
from typing import TypeAlias

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nsr.tasks.countdown.expression import canonical, evaluate, parse

Tree: TypeAlias = "int | tuple[str, Tree] | tuple[str, Tree, Tree]"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("44+35+19", "19 + 35 + 44"),
        ("7", "7"),
        ("-7", "-7"),
        ("-3-7", "-3 - 7"),
        ("(7-3)*5", "5 * (7 - 3)"),
        ("-(3-7)*5", "5 * (7 - 3)"),
        ("9-10-2", "9 - 2 - 10"),
        ("3*(2+4)/(7*5)", "3 * (2 + 4) / 5 / 7"),
        ("10+9+2*3", "9 + 10 + 2 * 3"),
        ("6/(2/3)", "3 * 6 / 2"),
        ("8/(3-8/3)", "8 / (3 - 8 / 3)"),
    ],
)
def test_the_text_by_hand(text: str, expected: str) -> None:
    assert canonical(parse(text)) == expected


@pytest.mark.parametrize(
    "texts",
    [
        ("1+2+3", "3+2+1", "1+(2+3)", "(3+1)+2", "+1+2+3", "1-(-2-3)", "1--2--3"),
        ("8-3-2", "8-(3+2)", "8-2-3", "-3+8-2", "-(3+2-8)", "-2-(3-8)"),
        ("2*3*4", "4*(3*2)", "-2*-3*4", "-(-2*3*4)", "2*(-3)*(-4)"),
        ("8/2/2", "8/(2*2)", "(8/2)/2"),
        ("8/4*3", "3*8/4", "8/(4/3)", "3/(4/8)", "3*(8/4)", "-8/-4*3"),
        ("(5-3)*(7-4)", "(3-5)*(4-7)", "-(5-3)*(4-7)", "(7-4)*(5-3)"),
        ("9-(5-3)*4", "9+(3-5)*4", "9+4*(3-5)", "-(4*(5-3)-9)"),
        ("6/(5-7)", "-6/(7-5)", "-(6/(7-5))"),
        ("7+(5-5)*3", "7-(5-5)*3", "7-3*(5-5)", "7+(5-5)*-3"),
        ("(5-5)/3+7", "7-(5-5)/3"),
        ("7+(5-3-2)*4", "7-(2+3-5)*4", "7-4*(3-5+2)"),
        ("(5-3-2)*(9-4-5)", "(2+3-5)*(4+5-9)", "-(2+3-5)*(9-4-5)"),
    ],
)
def test_the_same(texts: tuple[str, ...]) -> None:
    assert len({canonical(parse(text)) for text in texts}) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("7*1", "7/1"),
        ("5*2*1", "5*2/1"),
        ("2+2", "2*2"),
        ("3-2", "2-3"),
        ("6/3", "3/6"),
        ("2*(3+4)", "2*3+4"),
        ("2*(3+4)", "2*3+2*4"),  # distributing is no reordering
        ("(2+4)/3", "2/3+4/3"),
        ("5-5+3", "3*5/5"),
        ("4+4-4", "4*4/4"),
        ("1+2+3", "1*2*3"),
        ("8-(3-2)", "8-3-2"),
        ("12/(6/2)", "12/6/2"),
        ("(5-3)*4", "(5-4)*3"),
        ("(2+2)*2", "2*2+2*2"),
        ("9+(5-3)*4", "9-(5-3)*4"),
        ("1+12", "11+2"),
        ("(1+2)*3*4", "(1+2*3)*4"),
    ],
)
def test_different(one: str, other: str) -> None:
    assert canonical(parse(one)) != canonical(parse(other))


@pytest.mark.parametrize("text", ["1/0", "1/(2-2)", "3+4/(5-5)", "(1-1)/(2-2)"])
def test_no_value_no_equation(text: str) -> None:
    with pytest.raises(ZeroDivisionError):
        canonical(parse(text))


def written(tree: Tree) -> str:
    if isinstance(tree, int):
        return str(tree)
    if len(tree) == 2:
        return f"-({written(tree[1])})"
    return f"({written(tree[1])}){tree[0]}({written(tree[2])})"


def random_tree(rng: random.Random, numbers: list[int]) -> Tree:
    if len(numbers) == 1:
        return numbers[0]
    cut = rng.randrange(1, len(numbers))
    return (rng.choice("+-*/"), random_tree(rng, numbers[:cut]), random_tree(rng, numbers[cut:]))


def rewritten(rng: random.Random, tree: Tree) -> Tree:
    """`tree` with one identity applied at every node at most; each is a commuting, a re-bracketing or a sign's move."""
    if isinstance(tree, int):
        return ("-", ("-", tree)) if rng.random() < 0.1 else tree
    tree = (tree[0], *(rewritten(rng, child) for child in tree[1:]))  # type: ignore[assignment]
    choices = [tree, *identities(tree)]
    return rng.choice(choices)


def identities(tree: Tree) -> list[Tree]:
    return [*moved(tree), *rebracketed_sums(tree), *rebracketed_products(tree)]


def moved(tree: Tree) -> list[Tree]:
    """Operands change places, signs move."""
    match tree:
        case ("+", a, b):
            return [("+", b, a), ("-", a, ("-", b)), ("-", ("-", ("-", a), b))]
        case ("-", a, b):
            return [("+", a, ("-", b)), ("-", ("-", b, a)), ("+", ("-", b), a)]
        case ("*", a, b):
            return [("*", b, a), ("*", ("-", a), ("-", b)), ("-", ("*", ("-", a), b))]
        case ("/", a, b):
            return [("/", ("-", a), ("-", b)), ("-", ("/", a, ("-", b))), ("-", ("/", ("-", a), b))]
        case ("-", ("*", a, b)):
            return [("*", a, ("-", b))]
        case _:
            return []


def rebracketed_sums(tree: Tree) -> list[Tree]:
    same: list[Tree] = []
    match tree:
        case ("+", ("+", a, b), c):
            same.append(("+", a, ("+", b, c)))
        case ("+", ("-", a, b), c):
            same.append(("-", a, ("-", b, c)))
        case ("-", ("-", a, b), c):
            same.append(("-", a, ("+", b, c)))
    match tree:
        case ("+", a, ("+", b, c)):
            same.append(("+", ("+", a, b), c))
        case ("-", a, ("-", b, c)):
            same.append(("+", ("-", a, b), c))
    return same


def rebracketed_products(tree: Tree) -> list[Tree]:
    same: list[Tree] = []
    match tree:
        case ("*", ("*", a, b), c):
            same.append(("*", a, ("*", b, c)))
        case ("*", ("/", a, b), c):
            same += [("/", ("*", a, c), b), ("/", a, ("/", b, c))]
        case ("/", ("/", a, b), c):
            same.append(("/", a, ("*", b, c)))
    match tree:
        case ("*", a, ("*", b, c)):
            same.append(("*", ("*", a, b), c))
        case ("/", a, ("/", b, c)):
            same.append(("/", ("*", a, c), b))
    return same


@settings(max_examples=300)
@given(numbers=st.lists(st.integers(1, 12), min_size=1, max_size=6), seed=st.integers(0, 2**32))
def test_commuting_rebracketing_and_moving_signs_keep_it(numbers: list[int], seed: int) -> None:
    rng = random.Random(seed)
    tree = random_tree(rng, numbers)
    try:
        text = canonical(parse(written(tree)))
    except ZeroDivisionError:
        return
    value = evaluate(parse(written(tree)))
    for _ in range(5):
        tree = rewritten(rng, tree)
        if len(written(tree)) > 500:
            return
        assert evaluate(parse(written(tree))) == value  # the identity is one
        assert canonical(parse(written(tree))) == text, written(tree)


@settings(max_examples=300)
@given(numbers=st.lists(st.integers(1, 12), min_size=1, max_size=6), seed=st.integers(0, 2**32))
def test_the_text_is_an_equation_with_the_same_value_and_its_own_canonical_form(numbers: list[int], seed: int) -> None:
    node = parse(written(random_tree(random.Random(seed), numbers)))
    try:
        text = canonical(node)
    except ZeroDivisionError:
        return
    assert evaluate(parse(text)) == evaluate(node)
    assert canonical(parse(text)) == text


@pytest.mark.parametrize(
    ("numbers", "count"), [((11,), 1), ((11, 101), 6), ((11, 101, 1009), 68), ((11, 101, 1009, 10007), 1170)]
)
def test_the_count_of_inequivalent_expressions(numbers: tuple[int, ...], count: int) -> None:
    """On numbers without coincidences their count is known, https://oeis.org/A140606: too few would be a merger."""
    texts = {canonical(parse(written(tree))) for tree in all_trees(numbers)}
    assert len(texts) == count


def all_trees(numbers: tuple[int, ...]) -> list[Tree]:
    if len(numbers) == 1:
        return [numbers[0]]
    trees: list[Tree] = []
    for size in range(1, len(numbers)):
        for chosen in itertools.combinations(range(len(numbers)), size):
            left = all_trees(tuple(numbers[place] for place in chosen))
            right = all_trees(tuple(number for place, number in enumerate(numbers) if place not in chosen))
            trees += [(operator, a, b) for operator in "+-*/" for a in left for b in right]
    return trees
