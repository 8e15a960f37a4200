"""What every test gets: no network, no display, and hypothesis that repeats itself."""

from __future__ import annotations

import importlib.util
import os

import hypothesis
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "agg"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# The same examples at every run: a failure of `make test` is one of the code, not of the day. No deadlines: a bound on
# time says more about the machine. `pytest --hypothesis-profile=explore` looks for new examples.
hypothesis.settings.register_profile("nsr", derandomize=True, deadline=None)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=1000)
hypothesis.settings.load_profile("nsr")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if any(item.get_closest_marker("cuda") for item in items):
        import torch

        if not torch.cuda.is_available():
            _skip(items, "cuda", "needs a CUDA device")
    if importlib.util.find_spec("vllm") is None:
        _skip(items, "vllm", "needs vLLM: make test-vllm")


def _skip(items: list[pytest.Item], marker: str, reason: str) -> None:
    for item in items:
        if item.get_closest_marker(marker):
            item.add_marker(pytest.mark.skip(reason=reason))
