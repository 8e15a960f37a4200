"""Loading models: by name or folder, with the attention that fits; prompts go through the chat template."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from nsr.models import registry as catalog
from nsr.models.embedded import build_tiny_tokenizer
from nsr.models.registry import EMBEDDED, encode_prompt, load_policy, prompt_encoder, resolve, special_token_ids
from nsr.tasks.countdown.prompt import build_messages
from nsr.tasks.countdown.puzzle import Puzzle

PUZZLE = Puzzle(numbers=(44, 19, 35), target=98)
MESSAGES = build_messages(PUZZLE, 64)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder with random weights."""
    tokenizer = build_tiny_tokenizer()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=64,
    )
    Qwen3ForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_tiny_is_the_embedded_folder() -> None:
    assert resolve("tiny") == str(EMBEDDED["tiny"])
    assert resolve("Qwen/Qwen3-1.7B") == "Qwen/Qwen3-1.7B"


def test_a_folder_loads_in_the_dtype_asked_for_and_in_eval_mode(folder: Path) -> None:
    policy = load_policy(str(folder), device="cpu", dtype=torch.bfloat16)
    assert policy.model.dtype == torch.bfloat16
    assert not policy.model.training


def test_without_a_chat_template_the_prompt_is_plain_text() -> None:
    tokenizer = build_tiny_tokenizer()
    tokenizer.chat_template = None
    assert tokenizer.decode(encode_prompt(tokenizer, MESSAGES)) == "44,19,35=98:\n\n"


def test_thinking_off_reaches_templates_that_know_it() -> None:
    tokenizer = build_tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}{% if enable_thinking is false %}<think></think>{% endif %}"
    assert tokenizer.decode(encode_prompt(tokenizer, MESSAGES)) == "44,19,35=98:"
    assert tokenizer.decode(encode_prompt(tokenizer, MESSAGES, thinking="off")) == "44,19,35=98:<think></think>"


def test_thinking_off_is_said_to_change_nothing_once(caplog: pytest.LogCaptureFixture) -> None:
    catalog._say_once.cache_clear()
    tokenizer = build_tiny_tokenizer()
    for _ in range(2):
        assert prompt_encoder(tokenizer, 64, "off")(PUZZLE) == prompt_encoder(tokenizer, 64)(PUZZLE)
    assert [record.getMessage() for record in caplog.records] == [
        "--thinking off changes nothing: the model's chat template has no such mode (it does not read enable_thinking)."
    ]
    tokenizer.chat_template = None
    prompt_encoder(tokenizer, 64, "off")
    assert "the model has no chat template" in caplog.messages[-1]


@pytest.mark.parametrize("template", ["{{ raise_exception('no such role') }}", "{{ messages[0]['content'] +", ""])
def test_a_template_that_fails_or_says_nothing(template: str) -> None:
    tokenizer = build_tiny_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match=r"has a chat template that (fails|makes nothing)") as caught:
        encode_prompt(tokenizer, MESSAGES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("device", "dtype", "installed", "expected"),
    [
        ("cuda", torch.bfloat16, True, "flash_attention_2"),
        ("cuda:1", torch.float16, True, "flash_attention_2"),
        ("cuda", torch.bfloat16, False, None),
        ("cuda", torch.float32, True, None),  # flash attention has no float32
        ("cpu", torch.bfloat16, True, None),
    ],
)
def test_flash_attention_where_it_is_installed_and_fits(
    device: str, dtype: torch.dtype, installed: bool, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "is_flash_attn_2_available", lambda: installed)
    assert catalog._attention(device, dtype, Qwen3Config()) == expected


def test_torchs_attention_where_there_is_no_flash_attention(folder: Path) -> None:
    policy = load_policy(str(folder), device="cpu", dtype=torch.float32)
    assert policy.model.config._attn_implementation == "sdpa"


def test_padding_is_the_end_token_where_there_is_none() -> None:
    tokenizer = build_tiny_tokenizer()
    assert special_token_ids(tokenizer) == (1, 0)
    tokenizer.pad_token = None
    assert special_token_ids(tokenizer) == (1, 1)
