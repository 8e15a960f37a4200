from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsr.algorithms.objectives import (
    OBJECTIVES,
    Rewards,
    Setting,
    Weights,
    find_objective,
    group_advantage,
    has_signal,
    objective,
    objective_weights,
)

# Three groups of four: mixed, all right, all wrong. Of the first the mean is -0.5 and the population standard deviation
# sqrt((3 * 0.5^2 + 1.5^2) / 4) = sqrt(3) / 2 = 0.8660254, so that its advantages are 1.5 and -0.5 over 0.8661254.
REWARDS_PG = np.array([[1, -1, -1, -1], [1, 1, 1, 1], [-1, -1, -1, -1]], dtype=np.float64)
RIGHT, WRONG = 1.5 / 0.8661254037844386, -0.5 / 0.8661254037844386

TABLE = {
    ("RLVR", None): [[RIGHT, WRONG, WRONG, WRONG], [0, 0, 0, 0], [0, 0, 0, 0]],
    ("RLVR", "none"): [[1, -1, -1, -1], [1, 1, 1, 1], [-1, -1, -1, -1]],
    ("PSR", None): [[1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]],
    ("PSR", "group"): [[RIGHT, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
    ("NSR", None): [[0, -1, -1, -1], [0, 0, 0, 0], [-1, -1, -1, -1]],
    ("NSR", "group"): [[0, WRONG, WRONG, WRONG], [0, 0, 0, 0], [0, 0, 0, 0]],
    ("W_REINFORCE", None): [[0.25, -1, -1, -1], [0.25, 0.25, 0.25, 0.25], [-1, -1, -1, -1]],
    ("W_REINFORCE", "group"): [[0.25 * RIGHT, WRONG, WRONG, WRONG], [0, 0, 0, 0], [0, 0, 0, 0]],
    # the others' mean: -1 for the right sample, -1/3 for each wrong one
    ("RLOO", None): [[2, -2 / 3, -2 / 3, -2 / 3], [0, 0, 0, 0], [0, 0, 0, 0]],
    # leaving one out of a sum that is zero scales by G / (G - 1)
    ("RLOO", "group"): [[RIGHT * 4 / 3, WRONG * 4 / 3, WRONG * 4 / 3, WRONG * 4 / 3], [0, 0, 0, 0], [0, 0, 0, 0]],
}

rewards_of_any_batch = st.tuples(st.integers(1, 5), st.integers(2, 6)).flatmap(
    lambda shape: st.lists(
        st.lists(st.sampled_from([1.0, -1.0]), min_size=shape[1], max_size=shape[1]),
        min_size=shape[0],
        max_size=shape[0],
    ).map(np.array)
)


@pytest.mark.parametrize(("name", "advantage"), TABLE)
def test_weights_worked_out_by_hand(name, advantage):
    weights_PG = objective_weights(name, REWARDS_PG, lambda_psr=0.25, advantage=advantage)
    np.testing.assert_allclose(weights_PG, TABLE[name, advantage], rtol=1e-12, atol=0)
    assert weights_PG.dtype == np.float64


def test_lists_of_whole_numbers_are_taken():
    assert objective_weights("NSR", [[1, -1]]).tolist() == [[0.0, -1.0]]


def test_rewards_are_not_changed_and_not_shared():
    rewards_PG = REWARDS_PG.copy()
    for name in OBJECTIVES:
        for advantage in ("none", "group"):
            weights_PG = objective_weights(name, rewards_PG, advantage=advantage, rng=np.random.default_rng(0))
            weights_PG += 7.0
    np.testing.assert_array_equal(rewards_PG, REWARDS_PG)


@given(rewards_of_any_batch)
def test_w_reinforce_is_lambda_psr_plus_nsr_and_raw_rewards_are_psr_plus_nsr(rewards_PG):
    psr, nsr = objective_weights("PSR", rewards_PG), objective_weights("NSR", rewards_PG)
    np.testing.assert_array_equal(objective_weights("W_REINFORCE", rewards_PG, lambda_psr=0.3), 0.3 * psr + nsr)
    np.testing.assert_array_equal(objective_weights("RLVR", rewards_PG, advantage="none"), psr + nsr)
    np.testing.assert_array_equal(psr + nsr, rewards_PG)


@given(rewards_of_any_batch)
def test_advantages_of_a_group_add_up_to_zero_and_keep_the_sign(rewards_PG):
    advantages_PG = group_advantage(rewards_PG)
    np.testing.assert_allclose(advantages_PG.sum(axis=1), 0.0, atol=1e-9)
    mixed_P = rewards_PG.std(axis=1) > 0
    assert (np.sign(advantages_PG[mixed_P]) == rewards_PG[mixed_P]).all()
    assert (advantages_PG[~mixed_P] == 0.0).all()


@given(rewards_of_any_batch)
def test_leave_one_out_baseline_equals_a_loop(rewards_PG):
    expected = [
        [reward - np.delete(rewards_G, index).mean() for index, reward in enumerate(rewards_G)]
        for rewards_G in rewards_PG
    ]
    np.testing.assert_allclose(objective_weights("RLOO", rewards_PG), expected, atol=1e-12)


def test_shuffled_normalizes_rewards_that_were_permuted_over_the_whole_batch():
    rewards_PG = np.array([[1.0] * 8, [-1.0] * 8])
    weights_PG = objective_weights("SHUFFLED", rewards_PG, rng=np.random.default_rng(0))
    # within its group each label is the same: only a permutation over the batch gives a group contrast
    permuted_PG = np.sign(weights_PG)
    assert sorted(permuted_PG.ravel()) == sorted(rewards_PG.ravel())
    assert (permuted_PG.std(axis=1) > 0).all()
    np.testing.assert_allclose(weights_PG, group_advantage(permuted_PG))
    again_PG = objective_weights("SHUFFLED", rewards_PG, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(weights_PG, again_PG)


def test_shuffled_without_random_numbers_is_refused():
    with pytest.raises(ValueError, match="rng"):
        objective_weights("SHUFFLED", REWARDS_PG)


def test_has_signal():
    assert has_signal(objective_weights("NSR", [[1, -1]]))
    assert not has_signal(objective_weights("NSR", [[1, 1]]))
    # a group without contrast has no group-normalized signal, though NSR alone would learn from it in full
    assert not has_signal(objective_weights("NSR", [[-1, -1]], advantage="group"))
    assert has_signal(objective_weights("NSR", [[-1, -1]]))
    assert not has_signal(objective_weights("W_REINFORCE", [[1, 1]], lambda_psr=0.0))


@pytest.mark.parametrize(
    ("given_name", "nearest"),
    [("nsr", "NSR"), ("W-REINFORCE", "W_REINFORCE"), ("w_reinforse", "W_REINFORCE"), ("RLVF", "RLVR"), ("rlo", "RLOO")],
)
def test_an_unknown_objective_is_answered_with_the_nearest(given_name, nearest):
    with pytest.raises(ValueError, match=f"{given_name}.*did you mean {nearest}\\?"):
        objective_weights(given_name, REWARDS_PG)


@pytest.mark.parametrize("name", ["", "x", "PSR "])
def test_any_unknown_name_is_one_sentence(name):
    with pytest.raises(ValueError, match="must be one of RLVR, PSR, NSR, W_REINFORCE"):
        find_objective(name)


@pytest.mark.parametrize("lambda_psr", [-0.1, 1.1, float("nan"), float("inf")])
def test_lambda_out_of_range_is_refused(lambda_psr):
    with pytest.raises(ValueError, match=r"lambda_psr is .* between 0 and 1"):
        objective_weights("W_REINFORCE", REWARDS_PG, lambda_psr=lambda_psr)


@pytest.mark.parametrize("lambda_psr", [0.0, 1.0])
def test_the_ends_of_lambdas_range_are_nsr_and_raw_rewards(lambda_psr):
    other = objective_weights("NSR", REWARDS_PG) if lambda_psr == 0.0 else REWARDS_PG
    np.testing.assert_array_equal(objective_weights("W_REINFORCE", REWARDS_PG, lambda_psr=lambda_psr), other)


@pytest.mark.parametrize("bad", [0.0, 0.5, 2.0, float("nan"), float("inf")])
def test_rewards_other_than_plus_and_minus_one_are_refused(bad):
    with pytest.raises(ValueError, match=r"a reward is .* must be \+1"):
        objective_weights("NSR", [[1.0, bad]])


@pytest.mark.parametrize("bad", [[1.0, -1.0], [[[1.0]]], [[]], [], 1.0])
def test_rewards_of_another_shape_are_refused(bad):
    with pytest.raises(ValueError, match="shape"):
        objective_weights("NSR", bad)


def test_an_unknown_advantage_is_refused():
    with pytest.raises(ValueError, match="advantage is 'batch'"):
        objective_weights("NSR", REWARDS_PG, advantage="batch")


def test_leave_one_out_of_one_sample_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        objective_weights("RLOO", [[1], [-1]])


def test_an_objective_is_one_registered_function():
    @objective("HALVED")
    def halved(rewards_PG: Rewards, setting: Setting) -> Weights:
        """Learn from all samples, half as much from the right ones."""
        values_PG = setting.normalize(rewards_PG)
        return np.where(rewards_PG > 0, 0.5 * values_PG, values_PG)

    try:
        assert objective_weights("HALVED", [[1, -1]]).tolist() == [[0.5, -1.0]]
        assert find_objective("HALVED").summary == "Learn from all samples, half as much from the right ones."
        with pytest.raises(ValueError, match="'HALVED' is already registered"):
            objective("HALVED")
    finally:
        del OBJECTIVES["HALVED"]


def test_the_papers_objectives_and_the_examples_are_registered_with_their_defaults():
    assert {name: entry.advantage for name, entry in OBJECTIVES.items()} == {
        "RLVR": "group",
        "PSR": "none",
        "NSR": "none",
        "W_REINFORCE": "none",
        "SHUFFLED": "group",
        "RLOO": "none",
    }
    assert all(entry.summary.endswith(".") or entry.summary for entry in OBJECTIVES.values())
