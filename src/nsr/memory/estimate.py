"""The memory model: what training a decoder takes, as one formula. Pure arithmetic, no torch.

It counts what the tensors of the real code occupy when every response is as long as it may be. Weights and state are
there always; on top of them comes the largest of what one moment needs: learning (a microbatch, when its loss is
taken), recomputing (a layer's activations again), accumulating (a microbatch's last gradient), stepping (the optimizer,
one parameter at a time), saving (a checkpoint), or sampling. docs/hardware.md states the formula and says how far
measurements are from it. Sizes are in bytes, printed in powers of 1000.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Phase = Literal["always", "learning", "recomputing", "accumulating", "stepping", "saving", "sampling"]
Optimizer = Literal["adamw", "adamw8bit"]

FLOAT32 = 4
PIECE_ELEMENTS = 2**25
"""Most logits that the loss holds in float32 at once, fivefold: 220 positions of a vocabulary of 152 thousand."""
KEPT_ELEMENTS = 2**26
"""Most probabilities that the output layer keeps for the gradient, in the type of the weights; more are made again."""
FEW_KEYS = 4
"""Keys, as a multiple of a head's width, up to which packed attention keeps its probabilities for the gradient: they
take no more than queries, keys, values and outputs then."""
WIDE_ELEMENTS = {"cpu": 2**20, "cuda": 2**24}
"""Most logits that the output layer holds in at least float32 at once, threefold: a CPU's caches hold them."""
_SILU_KINDS = ("llama", "mistral", "qwen2", "qwen3")
SPARE_COLUMNS = 64
"""Columns of the local engine's cache beyond the longest sequence."""
SAMPLING_BATCH = 128
"""Sequences that the local engine samples at a time."""
LARGE_SAMPLING_BATCH = 512
"""Most of them where they are cheap: the more samples of a prompt run together, the more they have in common."""
CHEAP_CACHE = 2**29
"""Bytes of keys and values of sequences that are cheap on a CPU."""

_PIECE_BYTES = 20  # of a logit of a piece: its copy without padding, scaled, log-softmax, probabilities, their product
_WIDE_BYTES = 3 * FLOAT32  # of a logit that goes through float32: scaled, log-softmax, probabilities
_SCORE_BYTES = 3 * FLOAT32  # of a score of attention, in its gradient: probability and its gradient, in both types
_DRAWN_BYTES = (
    28  # of a logit that the local engine draws from: float32, scaled, log-softmax, exp, float64 sums, entropy
)
_STEP8_BYTES = 16  # of a weight that the compiled 8-bit step holds: float32 weight, gradient, both moments. Assumed
_STEP8_UNCOMPILED_BYTES = 56  # the same on a CPU, where it is not compiled: more copies. Measured


PIECE = {"cpu": 2**22, "cuda": 2**24}
"""Weights whose step is worked out together before it is taken; a multiple of torchao's blocks."""
_LOOKED_AT_BYTES = 3 * FLOAT32
"""Of each of them: the gradient as float32, and the new moments; a master made of two halves comes on top."""


