"""Small models and tokenizers for the sampler's tests. Fixtures give functions that make them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from nsr.rollout.engine import Request, SamplingParams
from nsr.rollout.native import engine as local

CHARACTERS = "\n !()*+-/0123456789:<=>abcdefghijklmnopqrstuvwxyz"


def make_pieces_tokenizer(pieces: Sequence[str]) -> PreTrainedTokenizerFast:
    """Tokens "<pad>" (0), "<end>" (1), both special, then the given pieces; decoding joins them."""
    vocabulary = {text: index for index, text in enumerate(["<pad>", "<end>", *pieces])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>")


def make_small_model(vocab_size: int, *, kind: str = "qwen3", dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A random model of 2 layers, 4 heads and 2 key-value heads whose next-token distributions are far from uniform."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": vocab_size, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
        "initializer_range": 0.3, "eos_token_id": 1, "pad_token_id": 0, "bos_token_id": None, "attention_dropout": 0.5,
    }  # fmt: skip
    if kind == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(**sizes, tie_word_embeddings=False))
    elif kind == "sliding":  # the second layer sees 8 tokens
        config = Qwen3Config(**sizes, use_sliding_window=True, sliding_window=8, max_window_layers=1)
        assert config.layer_types == ["full_attention", "sliding_attention"]
        model = Qwen3ForCausalLM(config)
    elif kind == "gpt2":  # learned positions, layer norm, no rotation
        model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocab_size, n_positions=128, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3,
                eos_token_id=1, bos_token_id=None,
            )
        )  # fmt: skip
    elif kind == "qwen2":  # biases of queries, keys and values
        model = Qwen2ForCausalLM(Qwen2Config(**{name: size for name, size in sizes.items() if name != "head_dim"}))
        for layer in model.model.layers:
            for part in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
                torch.nn.init.normal_(part.bias)
    else:
        model = LlamaForCausalLM(LlamaConfig(**sizes))
    return model.to(dtype).eval()


def make_bigram_model(logits_VV: torch.Tensor) -> PreTrainedModel:
    """A model whose next-token logits after token v are logits_VV[v], whatever came before."""
    vocab_size = logits_VV.shape[0]
    config = Qwen3Config(
        vocab_size=vocab_size, hidden_size=vocab_size, intermediate_size=4, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4, max_position_embeddings=64, rms_norm_eps=0.0, tie_word_embeddings=False,
        eos_token_id=1, pad_token_id=None, bos_token_id=None,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).to(logits_VV.dtype).eval()
    with torch.no_grad():
        layer = model.model.layers[0]
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(vocab_size))
        model.lm_head.weight.copy_(logits_VV.T / vocab_size**0.5)  # the last norm makes the one-hot that long
    return model


def make_script_model(vocab_size: int, path: Sequence[int]) -> PreTrainedModel:
    """A model that says `path`, whose tokens are distinct, after a prompt that ends with its first token."""
    assert len(set(path)) == len(path)
    logits_VV = torch.zeros(vocab_size, vocab_size)
    for token, following in itertools.pairwise(path):
        logits_VV[token, following] = 60.0
    return make_bigram_model(logits_VV)


@pytest.fixture(scope="session")
def pieces_tokenizer() -> Callable[[Sequence[str]], PreTrainedTokenizerFast]:
    return make_pieces_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a character."""
    return make_pieces_tokenizer(list(CHARACTERS))


@pytest.fixture(scope="session")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, so that a character may take several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({text: i for i, text in enumerate(["<pad>", "<end>", *alphabet])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<end>")


@pytest.fixture(scope="session")
def small_model() -> Callable[..., PreTrainedModel]:
    return make_small_model


@pytest.fixture(scope="session")
def bigram_model() -> Callable[[torch.Tensor], PreTrainedModel]:
    return make_bigram_model


@pytest.fixture(scope="session")
def script_model() -> Callable[[int, Sequence[int]], PreTrainedModel]:
    return make_script_model


@pytest.fixture(scope="session")
def params() -> Callable[..., SamplingParams]:
    """Sampling settings with defaults that suit the small models."""

    def make(**changes: Any) -> SamplingParams:
        settings: dict[str, Any] = {"temperature": 1.0, "max_tokens": 24, "seed": 7, "purpose": "train"}
        return SamplingParams(**{**settings, **changes})

    return make


@pytest.fixture(scope="session")
def requests_of() -> Callable[[Sequence[int], int], list[Request]]:
    """Requests with prompts of given lengths."""

    def make(lengths: Sequence[int], num_samples: int) -> list[Request]:
        generator = torch.Generator().manual_seed(5)
        prompts = [torch.randint(2, 50, (length,), generator=generator).tolist() for length in lengths]
        return [
            Request(key=f"puzzle {i}", prompt_ids=tuple(prompt), num_samples=num_samples)
            for i, prompt in enumerate(prompts)
        ]

    return make


@pytest.fixture(params=[False, True], ids=["token by token", "in blocks"])
def in_blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Rows are looked at after each token, as on a CPU, or after a block of them, as on a GPU."""
    monkeypatch.setattr(local, "IN_BLOCKS", ("cpu",) if request.param else ())
    return request.param
