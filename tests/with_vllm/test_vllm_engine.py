"""The real vLLM beside the trainer: the same log-probs, the same distribution, and syncs that are checked.

`make test-vllm` runs these in an environment of their own. The models are small Qwen3s with random weights, tied and
untied, whose embeddings have rows that no one may sample.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from models.random_qwen3 import build_folder, build_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from nsr.algorithms.objectives import objective_weights
from nsr.models.registry import LoadedPolicy, load_policy, prompt_encoder
from nsr.models.sampling_mask import Support
from nsr.rollout import vllm as module
from nsr.rollout.engine import Completion, Engine, Request, SamplingParams
from nsr.rollout.native.engine import LocalEngine
from nsr.rollout.rollout import RolloutGroup, rewards, rollout
from nsr.rollout.vllm import VLLMEngine, WeightSyncError, first_seed, log_probs
from nsr.tasks.countdown.grader import Verdict
from nsr.tasks.countdown.puzzle import Puzzle, generate
from nsr.training.batch import build_batch
from nsr.training.log_probs import policy_log_probs
from nsr.training.optimizer import build_optimizer
from nsr.training.step import update

pytestmark = pytest.mark.vllm

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MAX_TOKENS = 24
PARAMS = SamplingParams(temperature=0.7, max_tokens=MAX_TOKENS, seed=1, purpose="train", step=1)
TESTED = Puzzle(numbers=(44, 19, 35), target=98)


@dataclasses.dataclass
class Pair:
    """A policy and the vLLM engine that samples from its copy."""

    policy: LoadedPolicy
    engine: VLLMEngine
    support: Support
    encode: Callable[[Puzzle], tuple[int, ...]]
    lr: float = 3e-3

    def requests(self, count: int, num_samples: int) -> list[Request]:
        puzzles = generate(count, seed=5)
        return [Request(key=p.key, prompt_ids=self.encode(p), num_samples=num_samples) for p in puzzles]

    def train(self, steps: int) -> None:
        """Steps of NSR, large enough that old weights would show."""
        optimizer = build_optimizer(self.policy.model, lr=self.lr, kind="adamw")
        for step in range(steps):
            params = dataclasses.replace(PARAMS, step=step)
            groups = rollout(self.engine, self.encode, generate(4, seed=step), params, 4)
            batch = build_batch(
                groups,
                objective_weights("NSR", rewards(groups)),
                loss_type="standard",
                normalize_over="all",
                max_tokens=MAX_TOKENS,
                pad_token_id=0,
            )
            update(
                self.policy.model,
                self.support,
                optimizer,
                [batch],
                temperature=PARAMS.temperature,
                clip_range=0.2,
                grad_acc_steps=1,
            )
            self.engine.load_weights(self.policy.model)


def build_llama(path: Path) -> Path:
    """A tied Llama, whose output layer is a module of its own in vLLM (a Qwen3's is the embedding itself)."""
    tokenizer = build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 8,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=1024,
        initializer_range=0.2,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def make_pair(folder: Path, *, tied: bool, kind: str = "qwen3", padding_logit: float = 0.0) -> Pair:
    if kind == "llama":
        build_llama(folder)
    else:
        build_folder(folder, tied=tied, hidden=64)
    policy = load_policy(str(folder), device=DEVICE, dtype=torch.float32)
    support = Support.of(policy.model, policy.tokenizer, 4)
    with torch.no_grad():
        policy.model.model.norm.weight *= 0.3  # distributions neither flat nor a point
        if padding_logit:  # rows that no token of the tokenizer uses
            policy.model.lm_head.weight[support.vocab_size :] *= padding_logit
    encode = prompt_encoder(policy.tokenizer, MAX_TOKENS)
    engine = VLLMEngine(
        policy.model,
        policy.tokenizer,
        support,
        model=str(folder),
        max_model_len=900,
        tested_prompt=encode(TESTED),
        gpu_mem_util=0.1,  # several engines share the device
        check_every=1,
    )
    return Pair(policy, engine, support, encode)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("model") / "model", tied=request.param)


def scored(pair: Pair, requests: Sequence[Request], groups: Sequence[Sequence[Completion]], temperature: float):
    """The trainer's log-probs and entropies of sampled tokens, one array each over all of them."""
    puzzles = generate(len(requests), seed=5)
    rollouts = [
        RolloutGroup(
            puzzle=puzzle,
            prompt_ids=request.prompt_ids,
            completions=tuple(group),
            verdicts=(Verdict.NO_ANSWER,) * len(group),
        )
        for puzzle, request, group in zip(puzzles, requests, groups, strict=True)
    ]
    batch = build_batch(
        rollouts,
        objective_weights("NSR", rewards(rollouts)),
        loss_type="standard",
        normalize_over="all",
        max_tokens=MAX_TOKENS,
        pad_token_id=0,
    )
    with torch.no_grad():
        scores = policy_log_probs(pair.policy.model, pair.support, batch.to(DEVICE), temperature)
    log_probs_BT, entropy_BT = (values_BT.cpu() for values_BT in scores)
    mask_BT = batch.response_mask_BT
    return log_probs_BT[mask_BT].numpy(), entropy_BT[mask_BT].numpy(), batch.sampler_log_probs_BT[mask_BT].numpy()


