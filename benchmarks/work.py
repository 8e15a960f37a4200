"""The work that all contenders do: the same model, prompts, samples, tokens and type of numbers."""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from nsr.models.registry import LoadedPolicy
    from nsr.models.sampling_mask import Support
    from nsr.tasks.countdown.puzzle import Puzzle

Dtype = Literal["float32", "bfloat16"]

TEMPERATURE = 1.0
LEARNING_RATE = 1e-6
MAX_GRAD_NORM = 1.0
PUZZLE_SEED = 1


@dataclass(frozen=True, kw_only=True)
class Work:
    """A step's work. Every response has exactly `tokens` tokens, unless it `ends`."""

    model: str
    """`tiny`, `smollm2-135m`, a folder, or a name of `RANDOM`."""
    prompts: int
    group_size: int
    tokens: int
    dtype: Dtype
    device: str = "cpu"
    grad_acc_steps: int = 4
    """nsr's microbatches a step."""
    trl_rows: int = 8
    """TRL's rows of a microbatch; its other settings are in `benchmarks.theirs`."""
    ends: bool = False
    """End tokens and the stop string end a response, as in a run."""
    exact: bool = False
    """nsr's plain paths, as `--exact` has it."""
    short_prompts: bool = False
    """The puzzle in fewer words than nsr's own prompt has."""
    prompt_tokens: int = 0
    """Length of a prompt of random ids, where weights are random too; 0 is the puzzle through the chat template."""

    @property
    def samples(self) -> int:
        """Samples of a step."""
        return self.prompts * self.group_size

    @property
    def response_tokens(self) -> int:
        """Tokens that are sampled, and learned from, in a step."""
        return self.samples * self.tokens


WORKS = {
    "tiny": Work(model="tiny", prompts=16, group_size=8, tokens=96, dtype="float32", trl_rows=32),
    "smollm2-135m": Work(
        model="smollm2-135m",
        prompts=8,
        group_size=8,
        tokens=64,
        dtype="bfloat16",
        grad_acc_steps=16,
        short_prompts=True,
    ),
    "qwen3-1.7b": Work(
        model="qwen3-1.7b",
        prompts=16,
        group_size=8,
        tokens=256,
        dtype="bfloat16",
        device="cuda",
        grad_acc_steps=16,
        prompt_tokens=112,
    ),
}
"""What is measured, by the name that `--model` takes."""

RANDOM = {"qwen3-1.7b": "Qwen/Qwen3-1.7B"}
"""Shapes that get random weights, by the name of the model that has the shape."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The model under test and its prompts."""

    policy: LoadedPolicy
    support: Support
    """The whole vocabulary; end tokens only where responses end."""
    puzzles: list[Puzzle]
    encode: Callable[[Puzzle], tuple[int, ...]]
    source: str
    """Folder of the model's configuration and tokenizer, and of its weights where they are not random."""

    def prompt_ids(self) -> list[tuple[int, ...]]:
        """The prompts, token ids."""
        return [self.encode(puzzle) for puzzle in self.puzzles]


def load(work: Work) -> Subject:
    """The model of `work`, on its device and in its type."""
    import torch

    from nsr.config import MIN_TOKENS
    from nsr.models.registry import load_policy, resolve
    from nsr.models.sampling_mask import Support

    dtype: torch.dtype = getattr(torch, work.dtype)
    puzzles = puzzles_of(work)
    if work.model in RANDOM:
        source = random_folder(work.model)
        policy = random_policy(source, work.device, dtype)
        vocabulary: int = policy.model.config.get_text_config().vocab_size
        encode: Callable[[Puzzle], tuple[int, ...]] = functools.partial(random_prompt, work.prompt_tokens, vocabulary)
    else:
        source = resolve(work.model)
        policy = load_policy(work.model, device=work.device, dtype=dtype)
        encode = functools.partial(encoded, work, policy.tokenizer)
    support = Support.of(policy.model, policy.tokenizer, MIN_TOKENS)
    if not work.ends:
        support = dataclasses.replace(support, end_token_ids=())
    return Subject(policy=policy, support=support, puzzles=puzzles, encode=encode, source=source)


def puzzles_of(work: Work) -> list[Puzzle]:
    """A puzzle a prompt, the same in every process."""
    from nsr.tasks.countdown.puzzle import generate

    return generate(work.prompts, seed=PUZZLE_SEED)


def messages(work: Work, puzzle: Puzzle) -> list[dict[str, str]]:
    """The chat messages that every contender makes its prompt of."""
    from nsr.tasks.countdown.prompt import AFTER_TARGET, budget, build_messages

    made = build_messages(puzzle, work.tokens)
    if work.short_prompts:
        rules, _, _ = AFTER_TARGET.partition("First")
        statement, _, _ = made[0]["content"].partition(rules)
        made[0]["content"] = f"{statement}{rules}{budget(work.tokens)}".strip()
    return made


def encoded(work: Work, tokenizer: PreTrainedTokenizerBase, puzzle: Puzzle) -> tuple[int, ...]:
    """A prompt through the model's chat template, token ids."""
    from nsr.models.registry import encode_prompt

    return tuple(encode_prompt(tokenizer, messages(work, puzzle)))


def random_prompt(length: int, vocabulary: int, puzzle: Puzzle) -> tuple[int, ...]:
    """Ids that stand for the puzzle to a model that has learned nothing."""
    import numpy as np

    rng = np.random.default_rng([*puzzle.numbers, puzzle.target])
    return tuple(int(token_id) for token_id in rng.integers(vocabulary, size=length))


@functools.cache
def random_folder(name: str) -> str:
    """A folder with the shape's config.json and a tokenizer of as many words. It is deleted with the process."""
    from transformers import Qwen3Config

    from nsr.models.architecture import known_shape
    from nsr.models.embedded import build_tiny_tokenizer

    shape = known_shape(RANDOM[name])
    config = Qwen3Config(
        architectures=["Qwen3ForCausalLM"],
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.q_width // shape.heads,
        max_position_embeddings=4096,
        tie_word_embeddings=shape.tied,
        eos_token_id=1,
        pad_token_id=0,
    )
    folder = tempfile.TemporaryDirectory(prefix="nsr_benchmark_")
    _KEPT.append(folder)
    tokenizer = build_tiny_tokenizer()
    tokenizer.save_pretrained(folder.name)
    config.save_pretrained(folder.name)
    file = Path(folder.name) / "tokenizer.json"
    written: dict[str, Any] = json.loads(file.read_text("utf-8"))
    words: dict[str, int] = written["model"]["vocab"]
    words.update({f"<word {index}>": index for index in range(len(words), shape.vocab)})
    file.write_text(json.dumps(written), "utf-8")
    return folder.name


_KEPT: list[tempfile.TemporaryDirectory[str]] = []


def random_policy(folder: str, device: str, dtype: torch.dtype) -> LoadedPolicy:
    """A model of the folder's configuration with random weights, and its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from nsr.models.registry import LoadedPolicy

    torch.manual_seed(0)
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=dtype)
    return LoadedPolicy(
        model=model.eval().requires_grad_(True),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        model_id=folder,
    )
