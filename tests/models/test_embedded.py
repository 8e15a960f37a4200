"""The embedded model: its tokenizer keeps the prompt short and loses nothing; its folder is an ordinary one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nsr.models.embedded import END, build_tiny_model, build_tiny_tokenizer
from nsr.models.registry import EMBEDDED, encode_prompt
from nsr.tasks.countdown.prompt import build_messages
from nsr.tasks.countdown.puzzle import Puzzle

PUZZLE = Puzzle(numbers=(44, 19, 35), target=98)
TOKENIZER = build_tiny_tokenizer()


def test_the_whole_prompt_is_twelve_tokens() -> None:
    ids = encode_prompt(TOKENIZER, build_messages(PUZZLE, 160))
    assert TOKENIZER.convert_ids_to_tokens(ids) == list("44,19,35=98:")


@pytest.mark.parametrize("max_tokens", [4, 160, 32768])
def test_the_budget_leaves_no_trace_in_the_tokens(max_tokens: int) -> None:
    assert len(encode_prompt(TOKENIZER, build_messages(PUZZLE, max_tokens))) == 12


def test_samples_decode_to_themselves() -> None:
    sample = "<think>44+35=79,79-19=60\n44+35=79,79+19=98</think><answer>44+35+19</answer>"
    ids = TOKENIZER(sample)["input_ids"]
    assert TOKENIZER.decode(ids) == sample
    assert len(ids) == 4 + len("44+35=79,79-19=60\n44+35=79,79+19=98" + "44+35+19")
    assert TOKENIZER.decode([*ids, TOKENIZER.eos_token_id], skip_special_tokens=True) == sample


def test_every_token_decodes_to_a_text_that_encodes_to_it() -> None:
    for word, token_id in TOKENIZER.get_vocab().items():
        assert TOKENIZER(word)["input_ids"] == [token_id]


def test_a_saved_tokenizer_is_the_same(tmp_path: Path) -> None:
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    messages = build_messages(PUZZLE, 77)
    assert encode_prompt(loaded, messages) == encode_prompt(TOKENIZER, messages)
    assert loaded.eos_token == END


def test_size_of_the_architecture() -> None:
    model = build_tiny_model(len(TOKENIZER), TOKENIZER.eos_token_id, TOKENIZER.pad_token_id)
    # 103 x 256 embeddings; 6 layers of 2 x 256 x 256 (q, o) + 2 x 256 x 128 (k, v) + 3 x 256 x 640 (MLP)
    # + 2 x 256 (norms) + 2 x 64 (norms of q and k); the last norm, 256. The head is tied to the embeddings.
    assert sum(weight.numel() for weight in model.parameters()) == 103 * 256 + 6 * (196_608 + 491_520 + 640) + 256


def test_the_shipped_folder_is_small_and_loads_with_plain_transformers() -> None:
    folder = EMBEDDED["tiny"]
    assert sum(file.stat().st_size for file in folder.iterdir()) < 10_000_000
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert sum(weight.numel() for weight in model.parameters()) <= 5_000_000
    shipped = AutoTokenizer.from_pretrained(folder)
    assert shipped.get_vocab() == TOKENIZER.get_vocab()
    messages = build_messages(PUZZLE, 160)
    assert encode_prompt(shipped, messages) == encode_prompt(TOKENIZER, messages)
