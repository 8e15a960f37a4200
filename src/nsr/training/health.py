"""What a run does about its own faults: what it tells, what it writes, and when it ends.

Its memory is metrics.jsonl: a run that is taken up decides as if it had not been interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from nsr.config import TrainConfig, to_record
from nsr.rollout.rollout import RolloutGroup
from nsr.runs.checkpoints import newest_checkpoint
from nsr.runs.folder import RunFolder, read_metrics
from nsr.training.collapse import CollapsedRun, CollapseWatch, is_number
from nsr.training.spikes import RefusedUpdate, write_faulty_batch


class Faults:
    """The faults of one run."""

    def __init__(self, config: TrainConfig, folder: RunFolder, say: Callable[[str], None]) -> None:
        """Begin with the steps that are in the folder; `say` shows a line."""
        self._config = config
        self._folder = folder
        self._say = say
        self._told_of_no_signal = False
        self._watch = CollapseWatch(config.puzzles_per_step)
        earlier = read_metrics(folder.path)
        self._watch.replay(earlier)
        self.grad_norms: list[float] = [record["grad_norm"] for record in earlier if is_number(record.get("grad_norm"))]
        """Of the steps that are made and had a signal."""

    def note(self, metrics: Mapping[str, float]) -> None:
        """Take up a step's metrics, once they are written, and tell what is wrong, each kind once."""
        step = int(metrics["step"])
        if "grad_norm" in metrics:
            self.grad_norms.append(metrics["grad_norm"])
        if metrics["updates_without_signal"] and not self._told_of_no_signal:
            self._told_of_no_signal = True
            self._say(
                f"step {step}: no sample has a weight under {self._config.objective}, so there is nothing to learn "
                "and no update; the run goes on, and counts them"
            )
        for alarm in self._watch.look(metrics):
            self._folder.append_event(alarm.to_event())
            self._say(f"! collapse at step {step}: {alarm.reason}. A lower --lr may help.")

    def stop_if_collapsed(self, step: int, save: Callable[[int, int], Path]) -> None:
        """End the run, with a checkpoint, where it has collapsed and the settings say so.

        Args:
            step: steps that are made.
            save: saves the checkpoint of a step, and keeps so many.

        Raises:
            CollapsedRun: it has ended.
        """
        if not (self._config.stop_on_collapse and self._watch.alarms):
            return
        reason = self._watch.alarms[0].reason
        newest = newest_checkpoint(self._folder.checkpoints)
        if newest is None or newest[0] != step:
            save(step, self._config.keep + 1)  # the one before stays too: it may be the better one
            self._folder.append_event({"step": step, "event": "stopped", "reason": reason})
        raise CollapsedRun(
            f"the run has collapsed, and --stop_on_collapse has ended it after step {step}: {reason}. Its state is "
            f"saved in {self._folder.checkpoints}. Try a lower --lr under another --exp_name; or go on as it is, with "
            "--resume and without --stop_on_collapse."
        )

    def explain(self, refused: RefusedUpdate, step: int, parts: Sequence[Sequence[RolloutGroup]]) -> RefusedUpdate:
        """The refusal of a step with all that a user needs, its batch written to the run's folder.

        `parts` are the groups of each mini-batch of the step.
        """
        batch = refused.batch
        assert batch is not None, "update adds it"
        path = self._folder.faults / f"step_{step:06d}.safetensors"
        try:
            write_faulty_batch(
                path,
                batch,
                puzzles=[group.puzzle.key for group in parts[batch.index]],
                about={"step": step, "reason": refused.reason, "settings": to_record(self._config)},
            )
            written = f"Its batch is in {path}."
        except OSError as error:
            written = f"Its batch could not be written to {path} ({error})."
        newest = newest_checkpoint(self._folder.checkpoints)
        kept = f"the checkpoint of step {newest[0]} is as it was" if newest else "there is no checkpoint yet"
        return type(refused)(
            f"step {step} was not taken. {refused.reason} {written} {kept.capitalize()}. "
            + _advice(self._config, newest[1] if newest else None)
        )


def _advice(config: TrainConfig, checkpoint: Path | None) -> str:
    begin = f"; --model_id {checkpoint} begins with the weights of that checkpoint" if checkpoint else ""
    return (
        f"Try a lower --lr (it is {config.lr:g}); a --temperature nearer to 1 (it is {config.temperature:g}); a lower "
        f"--clip_range (it is {config.clip_range:g}) where there are several updates a rollout; float32 weights where "
        f"they are bfloat16 or float16. With other settings it is another run, under an --exp_name of its own{begin}."
    )
