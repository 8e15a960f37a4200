"""The files of a model's folder, looked at before anything is loaded. Needs neither torch nor transformers.

Weights are read at no more than their headers, which say how long a file must be.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nsr.errors import UserError

ADVICE = "give a hub id, a folder with config.json, tokenizer and safetensors, `tiny`, or `smollm2-135m`"

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_MOST_HEADER = 100_000_000  # bytes, the limit of safetensors itself
_CONVERT = (
    'python -c "from transformers import AutoModelForCausalLM as M; '
    "M.from_pretrained('FOLDER').save_pretrained('NEW_FOLDER')\""
)


def _refused(who: str, fault: str, advice: str = ADVICE) -> UserError:
    return UserError(f"{who} {fault}: {advice}.")


def check_folder(who: str, folder: Path) -> None:
    """Raise ValueError where the folder lacks a file of a model, or one is cut off, with one sentence that says so.

    Args:
        who: how the sentence calls the model, such as "--model_id 'x'".
        folder: of the model.
    """
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise _refused(who, "is an adapter (PEFT), not a model", "merge it into its base model first")
        raise _refused(who, "is a folder without a config.json")
    if (folder / _WEIGHTS).is_file():
        tensors = _tensors(who, folder / _WEIGHTS)
        if not tensors:
            raise _refused(who, f"has a {_WEIGHTS} without tensors")
    elif (folder / _INDEX).is_file():
        _check_shards(who, folder)
    else:
        raise _without_weights(who, folder)


def _without_weights(who: str, folder: Path) -> UserError:
    names = sorted(file.name for file in folder.iterdir())
    if any(name.endswith((".bin", ".pt", ".pth", ".ckpt")) and not name.startswith("optimizer") for name in names):
        return _refused(
            who,
            f"has its weights as a pickle only, and none in {_WEIGHTS}; reading a pickle can run code, so nsr does not",
            f"where you trust the file, convert it with `{_CONVERT}` and copy the tokenizer's files",
        )
    others = [name for name in names if name.endswith((".safetensors", ".gguf"))]
    found = f" (it has {', '.join(others[:3])})" if others else ""
    return _refused(who, f"is a folder without weights: there is no {_WEIGHTS} and no {_INDEX}{found}")


def _check_shards(who: str, folder: Path) -> None:
    again = "copy or download the model again"
    try:
        names: dict[str, str] = json.loads((folder / _INDEX).read_bytes())["weight_map"]
        files = sorted(set(names.values()))
        plain = all(Path(name).name == name for name in files)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _refused(who, f"has a {_INDEX} that cannot be read", again) from error
    if not plain or not files:
        raise _refused(who, f"has a {_INDEX} that names no files beside it", again)
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        fault = f"lacks {len(missing)} of {len(files)} files that its {_INDEX} names; the first is {missing[0]!r}"
        raise _refused(who, fault, again)
    for file in files:
        inside = _tensors(who, folder / file)
        absent = [tensor for tensor, place in names.items() if place == file and tensor not in inside]
        if absent:
            raise _refused(who, f"has a {file} without {absent[0]!r}, which its {_INDEX} puts there", again)


def _tensors(who: str, file: Path) -> set[str]:
    """Names of the tensors in a safetensors file, whose size is what its header says."""
    again = "copy or download it again"
    size = file.stat().st_size
    wrong = _refused(who, f"has a {file.name} that is no safetensors file", again)
    with file.open("rb") as stream:
        start = stream.read(8)
        if start == b"version ":
            advice = "fetch the weights with `git lfs pull`"
            raise _refused(who, f"has a pointer of Git LFS in place of {file.name}", advice)
        length = int.from_bytes(start, "little")
        text = stream.read(length) if length <= _MOST_HEADER else b""
    if size >= 8 and not text.startswith(b"{"):
        raise wrong
    if len(text) < length or size < 8:
        expected = f"its header alone takes {8 + length}" if size >= 8 else "its first 8 tell the length of the header"
        raise _refused(who, f"has a truncated {file.name}, of {size} bytes ({expected})", again)
    try:
        header: dict[str, Any] = json.loads(text)
        header.pop("__metadata__", None)
        end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise wrong from error
    expected = 8 + length + end
    if size < expected:
        raise _refused(who, f"has a truncated {file.name}: its header says {expected} bytes, it has {size}", again)
    if size > expected:
        fault = f"has a {file.name} that is wrong: its header says {expected} bytes, it has {size}"
        raise _refused(who, fault, again)
    return set(header)
