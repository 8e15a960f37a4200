"""Supervised warm start on solver traces: how the embedded model was made.

Reinforcement needs a model that is right now and then; this teaches one the format and some arithmetic first, from
scratch or from any causal language model. Everything that the result depends on is in `warmstart.json` beside it.
"""

from __future__ import annotations

import dataclasses
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nsr.config import MIN_TOKENS, WarmstartConfig
from nsr.errors import UserError
from nsr.evaluation.evaluate import evaluate
from nsr.models.embedded import build_tiny_model, build_tiny_tokenizer
from nsr.models.registry import encode_prompt, load_policy, prompt_encoder, special_token_ids
from nsr.models.sampling_mask import Support
from nsr.rollout.native.engine import LocalEngine
from nsr.runs.environment import describe
from nsr.tasks.countdown.data import load_splits, puzzle_keys
from nsr.tasks.countdown.prompt import build_messages
from nsr.tasks.countdown.puzzle import Puzzle, generate
from nsr.tasks.countdown.trace import trace

IGNORED = -100  # cross_entropy's default: positions of prompt and padding
_POOL = 16  # batches that are sorted by length together, so that a batch holds sequences of like length
_LENGTH_STEP = 16
_WARMUP, _DECAY = 0.02, 0.4  # shares of the steps
_LOG_EVERY = 50


class TraceBatches(IterableDataset[tuple[Tensor, Tensor]]):
    """Batches (tokens_BT, labels_BT) of prompt + trace + end token; labels are `IGNORED` off the trace.

    Every puzzle is used once: `steps * batch_size` different ones are drawn, those of `excluded_keys` left out.
    """

    def __init__(self, config: WarmstartConfig, tokenizer: PreTrainedTokenizerBase, excluded_keys: set[str]) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.excluded_keys = excluded_keys
        self.end_token_id, self.pad_token_id = special_token_ids(tokenizer)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        rng = random.Random(self.config.seed)
        pool: list[tuple[list[int], list[int]]] = []
        while True:
            # A fresh seed for each lot keeps the memory flat; the rare puzzle that comes again gets another trace.
            for puzzle in generate(20_000, seed=rng.randrange(2**32)):
                if puzzle.key in self.excluded_keys or (pair := self._tokens(puzzle, rng)) is None:
                    continue
                pool.append(pair)
                if len(pool) == _POOL * self.config.batch_size:
                    yield from self._batches(pool, rng)
                    pool = []

    def _tokens(self, puzzle: Puzzle, rng: random.Random) -> tuple[list[int], list[int]] | None:
        text = trace(puzzle, rng, rng.randint(0, self.config.failed_attempts))
        if text is None:
            return None
        response: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(response) >= self.config.max_tokens:
            return None
        prompt = encode_prompt(self.tokenizer, build_messages(puzzle, self.config.max_tokens))
        return prompt, [*response, self.end_token_id]

    def _batches(self, pool: list[tuple[list[int], list[int]]], rng: random.Random) -> Iterator[tuple[Tensor, Tensor]]:
        pool.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
        size = self.config.batch_size
        starts = list(range(0, len(pool), size))
        rng.shuffle(starts)
        for start in starts:
            yield pad(pool[start : start + size], pad_token_id=self.pad_token_id)


