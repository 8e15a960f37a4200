"""Steps of fixed shapes as CUDA graphs: a thousand small kernels are launched by one call."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

_LOGGER = logging.getLogger(__name__)


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """The one stream that graphs of a device are recorded on: libraries keep 32 MB for each stream they have seen."""
    return torch.cuda.Stream(device)


class Recorded:
    """Calls a function of tensors that stay where they are; on CUDA it is recorded the second time a shape comes.

    What was recorded is replayed once beside the function itself. Where that changes the state otherwise, or where it
    cannot be recorded, the function is called as it is from there on, and that is said.

    Args:
        state: the tensors that the function reads and changes, but for those in which the same call twice leaves the
            same.
    """

    def __init__(self, state: Sequence[Tensor]) -> None:
        self._state = state
        self._records = state[0].device.type == "cuda"
        self._seen: set[tuple[int, ...]] = set()
        self._graphs: dict[tuple[int, ...], torch.cuda.CUDAGraph] = {}
        self._stream = _stream(state[0].device) if self._records else None
        self._pool = torch.cuda.graph_pool_handle() if self._records else None

    @contextmanager
    def stream(self) -> Iterator[None]:
        """Inside, work is on the stream that graphs are recorded on."""
        if self._stream is None:
            yield
            return
        outside = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(outside)
        with torch.cuda.stream(self._stream):
            yield
        outside.wait_stream(self._stream)

    def __call__(self, function: Callable[..., None], *shape: int) -> None:
        """Call the function, or what does the same.

        It is always the same function, and depends on the state and on these arguments alone.
        """
        if (graph := self._graphs.get(shape)) is not None:
            graph.replay()
        elif self._records and shape in self._seen:
            self._record(function, shape)
        else:
            self._seen.add(shape)
            function(*shape)

    def _record(self, function: Callable[..., None], shape: tuple[int, ...]) -> None:
        before = [tensor.clone() for tensor in self._state]
        function(*shape)
        expected = [tensor.clone() for tensor in self._state]
        self._restore(before)
        try:
            graph = self._graph(function, shape)
        except RuntimeError as error:
            self._give_up(str(error).splitlines()[0], expected)
            return
        graph.replay()
        if all(torch.equal(tensor, there) for tensor, there in zip(self._state, expected, strict=True)):
            self._graphs[shape] = graph
        else:
            self._give_up("replayed, they compute something else", expected)

    def _graph(self, function: Callable[..., None], shape: tuple[int, ...]) -> torch.cuda.CUDAGraph:
        # Not `torch.cuda.graph`, which gives all free memory back each time.
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self._state[0].device)
        graph.capture_begin(pool=self._pool)
        try:
            function(*shape)
        finally:
            graph.capture_end()
        return graph

    def _give_up(self, reason: str, state: Sequence[Tensor]) -> None:
        _LOGGER.warning("Sampling takes its steps one by one, without CUDA graphs: %s.", reason)
        self._records = False
        self._graphs.clear()
        self._restore(state)

    def _restore(self, state: Sequence[Tensor]) -> None:
        for tensor, value in zip(self._state, state, strict=True):
            tensor.copy_(value)
