"""Steps of fixed shapes as CUDA graphs: a thousand small kernels are launched by one call."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

_LOGGER = logging.getLogger(__name__)
_TORCH_C: Any = getattr(torch, "_C")  # noqa: B009 - for the type checker


class Recorder:
    """What all recordings on a CUDA device have in common, for as long as the process lives.

    One stream, since libraries keep 32 MB for each that they have seen. One pool for the memory of graphs, which nobody
    else may use and which is lost with the last of its graphs: the first one is kept, and so is one that failed, which
    the allocator may still ask.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.works = True
        self._pool = torch.cuda.graph_pool_handle()
        self._kept: list[torch.cuda.CUDAGraph] = []

    def record(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        """The kernels that `work` launches, none of which runs now; on the stream of the recorder.

        Raises:
            OutOfMemoryError: there is no room, not even when all free memory is given back before.
            RuntimeError: it does what cannot be recorded, such as waiting for the device.
        """
        try:
            return self._record(work)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()  # which cannot be done while recording
            return self._record(work)

    def _record(self, work: Callable[[], None]) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        is_first = not self._kept
        self._kept.append(graph)
        torch.cuda.synchronize(self.device)
        graph.capture_begin(pool=self._pool)  # not `torch.cuda.graph`, which gives all free memory back each time
        try:
            work()
        except BaseException:
            # What went wrong in the work is the reason, not what follows from it. Where CUDA has ended the recording
            # itself, some versions of torch forget to tell their allocator so.
            with contextlib.suppress(RuntimeError):
                graph.capture_end()
            with contextlib.suppress(RuntimeError):
                _TORCH_C._cuda_endAllocateToPool(self.device.index or 0, self._pool)  # noqa: SLF001
            raise
        graph.capture_end()
        if not is_first:
            self._kept.remove(graph)
        return graph

    def give_up(self, reason: str) -> None:
        """Record no more, in all of the process."""
        self.works = False
        _LOGGER.warning("Sampling takes its steps one by one, without CUDA graphs: %s.", reason)


@functools.cache
def recorder_of(device: torch.device) -> Recorder:
    """The recorder of a device."""
    return Recorder(device)


class Recorded:
    """Calls a function of tensors that stay where they are; on CUDA it is recorded the second time a shape comes.

    What was recorded is replayed once beside the function itself. Where that changes the state otherwise, or where it
    cannot be recorded, functions are called as they are from there on, in all of the process, and that is said. A shape
    for which there is no memory is called as it is.

    Args:
        state: the tensors that the function reads and changes, but for those in which the same call twice leaves the
            same.
        recorder: of their device; None where there is nothing to record.
    """

    def __init__(self, state: Sequence[Tensor], recorder: Recorder | None) -> None:
        self._state, self._recorder = state, recorder
        self._calls: Counter[tuple[int, ...]] = Counter()
        self._graphs: dict[tuple[int, ...], torch.cuda.CUDAGraph] = {}

    @contextlib.contextmanager
    def stream(self) -> Iterator[None]:
        """Inside, work is on the stream that graphs are recorded on."""
        if self._recorder is None:
            yield
            return
        stream = self._recorder.stream
        outside = torch.cuda.current_stream(stream.device)
        stream.wait_stream(outside)
        try:
            with torch.cuda.stream(stream):
                yield
        finally:
            outside.wait_stream(stream)

    def __call__(self, function: Callable[..., None], *shape: int) -> None:
        """Call the function, or what does the same.

        It is always the same function, and depends on the state and on these arguments alone.
        """
        if (graph := self._graphs.get(shape)) is not None:
            graph.replay()
        elif self._recorder is not None and self._recorder.works and self._calls[shape] == 1:
            self._record(self._recorder, function, shape)
        else:
            function(*shape)
        self._calls[shape] += 1

    def _record(self, recorder: Recorder, function: Callable[..., None], shape: tuple[int, ...]) -> None:
        before = [tensor.clone() for tensor in self._state]
        function(*shape)
        expected = [tensor.clone() for tensor in self._state]
        self._restore(before)
        try:
            graph = recorder.record(lambda: function(*shape))
        except torch.OutOfMemoryError:
            reason = ""  # only this shape, only now
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
        else:
            graph.replay()
            pairs = zip(self._state, expected, strict=True)
            # nan is equal to nan: what is wrong with the weights is not wrong with the graph
            if all(torch.allclose(one, other, rtol=0, atol=0, equal_nan=True) for one, other in pairs):
                self._graphs[shape] = graph
                return
            reason = "replayed, they compute something else"
        if reason:
            recorder.give_up(reason)
            self._graphs.clear()
        self._restore(before)
        function(*shape)  # again, as a wrong graph may have written anything

    def _restore(self, state: Sequence[Tensor]) -> None:
        for tensor, value in zip(self._state, state, strict=True):
            tensor.copy_(value)