def test_log_probs_are_the_trainers_before_and_after_five_updates(pair: Pair) -> None:
    requests = pair.requests(6, 4)
    groups = pair.engine.generate(requests, PARAMS)
    ours, _, theirs = scored(pair, requests, groups, PARAMS.temperature)
    assert np.abs(ours - theirs).max() < 1e-3
    pair.train(5)
    moved, _, _ = scored(pair, requests, groups, PARAMS.temperature)
    assert np.abs(moved - theirs).max() > 0.1  # the old weights' log-probs would be noticed
    groups = pair.engine.generate(requests, PARAMS)
    ours, _, theirs = scored(pair, requests, groups, PARAMS.temperature)
    assert np.abs(ours - theirs).max() < 1e-3
    assert pair.engine.check(pair.policy.model) < 1e-3


def test_entropies_are_the_trainers(pair: Pair) -> None:
    requests = pair.requests(5, 3)
    groups = pair.engine.generate(requests, PARAMS)
    _, entropies, _ = scored(pair, requests, groups, PARAMS.temperature)
    completions = [completion for group in groups for completion in group]
    bounds = np.cumsum([0, *(len(completion.token_ids) for completion in completions)])
    for completion, first, last in zip(completions, bounds[:-1], bounds[1:], strict=True):
        assert completion.entropy == pytest.approx(entropies[first:last].mean(), abs=1e-3)


def test_seeds_repeat_and_name_the_stream(pair: Pair) -> None:
    requests = pair.requests(3, 4)

    def tokens(requests: Sequence[Request], **changes: object) -> list[tuple[int, ...]]:
        groups = pair.engine.generate(requests, dataclasses.replace(PARAMS, **changes))  # type: ignore[arg-type]
        return [completion.token_ids for group in groups for completion in group]

    first = tokens(requests)
    assert tokens(requests) == first
    assert len(set(first)) == len(first)  # no two samples share a stream
    for changes in ({"seed": 2}, {"step": 2}, {"purpose": "eval"}):
        assert not set(tokens(requests, **changes)) & set(first)
    # More samples begin with the same ones, and company changes nothing but rounding.
    more = tokens([dataclasses.replace(requests[0], num_samples=6)])
    assert more[:4] == first[:4]
    again = [dataclasses.replace(requests[0], key=f"again {number}") for number in range(3)]
    assert not set(tokens(again)) & set(first)


def test_seeds_of_requests_are_far_apart() -> None:
    seeds = sorted(
        first_seed(dataclasses.replace(PARAMS, step=step), f"{key}") for step in range(50) for key in range(40)
    )
    assert all(later - earlier >= 2**module.SAMPLE_BITS for earlier, later in itertools.pairwise(seeds))
    assert seeds[0] >= 0
    assert seeds[-1] + 2**module.SAMPLE_BITS < 2**63


def test_greedy_takes_the_policys_most_probable_tokens(pair: Pair) -> None:
    requests = pair.requests(4, 1)
    greedy = dataclasses.replace(PARAMS, temperature=0.0, purpose="greedy")
    local = LocalEngine(pair.policy.model, pair.policy.tokenizer, pair.support)
    assert pair.engine.generate(requests, greedy)[0][0].log_probs_T.tolist()[:1] == [0.0]
    ours, theirs = (engine.generate(requests, greedy) for engine in (local, pair.engine))
    for (mine,), (other,) in zip(ours, theirs, strict=True):
        assert mine.token_ids == other.token_ids
        assert (mine.text, mine.finish_reason, mine.entropy) == (other.text, other.finish_reason, other.entropy)


def test_stops_at_the_string_and_keeps_it(pair: Pair) -> None:
    requests = pair.requests(6, 4)
    free = [c for group in pair.engine.generate(requests, dataclasses.replace(PARAMS, stop="")) for c in group]
    # A string of two tokens that is sampled somewhere behind the first few tokens.
    sampled = next(c for c in free if len(c.token_ids) == MAX_TOKENS)
    stop = next(
        text
        for at in range(6, MAX_TOKENS - 2)
        if (text := pair.policy.tokenizer.decode(list(sampled.token_ids[at : at + 2]))).isascii() and len(text) == 2
    )
    stopped = [c for group in pair.engine.generate(requests, dataclasses.replace(PARAMS, stop=stop)) for c in group]
    reasons = [completion.finish_reason for completion in stopped]
    assert "stop" in reasons
    for completion, unstopped in zip(stopped, free, strict=True):
        # The same stream: what was sampled is a beginning of what is sampled without the string.
        assert completion.token_ids == unstopped.token_ids[: len(completion.token_ids)]
        assert len(completion.token_ids) == len(completion.log_probs_T)
        assert completion.text.endswith(stop) == (completion.finish_reason == "stop")
        assert (stop in completion.text) == (completion.finish_reason == "stop") or len(completion.token_ids) <= 5
        assert completion.finish_reason != "length" or len(completion.token_ids) == MAX_TOKENS


