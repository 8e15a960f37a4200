"""The memory model, against numbers worked out by hand, published sizes, and what torch really holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen3Config

from nsr.memory.estimate import (
    SPARE_COLUMNS,
    Item,
    ModelShape,
    Optimizer,
    Setup,
    Work,
    evaluation_items,
    microbatch_rows,
    peak,
    sampling_batch,
    training_items,
)
from nsr.models.sampling_mask import Support
from nsr.rollout.engine import Request, SamplingParams
from nsr.rollout.native import steps
from nsr.rollout.native.engine import LocalEngine
from nsr.training.batch import Batch
from nsr.training.optimizer import build_optimizer
from nsr.training.step import recompute_activations, update

SIZES: dict[str, Any] = {
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 640,
}
CONFIGS: dict[str, Callable[..., Any]] = {"qwen3": Qwen3Config, "llama": LlamaConfig}
PROMPT, RESPONSE = 8, 24


def model_of(kind: str, dtype: torch.dtype, **changes: Any) -> tuple[PreTrainedModel, ModelShape]:
    config = CONFIGS[kind](**{**SIZES, **changes})
    return AutoModelForCausalLM.from_config(config).to(dtype=dtype).eval(), ModelShape.from_config(config)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("tied", [True, False])
def test_the_number_of_parameters_is_the_models(kind: str, tied: bool) -> None:
    model, shape = model_of(kind, torch.float32, tie_word_embeddings=tied)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())


def kept_for_backward(model: PreTrainedModel, rows: int, tokens: int) -> int:
    """Bytes of what autograd keeps of a forward pass, each storage once and no weights."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(input_ids=torch.randint(0, 9, (rows, tokens)), use_cache=False, logits_to_keep=1)
    assert output.logits.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", CONFIGS)
def test_a_layer_keeps_exactly_what_is_said(kind: str, dtype: torch.dtype) -> None:
    with_two, with_three = (model_of(kind, dtype, num_hidden_layers=layers)[0] for layers in (2, 3))
    _, shape = model_of(kind, dtype)
    measured = kept_for_backward(with_three, 2, 30) - kept_for_backward(with_two, 2, 30)
    assert measured == 2 * 30 * shape.layer_bytes(dtype.itemsize)


def stepper(model: PreTrainedModel, kind: Optimizer, rows: int, exact: bool) -> Callable[[], Any]:
    count, length = 2 * rows, PROMPT + RESPONSE
    mask_BT = torch.zeros(count, length, dtype=torch.bool)
    mask_BT[:, PROMPT:] = True
    batch = Batch(
        tokens_BT=torch.randint(2, SIZES["vocab_size"], (count, length)),
        prompt_lengths_B=torch.full((count,), PROMPT),
        response_mask_BT=mask_BT,
        weights_B=-torch.ones(count),
        group_B=torch.arange(count),
        sampler_log_probs_BT=torch.zeros(count, length),
        num_rollouts=count,
        denominator=float(count),
        loss_type="standard",
        max_tokens=RESPONSE,
    )
    support = Support(vocab_size=SIZES["vocab_size"], end_token_ids=(1,), min_tokens=4)
    optimizer = build_optimizer(model, lr=1e-6, kind=kind)
    settings = {"temperature": 1.0, "clip_range": 0.2, "grad_acc_steps": 2, "exact": exact}
    return lambda: update(model, support, optimizer, [batch], **settings)


