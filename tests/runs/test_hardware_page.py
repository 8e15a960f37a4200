"""The tables of docs/hardware.md are what the formula gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from nsr.memory.search import document_tables
from nsr.models.architecture import find_shape

ROOT = Path(__file__).parents[2]
MODELS = ("tiny", "smollm2-135m", "Qwen/Qwen3-0.6B", "Qwen/Qwen3-1.7B", "Qwen/Qwen3-4B", "Qwen/Qwen3-8B")


def test_the_tables_are_made_by_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tables = document_tables({name: find_shape(name)[0] for name in MODELS})
    page = (ROOT / "docs" / "hardware.md").read_text("utf-8")
    for table in tables.split("\n\n"):
        assert table in page
