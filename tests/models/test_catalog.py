"""Loading models: each fault is one sentence, prompts go through the chat template, nothing of a model is executed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from nsr.models.catalog import EMBEDDED, encode_prompt, load_policy, load_tokenizer, resolve, special_token_ids
from nsr.models.embedded import build_tiny_tokenizer
from nsr.task.prompt import build_messages
from nsr.task.puzzle import Puzzle

MESSAGES = build_messages(Puzzle(numbers=(44, 19, 35), target=98), 64)


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


@pytest.mark.parametrize("model_id", ["./nowhere", "/nowhere/at/all", "nobody/no-such-model"])
def test_a_model_that_is_not_there(model_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"--model_id .* (is not a folder|was not found)") as caught:
        load_policy(model_id, device="cpu", dtype=torch.float32)
    assert "\n" not in str(caught.value)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a folder that cannot be loaded"):
        load_policy(str(tmp_path), device="cpu", dtype=torch.float32)


def test_truncated_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is a folder that cannot be loaded"):
        load_policy(str(folder), device="cpu", dtype=torch.float32)


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "moved")
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="is a folder that cannot be loaded"):
        load_policy(str(folder), device="cpu", dtype=torch.float32)


def test_a_model_with_code_of_its_own_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("raise SystemExit('the code of the model ran')")
    with pytest.raises(ValueError, match="is a folder that cannot be loaded"):
        load_policy(str(folder), device="cpu", dtype=torch.float32)


def test_a_tokenizer_without_an_end_token(folder: Path) -> None:
    tokenizer = build_tiny_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match="without an end token"):
        load_tokenizer(str(folder))


def test_without_a_chat_template_the_prompt_is_plain_text() -> None:
    tokenizer = build_tiny_tokenizer()
    tokenizer.chat_template = None
    assert tokenizer.decode(encode_prompt(tokenizer, MESSAGES)) == "44,19,35=98:\n\n"


def test_thinking_off_reaches_templates_that_know_it() -> None:
    tokenizer = build_tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}{% if enable_thinking is false %}<think></think>{% endif %}"
    assert tokenizer.decode(encode_prompt(tokenizer, MESSAGES)) == "44,19,35=98:"
    assert tokenizer.decode(encode_prompt(tokenizer, MESSAGES, thinking="off")) == "44,19,35=98:<think></think>"


def test_padding_is_the_end_token_where_there_is_none() -> None:
    tokenizer = build_tiny_tokenizer()
    assert special_token_ids(tokenizer) == (1, 0)
    tokenizer.pad_token = None
    assert special_token_ids(tokenizer) == (1, 1)