def of_device(sizes: Mapping[str, int], kind: str) -> int:
    """The size for a device of the kind that torch calls so; any but a GPU of CUDA takes a CPU's."""
    return sizes.get(kind, sizes["cpu"])


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """The sizes of a decoder that memory depends on."""

    parameters: int
    hidden: int
    intermediate: int
    layers: int
    kv_width: int
    """Width of keys (and of values) in a layer: their heads times the width of a head."""
    vocab: int
    q_width: int = 0
    """Width of the queries in a layer; 0 stands for `hidden`."""
    heads: int = 0
    kv_heads: int = 0
    qk_norm: bool = False
    """Whether queries and keys are normalized, as in Qwen3."""
    tied: bool = False
    """Whether the output layer's weights are the embedding's."""
    silu: bool = True
    """Whether the MLP is gated by SiLU and without biases, as in Llama and Qwen."""

    @classmethod
    def from_config(cls, config: Any, parameters: int | None = None) -> ModelShape:
        """Read them from a `transformers` configuration (or anything with its names), before there is a model.

        Without `parameters`, their number is worked out for a decoder of the Llama or Qwen kind: embeddings, attention,
        a gated MLP, norms, and biases where the configuration says so. Names that it lacks take the usual value.
        """
        hidden: int = config.hidden_size
        layers: int = config.num_hidden_layers
        vocab: int = config.vocab_size
        heads: int = config.num_attention_heads
        intermediate: int = getattr(config, "intermediate_size", None) or 4 * hidden
        head_width: int = getattr(config, "head_dim", None) or hidden // heads
        kv_heads: int = getattr(config, "num_key_value_heads", None) or heads
        kind = str(getattr(config, "model_type", ""))
        qk_norm, tied = kind.startswith("qwen3"), bool(getattr(config, "tie_word_embeddings", False))
        q_width, kv_width = heads * head_width, kv_heads * head_width
        mlp_bias = bool(getattr(config, "mlp_bias", False))
        if parameters is None:
            layer = 2 * hidden * (q_width + kv_width) + 3 * hidden * intermediate + 2 * hidden
            layer += 2 * head_width if qk_norm else 0
            layer += q_width + 2 * kv_width if getattr(config, "attention_bias", kind == "qwen2") else 0
            parameters = vocab * hidden * (1 if tied else 2) + layers * layer + hidden
        return cls(
            parameters=parameters,
            hidden=hidden,
            intermediate=intermediate,
            layers=layers,
            kv_width=kv_width,
            vocab=vocab,
            q_width=q_width,
            heads=heads,
            kv_heads=kv_heads,
            qk_norm=qk_norm,
            tied=tied,
            silu=kind in _SILU_KINDS and getattr(config, "hidden_act", "silu") == "silu" and not mlp_bias,
        )

    @property
    def embedding(self) -> int:
        """Weights of the output layer, as a rule the largest parameter."""
        return self.vocab * self.hidden

    def layer_bytes(self, width: int) -> int:
        """What a layer keeps of a token for its backward pass, with weights of `width` bytes.

        A norm keeps its input in float32, what it scales, and a factor; a linear layer its input; attention its
        queries, keys, values, output and a sum a head; the gated MLP four times its width.
        """
        q_width = self.q_width or self.hidden
        norm = FLOAT32 + width
        kept = 2 * (self.hidden * (norm + width) + FLOAT32)
        if self.qk_norm:
            kept += (q_width + self.kv_width) * norm + FLOAT32 * (self.heads + self.kv_heads)
        kept += (2 * q_width + 2 * self.kv_width) * width + FLOAT32 * self.heads
        return kept + 4 * self.intermediate * width

    def made_again_bytes(self, width: int) -> int:
        """What of that is not kept but made again (see `nsr.models.fast.gated_mlp`): of a gated MLP with SiLU, half."""
        return 2 * self.intermediate * width if self.silu else 0

    def kept_attention_bytes(self, length: int, width: int) -> int:
        """What packed attention keeps of a token beside that: a probability a key and head, while keys are few."""
        few = length * self.heads <= FEW_KEYS * (self.q_width or self.hidden)
        return self.heads * length * width if few else 0


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a run knows of its model and engine before it starts."""

    shape: ModelShape
    weight_bytes: int
    """Bytes of a weight as the model computes: 2 for bfloat16, 4 for float32."""
    prompt_tokens: int
    """Length of the longest prompt."""
    sampling_batch: int
    """Sequences that the local engine samples at a time; 0 with vLLM."""
    on_cpu: bool
    """Whether the model is in the machine's memory, where the masters that a checkpoint gets are made too."""
    packs_weights: bool = False
    """Whether the local engine samples with a copy of the weights: on a CPU, unless --exact."""
    engine: Literal["local", "vllm"] = "local"
    """What samples."""
    engine_reason: str = ""
    """Why this engine was taken, for the head of the run."""
    vllm_bytes: int = 0
    """What vLLM takes for itself on the same device."""
    vllm_sleeps: bool = False
    """Whether vLLM gives its memory back while the policy learns."""

    @property
    def device(self) -> str:
        """The kind of device, as torch calls it."""
        return "cpu" if self.on_cpu else "cuda"


