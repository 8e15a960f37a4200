"""What can be wrong with a model, found before it is used, each in one sentence that says what to do.

`transformers` is lenient: weights that a file lacks are made up at random, and a folder without a tokenizer gets an
empty one. Here both are refused. Nothing in this file runs code of a model or reads a pickle.
"""

from __future__ import annotations

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

from nsr.errors import UserError
from nsr.models.files import ADVICE

_LOGGER = logging.getLogger(__name__)


def refused(model_id: str, fault: str, advice: str = ADVICE) -> UserError:
    """The error for a model that cannot be used."""
    return UserError(f"{named(model_id)} {fault}: {advice}.")


def named(model_id: str) -> str:
    """How sentences call a model that was given on the command line."""
    return f"--model_id {model_id!r}"


def check_config(model_id: str, config: object) -> None:
    """Refuse what is no causal language model that `transformers` has built in. Raises ValueError.

    Args:
        model_id: as it was given.
        config: what its config.json holds.
    """
    values: dict[str, Any] = config if isinstance(config, dict) else {}
    kind = values.get("model_type")
    version = f"transformers {transformers.__version__}"
    if not isinstance(kind, str):
        raise refused(model_id, "has a config.json without a model_type")
    own = "auto_map" in values
    if kind not in CONFIG_MAPPING:
        if own:
            raise _own_code(model_id, f"{version} has no model of its type {kind!r} built in")
        advice = "choose another model, or a version of transformers that knows it"
        raise refused(model_id, f"is of the type {kind!r}, which {version} does not know", advice)
    if values.get("is_encoder_decoder"):
        raise refused(model_id, f"is an encoder-decoder ({kind}), no causal language model", "choose a causal one")
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    if causal is None:
        raise refused(model_id, f"is of the type {kind!r}, no causal language model", "choose a causal one")
    saved_as: Any = values.get("architectures") or []
    built_in = {name for names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() for name in _as_tuple(names)}
    if isinstance(saved_as, list) and saved_as and not built_in & {str(name) for name in saved_as}:
        if own:
            raise _own_code(model_id, f"{version} has no {saved_as[0]!r} built in")
        fault = f"was saved as {saved_as[0]!r}, no causal language model with an output head"
        raise refused(model_id, fault, "choose a causal one, such as a ...ForCausalLM")


def _own_code(model_id: str, why: str) -> UserError:
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
        text = "--model_id %r has %d tensors that its config.json has no place for; they are left out (the first: %r)"
        _LOGGER.warning(text, model_id, len(extra), extra[0])


def not_loaded(model_id: str, source: str, error: Exception) -> UserError:
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
            "is unreachable (HF_HUB_OFFLINE, or no network)",
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
