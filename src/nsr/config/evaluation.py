"""The settings of `nsr eval`: models and temperatures, each pair of them a run of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from nsr.config.checks import check_at_least, check_run_name, check_temperature, check_text, sentence
from nsr.config.run import HUB_DATA, Dtype, EngineName, RunConfig, Thinking
from nsr.errors import UserError


@dataclass(frozen=True, kw_only=True)
class EvalRun(RunConfig):
    """Measure one model at one temperature."""

    command: ClassVar[str] = "eval"


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Measure models at temperatures, side by side; or measure again from kept samples."""

    models: tuple[str, ...] = ()
    """Models: a hub id, `tiny`, or the folder of a model, of a run (its newest weights) or of a checkpoint."""

    temperatures: tuple[float, ...] = (0.7,)
    """Sampling temperatures, such as 0.7,1.0,1.3: every model is measured at each."""

    num_samples: int = 64
    """Samples a puzzle: the n of pass@k."""

    data: str = HUB_DATA
    """Puzzles: a hub data set, a .parquet or .jsonl file, two as TRAIN,EVAL, `synthetic`, or e.g. `synthetic:3`."""

    eval_puzzles: int = 256
    """Number of puzzles."""

    max_tokens: int = 256
    """Longest response in tokens."""

    seed: int = 42
    """Seed of the choice of puzzles and of the samples."""

    device: str = "cuda"
    """`cuda`, `cuda:N` or `cpu`."""

    engine: EngineName = "auto"
    """What samples: `local` (the policy itself), `vllm`, or `auto` (vLLM on a GPU that has it, else local)."""

    dtype: Dtype = "auto"
    """Numbers the model computes in: `float32`, `bfloat16`, or `auto` (bfloat16 on a GPU, float32 on a CPU)."""

    exact: bool = False
    """Sample the plain way, as `transformers` computes it, without the fast paths. Slower."""

    thinking: Thinking = "default"
    """Thinking mode of the model's chat template: as it comes, or `off`."""

    gpu_mem_util: float = 0.4
    """vLLM's share of the GPU memory; the local engine needs none set aside."""

    output_dir: str = "./output"
    """Where the folder of this evaluation lies."""

    exp_name: str = "eval"
    """Name of that folder; in it, each model at each temperature has a run's folder."""

    resume: bool = False
    """Go on with what was interrupted: pairs of model and temperature that are complete are not measured again."""

    from_samples: tuple[str, ...] = ()
    """Measure again from kept samples, without a model: folders of runs, or their .samples.jsonl.gz files."""

    def __post_init__(self) -> None:
        if bool(self.models) == bool(self.from_samples):
            given = "both are given" if self.models else "neither is given"
            raise UserError(f"a model or --from_samples is needed, and {given}: name one, such as `tiny`.")
        for model in self.models:
            check_text("model_id", model, "the name of a model, such as `tiny`")
        for model in {model for model in self.models if self.models.count(model) > 1}:
            raise UserError(f"the model {model!r} is given twice: name each model once.")
        for temperature in self.temperatures:
            check_temperature("temperatures", temperature)
        if not self.temperatures or len(set(self.temperatures)) < len(self.temperatures):
            allowed = "one or more temperatures, each once"
            raise UserError(sentence("temperatures", self.temperatures, allowed, "use such as 0.7,1.0,1.3"))
        check_at_least("num_samples", self.num_samples, 1)
        check_run_name(self.exp_name)
        self.run("tiny", "model", self.temperatures[0])  # checks the settings that all runs share

    @property
    def path(self) -> Path:
        """The folder that holds the folders of the runs."""
        return Path(self.output_dir) / self.exp_name

    def run(self, model_id: str, name: str, temperature: float) -> EvalRun:
        """The settings of the run for one model, loaded from `model_id` and called `name`, at one temperature."""
        return EvalRun(
            model_id=model_id,
            temperature=temperature,
            eval_samples=self.num_samples,
            output_dir=str(self.path),
            exp_name=f"{name}_T{temperature:g}",
            data=self.data,
            eval_puzzles=self.eval_puzzles,
            max_tokens=self.max_tokens,
            seed=self.seed,
            device=self.device,
            engine=self.engine,
            dtype=self.dtype,
            exact=self.exact,
            thinking=self.thinking,
            gpu_mem_util=self.gpu_mem_util,
            resume=self.resume,
        )
