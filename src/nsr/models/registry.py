"""Model id -> policy and tokenizer: a hub model, a local folder, `smollm2-135m`, or `tiny`, which ships with nsr."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils.import_utils import is_flash_attn_2_available
from transformers.utils.logging import disable_progress_bar, get_verbosity, set_verbosity

from nsr.models.files import check_folder
from nsr.models.log_filters import quiet_imports
from nsr.models.smollm2 import SMOLLM2, smollm2_folder
from nsr.models.validation import check_config, check_loaded, first_line, named, not_loaded, refused
from nsr.tasks.countdown.prompt import build_messages
from nsr.tasks.countdown.puzzle import Puzzle

quiet_imports()
disable_progress_bar()  # a bar for every tensor that is loaded would stand between the run's own lines

_LOGGER = logging.getLogger(__name__)

EMBEDDED = {"tiny": Path(__file__).parent / "tiny"}


@dataclass(frozen=True, kw_only=True)
class LoadedPolicy:
    """A causal language model ready to sample and to learn, in eval mode (no dropout), with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    model_id: str


def resolve(model_id: str) -> str:
    """Where `model_id` is loaded from: a folder for `tiny` and `smollm2-135m`, else the folder or hub id as given.

    The first use of `smollm2-135m` makes its folder. Raises ValueError where it cannot.
    """
    if model_id == SMOLLM2:
        return str(smollm2_folder())
    return str(EMBEDDED.get(model_id, model_id))


def load_config(model_id: str) -> PreTrainedConfig:
    """The configuration of the model's decoder, without its weights; of a local folder all files are looked at.

    Raises ValueError as `load_policy`.
    """
    source = resolve(model_id)
    if Path(source).is_dir():
        check_folder(named(model_id), Path(source))
    with _one_sentence(model_id, source):
        values, _ = PreTrainedConfig.get_config_dict(source)
    check_config(model_id, values)
    with _one_sentence(model_id, source):
        return AutoConfig.from_pretrained(source, trust_remote_code=False).get_text_config()


def load_tokenizer(model_id: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model. Raises ValueError as `load_policy`, and for one without words or an end token."""
    source = resolve(model_id)
    with _one_sentence(model_id, source):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        raise refused(model_id, "has no tokenizer", "add the files of the model's own, such as tokenizer.json")
    if tokenizer.eos_token_id is None:
        raise refused(model_id, "has a tokenizer without an end token", "choose a model that has one")
    return tokenizer


def load_policy(model_id: str, *, device: str, dtype: torch.dtype) -> LoadedPolicy:
    """Load a causal language model from safetensors; code that comes with a model is never run.

    Attention is computed by flash attention where it is installed and fits device, type and model, else by torch.

    Raises:
        ValueError: no such model, or one that cannot be used, in one sentence that says what to do.
    """
    config = load_config(model_id)
    tokenizer = load_tokenizer(model_id)
    source = resolve(model_id)
    with _one_sentence(model_id, source), _quiet():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            attn_implementation=_attention(device, dtype, config),
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are in the report
            output_loading_info=True,
        )
    model: PreTrainedModel = loaded[0]
    check_loaded(model_id, model, loaded[1])
    cast(torch.nn.Module, model).to(device).eval()
    return LoadedPolicy(model=model, tokenizer=tokenizer, model_id=model_id)


def _attention(device: str, dtype: torch.dtype, config: PreTrainedConfig) -> str | None:
    """None is the default of `transformers`: torch's scaled dot product where the model knows it, else plain torch."""
    if not device.startswith("cuda") or dtype not in (torch.bfloat16, torch.float16):
        return None
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    known = getattr(kind, "_supports_flash_attn", False) or getattr(kind, "_supports_flash_attn_2", False)
    return "flash_attention_2" if known and is_flash_attn_2_available() else None


@contextmanager
def _one_sentence(model_id: str, source: str) -> Generator[None, None, None]:
    """Turn what a library raises for a model that it cannot load into one sentence for the user."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the files are anybody's, and what they make the libraries raise is too
        raise not_loaded(model_id, source, error) from error


@contextmanager
def _quiet() -> Generator[None, None, None]:
    """Without the table that `transformers` prints of weights that do not fit: `check_loaded` says it in a sentence."""
    before = get_verbosity()
    set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        set_verbosity(before)


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], thinking: str = "default"
) -> list[int]:
    """Token ids of the prompt: through the chat template if the tokenizer has one, else the plain text.

    `thinking="off"` asks templates that know a thinking mode to leave it off; others ignore it.
    Raises ValueError for a template that fails or makes nothing of the messages.
    """
    if tokenizer.chat_template is None:
        return list(tokenizer("\n\n".join(message["content"] for message in messages) + "\n\n")["input_ids"])
    options: dict[str, Any] = {"enable_thinking": False} if thinking == "off" else {}
    try:
        ids: Any = tokenizer.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, return_dict=False, **options
        )
    except Exception as error:  # the template is anybody's
        raise refused(tokenizer.name_or_path, f"has a chat template that fails ({first_line(error)})") from error
    if not ids:
        raise refused(tokenizer.name_or_path, "has a chat template that makes nothing of a prompt")
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
    if thinking == "off" and "enable_thinking" not in str(tokenizer.chat_template):
        _say_once(f"--thinking off changes nothing: {_no_thinking_mode(tokenizer)}.")

    def encode(puzzle: Puzzle) -> tuple[int, ...]:
        return tuple(encode_prompt(tokenizer, build_messages(puzzle, max_tokens), thinking))

    return encode


def _no_thinking_mode(tokenizer: PreTrainedTokenizerBase) -> str:
    if tokenizer.chat_template is None:
        return "the model has no chat template"
    return "the model's chat template has no such mode (it does not read enable_thinking)"


@functools.cache  # set-up and sampler both make an encoder
def _say_once(text: str) -> None:
    _LOGGER.warning(text)
