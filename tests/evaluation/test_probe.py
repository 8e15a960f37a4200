"""The probe: which samples it keeps, and what it measures, by hand and by enumeration on a bigram policy."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nsr.evaluation import scoring
from nsr.evaluation.probe import (
    NUM_PUZZLES,
    SAMPLES_A_PUZZLE,
    SET_SIZE,
    ProbeSample,
    draw_probe,
    measure_probe,
    spread,
    tracked,
)
from nsr.models.sampling_mask import Support
from nsr.rollout.engine import Completion, Request, SamplingParams
from nsr.tasks.countdown.puzzle import Puzzle, generate
from nsr.tasks.countdown.solver import solve

VOCAB, PADDED = 8, 10
SUPPORT = Support(vocab_size=VOCAB, end_token_ids=(1,), min_tokens=2)


class Bigram(torch.nn.Module):
    """A policy whose next-token logits depend on the last token alone: row v of a table."""

    device = torch.device("cpu")

    def __init__(self, seed: int, scale: float = 1.5) -> None:
        super().__init__()
        self.table = scale * torch.randn(PADDED, PADDED, generator=torch.Generator().manual_seed(seed))

    def forward(self, *, input_ids: torch.Tensor, use_cache: bool, logits_to_keep: torch.Tensor) -> Any:
        assert not use_cache
        return SimpleNamespace(logits=self.table[input_ids[:, logits_to_keep]])

    def probs(self, before: int, position: int, temperature: float) -> np.ndarray:
        logits = self.table[before].double().numpy() / temperature
        inside = [v < VOCAB and (v != 1 or position >= 2) for v in range(PADDED)]
        weights = np.where(inside, np.exp(logits), 0.0)
        return weights / weights.sum()


class Scripted:
    """An engine whose samples are right where it is told so: `right[p][g]`. Tokens are drawn from the vocabulary."""

    def __init__(self, puzzles: Sequence[Puzzle], right: Sequence[Sequence[bool]]) -> None:
        self.right = {puzzle.key: row for puzzle, row in zip(puzzles, right, strict=True)}
        self.answers = {puzzle.key: solve(puzzle)[0] for puzzle in puzzles}
        self.params: SamplingParams | None = None

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[list[Completion]]:
        self.params = params
        rng = np.random.default_rng(0)
        return [
            [self.completion(rng, self.answers[request.key] if right else "0") for right in self.right[request.key]]
            for request in requests
        ]

    def completion(self, rng: np.random.Generator, answer: str) -> Completion:
        tokens = rng.integers(2, VOCAB, size=rng.integers(3, 7)).tolist()
        return Completion(
            token_ids=tuple(tokens),
            text=f"<answer>{answer}</answer>",
            log_probs_T=np.zeros(len(tokens), dtype=np.float32),
            entropy=None,
            finish_reason="stop",
        )

    def load_weights(self, policy: object) -> None:
        raise AssertionError("nothing was trained")


def drawn(right: Sequence[Sequence[bool]], model: Bigram | None = None) -> list[ProbeSample]:
    puzzles = generate(len(right), seed=1, sizes=(3,))
    engine = Scripted(puzzles, right)
    samples = draw_probe(
        engine,
        lambda _: (3, 4),
        model or Bigram(0),  # pyright: ignore[reportArgumentType]
        SUPPORT,
        puzzles,
        temperature=0.8,
        max_tokens=16,
        seed=5,
    )
    assert engine.params == SamplingParams(temperature=0.8, max_tokens=16, seed=5, purpose="probe")
    return samples


def one_sample(token_ids: tuple[int, ...], base: Bigram, temperature: float, prompt: int = 3) -> ProbeSample:
    """A sample that holds what the base gives, worked out without the code under test."""
    rows = [base.probs(before, t, temperature) for t, before in enumerate((prompt, *token_ids[:-1]))]
    top = [np.argsort(-row)[:5] for row in rows]
    return ProbeSample(
        puzzle="1,2,3=6",
        sample=0,
        right=True,
        selected=True,
        prompt_ids=(prompt,),
        token_ids=token_ids,
        log_probs_T=np.array([math.log(row[token]) for row, token in zip(rows, token_ids, strict=True)]),
        top_ids_TK=np.array(top),
        top_log_probs_TK=np.array([np.log(row[ids]) for row, ids in zip(rows, top, strict=True)]),
    )


def measured(samples: Sequence[ProbeSample], model: Bigram, temperature: float = 0.8) -> dict[str, Any]:
    return measure_probe(samples, model, SUPPORT, temperature)  # pyright: ignore[reportArgumentType]


def test_each_key_once_before_any_twice() -> None:
    assert spread(["a", "a", "b", "c", "b", "a"]) == [0, 2, 3, 1, 4, 5]
    assert spread([]) == []


def test_keeps_the_first_of_each_puzzle_and_as_many_puzzles_as_can_be() -> None:
    # Two puzzles are always right, ten right at their last sample alone, the others never.
    last = [False] * (SAMPLES_A_PUZZLE - 1) + [True]
    right = [[True] * SAMPLES_A_PUZZLE] * 2 + [last] * 10 + [[False] * SAMPLES_A_PUZZLE] * 40
    samples = drawn(right)
    assert [sample.sample for sample in samples if sample.unselected] == [0] * len(right)
    rights = [sample for sample in samples if sample.selected and sample.right]
    wrongs = [sample for sample in samples if sample.selected and not sample.right]
    assert len(rights) == 2 * SAMPLES_A_PUZZLE + 10
    # There are wrong samples of 50 puzzles: those that are selected are of 32 different ones.
    assert len(wrongs) == len({sample.puzzle for sample in wrongs}) == SET_SIZE
    assert len(drawn([[True] * SAMPLES_A_PUZZLE] * (NUM_PUZZLES + 3))) == NUM_PUZZLES


def test_what_the_base_gave_is_kept() -> None:
    base = Bigram(0)
    for sample in drawn([[True, False, False, True]] * 3, base):
        expected = one_sample(sample.token_ids, base, 0.8, prompt=sample.prompt_ids[-1])
        np.testing.assert_allclose(sample.log_probs_T, expected.log_probs_T, atol=2e-6)
        np.testing.assert_array_equal(sample.top_ids_TK, expected.top_ids_TK)
        np.testing.assert_allclose(sample.top_log_probs_TK, expected.top_log_probs_TK, atol=2e-6)


def test_a_policy_that_did_not_change_changed_nothing() -> None:
    found = measured(drawn([[True, False, True, False]] * 6), Bigram(0))
    for kind in ("right", "wrong"):
        assert {value for name, value in found[kind].items() if name.endswith("_change")} == {0.0}
    assert found["kl_base"] == 0.0


def test_changes_worked_out_token_by_token() -> None:
    base, now = Bigram(0), Bigram(1)
    samples = [one_sample((4, 2, 7, 1), base, 0.8), one_sample((5, 5), base, 0.8)]
    logs, masses = [], []
    for sample in samples:
        for t, before in enumerate((3, *sample.token_ids[:-1])):
            p, q, token = base.probs(before, t, 0.8), now.probs(before, t, 0.8), sample.token_ids[t]
            rest = [v for v in np.argsort(-p)[:5] if v != token]
            tail = [v for v in range(PADDED) if v != token and v not in rest]
            logs.append((math.log(p[token]), math.log(q[token])))
            masses.append([(one[token], one[rest].sum(), one[tail].sum()) for one in (p, q)])
    found = measured(samples, now)
    record = found["right"]
    assert found["wrong"] is None
    assert (record["samples"], record["tokens"]) == (2, 6)
    old, new = np.mean(logs, axis=0)
    assert record["log_prob"] == pytest.approx(new, abs=1e-5)
    assert record["log_prob_change"] == pytest.approx(new - old, abs=1e-5)
    before_3, after_3 = np.mean(masses, axis=0)
    for place, name in enumerate(("sampled", "top", "tail")):
        assert record[name] == pytest.approx(after_3[place], abs=1e-5)
        assert record[f"{name}_change"] == pytest.approx(after_3[place] - before_3[place], abs=1e-5)
        assert abs(record[f"{name}_change"]) > 1e-3
    assert record["sampled_change"] + record["top_change"] + record["tail_change"] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("temperature", [0.8, 1.5])
def test_the_divergence_is_unbiased(temperature: float) -> None:
    """Over every token that the base could have sampled, weighted as it samples, the estimates add up to the KL."""
    base, now = Bigram(0), Bigram(1)
    p, q = base.probs(3, 0, temperature), now.probs(3, 0, temperature)
    inside = np.flatnonzero(p)
    estimates = {
        int(v): measured([one_sample((int(v),), base, temperature)], now, temperature)["kl_base"] for v in inside
    }
    exact = sum(p[v] * math.log(p[v] / q[v]) for v in inside)
    assert sum(p[v] * estimates[int(v)] for v in inside) == pytest.approx(exact, abs=1e-5)
    assert exact > 0.1
    assert min(estimates.values()) >= 0.0
    # Tokens of the top 5 all give the same estimate: that part is exact.
    top = np.argsort(-p)[:5]
    assert np.ptp([estimates[int(v)] for v in top]) == 0.0


def test_the_divergence_is_over_unselected_samples_alone() -> None:
    base, now = Bigram(0), Bigram(1)
    samples = drawn([[True, False, True, False]] * 8, base)
    unselected = [sample for sample in samples if sample.unselected]
    assert len(unselected) < len(samples)
    assert measured(samples, now)["kl_base"] == measured(unselected, now)["kl_base"]


def test_a_base_that_is_never_or_always_right() -> None:
    for kind, other in ((True, "wrong"), (False, "right")):
        found = measured(drawn([[kind] * SAMPLES_A_PUZZLE] * 3), Bigram(1))
        assert found[other] is None
        assert found["right" if kind else "wrong"]["samples"] == 3 * SAMPLES_A_PUZZLE
        assert not any(other in name for name in tracked(found))
        assert tracked(found)["mechanism/kl_base"] == found["kl_base"]


def test_work_in_pieces_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    right = [[True, False, True, False]] * 4
    whole, found = drawn(right), measured(drawn(right), Bigram(1))
    monkeypatch.setattr(scoring, "PIECE_ELEMENTS", 2 * PADDED)  # two positions at a time
    assert [sample.to_json() for sample in drawn(right)] == [sample.to_json() for sample in whole]
    assert measured(whole, Bigram(1)) == found


def test_a_sample_comes_back_from_json_as_it_was() -> None:
    (sample, *_) = drawn([[True, False, True, False]] * 2)
    record = json.loads(json.dumps(sample.to_json()))
    again = ProbeSample.from_json(record)
    assert again.to_json() == sample.to_json()
    assert measured([again], Bigram(1)) == measured([sample], Bigram(1))
    for broken in ({**record, "top_ids": record["top_ids"][:-1]}, {"puzzle": "x"}, {**record, "log_probs": ["a"]}):
        with pytest.raises(ValueError, match="no sample of a probe"):
            ProbeSample.from_json(broken)
