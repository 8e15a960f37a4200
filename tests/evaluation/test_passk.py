from __future__ import annotations

from fractions import Fraction
from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsr.evaluation.pass_at_k import is_rough, k_values, pass_at_k


def test_values_worked_out_by_hand() -> None:
    assert pass_at_k(4, 1, 1) == 1 / 4
    assert pass_at_k(4, 1, 2) == pytest.approx(1 / 2)  # 3 of the 6 pairs hold the right one
    assert pass_at_k(4, 2, 2) == pytest.approx(5 / 6)
    assert pass_at_k(4, 2, 3) == 1.0  # only two wrong ones: three samples cannot all be wrong
    assert pass_at_k(4, 0, 4) == 0.0
    assert pass_at_k(1, 1, 1) == 1.0


def test_equals_the_enumeration_of_all_subsets() -> None:
    for n in range(1, 8):
        for c in range(n + 1):
            for k in range(1, n + 1):
                subsets = list(combinations(range(n), k))
                share = sum(any(index < c for index in subset) for subset in subsets) / len(subsets)
                assert pass_at_k(n, c, k) == pytest.approx(share, abs=1e-14), (n, c, k)


@given(st.data())
def test_equals_exact_fractions(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 1024))
    c = data.draw(st.integers(0, n))
    k = data.draw(st.integers(1, n))
    exact = 1 - Fraction(comb(n - c, k), comb(n, k))
    assert pass_at_k(n, c, k) == pytest.approx(float(exact), rel=1e-11, abs=0)


def test_stays_exact_where_the_binomials_overflow_a_float() -> None:
    n, k = 200_000, 1000
    assert pass_at_k(n, 1, k) == pytest.approx(k / n, rel=1e-9)
    assert pass_at_k(n, n // 2, k) == pytest.approx(1.0)


def test_arrays_broadcast() -> None:
    correct_P = np.array([0, 1, 2, 4])
    k_K1 = np.array([[1], [2], [4]])
    values_KP = pass_at_k(4, correct_P, k_K1)
    assert values_KP.shape == (3, 4)
    assert values_KP.dtype == np.float64
    np.testing.assert_allclose(values_KP, [[0, 0.25, 0.5, 1], [0, 0.5, 5 / 6, 1], [0, 1, 1, 1]], atol=1e-15)
    assert pass_at_k(4, np.array([], dtype=int), 1).shape == (0,)


def test_each_element_has_its_own_number_of_samples() -> None:
    np.testing.assert_allclose(pass_at_k([2, 8], [1, 1], [1, 4]), [0.5, 0.5])


@given(st.integers(1, 200), st.data())
def test_rises_with_k_and_with_the_number_of_right_ones(n: int, data: st.DataObject) -> None:
    c = data.draw(st.integers(0, n))
    curve = pass_at_k(n, c, np.arange(1, n + 1))
    assert np.all(np.diff(curve) >= -1e-12)
    assert curve[0] == pytest.approx(c / n)
    if c < n:
        assert pass_at_k(n, c + 1, 1) > pass_at_k(n, c, 1)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 0), (4, 1, 5), (4, 5, 1), (4, -1, 1), (0, 0, 1), (4, 1.5, 1)])
def test_refuses_impossible_counts(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="given"):
        pass_at_k(n, c, k)


def test_one_bad_element_refuses_the_array() -> None:
    with pytest.raises(ValueError, match="num_correct"):
        pass_at_k(4, np.array([1, 5]), 2)


def test_k_values_are_powers_of_two_and_the_end() -> None:
    assert k_values(1) == [1]
    assert k_values(8) == [1, 2, 4, 8]
    assert k_values(12) == [1, 2, 4, 8, 12]
    with pytest.raises(ValueError, match="given 0"):
        k_values(0)


def test_rough_means_above_half() -> None:
    assert not is_rough(4, 8)
    assert is_rough(5, 8)
    assert is_rough(1, 1)
