"""What can be wrong with a model, found before it is used, each in one sentence that says what to do.

`transformers` is lenient: weights that a file lacks are made up at random, and a folder without a tokenizer gets an
empty one. Here both are refused. Nothing in this file runs code of a model or reads a pickle.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

ADVICE = "give a hub id, a folder with config.json, tokenizer and safetensors, `tiny`, or `smollm2-135m`"

_LOGGER = logging.getLogger(__name__)
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_MOST_HEADER = 100_000_000  # bytes, the limit of safetensors itself
_CONVERT = (
    'python -c "from transformers import AutoModelForCausalLM as M; '
    "M.from_pretrained('FOLDER').save_pretrained('NEW_FOLDER')\""
)


def refused(model_id: str, fault: str, advice: str = ADVICE) -> ValueError:
    """The error for a model that cannot be used."""
    return ValueError(f"--model_id {model_id!r} {fault}: {advice}.")


def check_folder(model_id: str, folder: Path) -> None:
    """Look at the files of a local folder, of the weights at no more than their headers. Raises ValueError."""
    if not (folder / "config.json").is_file():
        if (folder / "adapter_config.json").is_file():
            raise refused(model_id, "is an adapter (PEFT), not a model", "merge it into its base model first")
        raise refused(model_id, "is a folder without a config.json")
    if (folder / _WEIGHTS).is_file():
        tensors = _tensors(model_id, folder / _WEIGHTS)
        if not tensors:
            raise refused(model_id, f"has a {_WEIGHTS} without tensors")
    elif (folder / _INDEX).is_file():
        _check_shards(model_id, folder)
    else:
        raise _without_weights(model_id, folder)


def _without_weights(model_id: str, folder: Path) -> ValueError:
    names = sorted(file.name for file in folder.iterdir())
    if any(name.endswith((".bin", ".pt", ".pth", ".ckpt")) and not name.startswith("optimizer") for name in names):
        return refused(
            model_id,
            f"has its weights as a pickle only, and none in {_WEIGHTS}; reading a pickle can run code, so nsr does not",
            f"where you trust the file, convert it with `{_CONVERT}` and copy the tokenizer's files",
        )
    others = [name for name in names if name.endswith((".safetensors", ".gguf"))]
    found = f" (it has {', '.join(others[:3])})" if others else ""
    return refused(model_id, f"is a folder without weights: there is no {_WEIGHTS} and no {_INDEX}{found}")


def _check_shards(model_id: str, folder: Path) -> None:
    again = "copy or download the model again"
    try:
        names: dict[str, str] = json.loads((folder / _INDEX).read_bytes())["weight_map"]
        files = sorted(set(names.values()))
        plain = all(Path(name).name == name for name in files)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise refused(model_id, f"has a {_INDEX} that cannot be read", again) from error
    if not plain or not files:
        raise refused(model_id, f"has a {_INDEX} that names no files beside it", again)
    missing = [name for name in files if not (folder / name).is_file()]
    if missing:
        fault = f"lacks {len(missing)} of {len(files)} files that its {_INDEX} names; the first is {missing[0]!r}"
        raise refused(model_id, fault, again)
    for file in files:
        inside = _tensors(model_id, folder / file)
        absent = [tensor for tensor, place in names.items() if place == file and tensor not in inside]
        if absent:
            raise refused(model_id, f"has a {file} without {absent[0]!r}, which its {_INDEX} puts there", again)


def _tensors(model_id: str, file: Path) -> set[str]:
    """Names of the tensors in a safetensors file, whose size is what its header says."""
    again = "copy or download it again"
    size = file.stat().st_size
    wrong = refused(model_id, f"has a {file.name} that is no safetensors file", again)
    with file.open("rb") as stream:
        start = stream.read(8)
        if start == b"version ":
            advice = "fetch the weights with `git lfs pull`"
            raise refused(model_id, f"has a pointer of Git LFS in place of {file.name}", advice)
        length = int.from_bytes(start, "little")
        text = stream.read(length) if length <= _MOST_HEADER else b""
    if size >= 8 and not text.startswith(b"{"):
        raise wrong
    if len(text) < length or size < 8:
        expected = f"its header alone takes {8 + length}" if size >= 8 else "its first 8 tell the length of the header"
        raise refused(model_id, f"has a truncated {file.name}, of {size} bytes ({expected})", again)
    try:
        header: dict[str, Any] = json.loads(text)
        header.pop("__metadata__", None)
        end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise wrong from error
    expected = 8 + length + end
    if size < expected:
        raise refused(model_id, f"has a truncated {file.name}: its header says {expected} bytes, it has {size}", again)
    if size > expected:
        fault = f"has a {file.name} that is wrong: its header says {expected} bytes, it has {size}"
        raise refused(model_id, fault, again)
    return set(header)


def check_config(model_id: str, config: Mapping[str, Any]) -> None:
    """Refuse what is no causal language model that `transformers` has built in. Raises ValueError.

    Args:
        model_id: as it was given.
        config: what its config.json holds.
    """
    kind = config.get("model_type")
    version = f"transformers {transformers.__version__}"
    if not isinstance(kind, str):
        raise refused(model_id, "has a config.json without a model_type")
    own = "auto_map" in config
    if kind not in CONFIG_MAPPING:
        if own:
            raise _own_code(model_id, f"{version} has no model of its type {kind!r} built in")
        advice = "choose another model, or a version of transformers that knows it"
        raise refused(model_id, f"is of the type {kind!r}, which {version} does not know", advice)
    if config.get("is_encoder_decoder"):
        raise refused(model_id, f"is an encoder-decoder ({kind}), no causal language model", "choose a causal one")
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    if causal is None:
        raise refused(model_id, f"is of the type {kind!r}, no causal language model", "choose a causal one")
    saved_as: Any = config.get("architectures") or []
    built_in = {name for names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() for name in _as_tuple(names)}
    if isinstance(saved_as, list) and saved_as and not built_in & {str(name) for name in saved_as}:
        if own:
            raise _own_code(model_id, f"{version} has no {saved_as[0]!r} built in")
        fault = f"was saved as {saved_as[0]!r}, no causal language model with an output head"
        raise refused(model_id, fault, "choose a causal one, such as a ...ForCausalLM")


def _own_code(model_id: str, why: str) -> ValueError:
    return refused(
        model_id,
        f"needs Python code that comes with it ({why}), and nsr never runs code of a model",
        "choose a model that transformers has built in",
    )


def _as_tuple(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def check_loaded(model_id: str, model: PreTrainedModel, report: Mapping[str, Any]) -> None:
    """Refuse a model whose weights and config.json do not go together; say which tensors were left out.

    Args:
        model_id: as it was given.
        model: as it was loaded.
        report: what `from_pretrained(..., output_loading_info=True)` gave, with mismatches let through.
    """
    order = {name: index for index, name in enumerate(model.state_dict())}
    again = "the weights are of another model than the config.json, or not whole; copy or download both again"
    mismatched = sorted(report["mismatched_keys"], key=lambda found: order.get(found[0], len(order)))
    if mismatched:
        name, found, expected = mismatched[0]
        raise refused(
            model_id,
            f"has {len(mismatched)} tensors of other shapes than its config.json asks for; "
            f"the first is {name!r}: {list(found)} in place of {list(expected)}",
            again,
        )
    missing = sorted(report["missing_keys"], key=lambda name: order.get(name, len(order)))
    if missing:
        fault = f"lacks {len(missing)} tensors that its config.json asks for; the first is {missing[0]!r}"
        raise refused(model_id, fault, again)
    if report.get("error_msgs"):
        raise refused(model_id, f"cannot be loaded ({first_line(report['error_msgs'][0])})", again)
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
    if tied and head is not None and head.weight is not embeddings.weight:
        raise refused(
            model_id,
            "has an output head that differs from its embeddings, but a config.json that ties them",
            "set tie_word_embeddings to false there if the head is meant, else take it out of the weights",
        )
    extra = sorted(report["unexpected_keys"])
    if extra:
        text = (
            "the model %r has %d tensors that its config.json has no place for, and they are left out (the first: %r)"
        )
        _LOGGER.warning(text, model_id, len(extra), extra[0])


def not_loaded(model_id: str, source: str, error: Exception) -> ValueError:
    """One sentence in place of what a library raised for the model at `source`, a folder or a hub id."""
    if Path(source).is_dir():
        return refused(model_id, f"is a folder that cannot be loaded ({first_line(error)})")
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        return refused(model_id, "is not a folder")
    kinds = {type(cause) for cause in _causes(error)}
    if _any(kinds, [GatedRepoError]):
        return refused(
            model_id,
            f"is gated on the hub, and this machine has no access ({first_line(error)})",
            f"ask for access at https://huggingface.co/{source}, then run `hf auth login` or set HF_TOKEN",
        )
    if _any(kinds, [RepositoryNotFoundError]):
        return refused(
            model_id,
            "was not found: there is no such local folder, and the hub has no such model, or it is private",
            "check the name; for a private model run `hf auth login` or set HF_TOKEN",
        )
    if "safetensors" in str(error) and "does not appear to have" in str(error):
        return refused(model_id, "has no weights in safetensors on the hub, and nsr reads no pickles")
    if _any(kinds, [LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError]):
        return refused(
            model_id,
            "was not found: there is no such local folder, this machine has no copy of such a hub model, and the hub "
            "cannot be reached (HF_HUB_OFFLINE, or no network)",
        )
    return refused(
        model_id,
        "was not found: there is no such local folder, and the hub has no such model or is unreachable "
        f"({first_line(error)})",
    )


def first_line(error: object) -> str:
    """The first line of what a library says, short."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200].rstrip(".: ")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen = 0
    while error is not None and seen < 20:
        yield error
        error, seen = error.__cause__ or error.__context__, seen + 1


def _any(kinds: Iterable[type], wanted: Iterable[type]) -> bool:
    return any(issubclass(kind, tuple(wanted)) for kind in kinds)
