"""Model id -> policy and tokenizer: a hub model, a local folder, or the model that ships with nsr."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from nsr.models.quiet import quiet_imports
from nsr.task.prompt import build_messages
from nsr.task.puzzle import Puzzle

quiet_imports()
disable_progress_bar()  # a bar for every tensor that is loaded would stand between the run's own lines

EMBEDDED = {"tiny": Path(__file__).parent / "tiny"}


@dataclass(frozen=True, kw_only=True)
class LoadedPolicy:
    """A causal language model ready to sample and to learn, in eval mode (no dropout), with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    model_id: str


def resolve(model_id: str) -> str:
    """Where `model_id` is loaded from: the embedded folder for `tiny`, else the local folder or hub id as given."""
    return str(EMBEDDED.get(model_id, model_id))


def load_config(model_id: str) -> PreTrainedConfig:
    """The configuration of the model's decoder, without its weights. Raises ValueError as `load_policy`."""
    with _one_sentence(model_id):
        return AutoConfig.from_pretrained(resolve(model_id), trust_remote_code=False).get_text_config()


def load_tokenizer(model_id: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model. Raises ValueError as `load_policy`, and for one without an end token."""
    with _one_sentence(model_id):
        tokenizer = AutoTokenizer.from_pretrained(resolve(model_id), trust_remote_code=False)
    if tokenizer.eos_token_id is None:
        raise ValueError(f"--model_id {model_id!r} has a tokenizer without an end token; choose a model that has one.")
    return tokenizer


def load_policy(model_id: str, *, device: str, dtype: torch.dtype) -> LoadedPolicy:
    """Load a causal language model from safetensors; code that comes with a model is never run.

    Raises:
        ValueError: no such model, or one that cannot be used, in one sentence that says what to do.
    """
    tokenizer = load_tokenizer(model_id)
    with _one_sentence(model_id):
        model = AutoModelForCausalLM.from_pretrained(
            resolve(model_id),
            dtype=dtype,
            attn_implementation=_attention(device),
            use_safetensors=True,
            trust_remote_code=False,
        )
    cast(torch.nn.Module, model).to(device).eval()
    return LoadedPolicy(model=model, tokenizer=tokenizer, model_id=model_id)


def _attention(device: str) -> str:
    flash = device.startswith("cuda") and find_spec("flash_attn") is not None
    return "flash_attention_2" if flash else "sdpa"


@contextmanager
def _one_sentence(model_id: str) -> Generator[None, None, None]:
    """Turn what `transformers` raises for a model that it cannot load into one sentence for the user."""
    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ValueError(_not_loaded(model_id, resolve(model_id), error)) from error


def _not_loaded(model_id: str, source: str, error: Exception) -> str:
    advice = "give a hub id, a folder with config.json, tokenizer and safetensors, or `tiny`"
    if Path(source).is_dir():
        return f"--model_id {model_id!r} is a folder that cannot be loaded ({_first_line(error)}); {advice}."
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        return f"--model_id {model_id!r} is not a folder; {advice}."
    return (
        f"--model_id {model_id!r} was not found: no such local folder, and the hub has no such model or is unreachable "
        f"({_first_line(error)}); {advice}."
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200].rstrip(".")


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], thinking: str = "default"
) -> list[int]:
    """Token ids of the prompt: through the chat template if the tokenizer has one, else the plain text.

    `thinking="off"` asks templates that know a thinking mode to leave it off; others ignore it.
    """
    if tokenizer.chat_template is None:
        return list(tokenizer("\n\n".join(message["content"] for message in messages) + "\n\n")["input_ids"])
    options: dict[str, Any] = {"enable_thinking": False} if thinking == "off" else {}
    ids: Any = tokenizer.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=False, **options
    )
    return list(ids)


def special_token_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Ids of the end token and of the padding, which is the end token where the tokenizer has none."""
    end: Any = tokenizer.eos_token_id
    padding: Any = tokenizer.pad_token_id
    return int(end), int(end if padding is None else padding)


def prompt_encoder(
    tokenizer: PreTrainedTokenizerBase, max_tokens: int, thinking: str = "default"
) -> Callable[[Puzzle], tuple[int, ...]]:
    """A function from a puzzle to the token ids of its prompt."""

    def encode(puzzle: Puzzle) -> tuple[int, ...]:
        return tuple(encode_prompt(tokenizer, build_messages(puzzle, max_tokens), thinking))

    return encode
