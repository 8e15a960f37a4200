"""One token a row through a decoder of the Llama kind, in few operations: what sampling spends its time on.

It computes what the model's own forward computes, operation for operation in the same types, without what that one
does around it. Attention is the caller's: it knows where keys and values lie.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

from nsr.models.fast.kernels import JoinedLinear

FAMILIES = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
"""Classes whose forward is the one written down here."""

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""A layer's attention: its index, the newest token's queries [B, K, Q, D], keys and values [B, K, D] -> [B, K * Q * D].

K key-value heads, each with Q query heads. It keeps keys and values, and attends to all of a row's tokens.
"""


def misfit(model: PreTrainedModel) -> str | None:
    """Why the lean decoder cannot stand for a model's own forward, None if it can. Asks for structure, not for numbers.

    Hooks, replaced forwards and layers of another type (adapters, quantization) are a misfit: they would be left out.
    """
    if type(model) not in FAMILIES:
        return f"{type(model).__name__} is not of the Llama kind"
    config: Any = model.config
    if config.hidden_act != "silu":
        return f"its activation is {config.hidden_act}"
    types = set[str](getattr(config, "layer_types", None) or ())
    if "sliding_attention" in types or (not types and getattr(config, "sliding_window", None) is not None):
        return "it has layers with a sliding window"
    decoder: Any = model.model
    linears = [getattr(part, name) for layer in decoder.layers for part, name in _linears(layer)]
    if any(type(linear) is not nn.Linear for linear in [*linears, model.lm_head]):
        return "its linear layers are not plain ones"
    for name, module in model.named_modules():
        own = vars(module)
        if "forward" in own or own["_forward_hooks"] or own["_forward_pre_hooks"]:
            return f"the forward of {name or 'the model'} was changed"
    return None


def _linears(layer: Any) -> list[tuple[Any, str]]:
    attention = [(layer.self_attn, f"{name}_proj") for name in "qkvo"]
    return attention + [(layer.mlp, f"{name}_proj") for name in ("gate", "up", "down")]


class LeanDecoder:
    """A model's decoder for one token a row, with its weights as they were when this was made.

    Make it for one call and let it go: its weights are copies where a copy is quicker, and none of them is refreshed.

    Args:
        model: one that `misfit` finds nothing about.
        vocab_size: logits of ids below it are computed.
    """

    def __init__(self, model: PreTrainedModel, vocab_size: int) -> None:
        untyped: Any = model
        decoder = untyped.model
        self._embedding: Tensor = decoder.embed_tokens.weight
        self._rotary = decoder.rotary_emb
        self.scale: float = decoder.layers[0].self_attn.scaling
        """What attention's scores are multiplied by."""
        self._layers = [_Layer(index, layer) for index, layer in enumerate(decoder.layers)]
        self.num_layers = len(self._layers)
        # These rotations ask the device how long the longest row is, longrope's in some versions of `transformers`.
        rotation = str(getattr(self._rotary, "rope_type", "default"))
        self.has_fixed_steps = "dynamic" not in rotation and rotation != "longrope"
        """Whether a step is the same work whatever its rows are."""
        self.kv_heads, self.head_width = self._layers[0].kv_heads, self._layers[0].head_width
        self.dtype, self.device = self._embedding.dtype, self._embedding.device
        self._norm = _Norm(decoder.norm)
        self._head = JoinedLinear(untyped.lm_head, rows=vocab_size)

    def step(self, tokens_B: Tensor, positions_B: Tensor, attend: Attend) -> Tensor:
        """Logits [B, vocab_size] after one more token of each row (int64, with its position in the row)."""
        hidden_BH = functional.embedding(tokens_B, self._embedding)
        cos_B1D, sin_B1D = self._rotary(hidden_BH, positions_B.unsqueeze(-1))
        half = sin_B1D.shape[-1] // 2
        # Rotation turns (a, b) into (a cos - b sin, b cos + a sin): with this sign, x cos + (b, a) sin.
        signed_B1D = torch.cat((-sin_B1D[..., :half], sin_B1D[..., half:]), dim=-1)
        for layer in self._layers:
            hidden_BH = layer(hidden_BH, cos_B1D, signed_B1D, attend)
        return self.project(self._norm(hidden_BH))

    def project(self, normed_BH: Tensor) -> Tensor:
        """Logits [B, vocab_size] from the last norm's output."""
        return self._head(normed_BH)


class _Norm:
    """Root-mean-square norm: in float32 at least, rounded before it is scaled, as `transformers` does.

    In 16 bits on a GPU torch's one kernel in the place of four, rounded after it is scaled: as in `fast_norms`.
    """

    def __init__(self, module: Any) -> None:
        self._weight: Tensor = module.weight
        self._epsilon: float = module.variance_epsilon

    def __call__(self, hidden: Tensor) -> Tensor:
        if hidden.device.type == "cuda" and hidden.dtype.itemsize == 2:
            return functional.rms_norm(hidden, self._weight.shape, self._weight, self._epsilon)
        normed = functional.rms_norm(hidden.float(), self._weight.shape, None, self._epsilon)
        return self._weight * normed.to(hidden.dtype)


class _Layer:
    def __init__(self, index: int, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._index = index
        self.head_width: int = attention.head_dim
        self._heads: int = attention.q_proj.out_features // self.head_width
        self.kv_heads: int = attention.k_proj.out_features // self.head_width
        self._qkv = JoinedLinear(attention.q_proj, attention.k_proj, attention.v_proj)
        self._output = JoinedLinear(attention.o_proj)
        self._gate_up = JoinedLinear(mlp.gate_proj, mlp.up_proj)
        self._down = JoinedLinear(mlp.down_proj)
        self._before_attention, self._before_mlp = _Norm(layer.input_layernorm), _Norm(layer.post_attention_layernorm)
        with_norms = hasattr(attention, "q_norm")
        self._qk_norms = (_Norm(attention.q_norm), _Norm(attention.k_norm)) if with_norms else None

    def __call__(self, hidden_BH: Tensor, cos_B1D: Tensor, signed_B1D: Tensor, attend: Attend) -> Tensor:
        heads, kv_heads = self._heads, self.kv_heads
        normed_BH = self._before_attention(hidden_BH)
        if self._qk_norms is None:
            joined = self._qkv(normed_BH).unflatten(-1, (heads + 2 * kv_heads, self.head_width))
            both, values = joined[:, : heads + kv_heads], joined[:, heads + kv_heads :]
        else:
            apart = (states.unflatten(-1, (-1, self.head_width)) for states in self._qkv.apart(normed_BH))
            of_queries, of_keys = self._qk_norms
            queries, keys, values = apart
            both = torch.cat((of_queries(queries), of_keys(keys)), dim=1)
        both = (both * cos_B1D).add_(both.roll(self.head_width // 2, dims=-1).mul_(signed_B1D))
        queries = both[:, :heads].unflatten(1, (kv_heads, -1))
        hidden_BH = hidden_BH + self._output(attend(self._index, queries, both[:, heads:], values))
        gate, up = self._gate_up.apart(self._before_mlp(hidden_BH))
        return hidden_BH + self._down(functional.silu(gate).mul_(up))
