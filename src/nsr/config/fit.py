"""The settings of `nsr fit`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from nsr.config.checks import check_at_least, check_choice, check_divides, check_range, check_text, sentence
from nsr.config.run import MIN_TOKENS, EngineName, OptimizerName
from nsr.errors import UserError


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Work out what a training takes in memory, whether it fits, and which flags make it fit. Loads no model."""

    model_id: str = "Qwen/Qwen3-1.7B"
    """Model: a local folder, `tiny`, or a hub id; its config.json is read, or a built-in table of known sizes."""

    gpu_gb: float | None = None
    """Memory of the device in GB (10^9 bytes), such as 24; by default this machine's own."""

    device: Literal["cuda", "cpu"] = "cuda"
    """`cuda` computes in bfloat16, `cpu` in float32."""

    engine: EngineName = "auto"
    """What samples: `vllm`, `local` (the policy itself), or `auto` (vLLM on CUDA, else local)."""

    max_tokens: int = 256
    """Longest response in tokens."""

    prompt_tokens: int = 160
    """Longest prompt in tokens: 160 is ample for this task and the usual tokenizers."""

    rollout_batch_size: int = 128
    """Samples a step."""

    grad_acc_steps: int = 16
    """Microbatches a step; divides --rollout_batch_size."""

    gpu_mem_util: float = 0.4
    """vLLM's share of the GPU memory."""

    optimizer: OptimizerName = "auto"
    """`adamw`, `adamw8bit`, or `auto` (the first if it fits)."""

    gradient_checkpointing: bool = False
    """Keep only each layer's input and compute the rest again for the gradient."""

    hidden: int | None = None
    """Hidden size. With it the shape is taken from these flags, and --layers, --heads and --vocab are needed too."""

    layers: int | None = None
    """Number of layers."""

    heads: int | None = None
    """Heads of the queries."""

    kv_heads: int | None = None
    """Heads of keys and of values; by default as many as of queries."""

    head_dim: int | None = None
    """Width of a head; by default --hidden / --heads."""

    intermediate: int | None = None
    """Width of the MLP; by default 4 x --hidden."""

    vocab: int | None = None
    """Rows of the embedding."""

    tied: bool = False
    """Whether the output layer's weights are the embedding's."""

    def __post_init__(self) -> None:
        check_text("model_id", self.model_id, "the name of a model, such as `tiny`")
        if self.gpu_gb is not None and not (math.isfinite(self.gpu_gb) and 0 < self.gpu_gb <= 10_000):
            raise UserError(sentence("gpu_gb", self.gpu_gb, "above 0 and at most 10000", "give the card's, such as 24"))
        check_choice("device", self.device, ("cuda", "cpu"))
        check_choice("engine", self.engine, get_args(EngineName))
        if self.engine == "vllm" and self.device == "cpu":
            raise UserError(sentence("engine", self.engine, "`local` with --device cpu", "give `--engine local`"))
        check_at_least("max_tokens", self.max_tokens, MIN_TOKENS)
        for flag in ("prompt_tokens", "rollout_batch_size", "grad_acc_steps"):
            check_at_least(flag, getattr(self, flag), 1)
        check_divides("grad_acc_steps", self.grad_acc_steps, "--rollout_batch_size", self.rollout_batch_size)
        check_range("gpu_mem_util", self.gpu_mem_util, above=0.0, at_most=1.0)
        check_choice("optimizer", self.optimizer, get_args(OptimizerName))
        shape = ("hidden", "layers", "heads", "kv_heads", "head_dim", "intermediate", "vocab")
        given = [flag for flag in shape if getattr(self, flag) is not None]
        for flag in given:
            check_at_least(flag, getattr(self, flag), 1)
        missing = [f"--{flag}" for flag in ("hidden", "layers", "heads", "vocab") if flag not in given]
        if (given or self.tied) and missing:
            raise UserError(
                f"a shape needs {', '.join(missing)} too: give all of --hidden, --layers, --heads, --vocab."
            )

    @property
    def samples_with_vllm(self) -> bool:
        """Whether vLLM takes its share of the device."""
        return self.device == "cuda" and self.engine != "local"