def test_end_tokens_end_but_not_among_the_first_four(tmp_path: Path) -> None:
    pair = make_pair(tmp_path / "model", tied=False)
    (end,) = pair.support.end_token_ids
    with torch.no_grad():  # all responses end as soon as they may
        pair.policy.model.lm_head.weight[end] = 0.0
        pair.policy.model.lm_head.weight[end] += 4 * pair.policy.model.lm_head.weight[: pair.support.vocab_size].mean(0)
    pair.engine.load_weights(pair.policy.model)
    groups = pair.engine.generate(pair.requests(12, 8), dataclasses.replace(PARAMS, temperature=2.0))
    ended = [c for group in groups for c in group if c.finish_reason == "end"]
    assert ended
    for completion in (c for group in groups for c in group):
        assert end not in completion.token_ids[:4]
        assert end not in completion.token_ids[:-1]
        assert (completion.token_ids[-1] == end) == (completion.finish_reason == "end")
        assert "<|im_end|>" not in completion.text


def test_padded_ids_are_never_sampled_and_out_of_the_log_probs(tmp_path: Path) -> None:
    pair = make_pair(tmp_path / "model", tied=False, padding_logit=20.0)
    requests = pair.requests(6, 4)
    groups = pair.engine.generate(requests, PARAMS)
    sampled = {token_id for group in groups for completion in group for token_id in completion.token_ids}
    assert max(sampled) < pair.support.vocab_size
    ours, _, theirs = scored(pair, requests, groups, PARAMS.temperature)
    assert np.abs(ours - theirs).max() < 1e-3
    # With them in, the same tokens would have had quite other log-probs.
    logits = (
        pair.policy.model(input_ids=torch.tensor([requests[0].prompt_ids], device=DEVICE)).logits[0, -1]
        / PARAMS.temperature
    )
    unmasked = logits.log_softmax(-1)[groups[0][0].token_ids[0]].item()
    assert abs(unmasked - groups[0][0].log_probs_T[0]) > 0.1


def keep_packed_head(model: torch.nn.Module) -> None:
    """As on a CPU whose kernels pack weights: the output layer computes with a copy of what its weights were."""
    packed = model.lm_head.weight.detach().clone()
    model.lm_head.cpu_linear = lambda inputs, _, bias: torch.nn.functional.linear(inputs, packed, bias)


