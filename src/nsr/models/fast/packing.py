"""Sequences of several groups in one row, every prompt once: a forward pass without padding and without repetition.

All that a causal language model does but attention works on each token by itself. So the tokens of a microbatch lie end
to end in one row, first the prompts, then the responses, each with its own position; and attention, which is given to
`transformers` under a name of its own, lets a response see its group's prompt and itself. The result is that of each
sequence alone, to rounding, and gradients reach a prompt once for all its responses.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from nsr.errors import UserError
from nsr.models.fast.attention import attention

ATTENTION = "nsr_packed"


@dataclass(frozen=True, kw_only=True, eq=False)
class Packing:
    """Where the tokens of prompts and responses lie in one row of `N`, the last token of each response left out.

    Inside attention prompts and responses are padded on the right: [P, T] and [B, R]. A padded place reads token 0.
    """

    tokens_1N: Int[Tensor, "1 N"]
    positions_1N: Int[Tensor, "1 N"]
    """Position of each token in its own sequence."""
    prompts_PT: Int[Tensor, "P T"]
    """Where in the row each prompt's tokens are."""
    responses_BR: Int[Tensor, "B R"]
    """Where in the row each response's tokens are."""
    prompt_of_B: Int[Tensor, " B"]
    """Which prompt a response belongs to."""
    visible_B1RS: Bool[Tensor, "B 1 R S"]
    """Which of the keys of its prompt (T) and itself (R) a response's token sees: S = T + R."""
    unpadded_N: Int[Tensor, " N"]
    """Where in all padded prompts and then all padded responses, end to end, each token of the row is."""
    predicting_M: Int[Tensor, " M"]
    """Where in the row the tokens are that predict the response tokens, response by response."""
    _masks: dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]] = field(default_factory=dict)

    @functools.cached_property
    def padded_X(self) -> Int[Tensor, " X"]:
        """Where in the row the tokens of all padded prompts and then all padded responses are, end to end."""
        return torch.cat([self.prompts_PT.flatten(), self.responses_BR.flatten()])

    def masks(self, group: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What is added to scores, 0 or -inf: [1, 1, group T, T] for prompts, [B, 1, group R, S] for responses.

        For `group` query heads as rows of one. Made once for all layers, which keep it for the gradient.
        """
        if (group, dtype) not in self._masks:
            length = self.prompts_PT.shape[1]
            before_TT = torch.ones(length, length, dtype=torch.bool, device=self.prompts_PT.device).tril()
            visible = (before_TT[None, None], self.visible_B1RS)
            of_prompts, of_responses = (each.repeat(1, 1, group, 1) for each in visible)
            self._masks[group, dtype] = _additive(of_prompts, dtype), _additive(of_responses, dtype)
        return self._masks[group, dtype]


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, -math.inf)


def pack(prompts: Sequence[Tensor], responses: Sequence[Tensor], prompt_of: Sequence[int]) -> Packing:
    """Lay out prompts and the responses to them.

    Args:
        prompts: token ids of each, at least one.
        responses: token ids of each, at least one.
        prompt_of: the index of each response's prompt.
    """
    device = prompts[0].device
    inputs = [response[:-1] for response in responses]
    lengths = [len(tokens) for tokens in (*prompts, *inputs)]
    starts = [0]
    for length in lengths:
        starts.append(starts[-1] + length)
    spans = [torch.arange(start, start + length) for start, length in zip(starts, lengths, strict=False)]
    prompts_PT = pad_sequence(spans[: len(prompts)], batch_first=True)
    responses_BR = pad_sequence(spans[len(prompts) :], batch_first=True)
    prompt_lengths, longest_prompt = lengths[: len(prompts)], prompts_PT.shape[1]
    longest = responses_BR.shape[1]
    places = [index * longest_prompt + torch.arange(length) for index, length in enumerate(prompt_lengths)]
    places += [prompts_PT.numel() + index * longest + torch.arange(len(tokens)) for index, tokens in enumerate(inputs)]
    of_B = torch.tensor(list(prompt_of))
    positions = [torch.arange(length) for length in prompt_lengths]
    positions += [prompt_lengths[of] + torch.arange(len(tokens)) for of, tokens in zip(prompt_of, inputs, strict=True)]
    # the first response token is predicted by the prompt's last, the others by the one before them
    predicting = [torch.cat([spans[of][-1:], span]) for of, span in zip(prompt_of, spans[len(prompts) :], strict=True)]
    in_prompt_BT = torch.arange(longest_prompt) < torch.tensor(prompt_lengths)[of_B].unsqueeze(1)
    own_RR = torch.ones(longest, longest, dtype=torch.bool).tril()
    visible_BRS = torch.cat(
        [
            in_prompt_BT.unsqueeze(1).expand(-1, longest, -1),
            own_RR.expand(len(responses), -1, -1),
        ],
        dim=-1,
    )
    return Packing(
        tokens_1N=torch.cat([*prompts, *inputs]).unsqueeze(0),
        positions_1N=torch.cat(positions).unsqueeze(0).to(device),
        prompts_PT=prompts_PT.to(device),
        responses_BR=responses_BR.to(device),
        prompt_of_B=of_B.to(device),
        visible_B1RS=visible_BRS.unsqueeze(1).to(device),
        unpadded_N=torch.cat(places).to(device),
        predicting_M=torch.cat(predicting).to(device),
    )


def packed_hidden(model: PreTrainedModel, packing: Packing) -> Float[Tensor, "M D"]:
    """The last hidden states, after the final norm, of the tokens that predict the response tokens.

    Where layers are computed again for the gradient, the backward pass belongs inside `packed_attention` too.
    """
    backbone: Any = model.base_model
    with packed_attention(model):
        output = backbone(
            input_ids=packing.tokens_1N, position_ids=packing.positions_1N, use_cache=False, packing=packing
        )
    return output.last_hidden_state[0].index_select(0, packing.predicting_M)


def why_not_packed(model: PreTrainedModel) -> str | None:
    """Why a model's sequences cannot be packed; None if they can, which is tried out on two sequences of it."""
    if not getattr(model, "_supports_attention_backend", False):
        return "the model computes attention in a way of its own"
    if set[str](getattr(model.config.get_text_config(), "layer_types", None) or ()) - {"full_attention"}:
        return "not all of the model's layers attend to everything before"
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or model.base_model is model:
        return "the model's output layer is not one linear layer"
    ids = torch.arange(1, 8, device=model.device) * head.out_features // 8
    prompt, response = ids[:4], ids[4:]
    packing = pack([prompt, prompt[:2]], [response, response, response[:1]], [0, 1, 1])
    runs: Any = model
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            packed = head(packed_hidden(model, packing))
            plain = [
                runs(input_ids=torch.cat([before, after])[None, :-1]).logits[0, len(before) - 1 :]
                for before, after in ((prompt, response), (prompt[:2], response), (prompt[:2], response[:1]))
            ]
    except Exception as error:  # noqa: BLE001 - whatever it is, the model is computed the plain way
        return f"the model's layers do not take packed sequences ({type(error).__name__})"
    finally:
        model.train(was_training)
    expected = torch.cat(plain).float()
    difference = (packed.float() - expected).norm() / expected.norm()
    rough = max(torch.finfo(packed.dtype).eps, torch.finfo(torch.float32).eps) ** 0.5
    # far above rounding, far below what a wrong position or mask makes
    return None if bool(difference < rough) else "packed, the model computes something else"


@contextmanager
def packed_attention(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the model's layers take packed sequences."""
    config: Any = model.config.get_text_config()
    before = config._attn_implementation  # noqa: SLF001 - read by each layer at each pass
    config._attn_implementation = ATTENTION  # noqa: SLF001
    try:
        yield
    finally:
        config._attn_implementation = before  # noqa: SLF001


class _Pad(torch.autograd.Function):
    """rows [N, ...] -> rows[places] [X, ...], where each row of N is at `back` and the other places are padding."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, places_X: Tensor, back_N: Tensor) -> Tensor:
        ctx.save_for_backward(back_N)
        return rows.index_select(0, places_X)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        (back_N,) = ctx.saved_tensors
        return gradients[0].index_select(0, back_N), None, None


def _packed_attention(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention in the form that `transformers` asks for: [1, heads, N, head_dim] -> [1, N, heads, head_dim]."""
    unknown = {name for name in ("softcap", "position_bias", "s_aux", "sliding_window") if others.get(name) is not None}
    if attention_mask is not None or unknown:
        raise UserError(f"packed attention knows no {', '.join(sorted(unknown)) or 'mask'}")
    prompts, length = packing.prompts_PT.shape
    rows, longest = packing.responses_BR.shape
    states_NHD = [states[0].transpose(0, 1) for states in (query, key, value)]
    padded = [_Pad.apply(states, packing.padded_X, packing.unpadded_N) for states in states_NHD]

    def parts(states_XHD: Tensor) -> tuple[Tensor, Tensor]:
        in_prompts, in_responses = states_XHD.split([prompts * length, rows * longest])
        return (
            in_prompts.unflatten(0, (prompts, length)).transpose(1, 2),
            in_responses.unflatten(0, (rows, longest)).transpose(1, 2),
        )

    (q_prompts, q), (k_prompts, k), (v_prompts, v) = map(parts, padded)
    scale = float(query.shape[-1]) ** -0.5 if scaling is None else scaling
    on_cpu = query.device.type == "cpu"
    dtype = torch.promote_types(query.dtype, torch.float32) if on_cpu else query.dtype  # of the scores
    of_prompts, of_responses = packing.masks(query.shape[1] // key.shape[1], dtype)
    out = [_attend(q_prompts, k_prompts, v_prompts, of_prompts, scale, dropout)]
    if longest:
        k = torch.cat([k_prompts.index_select(0, packing.prompt_of_B), k], dim=2)
        v = torch.cat([v_prompts.index_select(0, packing.prompt_of_B), v], dim=2)
        out.append(_attend(q, k, v, of_responses, scale, dropout))
    joined = torch.cat([part.transpose(1, 2).flatten(0, 1) for part in out])
    return joined.index_select(0, packing.unpadded_N).unsqueeze(0), None


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, dropout: float) -> Tensor:
    """[B, heads, T, head_dim]. Query heads that share a key head become its queries: nothing is repeated for them."""
    group, length = query.shape[1] // key.shape[1], query.shape[2]
    query = query.unflatten(1, (-1, group)).flatten(2, 3)
    if query.device.type == "cpu" and not dropout:
        out = attention(query, key, value, mask, scaling)
    else:
        mask = mask.to(query.dtype)
        out = functional.scaled_dot_product_attention(query, key, value, mask, dropout, scale=scaling)
    return out.unflatten(2, (group, length)).flatten(1, 2)


def _no_mask(*_args: Any, **_others: Any) -> None:
    """The packing brings its own."""


AttentionInterface.register(ATTENTION, cast(Any, _packed_attention))
AttentionMaskInterface.register(ATTENTION, cast(Any, _no_mask))
