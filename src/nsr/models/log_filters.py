"""What libraries say at their import that no user can act on, kept out of a run's output."""

from __future__ import annotations

import functools
import logging

_OF_NO_USE = {
    # transformers imports torchao with the first model, and torchao tries compiled parts made for other machines
    "torchao": "Failed to load",
    "torch.utils._pytree": "register_constant() on Enum subclasses is deprecated",
}


@functools.cache
def quiet_imports() -> None:
    """Drop these records of these loggers, and no others. Once a process, however often it is asked for."""
    for logger, text in _OF_NO_USE.items():
        logging.getLogger(logger).addFilter(_Without(text))


class _Without(logging.Filter):
    """Records that do not have a text in them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def filter(self, record: logging.LogRecord) -> bool:
        return self.text not in record.getMessage()
