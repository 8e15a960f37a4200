"""What nsr is compared with: `transformers` generate, vLLM by itself, and TRL's GRPOTrainer."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import tempfile
from importlib import import_module
from typing import Any

import torch

from benchmarks.work import (
    LEARNING_RATE,
    MAX_GRAD_NORM,
    RANDOM,
    TEMPERATURE,
    Subject,
    Work,
    load,
    messages,
    puzzles_of,
    random_folder,
    random_policy,
)
from benchmarks.worker import Turns
from nsr.models.registry import encode_prompt, resolve, special_token_ids

VLLM_SHARE = 0.3
"""Of a GPU's memory: others hold theirs meanwhile."""


def sample_generate(work: Work, turns: Turns) -> None:
    """`transformers` generate with all rows at once."""
    turns.before_model()
    subject = load(work)
    turns.ready()
    while turns.begin():
        turns.end(tokens=generate(work, subject))


def generate(work: Work, subject: Subject) -> int:
    """Sample the step's responses; returns how many tokens."""
    _, padding = special_token_ids(subject.policy.tokenizer)
    prompts = subject.prompt_ids()
    longest = max(map(len, prompts))
    ids = torch.tensor([[padding] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    model: Any = subject.policy.model
    output = model.generate(
        input_ids=ids.repeat_interleave(work.group_size, dim=0).to(model.device),
        attention_mask=mask.repeat_interleave(work.group_size, dim=0).to(model.device),
        do_sample=True,
        temperature=TEMPERATURE,
        top_k=0,
        top_p=1.0,
        max_new_tokens=work.tokens,
        min_new_tokens=work.tokens,
        pad_token_id=padding,
    )
    return output[:, longest:].numel()


def sample_vllm(work: Work, turns: Turns) -> None:
    """vLLM by itself, in this process, with the same model, prompts and sampling."""
    on_cuda = work.device.startswith("cuda")
    os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="ERROR", VLLM_NO_USAGE_STATS="1")
    if not on_cuda:
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # by default it leaves one of two cores alone
    vllm: Any = import_module("vllm")
    turns.before_model()
    subject = load(work)
    prompts: list[dict[str, list[int]]] = [{"prompt_token_ids": list(ids)} for ids in subject.prompt_ids()]
    longest, source = max(len(prompt["prompt_token_ids"]) for prompt in prompts), subject.source
    del subject
    options: dict[str, Any] = {"gpu_memory_utilization": VLLM_SHARE} if on_cuda else {"kv_cache_memory_bytes": 1 << 30}
    if work.prompt_tokens:
        options["load_format"] = "dummy"  # random weights
    llm: Any = vllm.LLM(
        model=source,
        dtype=work.dtype,
        max_model_len=longest + work.tokens,
        max_num_seqs=256,
        seed=0,
        enforce_eager=shutil.which("c++") is None,  # compiled it is the quicker
        **options,
    )
    params = vllm.SamplingParams(n=work.group_size, temperature=TEMPERATURE, max_tokens=work.tokens, ignore_eos=True)
    turns.ready()
    while turns.begin():
        outputs = llm.generate(prompts, params, use_tqdm=False)
        turns.end(tokens=sum(len(sample.token_ids) for output in outputs for sample in output.outputs))
        llm.reset_prefix_cache()  # in training the weights change with every step


def step_trl(work: Work, turns: Turns) -> None:
    """TRL's GRPOTrainer, weights in the type of the work: a whole step."""
    _step_trl(work, turns, work.dtype, bf16=False, gradient_checkpointing=False)


def step_trl_autocast(work: Work, turns: Turns) -> None:
    """TRL's GRPOTrainer, weights in float32 and products in bfloat16 by autocast: a whole step."""
    _step_trl(work, turns, "float32", bf16=True, gradient_checkpointing=False)


def step_trl_defaults(work: Work, turns: Turns) -> None:
    """TRL's GRPOTrainer as it comes: float32 weights, autocast, gradient checkpointing."""
    _step_trl(work, turns, "float32")


def _step_trl(work: Work, turns: Turns, dtype: str, **settings: Any) -> None:
    trl: Any = import_module("trl")
    transformers: Any = import_module("transformers")
    datasets: Any = import_module("datasets")
    turns.before_model()
    prompts = [messages(work, puzzle) for puzzle in puzzles_of(work)]
    model: Any = resolve(work.model)
    given: dict[str, Any] = {"model_init_kwargs": {"dtype": dtype}}
    tokenizer: Any = None
    if work.model in RANDOM:
        policy = random_policy(random_folder(work.model), work.device, getattr(torch, dtype))
        model, tokenizer, given = policy.model, policy.tokenizer, {}
        prompts = [lengthened(prompt, tokenizer, work.prompt_tokens) for prompt in prompts]
    with tempfile.TemporaryDirectory() as folder:
        config = trl.GRPOConfig(
            output_dir=folder,
            use_cpu=work.device == "cpu",
            per_device_train_batch_size=work.trl_rows,
            gradient_accumulation_steps=work.samples // work.trl_rows,
            num_generations=work.group_size,
            max_completion_length=work.tokens,
            generation_kwargs={"min_new_tokens": work.tokens},
            temperature=TEMPERATURE,
            beta=0.0,
            num_iterations=1,
            max_grad_norm=MAX_GRAD_NORM,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            weight_decay=0.01,
            adam_beta2=0.95,
            shuffle_dataset=False,
            max_steps=1_000_000,
            logging_steps=1_000_000,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **given,
            **settings,
        )
        trainer = trl.GRPOTrainer(
            model=model,
            processing_class=tokenizer,
            reward_funcs=alternating_reward,
            args=config,
            train_dataset=datasets.Dataset.from_list([{"prompt": prompt} for prompt in prompts * 1000]),
            callbacks=[_taking_turns(transformers, turns, work)],
        )
        turns.ready()
        with contextlib.suppress(EndOfTurns):
            trainer.train()


def lengthened(prompt: list[dict[str, str]], tokenizer: Any, tokens: int) -> list[dict[str, str]]:
    """The messages, the last one said again and again until there are at least so many tokens."""
    *before, last = prompt
    for times in itertools.count(1):
        made = [*before, {**last, "content": " ".join([last["content"]] * times)}]
        length = len(encode_prompt(tokenizer, made))
        if length >= tokens:
            return made
        assert length >= times, "its words are no tokens"
    raise AssertionError


class EndOfTurns(Exception):
    """The driver wants no more."""


def alternating_reward(completions: list[Any], **_: Any) -> list[float]:
    """+1 and -1 in turn: every group is mixed, so that every sample has an advantage."""
    return [1.0 if index % 2 else -1.0 for index in range(len(completions))]


def _taking_turns(transformers: Any, turns: Turns, work: Work) -> Any:
    """A callback that lets TRL take each of its steps when it is its turn."""

    class TakingTurns(transformers.TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if not turns.begin():
                raise EndOfTurns

        def on_step_end(self, *_: Any, **__: Any) -> None:
            turns.end(tokens=work.response_tokens)

    return TakingTurns()
