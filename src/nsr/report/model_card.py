"""The card of a trained model: Markdown with the head that the hub reads, made from the run's own files.

Every number is worked out from the counts in the evaluations. What is text (names, settings) may come from anybody: it
stands in code spans or in JSON strings, which are YAML too, so it can become neither markup nor a key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import nsr
from nsr.config import HUB_DATA
from nsr.evaluation.compare import Interval, bootstrap_interval
from nsr.evaluation.evaluate import Evaluation, difference
from nsr.evaluation.pass_at_k import pass_at_k
from nsr.report.run import RunRecord
from nsr.runs.progress import printable

_BASES: Mapping[str, tuple[str | None, str]] = {
    "tiny": (None, "mit"),
    "smollm2-135m": ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"),
    "Qwen/Qwen3-1.7B": ("Qwen/Qwen3-1.7B", "apache-2.0"),
}
"""Of the models that nsr names: the hub's name and the licence."""
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_SETTINGS = (
    "objective",
    "lambda_psr",
    "advantage",
    "loss_type",
    "normalize_over",
    "clip_range",
    "lr",
    "optimizer",
    "rollout_batch_size",
    "group_size",
    "updates_per_rollout",
    "temperature",
    "max_tokens",
    "thinking",
    "engine",
    "seed",
)
_LONGEST = 200


def model_card(run: RunRecord, *, step: int, name: str, final: bool) -> str:
    """The text of README.md.

    Args:
        run: what its folder tells.
        step: training steps behind the weights.
        name: of the model's folder.
        final: the weights are those at the run's end, and no checkpoint on the way.
    """
    before, after = run.evaluation(0), run.evaluation(step)
    if after is None or before is None or before.puzzles != after.puzzles or step == 0:
        comparison = None
    else:
        comparison = (before, after)
    sections = [
        _head(run, name, after),
        f"# {_code(name)}",
        _what(run, step, final=final),
        "## Results\n\n" + _results(comparison, after),
        "## Training\n\n" + _training(run),
        "## Use\n\n" + _use(run),
        "## Limits\n\n" + _limits(run, after),
        "## Licence\n\n" + _licence(run),
    ]
    return "\n\n".join(sections) + "\n"


def _head(run: RunRecord, name: str, after: Evaluation | None) -> str:
    base, licence = _base(run)
    data = str(run.config["data"])
    head: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "language": "en",
        "tags": ["nsr", "countdown", "reinforcement-learning", "rlvr", _plain(run.method).lower()],
    }
    if licence is not None:
        head["license"] = licence
    if base is not None:
        head |= {"base_model": base, "base_model_relation": "finetune"}
    if data == HUB_DATA:
        head["datasets"] = [data]
    if after is not None:
        metric = {"type": "accuracy", "name": "pass@1", "value": round(100 * _passed(after, 1).estimate, 1)}
        result = {
            "task": {"type": "text-generation"},
            "dataset": {"type": data if data == HUB_DATA else "countdown", "name": "Countdown"},
            "metrics": [metric],
        }
        head["model-index"] = [{"name": _plain(name), "results": [result]}]
    return "\n".join(
        ["---", *(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()), "---"]
    )


def _base(run: RunRecord) -> tuple[str | None, str | None]:
    """The base model's name on the hub and its licence, where they are known."""
    model_id = str(run.config["model_id"])
    if model_id in _BASES:
        return _BASES[model_id]
    return (model_id if _HUB_ID.fullmatch(model_id) else None), None


def _what(run: RunRecord, step: int, *, final: bool) -> str:
    where = f"at the end of the training, {step} steps" if final else f"a checkpoint after {step} steps"
    config = run.config
    return (
        f"{_code(config['model_id'])}, trained with `nsr` on the Countdown numbers game: given three or four numbers "
        "and a target, write an expression that uses each number once and equals the target. The reward is +1 for a "
        f"right answer and -1 for any other. Objective: {_code(run.method)}. These are the weights {where} "
        f"of the run {_code(config.get('exp_name') or run.path.name)}."
    )


def _results(comparison: tuple[Evaluation, Evaluation] | None, after: Evaluation | None) -> str:
    if after is None:
        return "The run holds no evaluation of these weights that can be read."
    measured = (
        f"{len(after.puzzles)} puzzles that the training did not use, {after.num_samples} samples each, temperature "
        f"{after.temperature:g}, at most {_code(after.max_tokens)} tokens"
    )
    ks = [2**power for power in range(after.num_samples.bit_length())]
    if comparison is None:
        rows = [(_pass_name(k), str(_passed(after, k))) for k in ks]
        return f"Measured on {measured}.\n\n{_table(('', 'this model'), rows)}\n\n{_BRACKETS}"
    before, _ = comparison
    common = [k for k in ks if k <= before.num_samples]
    rows = [
        (_pass_name(k), str(_passed(before, k)), str(_passed(after, k)), difference(before, after, k).points(unit=""))
        for k in common
    ]
    verdicts = [
        (_code(verdict), f"{100 * before.verdicts.get(verdict, 0.0):.1f}%", f"{100 * share:.1f}%", "")
        for verdict, share in after.verdicts.items()
    ]
    table = _table(("", "before", "this model", "change in points"), [*rows, *verdicts])
    said = f"{_BRACKETS} {_claim(comparison)}"
    return f"Measured on {measured}, before the training and with these weights.\n\n{table}\n\n{said}"


