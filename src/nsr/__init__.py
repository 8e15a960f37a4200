"""Train language models on the Countdown numbers game by learning from mistakes, and measure what it does to them.

The names below are the parts that others build on. Each is imported when it is first asked for, so `import nsr` is
quick; none of them needs torch. Tensor functions live in `nsr.algorithms.surrogates`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nsr.algorithms.objectives import objective_weights
    from nsr.evaluation.pass_at_k import pass_at_k
    from nsr.tasks.countdown.grader import Verdict, grade
    from nsr.tasks.countdown.prompt import build_messages
    from nsr.tasks.countdown.puzzle import Puzzle, generate
    from nsr.tasks.countdown.solver import solve

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
    "Puzzle": "nsr.tasks.countdown.puzzle",
    "Verdict": "nsr.tasks.countdown.grader",
    "build_messages": "nsr.tasks.countdown.prompt",
    "generate": "nsr.tasks.countdown.puzzle",
    "grade": "nsr.tasks.countdown.grader",
    "objective_weights": "nsr.algorithms.objectives",
    "pass_at_k": "nsr.evaluation.pass_at_k",
    "solve": "nsr.tasks.countdown.solver",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
