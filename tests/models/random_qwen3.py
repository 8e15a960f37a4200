"""A model folder like the study's model, but small and with random weights, for tests of every path that uses one.

A Qwen3 with grouped attention and norms of queries and keys, an embedding matrix with more rows than the tokenizer has
words (as Qwen3 has: padding that no one may sample), tied or untied, and a byte-level tokenizer whose chat template
knows `enable_thinking`. Needs no file and no network, and
imports nothing of nsr. Any test finds it: `from models.random_qwen3 import build_folder`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
WORDS = ("<think>", "</think>", "<answer>", "</answer>")
PADDED_ROWS = 8
"""Rows of the embeddings beyond the tokenizer's words."""

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "<|im_start|>{{ message.role + '\n' + message.content }}<|im_end|>{{ '\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "<|im_start|>assistant{{ '\n' }}"
    "{%- if enable_thinking is defined and not enable_thinking -%}<think>{{ '\n\n' }}</think>{{ '\n\n' }}{%- endif -%}"
    "{%- endif -%}"
)
"""Without thinking, the prompt ends in an empty thought."""


def build_tokenizer(*, chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """One token a byte, and one for each tag and special token; padding is `<|endoftext|>`, the end `<|im_end|>`."""
    words = [*SPECIAL, *WORDS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIAL])
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in WORDS])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = chat_template
    return fast


def build_model(tokenizer: PreTrainedTokenizerFast, *, tied: bool, seed: int = 0, hidden: int = 32) -> Qwen3ForCausalLM:
    """The model in float32. Weights are larger than a fresh model's, so that its distributions are far from uniform."""
    config = Qwen3Config(
        vocab_size=len(tokenizer) + PADDED_ROWS,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=1024,
        initializer_range=0.2,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config)


def build_folder(
    path: Path, *, tied: bool, chat_template: str | None = CHAT_TEMPLATE, seed: int = 0, hidden: int = 32
) -> Path:
    """Write model and tokenizer to `path` as a folder that `transformers`, vLLM and nsr load; returns `path`."""
    tokenizer = build_tokenizer(chat_template=chat_template)
    build_model(tokenizer, tied=tied, seed=seed, hidden=hidden).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
