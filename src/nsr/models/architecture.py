"""Model id -> the sizes of its decoder, without torch and without its weights."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from nsr.errors import UserError
from nsr.memory.estimate import ModelShape

TINY = Path(__file__).parent / "tiny"
_HUB_SECONDS = 5.0
_NAMES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
_SIZES: dict[str, tuple[str, int, int, int, int, int, int, int, bool]] = {
    # kind, hidden, intermediate, layers, heads, key-value heads, head width, vocabulary, tied: from each config.json
    "Qwen/Qwen3-0.6B": ("qwen3", 1024, 3072, 28, 16, 8, 128, 151936, True),
    "Qwen/Qwen3-1.7B": ("qwen3", 2048, 6144, 28, 16, 8, 128, 151936, True),
    "Qwen/Qwen3-4B": ("qwen3", 2560, 9728, 36, 32, 8, 128, 151936, True),
    "Qwen/Qwen3-8B": ("qwen3", 4096, 12288, 36, 32, 8, 128, 151936, False),
    "Qwen/Qwen3-14B": ("qwen3", 5120, 17408, 40, 40, 8, 128, 151936, False),
    "Qwen/Qwen2.5-0.5B-Instruct": ("qwen2", 896, 4864, 24, 14, 2, 64, 151936, True),
    "Qwen/Qwen2.5-1.5B-Instruct": ("qwen2", 1536, 8960, 28, 12, 2, 128, 151936, True),
    "Qwen/Qwen2.5-Math-7B": ("qwen2", 3584, 18944, 28, 28, 4, 128, 152064, False),
    "meta-llama/Llama-3.1-8B-Instruct": ("llama", 4096, 14336, 32, 32, 8, 128, 128256, False),
    "HuggingFaceTB/SmolLM2-135M-Instruct": ("llama", 576, 1536, 30, 9, 3, 64, 49152, True),
    "HuggingFaceTB/SmolLM2-360M-Instruct": ("llama", 960, 2560, 32, 15, 5, 64, 49152, True),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": ("llama", 2048, 8192, 24, 32, 32, 64, 49152, True),
}
_ALIASES = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}


def find_shape(model_id: str) -> tuple[ModelShape, str]:
    """The sizes of a model's decoder, and where they were found: its config.json, or the built-in table.

    Raises:
        ValueError: no such folder, a config.json that is none, or a hub id that can be asked for nowhere.
    """
    folder = TINY if model_id == "tiny" else Path(model_id).expanduser()
    if folder.is_dir():
        return _from_record(model_id, _read(folder / "config.json")), f"config.json of {model_id}"
    name = _ALIASES.get(model_id, model_id)
    if name != model_id:
        return known_shape(name), "the built-in table"
    reason = f"{folder} is no folder"
    if not model_id.startswith((".", "/", "~")) and model_id.count("/") <= 1:
        record, reason = _from_hub(model_id)
        if record is not None:
            return _from_record(model_id, record), "config.json from the hub"
        if name in _SIZES:
            return known_shape(name), f"the built-in table ({reason})"
    known = ", ".join([*_SIZES, *_ALIASES, "tiny"])
    raise UserError(
        f"--model_id is {model_id!r} but its config.json was not found ({reason}): give a folder that has one, the "
        f"shape with --hidden, --layers, --heads and --vocab, or one of {known}."
    )


def known_shape(name: str) -> ModelShape:
    """The sizes of a model of the built-in table."""
    kind, *sizes, head_dim, vocab, tied = _SIZES[name]
    config = SimpleNamespace(model_type=kind, head_dim=head_dim, vocab_size=vocab, tie_word_embeddings=tied)
    vars(config).update(zip(_NAMES, sizes, strict=True))
    return ModelShape.from_config(config)


def _from_hub(model_id: str) -> tuple[dict[str, Any] | None, str]:
    """The model's config.json from the hub's cache or the hub; None, and why, where it cannot be had.

    Asked once and briefly, not five times as downloads are: where there is no network the answer is wanted at once.
    """
    from huggingface_hub import hf_hub_url, try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(model_id, "config.json")
        if isinstance(cached, str):
            return _read(Path(cached)), ""
        if HF_HUB_OFFLINE:
            return None, "HF_HUB_OFFLINE is set"
        with urllib.request.urlopen(hf_hub_url(model_id, "config.json"), timeout=_HUB_SECONDS) as response:  # noqa: S310
            return json.load(response), ""
    except HFValidationError:
        return None, "that is no name of a hub model"
    except urllib.error.HTTPError as error:
        return None, f"the hub answers {error.code} {error.reason}"
    except OSError:
        return None, "the hub is out of reach"


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({type(error).__name__}): give a folder with a config.json.") from error


def _from_record(model_id: str, record: Any) -> ModelShape:
    try:
        return ModelShape.from_config(SimpleNamespace(**{**record, **record.get("text_config", {})}))
    except (TypeError, AttributeError) as error:
        raise UserError(
            f"--model_id is {model_id!r} but its config.json does not give the sizes of a decoder ({error}): choose "
            "another model, or give the shape with --hidden, --layers, --heads and --vocab."
        ) from error
