"""Tokens a second of the local engine and of `transformers` generate: same model, prompts, rows and settings.

    python benchmarks/sampling.py                       # the embedded model, 128 rows (16 puzzles x 8), 3 rounds
    python benchmarks/sampling.py --max_tokens 96 --exact     # the plain path
    python benchmarks/sampling.py --model_id smollm2-135m --dtype bfloat16 --puzzles 8 --max_tokens 64

Two tables: "same length", where nothing ends a completion before `max_tokens`, so that both do the same work; and "as
used", with end token and stop string, where tokens that a finished row is padded with do not count. The two take turns,
so that what else runs on the machine meets both; the ratio is taken within each round.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any, Literal

import torch
import tyro

from nsr.models.catalog import LoadedPolicy, load_policy, prompt_encoder
from nsr.sampling.engine import Request, SamplingParams
from nsr.sampling.local import LocalEngine
from nsr.sampling.support import Support
from nsr.task.puzzle import generate


def main(
    model_id: str = "tiny",
    puzzles: int = 16,
    group_size: int = 8,
    max_tokens: int = 160,
    max_batch_size: int = 128,
    rounds: int = 3,
    device: str = "cpu",
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    exact: bool = False,
) -> None:
    """Measure and print.

    Args:
        model_id: what to sample from.
        puzzles: prompts.
        group_size: completions of each.
        max_tokens: longest completion.
        max_batch_size: rows of the local engine at a time; generate takes all at once.
        rounds: times that each is measured, after one round that is not counted.
        device: where.
        dtype: what the model computes in; auto is float32 on a CPU and bfloat16 elsewhere.
        exact: let the local engine take the plain path.
    """
    chosen = ("float32" if device == "cpu" else "bfloat16") if dtype == "auto" else dtype
    policy = load_policy(model_id, device=device, dtype=getattr(torch, chosen))
    encode = prompt_encoder(policy.tokenizer, max_tokens)
    requests = [
        Request(key=puzzle.key, prompt_ids=encode(puzzle), num_samples=group_size) for puzzle in generate(puzzles)
    ]
    print(f"{model_id}, {chosen}, {device}, {torch.get_num_threads()} threads, {puzzles} prompts x {group_size}")
    for title, ending in (("same length", False), ("as used", True)):
        support = Support.of(policy.model, policy.tokenizer, 4)
        support = support if ending else dataclasses.replace(support, end_token_ids=())
        engine = LocalEngine(policy.model, policy.tokenizer, support, max_batch_size=max_batch_size, exact=exact)
        compare(
            title,
            local=lambda step, engine=engine, ending=ending: local_tokens(engine, requests, max_tokens, ending, step),
            reference=lambda _, ending=ending: generate_tokens(policy, requests, max_tokens, ending),
            rounds=rounds,
        )


def compare(title: str, local: Callable[[int], int], reference: Callable[[int], int], rounds: int) -> None:
    """Print tokens a second of both and their ratio: median, smallest and largest over the rounds."""
    rates = [(rate(local, step), rate(reference, step)) for step in range(rounds + 1)][1:]
    ratios = [ours / theirs for ours, theirs in rates]
    print(title)
    for name, values, digits in (
        ("local engine, tokens/s", [ours for ours, _ in rates], 0),
        ("generate, tokens/s", [theirs for _, theirs in rates], 0),
        ("ratio", ratios, 2),
    ):
        low, median, high = (f"{f(values):,.{digits}f}" for f in (min, statistics.median, max))
        print(f"  {name:<26}median {median:>8}  from {low:>8} to {high:>8}")


def rate(work: Callable[[int], int], step: int) -> float:
    """Tokens a second of one piece of work, which returns its tokens."""
    start = time.perf_counter()
    tokens = work(step)
    return tokens / (time.perf_counter() - start)


def local_tokens(engine: LocalEngine, requests: list[Request], max_tokens: int, ending: bool, step: int) -> int:
    params = SamplingParams(temperature=1.0, max_tokens=max_tokens, seed=0, purpose="benchmark", step=step)
    params = params if ending else dataclasses.replace(params, stop="")
    return sum(len(completion.token_ids) for group in engine.generate(requests, params) for completion in group)


def generate_tokens(policy: LoadedPolicy, requests: list[Request], max_tokens: int, ending: bool) -> int:
    padding: Any = policy.tokenizer.pad_token_id or policy.tokenizer.eos_token_id or 0
    longest = max(len(request.prompt_ids) for request in requests)
    prompts = [
        [padding] * (longest - len(request.prompt_ids)) + list(request.prompt_ids)
        for request in requests
        for _ in range(request.num_samples)
    ]
    masks = [[int(column >= longest - len(r.prompt_ids)) for column in range(longest)] for r in requests]
    model: Any = policy.model
    output = model.generate(
        input_ids=torch.tensor(prompts, device=model.device),
        attention_mask=torch.tensor(masks, device=model.device).repeat_interleave(requests[0].num_samples, dim=0),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max_tokens,
        min_new_tokens=4 if ending else max_tokens,
        pad_token_id=padding,
        **({"stop_strings": ["</answer>"], "tokenizer": policy.tokenizer} if ending else {}),
    )
    response = output[:, longest:]
    return int((response != padding).sum()) if ending else response.numel()


if __name__ == "__main__":
    tyro.cli(main)
