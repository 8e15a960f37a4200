"""The embedded model before training: a small Qwen3, and a tokenizer with one token a character and one a tag.

What is special about the tokenizer stands in its own `tokenizer.json`, so no other code knows this model: normalizers
drop the fixed text of `nsr.tasks.countdown.prompt` ("44,19,35=98:" is what is left), a split keeps the four tags whole,
and the tags are ordinary vocabulary words, so samples decode to themselves.
"""

from __future__ import annotations

import string

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from nsr.tasks.countdown.prompt import (
    AFTER_TARGET,
    ANSWER_CLOSE,
    ANSWER_OPEN,
    BEFORE_NUMBERS,
    BEFORE_TARGET,
    EXAMPLE,
    THINK_CLOSE,
    THINK_OPEN,
    budget,
)

CONTEXT_LENGTH = 512
PAD, END, UNKNOWN = "<|pad|>", "<|end|>", "<|unknown|>"
_TAGS = [THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE]


def build_tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A character-level tokenizer that reads the prompt as a few tokens."""
    words = [PAD, END, UNKNOWN, *_TAGS, "\n", *string.printable[:95]]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=UNKNOWN))
    any_budget = budget(0).replace("0", "[0-9]+").replace(".", "[.]")
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(BEFORE_NUMBERS, ""),
            normalizers.Replace(BEFORE_TARGET, "="),
            normalizers.Replace(AFTER_TARGET, ":"),
            normalizers.Replace(Regex(any_budget), ""),
            normalizers.Replace(EXAMPLE, ""),
            normalizers.Replace(", ", ","),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("|".join([*_TAGS, r"[\s\S]"])), "isolated")
    tokenizer.decoder = decoders.Fuse()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=UNKNOWN,
        model_max_length=CONTEXT_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return fast


def build_tiny_model(vocab_size: int, end_token_id: int, pad_token_id: int) -> Qwen3ForCausalLM:
    """The embedded model's architecture with random weights (float32): Qwen3, about 4.2 million parameters."""
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end_token_id,
        pad_token_id=pad_token_id,
    )
    return Qwen3ForCausalLM(config)