@dataclass(frozen=True, kw_only=True)
class Item:
    """One term of a sum."""

    name: str
    size: int
    sum: str
    """How the size comes about, in words."""
    phase: Phase = "always"


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a step does at a time, which memory depends on."""

    sequences: int
    """Rows of a microbatch."""
    max_tokens: int
    """Longest response."""
    gradient_checkpointing: bool = False
    exact: bool = False
    """Whether rows are computed one by one, with all their logits at once."""


def training_items(setup: Setup, work: Work, optimizer: Optimizer, share: str = "") -> tuple[Item, ...]:
    """Every term of a training run's memory. `share` says where vLLM's comes from."""
    return (
        *model_items(setup, share),
        *state_items(setup, optimizer),
        per_parameter("gradients", setup, setup.weight_bytes),
        *_learning_items(setup, work),
        *_stepping_items(setup, optimizer),
        *_saving_items(setup, optimizer),
        *sampling_items(setup, work.max_tokens),
    )


def evaluation_items(setup: Setup, max_tokens: int, share: str = "") -> tuple[Item, ...]:
    """Every term of an evaluation's memory."""
    return (*model_items(setup, share), *sampling_items(setup, max_tokens))


def peak(items: Iterable[Item]) -> int:
    """Most memory at one time: what is there always, and the largest of the moments."""
    items = tuple(items)
    moments: set[Phase] = {item.phase for item in items if item.phase != "always"}
    return phase_total(items, "always") + max((phase_total(items, phase) for phase in moments), default=0)


def phase_total(items: Iterable[Item], phase: Phase) -> int:
    """What one moment takes beside what is there always (or that)."""
    return sum(item.size for item in items if item.phase == phase)


def per_parameter(name: str, setup: Setup, width: int, note: str = "") -> Item:
    """So many bytes a parameter."""
    parameters = setup.shape.parameters
    return Item(name=name, size=parameters * width, sum=f"{parameters:,} parameters x {width} bytes{note}")


def model_items(setup: Setup, share: str) -> list[Item]:
    """The weights, and vLLM's part of the same GPU."""
    items = [per_parameter("weights", setup, setup.weight_bytes)]
    if setup.vllm_bytes:
        phase: Phase = "sampling" if setup.vllm_sleeps else "always"
        items.append(Item(name="vLLM", size=setup.vllm_bytes, sum=share, phase=phase))
    return items


def state_items(setup: Setup, optimizer: Optimizer) -> list[Item]:
    """What master weights have beyond the weights, where these are less than float32, and both moments."""
    if optimizer == "adamw8bit":
        return [per_parameter("optimizer state", setup, 2, ", two moments of 8 bits")]
    moments = per_parameter("optimizer state", setup, 2 * FLOAT32, ", two moments in float32")
    if setup.weight_bytes >= FLOAT32:
        return [moments]
    beyond = FLOAT32 - setup.weight_bytes
    return [per_parameter("master weights", setup, beyond, ", what weights lack of float32"), moments]


def sampling_batch(shape: ModelShape, columns: int, width: int, *, on_cpu: bool) -> int:
    """Sequences that the local engine samples at a time: on a CPU as many as are cheap.

    Args:
        shape: of the model.
        columns: tokens of the longest prompt and response.
        width: bytes of a number in the cache.
        on_cpu: where it runs.
    """
    if not on_cpu:
        return SAMPLING_BATCH
    cheap = CHEAP_CACHE // _row_bytes(shape, columns, width) // 8 * 8
    return min(max(cheap, SAMPLING_BATCH), LARGE_SAMPLING_BATCH)


def _row_bytes(shape: ModelShape, columns: int, width: int) -> int:
    """A sequence's keys and values."""
    return columns * shape.layers * 2 * shape.kv_width * width


