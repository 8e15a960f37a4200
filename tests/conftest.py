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
    marked = [item for item in items if item.get_closest_marker("cuda") or item.get_closest_marker("vllm")]
    if not marked:
        return
    import torch

    for item in marked:
        if not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        elif item.get_closest_marker("vllm") and importlib.util.find_spec("vllm") is None:
            item.add_marker(pytest.mark.skip(reason="needs vLLM: pip install -r requirements.txt"))
