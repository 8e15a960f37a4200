"""Where the time of a step goes: functions of nsr are timed from outside, each without what it calls of the others."""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable
from importlib import import_module
from types import ModuleType
from typing import Any

REST = "the rest"

PLACES: dict[str, tuple[str, ...]] = {
    "sampling: prompts": ("nsr.rollout.native.steps:ModelSteps._prefill", "nsr.rollout.native.blocks:Blocks.enter"),
    # A block of tokens is drawn by the device without a stop: drawing is in it.
    "sampling: forward": ("nsr.rollout.native.steps:ModelSteps.decode", "nsr.rollout.native.blocks:Blocks.run"),
    "sampling: drawing": ("nsr.rollout.native.generation:TokenByToken._draw",),
    "sampling: weights packed, cache made and moved": (
        "nsr.models.fast.decode_model:LeanDecoder.__init__",
        "nsr.rollout.native.cache:SlotCache.__init__",
        "nsr.rollout.native.cache:SlotCache.move",
        "nsr.rollout.native.blocks:ColumnAttention.__init__",
        "nsr.rollout.native.blocks:ColumnAttention.move",
    ),
    "sampling: bookkeeping": ("nsr.rollout.native.engine:LocalEngine.generate", "nsr.rollout.rollout:rollout"),
    "grading": ("nsr.tasks.countdown.grader:grade",),
    "weights of samples, batch": (
        "nsr.algorithms.objectives:objective_weights",
        "nsr.training.batch:build_batch",
        "nsr.training.batch:microbatches",
        "nsr.training.batch:packs",
    ),
    "learning: forward": ("nsr.models.fast.packing:packed_hidden",),
    "learning: output layer, loss": (
        "nsr.training.log_probs:policy_log_probs",
        "nsr.models.fast.output_layer:head_log_probs",
        "nsr.training.step:reduce_tokens",
    ),
    "learning: backward": ("torch:Tensor.backward",),
    "learning: clipping, guard": (
        "nsr.training.optimizer:PolicyOptimizer.clip_grad_norm",
        "nsr.training.optimizer:PolicyOptimizer.proposed_norms",
        "nsr.training.spikes:check_gradient",
        "nsr.training.spikes:check_step",
    ),
    "learning: optimizer": (
        "nsr.training.optimizer:PolicyOptimizer.step",
        "nsr.training.optimizer:PolicyOptimizer.zero_grad",
    ),
    "learning: measures": ("nsr.training.step:update",),
}
"""Functions, as module:name, by what they do. What one calls of another is the other's."""


class Clock:
    """Adds up the time under each name, as it is entered and left; what is entered meanwhile counts for itself.

    Args:
        now: seconds.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._now = now
        self._names = [REST]
        self._since = now()

    @contextlib.contextmanager
    def inside(self, name: str) -> Generator[None]:
        """Time from here on is `name`'s."""
        self._book()
        self._names.append(name)
        try:
            yield
        finally:
            self._book()
            self._names.pop()

    def read(self) -> dict[str, float]:
        """What was added up since the last time."""
        self._book()
        found = dict(self.seconds)
        self.seconds.clear()
        return found

    def _book(self) -> None:
        now = self._now()
        self.seconds[self._names[-1]] += now - self._since
        self._since = now


def find(place: str) -> tuple[Any, str] | None:
    """Where a function lies: its module or class, and its name there; None if there is none."""
    module, _, path = place.partition(":")
    *outer, name = path.split(".")
    try:
        owner: Any = functools.reduce(getattr, outer, import_module(module))
    except (ImportError, AttributeError):
        return None
    return (owner, name) if hasattr(owner, name) else None


@contextlib.contextmanager
def timed(clock: Clock) -> Generator[None]:
    """Inside, the functions of `PLACES` are timed, wherever they were imported to."""
    with contextlib.ExitStack() as stack:
        for name, places in PLACES.items():
            for found in map(find, places):
                if found is not None:
                    stack.enter_context(_replaced(*found, clock, name))
        yield


@contextlib.contextmanager
def _replaced(owner: Any, attribute: str, clock: Clock, name: str) -> Generator[None]:
    original: Callable[..., Any] = getattr(owner, attribute)

    @functools.wraps(original)
    def wrapper(*positional: Any, **named: Any) -> Any:
        with clock.inside(name):
            return original(*positional, **named)

    owners = [owner] if isinstance(owner, type) else list(_holding(original, attribute, owner))
    for each in owners:
        setattr(each, attribute, wrapper)
    try:
        yield
    finally:
        for each in owners:
            setattr(each, attribute, original)


def _holding(function: object, attribute: str, home: ModuleType) -> Iterable[ModuleType]:
    """Modules that have the function under its own name: they have imported it."""
    packages = ("nsr.", "benchmarks.")
    modules = [module for name, module in list(sys.modules.items()) if name.startswith(packages)]
    return {module for module in [home, *modules] if vars(module).get(attribute) is function}
