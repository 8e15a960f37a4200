"""Memory of a training step against what the memory model says, and whether it stays flat over a run.

    python benchmarks/memory.py                      # tiny and SmolLM2-135M's shape, with and without checkpointing
    python benchmarks/memory.py step --device cuda Qwen/Qwen3-1.7B   # a known model's shape on a GPU, in bfloat16
    python benchmarks/memory.py flat 500             # growth of memory over 500 steps of the embedded model

A step is two microbatches of full-length rows on random weights of the model's shape, each case in a fresh process. On
CUDA it is measured by `torch.cuda.max_memory_allocated`; on a CPU by the largest resident size of the process less what
it was before there was a model, and by what torch's allocator was asked for.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import psutil
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen3Config

from nsr.config import TrainConfig, with_preset
from nsr.memory.estimate import ModelShape, Optimizer, Setup, Work, peak, size, training_items
from nsr.models.architecture import find_shape
from nsr.models.sampling_mask import Support
from nsr.runs.folder import read_timings
from nsr.training.batch import Batch
from nsr.training.loop import TRIM_EVERY, train
from nsr.training.optimizer import build_optimizer
from nsr.training.step import recompute_activations, update

PROMPT_TOKENS, MAX_TOKENS = 64, 128
WARM, LAST = slice(49, 100), slice(-50, None)


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command")
    step = commands.add_parser("step")
    step.add_argument("models", nargs="*", default=["tiny", "smollm2-135m"])
    step.add_argument("--device", default="cpu")
    step.add_argument("--rows", type=int, default=4, help="rows of a microbatch")
    step.add_argument("--optimizer", default="adamw", choices=["adamw", "adamw8bit"])
    one = commands.add_parser("one")  # a case, in a process of its own
    one.add_argument("case")
    flat = commands.add_parser("flat")
    flat.add_argument("steps", nargs="?", type=int, default=500)
    flat.add_argument("--rollout_batch_size", type=int, default=32)
    arguments = parser.parse_args(sys.argv[1:] or ["step"])
    if arguments.command == "one":
        print(json.dumps(measure(**json.loads(arguments.case))))
    elif arguments.command == "flat":
        show_flat(arguments.steps, arguments.rollout_batch_size)
    else:
        show_steps(arguments)


def show_steps(arguments: argparse.Namespace) -> None:
    """A line for each model, with and without checkpointing: what was said, what was measured, the error."""
    print(f"{arguments.rows} rows of {PROMPT_TOKENS} + {MAX_TOKENS} tokens, {arguments.device}, {arguments.optimizer}")
    for model_id in arguments.models:
        for checkpointing in (False, True):
            case = {
                "model_id": model_id,
                "device": arguments.device,
                "rows": arguments.rows,
                "optimizer": arguments.optimizer,
                "checkpointing": checkpointing,
            }
            command = [sys.executable, __file__, "one", json.dumps(case)]
            out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
            found: dict[str, int] = json.loads(out.splitlines()[-1])
            said = found.pop("said")
            errors = [f"{name} {size(value)} ({said / value - 1:+.1%})" for name, value in found.items()]
            name = f"{model_id}{', checkpointing' if checkpointing else ''}"
            print(f"{name:<32} said {size(said)}, measured: {', '.join(errors)}", flush=True)


def measure(model_id: str, device: str, rows: int, optimizer: Optimizer, checkpointing: bool) -> dict[str, int]:
    """What the model says of a step, and what it took, in bytes."""
    shape, _ = find_shape(model_id)
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    setup = Setup(
        shape=shape,
        weight_bytes=dtype.itemsize,
        prompt_tokens=PROMPT_TOKENS,
        sampling_batch=0,
        on_cpu=not device.startswith("cuda"),
    )
    work = Work(sequences=rows, max_tokens=MAX_TOKENS, gradient_checkpointing=checkpointing)
    found = {"said": peak(training_items(setup, work, optimizer))}

    before = psutil.Process().memory_info().rss
    model = random_policy(shape).to(device=device, dtype=dtype)  # pyright: ignore[reportCallIssue]
    if checkpointing:
        recompute_activations(model)
    step = stepper(model, shape, optimizer, rows)
    step()  # the optimizer's state is made by the first
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return {**found, "allocated": torch.cuda.max_memory_allocated(device)}
    step()
    found["resident"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    moments = sum(parameter.numel() for parameter in model.parameters()) * (8 if optimizer == "adamw" else 2)
    found["allocated"] = sum(p.numel() * dtype.itemsize for p in model.parameters()) + moments + allocated(step)
    return found


def random_policy(shape: ModelShape) -> PreTrainedModel:
    """A Qwen3 or Llama of that shape with random weights."""
    sizes: dict[str, Any] = {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.q_width // shape.heads,
        "vocab_size": shape.vocab,
        "tie_word_embeddings": shape.tied,
    }
    config = Qwen3Config(**sizes) if shape.qk_norm else LlamaConfig(**sizes)
    return AutoModelForCausalLM.from_config(config).eval()


def stepper(model: PreTrainedModel, shape: ModelShape, kind: Optimizer, rows: int) -> Callable[[], Any]:
    """A function that takes one step: two microbatches of `rows` full-length rows."""
    count, length = 2 * rows, PROMPT_TOKENS + MAX_TOKENS
    mask_BT = torch.zeros(count, length, dtype=torch.bool)
    mask_BT[:, PROMPT_TOKENS:] = True
    batch = Batch(
        tokens_BT=torch.randint(2, shape.vocab, (count, length)),
        prompt_lengths_B=torch.full((count,), PROMPT_TOKENS),
        response_mask_BT=mask_BT,
        weights_B=-torch.ones(count),
        group_B=torch.zeros(count, dtype=torch.int64),
        sampler_log_probs_BT=torch.zeros(count, length),
        num_rollouts=count,
        denominator=float(count),
        loss_type="standard",
        max_tokens=MAX_TOKENS,
    )
    support = Support(vocab_size=shape.vocab, end_token_ids=(1,), min_tokens=4)
    optimizer = build_optimizer(model, lr=1e-6, kind=kind)
    return lambda: update(
        model, support, optimizer, [batch], temperature=1.0, clip_range=0.2, grad_acc_steps=2, max_grad_norm=1.0
    )


def allocated(function: Callable[[], Any]) -> int:
    """Most bytes that torch's CPU allocator held at once for what the function made."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    recorded: Any = profile.profiler
    events = [event for event in recorded.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def show_flat(steps: int, rollout_batch_size: int) -> None:
    """Train the embedded model in a folder that is deleted afterwards; print how its memory grew after warm-up."""
    with tempfile.TemporaryDirectory() as folder:
        config = dataclasses.replace(
            with_preset(TrainConfig, "tiny"),
            n_train_steps=steps,
            rollout_batch_size=rollout_batch_size,
            eval_puzzles=8,
            eval_samples=2,
            eval_every=0,
            save_every=0,
            log_to="none",
            output_dir=folder,
        )
        memory = [int(record["memory_bytes"]) for record in read_timings(train(config))]
    held = [value for step, value in enumerate(memory, start=1) if step % TRIM_EVERY == 0]
    few = slice(WARM.start // TRIM_EVERY, WARM.stop // TRIM_EVERY), slice(LAST.start // TRIM_EVERY, None)
    for name, values, parts in (("held", held, few), ("with what is free", memory, (WARM, LAST))):
        early, late = (statistics.median(values[part]) for part in parts)
        growth = f"growth {late / early - 1:+.1%}"
        print(f"{name}: steps 50 to 100 {size(round(early))}, the last 50 {size(round(late))}, {growth}")


if __name__ == "__main__":
    main()