def most_allocated(function: Callable[[], Any]) -> int:
    """Most bytes that torch's CPU allocator held at once for what the function made."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    recorded: Any = profile.profiler
    events = [event for event in recorded.kineto_results.events() if event.name() == "[memory]"]
    assert events
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def said(shape: ModelShape, dtype: torch.dtype, rows: int, checkpointing: bool, exact: bool) -> int:
    """What a step allocates by the formula: all but weights and state, which are there before."""
    setup = Setup(shape=shape, weight_bytes=dtype.itemsize, prompt_tokens=PROMPT, sampling_batch=0, on_cpu=True)
    work = Work(sequences=rows, max_tokens=RESPONSE, gradient_checkpointing=checkpointing, exact=exact)
    before = {"weights", "master weights", "optimizer state"}
    return peak(item for item in training_items(setup, work, "adamw") if item.name not in before)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("kind", "dtype", "tied", "rows"),
    [
        ("qwen3", torch.float32, True, 8),
        ("llama", torch.float32, False, 8),
        ("qwen3", torch.bfloat16, False, 16),
        ("llama", torch.bfloat16, True, 1),  # where the step of the largest parameter takes most
    ],
)
def test_a_step_allocates_what_is_said(
    kind: str, dtype: torch.dtype, tied: bool, rows: int, checkpointing: bool, exact: bool
) -> None:
    model, shape = model_of(kind, dtype, tie_word_embeddings=tied)
    if checkpointing:
        recompute_activations(model)
    step = stepper(model, "adamw", rows, exact)
    step()
    told, most = said(shape, dtype, rows, checkpointing, exact), most_allocated(step)
    if exact:
        assert told == pytest.approx(most, rel=0.1)
    else:  # packed it keeps less of its norms, on a CPU
        assert most <= 1.02 * told <= 1.75 * most


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_saved_allocates_what_is_said(dtype: torch.dtype) -> None:
    model, shape = model_of("llama", dtype, vocab_size=64)
    optimizer = build_optimizer(model, lr=1e-6, kind="adamw")
    setup = Setup(shape=shape, weight_bytes=dtype.itemsize, prompt_tokens=PROMPT, sampling_batch=0, on_cpu=True)
    items = training_items(setup, Work(sequences=1, max_tokens=1), "adamw")
    told = sum(item.size for item in items if item.phase == "saving")
    if dtype == torch.float32:
        assert not told
        return
    gradients = next(item.size for item in items if item.name == "gradients")
    most = most_allocated(optimizer.state_dict)
    # a block of what is joined comes on top, of at most 2^20 numbers; here of the largest parameter
    assert told + gradients <= most <= told + gradients + 4 * 160 * 96
    on_gpu = training_items(dataclasses.replace(setup, on_cpu=False), Work(sequences=1, max_tokens=1), "adamw")
    assert not [item for item in on_gpu if item.phase == "saving"]


def test_checkpointing_allocates_far_less_in_a_deep_model() -> None:
    most: dict[bool, int] = {}
    for checkpointing in (False, True):
        model, shape = model_of("qwen3", torch.float32, num_hidden_layers=8)
        if checkpointing:
            recompute_activations(model)
        step = stepper(model, "adamw", 16, exact=True)
        step()
        most[checkpointing] = most_allocated(step)
        assert said(shape, torch.float32, 16, checkpointing, exact=True) == pytest.approx(most[checkpointing], rel=0.1)
    # 8 layers keep 512 tokens x 96 x 4 bytes each, and one of them the rest
    assert most[True] < 0.5 * most[False]


def test_the_8_bit_step_allocates_no_more_than_is_said() -> None:
    model, shape = model_of("llama", torch.float32, vocab_size=8192, tie_word_embeddings=True)
    optimizer = build_optimizer(model, lr=1e-6, kind="adamw8bit")

    def step() -> None:
        for weight in model.parameters():
            weight.grad = torch.ones_like(weight)
        optimizer.step()

    step()
    setup = Setup(shape=shape, weight_bytes=4, prompt_tokens=1, sampling_batch=0, on_cpu=True)
    items = training_items(setup, Work(sequences=1, max_tokens=1), "adamw8bit")
    told = sum(item.size for item in items if item.phase == "stepping" or item.name == "gradients")
    assert 0.8 * told < most_allocated(step) <= told


def test_the_order_of_the_moments_does_not_matter_and_the_largest_counts() -> None:
    sizes = {"always": 10, "learning": 3, "accumulating": 4, "stepping": 5, "sampling": 2}
    items = [Item(name=phase, size=count, sum="", phase=phase) for phase, count in sizes.items()]  # pyright: ignore[reportArgumentType]
    assert peak(items) == peak(reversed(items)) == 15
    assert peak(items[:1]) == 10


def test_vllm_gives_its_memory_back_while_it_sleeps() -> None:
    shape = ModelShape(parameters=1000, hidden=8, intermediate=24, layers=2, kv_width=4, vocab=50)

    def needed(*, sleeps: bool) -> int:
        setup = Setup(
            shape=shape,
            weight_bytes=2,
            prompt_tokens=6,
            sampling_batch=0,
            on_cpu=False,
            vllm_bytes=10**6,
            vllm_sleeps=sleeps,
        )
        return peak(training_items(setup, Work(sequences=2, max_tokens=10), "adamw"))

    assert needed(sleeps=False) > 10**6 + 14000
    # Asleep while learning, which takes less than it.
    assert needed(sleeps=True) == 10**6 + 14000
    setup = Setup(shape=shape, weight_bytes=2, prompt_tokens=6, sampling_batch=0, on_cpu=False, vllm_bytes=10**6)
    assert peak(evaluation_items(setup, 10)) == 10**6 + 2000


def test_a_microbatch_has_the_rows_that_update_gives_it() -> None:
    assert [microbatch_rows(128, 1, n) for n in (1, 16, 128)] == [128, 8, 1]
    assert microbatch_rows(128, 4, 2) == 32  # an update has no more


@pytest.mark.parametrize("tied", [True, False])
def test_packed_weights_are_all_but_an_embedding_of_its_own(tied: bool) -> None:
    shape = ModelShape(parameters=1000, hidden=8, intermediate=24, layers=2, kv_width=4, vocab=50, tied=tied)
    setup = Setup(shape=shape, weight_bytes=2, prompt_tokens=6, sampling_batch=3, on_cpu=True)
    without = peak(evaluation_items(setup, 10))
    packed = peak(evaluation_items(dataclasses.replace(setup, packs_weights=True), 10))
    assert packed - without == (2000 if tied else 2 * (1000 - 400))
    vllm = dataclasses.replace(setup, sampling_batch=0, packs_weights=True)
    assert peak(evaluation_items(vllm, 10)) == 2000  # it has weights of its own


def test_the_local_engine_allocates_no_more_than_is_said() -> None:
    model, shape = model_of("llama", torch.float32, tie_word_embeddings=False)
    support = Support(vocab_size=SIZES["vocab_size"], end_token_ids=(), min_tokens=0)
    params = SamplingParams(temperature=1.0, max_tokens=RESPONSE, min_tokens=0, stop="", seed=0, purpose="test")
    requests = [Request(key="k", prompt_ids=tuple(range(2, 2 + PROMPT)), num_samples=16)]
    tokenizer: Any = SimpleNamespace(decode=lambda *_args, **_kwargs: "")
    engine = LocalEngine(model, tokenizer, support, max_batch_size=16)
    engine.generate(requests, params)
    setup = Setup(shape=shape, weight_bytes=4, prompt_tokens=PROMPT, sampling_batch=16, on_cpu=True, packs_weights=True)
    told = sum(item.size for item in evaluation_items(setup, RESPONSE) if item.phase == "sampling")
    packed = sum(weight.numel() for name, weight in model.named_parameters() if "embed" not in name) * 4
    cache = 16 * (PROMPT + RESPONSE) * 3 * 2 * 64 * 4
    assert packed + cache < most_allocated(lambda: engine.generate(requests, params)) <= told


@pytest.mark.parametrize(("tokens", "rows"), [(9, 512), (1024, 512), (1032, 504), (2048, 256), (8192, 128)])
def test_a_cpu_samples_more_sequences_at_a_time_while_they_are_cheap(tokens: int, rows: int) -> None:
    # A token: 2 layers x 2 x 64 x 4 bytes, so 1024 of them are 2^20 bytes, and 2^29 are cheap.
    shape = ModelShape(parameters=1, hidden=8, intermediate=8, layers=2, kv_width=64, vocab=5)
    assert sampling_batch(shape, tokens, 4, on_cpu=True) == rows
    assert sampling_batch(shape, tokens, 4, on_cpu=False) == 128
    setup = Setup(shape=shape, weight_bytes=4, prompt_tokens=tokens - 4, sampling_batch=rows, on_cpu=True)
    cache = next(item.size for item in evaluation_items(setup, 4) if item.name == "key-value cache")
    assert cache <= 2**29 + rows * SPARE_COLUMNS * 1024 or rows == 128


def test_of_an_mlp_with_silu_half_is_made_again() -> None:
    def made_again(**changes: Any) -> int:
        return ModelShape.from_config(LlamaConfig(intermediate_size=48, **changes)).made_again_bytes(2)

    assert made_again() == 2 * 48 * 2
    assert made_again(hidden_act="gelu") == made_again(mlp_bias=True) == 0
    gemma = SimpleNamespace(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=10, model_type="gemma2"
    )
    assert ModelShape.from_config(gemma).made_again_bytes(2) == 0


def test_the_constants_are_the_engines() -> None:
    assert SPARE_COLUMNS == steps.SPARE_COLUMNS


def test_a_gpu_keeps_what_graphs_compute_with() -> None:
    shape = ModelShape(parameters=1000, hidden=8, intermediate=16, layers=2, kv_width=4, vocab=50)
    setup = Setup(shape=shape, weight_bytes=2, prompt_tokens=6, sampling_batch=3, on_cpu=True)
    drawn = {
        on_cpu: next(
            item
            for item in evaluation_items(dataclasses.replace(setup, on_cpu=on_cpu), 10)
            if item.name == "logits drawn from"
        )
        for on_cpu in (True, False)
    }
    assert drawn[True].size == drawn[False].size == 3 * 50 * (2 + 28)
    assert (drawn[True].phase, drawn[False].phase) == ("sampling", "always")
