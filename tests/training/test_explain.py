"""`nsr explain` on the embedded model: what it writes is what the update would do, and what it chooses to show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nsr.algorithms.objectives import objective_weights
from nsr.config import BaselineConfig, ExplainConfig
from nsr.evaluation.mechanism import GradientMismatch
from nsr.rollout.engine import SamplingParams
from nsr.rollout.rollout import RolloutGroup, rollout
from nsr.rollout.setup import Sampler, build_sampler, check_setup
from nsr.tasks.countdown.puzzle import Puzzle
from nsr.tools import explain as explain_module
from nsr.tools.explain import explain
from nsr.training.batch import build_batch
from nsr.training.log_probs import policy_log_probs

OBJECTIVES = ("RLVR", "PSR", "NSR", "W_REINFORCE")
SETTINGS: dict[str, Any] = {"numbers": (44, 19, 35), "target": 98, "max_tokens": 80, "temperature": 0.9}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return explain(ExplainConfig(**SETTINGS, out=str(tmp_path_factory.mktemp("explain") / "new" / "folder")))


@pytest.fixture(scope="module")
def record(written: Path) -> dict[str, Any]:
    return json.loads(written.read_text())


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    config = BaselineConfig(model_id="tiny", device="cpu", max_tokens=80)
    return build_sampler(config, check_setup(config, [Puzzle(numbers=(44, 19, 35), target=98)]))


@pytest.fixture(scope="module")
def group(sampler: Sampler) -> RolloutGroup:
    """The group that is explained, drawn here again."""
    params = SamplingParams(temperature=0.9, max_tokens=80, seed=42, purpose="explain")
    (one,) = rollout(sampler.engine, sampler.encode, [Puzzle(numbers=(44, 19, 35), target=98)], params, 8)
    return one


def test_shows_one_right_and_one_wrong_sample_with_their_weights(record: dict[str, Any], group: RolloutGroup) -> None:
    assert [sample["kind"] for sample in record["samples"]] == ["right", "wrong"]
    assert record["verdicts"] == [verdict.value for verdict in group.verdicts]
    for sample in record["samples"]:
        index = sample["sample"]
        assert sample["text"] == group.completions[index].text
        assert (sample["verdict"] == "correct") == (sample["kind"] == "right")
        # The first of its kind.
        assert all((other == "correct") != (sample["kind"] == "right") for other in record["verdicts"][:index])
        for name in OBJECTIVES:
            assert sample["weights"][name] == objective_weights(name, group.rewards_G[None])[0, index]


def test_tokens_are_those_with_the_most_entropy(record: dict[str, Any], sampler: Sampler, group: RolloutGroup) -> None:
    for sample in record["samples"]:
        completion = group.completions[sample["sample"]]
        weights_PG = np.zeros((1, 8))
        weights_PG[0, sample["sample"]] = 1.0
        batch = build_batch(
            [group], weights_PG, loss_type="standard", normalize_over="all", max_tokens=80, pad_token_id=0
        )
        with torch.no_grad():
            _, entropy_1T = policy_log_probs(sampler.policy.model, sampler.support, batch, 0.9)
        entropy_T = entropy_1T[0, len(group.prompt_ids) :]
        positions = [token["position"] for token in sample["tokens"]]
        assert positions == sorted(entropy_T.topk(3).indices.tolist())
        for token in sample["tokens"]:
            assert token["entropy"] == pytest.approx(float(entropy_T[token["position"]]), abs=1e-4)
            assert token["candidates"][0]["token_id"] == completion.token_ids[token["position"]]
            decoded = sampler.policy.tokenizer.decode(list(completion.token_ids[: token["position"]]))
            assert decoded.endswith(token["before"])


def test_probabilities_and_gradients_are_of_the_whole_vocabulary(record: dict[str, Any], sampler: Sampler) -> None:
    for sample in record["samples"]:
        for token in sample["tokens"]:
            bars = [*token["candidates"], token["tail"]]
            out = len(sampler.support.end_token_ids) if token["position"] < sampler.support.min_tokens else 0
            assert token["tail"]["ids"] + len(token["candidates"]) == sampler.support.vocab_size - out
            assert sum(bar["probability"] for bar in bars) == pytest.approx(1.0)
            others = [bar["probability"] for bar in token["candidates"][1:]]
            assert others == sorted(others, reverse=True)
            sampled = token["candidates"][0]["probability"]
            for name, weight in sample["weights"].items():
                assert sum(bar["gradients"][name] for bar in bars) == pytest.approx(0.0, abs=1e-9)
                assert token["candidates"][0]["gradients"][name] == pytest.approx(weight * (1 - sampled) / 0.9)
                for bar in bars:
                    assert bar["paper_gradients"][name] == pytest.approx(sampled * bar["gradients"][name], abs=1e-12)


def test_the_gradients_are_those_of_the_update(record: dict[str, Any], sampler: Sampler, group: RolloutGroup) -> None:
    """The trainer's own log-probs, through the model's own logits, weighted as the objective weighs the sample."""
    model = sampler.policy.model
    seen: list[torch.Tensor] = []

    def keep(_module: object, _inputs: object, output: torch.Tensor) -> None:
        output.retain_grad()
        seen.append(output)

    handle = model.get_output_embeddings().register_forward_hook(keep)
    weights_PG = objective_weights("W_REINFORCE", group.rewards_G[None])
    batch = build_batch([group], weights_PG, loss_type="standard", normalize_over="all", max_tokens=80, pad_token_id=0)
    log_probs_BT, _ = policy_log_probs(model, sampler.support, batch, 0.9, exact=True)
    (log_probs_BT * batch.weights_B[:, None]).sum().backward()
    handle.remove()
    model.zero_grad()
    (logits_BTV,) = seen
    assert logits_BTV.grad is not None
    for sample in record["samples"]:
        for token in sample["tokens"]:
            gradient_V = logits_BTV.grad[sample["sample"], token["position"]]
            for bar in token["candidates"]:
                expected = float(gradient_V[bar["token_id"]])
                assert bar["gradients"]["W_REINFORCE"] == pytest.approx(expected, abs=1e-5)


def test_the_same_seed_gives_the_same_bytes(written: Path, tmp_path: Path) -> None:
    assert explain(ExplainConfig(**SETTINGS, out=str(tmp_path))).read_bytes() == written.read_bytes()


def test_a_gradient_that_is_not_the_formulas_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain_module, "clipped_surrogate", lambda now, _old, weights, _eps: -now * weights[:, None])
    with pytest.raises(GradientMismatch):
        explain(ExplainConfig(**SETTINGS, out=str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


def test_without_numbers_a_puzzle_is_found_and_tokens_can_be_named(tmp_path: Path) -> None:
    config = ExplainConfig(
        data="synthetic:3", max_tokens=80, positions=(5, 0), alternatives=200, objectives=("NSR",), out=str(tmp_path)
    )
    record = json.loads(explain(config).read_text())
    assert len(set(record["verdicts"])) > 1
    for sample in record["samples"]:
        assert [token["position"] for token in sample["tokens"]] == [0, 5]
        assert all(token["tail"] == {**token["tail"], "ids": 0, "probability": 0.0} for token in sample["tokens"])


def test_a_puzzle_that_is_never_solved_shows_the_wrong_sample_alone(tmp_path: Path) -> None:
    config = ExplainConfig(numbers=(1, 1, 2), target=99, max_tokens=20, num_tokens=1, out=str(tmp_path))
    record = json.loads(explain(config).read_text())
    assert [sample["kind"] for sample in record["samples"]] == ["wrong"]
    assert record["samples"][0]["weights"]["RLVR"] == 0.0


def test_what_cannot_be_shown_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--positions has 99 but a sample shown has \d+ tokens"):
        explain(ExplainConfig(**SETTINGS, positions=(99,), out=str(tmp_path)))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"--out: .*file is a file, not a folder"):
        explain(ExplainConfig(**SETTINGS, out=str(tmp_path / "file" / "folder")))