def without_tied_names(policy: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """As if the output layer's own name were left out, or passed over."""
    return ((name, weight.detach()) for name, weight in policy.named_parameters())


def broken(engine: VLLMEngine, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "the tied output layer keeps its packed weights":
        if DEVICE != "cpu":
            pytest.skip("weights are packed on a CPU alone")
        engine._llm.apply_model(keep_packed_head)
        monkeypatch.setattr(module, "_dispatch_tied_head", lambda model: None)
        monkeypatch.setattr(module, "_weights", without_tied_names)
    elif name == "the cache of prompts is kept":
        monkeypatch.setattr(engine, "_forget_prompts", lambda: None)
    else:
        monkeypatch.setattr(engine, "_reload", lambda policy: None)


@torch.no_grad()
def disturb(model: PreTrainedModel) -> None:
    """Change the weights by about a third of their size."""
    torch.manual_seed(1)
    for weight in model.parameters():
        weight.add_(0.3 * weight.std() * torch.randn_like(weight) if weight.ndim == 2 else 0.0)


@pytest.mark.parametrize(
    "name",
    ["the tied output layer keeps its packed weights", "the cache of prompts is kept", "no weights are handed over"],
)
def test_a_broken_sync_is_caught(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = make_pair(tmp_path / "model", tied=True, kind="llama")
    pair.engine.check(pair.policy.model)  # its prompt is in the cache now
    broken(pair.engine, name, monkeypatch)
    disturb(pair.policy.model)
    with pytest.raises(WeightSyncError, match=r"differ by .* nats a token .*--engine local"):
        pair.engine.load_weights(pair.policy.model)
    monkeypatch.undo()
    pair.engine.load_weights(pair.policy.model)  # mended, it is accepted: the packed copy is made again


def test_a_tied_output_layer_is_packed_again_whichever_names_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if DEVICE != "cpu":
        pytest.skip("weights are packed on a CPU alone")
    pair = make_pair(tmp_path / "model", tied=True, kind="llama")
    pair.engine._llm.apply_model(keep_packed_head)
    monkeypatch.setattr(module, "_weights", without_tied_names)
    disturb(pair.policy.model)
    pair.engine.load_weights(pair.policy.model)
    assert pair.engine.check(pair.policy.model) < 1e-3


def test_the_self_test_comes_every_so_many_syncs(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[int] = []
    monkeypatch.setattr(pair.engine, "check", lambda policy: checked.append(pair.engine._syncs))
    monkeypatch.setattr(pair.engine, "check_every", 3)
    monkeypatch.setattr(pair.engine, "_syncs", 0)
    for _ in range(7):
        pair.engine.load_weights(pair.policy.model)
    assert checked == [0, 3, 6]


def surprise(pair: Pair, engine: Engine, params: SamplingParams, temperature: float) -> tuple[float, float, float]:
    """Is what an engine samples from the policy's distribution at `temperature`?

    Returns the KL of the engine from the policy (nats a token) by both sides' log-probs with its standard error, and a
    z-value that needs the policy's alone: under the policy, -log p of a sampled token has the entropy for its mean.
    """
    requests = pair.requests(16, 12)
    groups = engine.generate(requests, params)
    ours, entropies, theirs = scored(pair, requests, groups, temperature)
    ratio = theirs.astype(np.float64) - ours
    excess = -ours.astype(np.float64) - entropies
    z = excess.sum() / np.sqrt((excess**2).sum())
    return float(ratio.mean()), float(ratio.std() / np.sqrt(ratio.size)), float(z)


def test_both_engines_sample_the_same_distribution(pair: Pair) -> None:
    local = LocalEngine(pair.policy.model, pair.policy.tokenizer, pair.support)
    for engine in (local, pair.engine):
        kl, error, z = surprise(pair, engine, PARAMS, PARAMS.temperature)
        assert abs(kl) <= 4 * error + 1e-5
        assert abs(z) < 4
    # The same test sees a wrong temperature, from both sides' log-probs and from the policy's alone.
    wrong = dataclasses.replace(PARAMS, temperature=1.0)
    for engine in (local, pair.engine):
        kl, error, z = surprise(pair, engine, wrong, PARAMS.temperature)
        assert kl > 4 * error + 1e-5
        assert abs(z) > 4


def test_too_long_a_request_is_refused(pair: Pair) -> None:
    with pytest.raises(ValueError, match=r"exceed the 900 tokens that vLLM was started for"):
        pair.engine.generate(pair.requests(1, 1), dataclasses.replace(PARAMS, max_tokens=890))


def test_no_requests_no_completions(pair: Pair) -> None:
    assert pair.engine.generate([], PARAMS) == []


def test_what_vllm_cannot_start_with_is_one_sentence(pair: Pair, tmp_path: Path) -> None:
    def refuse(**options: object) -> None:
        raise ValueError("No available memory for the cache blocks.\nTry increasing `gpu_memory_utilization`.")

    stand_in = object.__new__(VLLMEngine)
    stand_in.__dict__.update(pair.engine.__dict__)
    stand_in._on_cuda = False
    stand_in._vllm = type("vllm", (), {"LLM": staticmethod(refuse)})
    with pytest.raises(
        ValueError, match=r"^vLLM could not start \(No available memory for the cache blocks\); .*"
    ) as e:
        stand_in._start(pair.policy.model, "model", 0.4)
    assert "--engine local" in str(e.value)
    stand_in._on_cuda = True
    with pytest.raises(ValueError, match=r"--gpu_mem_util is 0\.4 and prompt and response take up to 900 tokens"):
        stand_in._start(pair.policy.model, "model", 0.4)


def test_log_probs_of_the_policy_by_hand(pair: Pair) -> None:
    prompt, response = (5, 6, 7), (8, 9)
    logits = pair.policy.model(input_ids=torch.tensor([[*prompt, *response]], device=DEVICE)).logits[0].double()
    for index, token in enumerate(response):
        row = logits[len(prompt) - 1 + index].clone()
        row[pair.support.vocab_size :] = float("-inf")
        row[list(pair.support.end_token_ids)] = float("-inf")  # the first four tokens
        expected = row.log_softmax(-1)[token].item()
        assert log_probs(pair.policy.model, pair.support, prompt, response)[index] == pytest.approx(expected, abs=1e-5)


def test_a_vllm_that_cannot_be_imported_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist\nmore")

    monkeypatch.setattr(module, "import_module", fail)
    with pytest.raises(
        ValueError, match=r"cannot be imported \(operator torchvision::nms does not exist\); if"
    ) as caught:
        module._imported()
    assert "\n" not in str(caught.value)
