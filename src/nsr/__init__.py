"""Train language models on the Countdown numbers game by learning from mistakes, and measure what it does to them.

The names below are the parts that others build on. Each is imported when it is first asked for, so `import nsr` is
quick; none of them needs torch. Tensor functions live in `nsr.learning.loss`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nsr.evaluation.passk import pass_at_k
    from nsr.learning.objective import objective_weights
    from nsr.task.grader import Verdict, grade
    from nsr.task.prompt import build_messages
    from nsr.task.puzzle import Puzzle, generate
    from nsr.task.solver import solve

__version__ = "0.1.0"

__all__ = [
    "Puzzle",
    "Verdict",
    "__version__",
    "build_messages",
    "generate",
    "grade",
    "objective_weights",
    "pass_at_k",
    "solve",
]

_HOMES = {
    "Puzzle": "nsr.task.puzzle",
    "Verdict": "nsr.task.grader",
    "build_messages": "nsr.task.prompt",
    "generate": "nsr.task.puzzle",
    "grade": "nsr.task.grader",
    "objective_weights": "nsr.learning.objective",
    "pass_at_k": "nsr.evaluation.passk",
    "solve": "nsr.task.solver",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