def sampling_items(setup: Setup, max_tokens: int) -> list[Item]:
    """The local engine's cache, its copy of the weights, and the logits that it draws from.

    At most: with its lean decoder it has no attention's copy and draws from fewer logits at a time, and without it no
    packed weights. On a GPU what a step computes stays with CUDA graphs while the policy learns, too.
    """
    if not setup.sampling_batch:
        return []
    shape, values, width = setup.shape, 2 * setup.shape.kv_width, setup.weight_bytes
    rows, columns = setup.sampling_batch, setup.prompt_tokens + max_tokens + SPARE_COLUMNS
    packed = shape.parameters - (0 if shape.tied else shape.embedding) if setup.packs_weights else 0
    words = f"{packed:,} parameters x {width} bytes, in the order that the kernels read"
    copy = [Item(name="packed weights", size=packed * width, sum=words, phase="sampling")] if packed else []
    return [
        Item(
            name="key-value cache",
            size=rows * _row_bytes(shape, columns, width),
            sum=f"{rows} sequences x {columns} tokens x {shape.layers} layers x {values} values x {width} bytes",
            phase="sampling",
        ),
        Item(
            name="attention's copy",
            size=rows * columns * 2 * (shape.q_width or shape.hidden) * width,
            sum="keys and values of one layer, repeated for each head",
            phase="sampling",
        ),
        Item(
            name="logits drawn from",
            size=rows * shape.vocab * (width + _DRAWN_BYTES),
            sum=f"{rows} sequences x {shape.vocab} words x {width + _DRAWN_BYTES} bytes",
            phase="sampling" if setup.on_cpu else "always",
        ),
        *copy,
    ]


def _learning_items(setup: Setup, work: Work) -> list[Item]:
    shape, width = setup.shape, setup.weight_bytes
    tokens = work.sequences * (setup.prompt_tokens + work.max_tokens)
    place = f"{work.sequences} sequences x {setup.prompt_tokens + work.max_tokens} tokens"
    layer, weight_gradient = shape.layer_bytes(width), shape.embedding * width
    if not work.exact:
        layer += shape.kept_attention_bytes(setup.prompt_tokens + work.max_tokens, width)
        layer -= shape.made_again_bytes(width)
    again: list[Item] = []
    if work.gradient_checkpointing:
        size = tokens * shape.layers * shape.hidden * width
        words = f"{place} x {shape.layers} layers x {shape.hidden * width} bytes, the input of each"
        scores = 0 if work.exact else _scores_item(setup, work).size
        tied = weight_gradient if shape.tied else 0
        note = " + the output layer's gradient" if tied else ""
        again.append(
            Item(
                name="one layer's",
                size=size + tokens * layer + scores + tied,
                sum=f"these + {place} x {layer} bytes{' + attention' if scores else ''}{note}",
                phase="recomputing",
            )
        )
    else:
        size, words = tokens * shape.layers * layer, f"{place} x {shape.layers} layers x {layer} bytes"
    items = [Item(name="activations", size=size, sum=words, phase="learning")]
    items += _logits_items(setup, work) if work.exact else _head_items(setup, work)
    if shape.tied:
        words = f"2 x {shape.vocab} x {shape.hidden} x {width} bytes: as embedding and as output layer"
        items.append(Item(name="tied gradient", size=2 * weight_gradient, sum=words, phase="accumulating"))
    return [*items, *again]


def _head_items(setup: Setup, work: Work) -> list[Item]:
    """Packed sequences: the output layer's probabilities and their gradient, or later one layer's attention."""
    shape, width, length = setup.shape, setup.weight_bytes, setup.prompt_tokens + work.max_tokens
    # prompts take part of the room, so there are fewer responses than tokens
    elements = min((work.sequences * length - setup.prompt_tokens) * shape.vocab, KEPT_ELEMENTS)
    probabilities = Item(
        name="probabilities",
        size=2 * elements * width + min(elements, WIDE_ELEMENTS[setup.device]) * _WIDE_BYTES,
        sum=f"{elements:,} of words x 2 x {width} bytes, and some in float32",
        phase="learning",
    )
    words = f"{shape.vocab} x {shape.hidden} x {width} bytes"
    gradient = Item(name="output gradient", size=shape.embedding * width, sum=words, phase="learning")
    return [max(probabilities, _scores_item(setup, work), key=lambda item: item.size), gradient]