_BRACKETS = "Brackets: 95% bootstrap intervals over puzzles; changes are paired by puzzle."


def _claim(comparison: tuple[Evaluation, Evaluation]) -> str:
    change = difference(*comparison)
    if change.holds_zero:
        return "The interval of the change in accuracy holds 0: no change can be claimed."
    return f"Accuracy changed by {change.points()}."


def _pass_name(k: int) -> str:
    return "accuracy (pass@1)" if k == 1 else f"pass@{k}"


def _passed(evaluation: Evaluation, k: int) -> Interval:
    return bootstrap_interval(pass_at_k(evaluation.num_samples, evaluation.num_correct, k))


def _training(run: RunRecord) -> str:
    config, resolved = run.config, run.config.get("resolved")
    settings = {name: config.get(name) for name in _SETTINGS}
    if isinstance(resolved, Mapping):
        settings |= {name: value for name, value in resolved.items() if name in settings}
    rows = [(_code(name), _code(value)) for name, value in settings.items() if value is not None]
    data = f"Puzzles: {_code(config['data'])}"
    if isinstance(resolved, Mapping) and resolved.get("data"):
        data += f" ({_code(resolved['data'])})"
    return f"{data}. {_software(run)}\n\n{_table(('setting', 'value'), rows)}"


def _software(run: RunRecord) -> str:
    environment = run.environment or {}
    packages = environment.get("packages")
    names = packages if isinstance(packages, Mapping) else {}
    versions = [f"{name} {_code(names[name])}" for name in ("nsr", "torch", "transformers", "vllm") if name in names]
    commit = environment.get("commit")
    if isinstance(commit, Mapping):
        changed = " with changes" if commit.get("dirty") else ""
        versions.append(f"commit {_code(commit.get('id'))}{changed}")
    trained = f"Trained with {', '.join(versions)}; " if versions else ""
    return f"{trained}this card was made by nsr `{nsr.__version__}`."


def _use(run: RunRecord) -> str:
    thinking = run.config.get("thinking") == "off"
    option = ", enable_thinking=False" if thinking else ""
    flag = " --thinking off" if thinking else ""
    tokens = run.config["max_tokens"]
    temperature = run.config.get("temperature")
    heat = f"{temperature:g}" if isinstance(temperature, (int, float)) else "0.7"
    return f"""The prompt matters: it is the one of the training, and it names the longest response ({tokens} tokens).

```python
from nsr import Puzzle, build_messages, grade
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "PATH/TO/THIS/FOLDER"
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
puzzle = Puzzle(numbers=(44, 19, 35), target=98)
messages = build_messages(puzzle, {tokens})
if tokenizer.chat_template is None:
    prompt = tokenizer(messages[0]["content"] + "\\n\\n", return_tensors="pt")
else:
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True{option}
    )
output = model.generate(
    **prompt, max_new_tokens={tokens}, do_sample=True, temperature={heat}, stop_strings="</answer>", tokenizer=tokenizer
)
text = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
print(text, grade(puzzle, text))
```

With nsr itself:

```bash
nsr play 44 19 35 --target 98 --max_tokens {tokens} --temperature {heat}{flag} --model_id PATH/TO/THIS/FOLDER
```"""


def _limits(run: RunRecord, after: Evaluation | None) -> str:
    lines = [
        "- Trained for one game and one prompt; what the training did to anything else was not measured.",
        "- Only the answer was graded: the reasoning may be wrong or empty where the answer is right.",
        f"- One run with one seed ({_code(run.config['seed'])}): the intervals are over puzzles, not over trainings.",
    ]
    if after is not None:
        cut, wrong = 100 * after.truncated, 100 * (1 - _passed(after, 1).estimate)
        longest = _code(after.max_tokens)
        lines.append(f"- {cut:.1f}% of the measured samples were cut off at {longest} tokens; {wrong:.1f}% were wrong.")
    return "\n".join(lines)


def _licence(run: RunRecord) -> str:
    _, licence = _base(run)
    if licence is None:
        return (
            f"The licence of the base model, {_code(run.config['model_id'])}, holds for these weights too. It is not "
            "known to nsr: look it up and add it to the head of this file before you pass the model on."
        )
    return f"As the base model, {_code(run.config['model_id'])}: {licence}."


def _table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    ruler = ["---"] * len(names)
    return "\n".join(f"| {' | '.join(row)} |" for row in (names, ruler, *rows))


def _code(value: object) -> str:
    """Text from anywhere as a code span: without what ends a span or a cell of a table."""
    return f"`{_plain(value).replace('`', chr(39)).replace('|', chr(166)) or ' '}`"


def _plain(value: object) -> str:
    """Text from anywhere on one line, of visible characters, not too long."""
    return " ".join(printable(str(value)).plain.split())[:_LONGEST]
