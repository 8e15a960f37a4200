"""One process that the training processes of all fault tests are forked from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from forked import Trainer


@pytest.fixture(scope="session")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainer]:
    with Trainer(tmp_path_factory.mktemp("trainer")) as made:
        yield made


@pytest.fixture(scope="session")
def whole(trainer: Trainer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was left alone."""
    folder = tmp_path_factory.mktemp("whole")
    assert trainer.run(trainer.words(folder), folder / "log") == 0, (folder / "log").read_text()
    return folder / "run"