def _scores_item(setup: Setup, work: Work) -> Item:
    length, heads = setup.prompt_tokens + work.max_tokens, setup.shape.heads
    return Item(
        name="attention's scores",
        size=work.sequences * heads * work.max_tokens * length * _SCORE_BYTES,
        sum=f"{work.sequences} sequences x {heads} heads x {work.max_tokens} x {length} x {_SCORE_BYTES} bytes",
        phase="learning",
    )


def _logits_items(setup: Setup, work: Work) -> list[Item]:
    """Row by row: all logits of the responses, their gradient, and pieces of them in float32."""
    shape, width, positions = setup.shape, setup.weight_bytes, work.sequences * work.max_tokens
    piece = min(positions, max(1, PIECE_ELEMENTS // shape.vocab))
    in_float32, weight_gradient = piece * shape.vocab * _PIECE_BYTES, shape.embedding * width
    items = [
        Item(
            name="logits",
            size=positions * shape.vocab * 2 * width,
            sum=f"{work.sequences} sequences x {work.max_tokens} tokens x {shape.vocab} words x 2 x {width} bytes",
            phase="learning",
        )
    ]
    if in_float32 >= weight_gradient:
        words = f"{piece} tokens x {shape.vocab} words x {_PIECE_BYTES} bytes, in five copies"
        items.append(Item(name="float32 logits", size=in_float32, sum=words, phase="learning"))
    else:
        words = f"{shape.vocab} x {shape.hidden} x {width} bytes"
        items.append(Item(name="output gradient", size=weight_gradient, sum=words, phase="learning"))
    return items


def _stepping_items(setup: Setup, optimizer: Optimizer) -> list[Item]:
    """A parameter's master or its change, and its gradient as the master's type; the largest parameter counts."""
    looked_at_bytes = _LOOKED_AT_BYTES
    if optimizer == "adamw8bit":
        copies = _STEP8_BYTES if setup.weight_bytes < FLOAT32 else _STEP8_UNCOMPILED_BYTES
        width, words = setup.weight_bytes + copies, "its change, and weight, gradient and moments in float32"
    elif setup.weight_bytes < FLOAT32:
        width, words = 2 * FLOAT32, "its master and its gradient in float32"
        looked_at_bytes += FLOAT32
    else:
        width, words = FLOAT32, "its change"
    shape = setup.shape
    size = shape.embedding * width
    words = f"{shape.embedding:,} weights of the largest parameter x {width} bytes: {words}"
    count = min(shape.embedding, PIECE[setup.device])
    if count * looked_at_bytes > size:
        size, words = count * looked_at_bytes, f"{count:,} weights x {looked_at_bytes} bytes: the step beforehand"
    return [Item(name="step of a parameter", size=size, sum=words, phase="stepping")]


def _saving_items(setup: Setup, optimizer: Optimizer) -> list[Item]:
    """The masters that a checkpoint gets, made from weights and what is held beside them; a GPU does not hold them."""
    if optimizer == "adamw8bit" or setup.weight_bytes >= FLOAT32 or not setup.on_cpu:
        return []
    note = f": {FLOAT32} of a master less {setup.weight_bytes} of a gradient, which is gone by then"
    item = per_parameter("masters to save", setup, FLOAT32 - setup.weight_bytes, note)
    return [dataclasses.replace(item, phase="saving")]


def size(count: int) -> str:
    """A number of bytes in words: 3.4 MB, 27.5 GB."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} bytes"


def microbatch_rows(rollouts: int, updates: int, grad_acc_steps: int) -> int:
    """Most rows of a microbatch: as `update` cuts them, and no more than a mini-batch has."""
    return min(max(1, rollouts // grad_acc_steps), math.ceil(rollouts / updates))