def pad(pairs: list[tuple[list[int], list[int]]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """(prompt, response) pairs as tokens_BT and labels_BT, padded on the right to a multiple of 16.

    Under causal attention no token sees what stands to its right, so the padding needs no mask.
    """
    longest = max(len(prompt) + len(response) for prompt, response in pairs)
    length = -(-longest // _LENGTH_STEP) * _LENGTH_STEP
    tokens_BT = torch.full((len(pairs), length), pad_token_id)
    labels_BT = torch.full((len(pairs), length), IGNORED)
    for row, (prompt, response) in enumerate(pairs):
        end = len(prompt) + len(response)
        tokens_BT[row, :end] = torch.tensor(prompt + response)
        labels_BT[row, len(prompt) : end] = torch.tensor(response)
    return tokens_BT, labels_BT


def trace_loss(model: PreTrainedModel, tokens_BT: Tensor, labels_BT: Tensor) -> Tensor:
    """Mean negative log-likelihood (nats) of the trace tokens: position t predicts token t + 1.

    Positions before the first that predicts a trace token do not reach the output head, which is half of the work where
    prompts are long and the vocabulary is large.
    """
    first = int((labels_BT != IGNORED).any(dim=0).nonzero()[0])
    positions_T = torch.arange(first - 1, tokens_BT.shape[1] - 1, device=tokens_BT.device)
    logits_BTV = model(input_ids=tokens_BT[:, :-1], use_cache=False, logits_to_keep=positions_T).logits
    return torch.nn.functional.cross_entropy(
        logits_BTV.float().flatten(0, 1), labels_BT[:, first:].flatten(), ignore_index=IGNORED
    )


def learning_rate_scale(step: int, n_train_steps: int) -> float:
    """Share of the highest learning rate at `step` (from 0): linear warm-up, constant, linear decay to 0."""
    warmup = max(1, round(_WARMUP * n_train_steps))
    decay = max(1, round(_DECAY * n_train_steps))
    return min(1.0, (step + 1) / warmup, (n_train_steps - step) / decay)


def build_optimizers(model: PreTrainedModel, config: WarmstartConfig) -> list[torch.optim.Optimizer]:
    """AdamW for all weights, or Muon for the matrices inside the layers and AdamW for the rest."""
    if config.optimizer == "adamw":
        return [torch.optim.AdamW(model.parameters(), lr=config.lr, betas=(0.9, 0.95), weight_decay=0.01)]
    embedding = model.get_input_embeddings().weight
    matrices = [weight for weight in model.parameters() if weight.ndim == 2 and weight is not embedding]
    rest = [weight for weight in model.parameters() if weight.ndim != 2 or weight is embedding]
    return [
        torch.optim.Muon(matrices, lr=config.lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=config.lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def warmstart(config: WarmstartConfig) -> Path:
    """Train on traces, write the model to `config.out`, and measure the weights that were written.

    Beside the model lies `warmstart.json`: settings, environment, loss curve, evaluation.

    Raises:
        ValueError: the folder holds something, a file or model cannot be read, or the training diverged.
    """
    out = Path(config.out)
    if out.exists() and any(out.iterdir()):
        raise UserError(f"--out is {config.out!r}, which is not empty; give a new folder.")
    excluded = {key for source in config.exclude for key in puzzle_keys(source)}
    evaluation_puzzles = load_splits(config.data, eval_puzzles=config.eval_puzzles, seed=config.seed).evaluation
    excluded |= {puzzle.key for puzzle in evaluation_puzzles}
    torch.manual_seed(config.seed)
    if config.from_scratch:
        tokenizer = build_tiny_tokenizer()
        model = build_tiny_model(len(tokenizer), *special_token_ids(tokenizer))
        cast(torch.nn.Module, model).to(config.device)
    else:
        policy = load_policy(config.model_id, device=config.device, dtype=torch.float32)
        model, tokenizer = policy.model, policy.tokenizer
    start = time.perf_counter()
    curve = train_on_traces(model, tokenizer, config, excluded)
    seconds = time.perf_counter() - start
    save(model, tokenizer, out)

    written = load_policy(str(out), device=config.device, dtype=torch.float32)
    engine = LocalEngine(written.model, written.tokenizer, Support.of(written.model, written.tokenizer, MIN_TOKENS))
    result = evaluate(
        engine,
        prompt_encoder(written.tokenizer, config.max_tokens),
        evaluation_puzzles,
        num_samples=config.eval_samples,
        temperature=1.0,
        max_tokens=config.max_tokens,
        seed=config.seed,
    )
    record = {
        "settings": dataclasses.asdict(config),
        "environment": describe(),
        "training_seconds": round(seconds),
        "loss_curve": curve,
        "evaluation": result.to_json(),
    }
    (out / "warmstart.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"{out}: accuracy {result.accuracy} at temperature 1 on {len(evaluation_puzzles)} puzzles")
    return out


def train_on_traces(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: WarmstartConfig, excluded_keys: set[str]
) -> list[dict[str, float]]:
    """Train `model` in place; returns the loss curve, one entry every 50 steps.

    Raises:
        ValueError: the loss is not finite.
    """
    # One worker process makes the traces while this one learns.
    loader = DataLoader(
        TraceBatches(config, tokenizer, excluded_keys), batch_size=None, num_workers=1, prefetch_factor=8
    )
    loss_fn = torch.compile(trace_loss, dynamic=True) if config.compile else trace_loss
    optimizers = build_optimizers(model, config)
    schedulers = [
        LambdaLR(optimizer, lambda step: learning_rate_scale(step, config.n_train_steps)) for optimizer in optimizers
    ]
    curve: list[dict[str, float]] = []
    losses: list[float] = []
    num_tokens = 0
    start = time.perf_counter()
    model.train()
    for step, (tokens_BT, labels_BT) in zip(range(1, config.n_train_steps + 1), loader, strict=False):
        with torch.autocast(config.device.split(":")[0], dtype=torch.bfloat16, enabled=config.bfloat16):
            loss = loss_fn(model, tokens_BT.to(config.device), labels_BT.to(config.device))
        if not torch.isfinite(loss):
            raise UserError(f"the loss is {loss.item()} at step {step}; give a lower --lr than {config.lr}.")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        num_tokens += int((labels_BT != IGNORED).sum())
        if step % _LOG_EVERY == 0 or step == config.n_train_steps:
            curve.append({"step": step, "tokens": num_tokens, "loss": sum(losses) / len(losses)})
            losses = []
            seconds = time.perf_counter() - start
            print(
                f"step {step}/{config.n_train_steps}  loss {curve[-1]['loss']:.4f}  "
                f"{num_tokens / seconds:,.0f} trace tokens/s  {seconds / 60:.1f} min",
                flush=True,
            )
        if config.save_every and step % config.save_every == 0 and step < config.n_train_steps:
            save(model, tokenizer, Path(config.out) / f"step_{step:06d}")
    model.eval()
    return curve


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write an ordinary model folder with bfloat16 weights; `model` itself is left as it is."""
    rounded = type(model)(model.config)
    cast(torch.nn.Module, rounded).to(torch.bfloat16)
    rounded.load_state_dict(model.state_dict())
    rounded.generation_config = model.generation_config
    rounded.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
