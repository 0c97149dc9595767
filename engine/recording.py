"""CUDA graphs: work that is launched once and recorded, and from then on launched as a whole.

A recording that breaks off leaves PyTorch's allocator in the middle of it (2.11: ``capture_end`` raises before it gives
the memory pool back), and from then on no memory can be given back and nothing recorded in that process. So what makes
the host wait, which breaks most recordings, is looked for before one begins, and a pool is given back where one breaks.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import TypeVar

import torch

Made = TypeVar("Made")
_broken: list[torch.cuda.CUDAGraph] = []  # the allocator keeps pointers to what it was recording


class Unrecordable(Exception):
    """Work cannot be recorded as a CUDA graph; the text says what broke off."""


class Recorder:
    """Records work of a CUDA device in a memory pool of its own.

    Memory that a recording gave back is taken again by the next one: what a replay left is valid until another replay,
    but for the tensors that ``record`` returned, as long as somebody holds them.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Callable[[], Made]) -> tuple[torch.cuda.CUDAGraph, Made]:
        """The graph, and what ``work`` returned as it was recorded: a replay writes it again.

        ``work`` is called three times, the second time under PyTorch's sync debug mode, which is that of the process.
        Raises Unrecordable where a call after the first is a RuntimeError, and what else ``work`` raises.
        """
        stream = _stream(self._device)
        with torch.cuda.device(self._device):  # a graph holds what was launched on the device that is current
            before = torch.cuda.current_stream()
            stream.wait_stream(before)
            try:
                with torch.cuda.stream(stream):
                    work()  # libraries choose their algorithms at a first call, and Triton compiles
                    self._try(work)
            finally:
                before.wait_stream(stream)  # what was launched reads memory that the caller goes on to write
            graph, broke = torch.cuda.CUDAGraph(), None
            try:
                with torch.cuda.graph(graph, pool=self._pool, stream=stream):
                    try:
                        made = work()
                    except BaseException as error:
                        broke = error  # the end of the recording raises too, and says less
                        raise
            except BaseException as error:
                torch.cuda.set_stream(before)  # the recording's own stream is still the current one
                self._mend(graph, stream)
                raise _reason(broke or error) from None
        return graph, made

    def _mend(self, graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream) -> None:
        """Put right what a recording leaves behind that broke off before its end."""
        try:
            torch._C._cuda_endAllocateToPool(_index(self._device), self._pool)
        except RuntimeError:
            return  # it came to its end
        _broken.append(graph)
        # The generator of random numbers believes that it is being recorded, until a recording ends well.
        with contextlib.suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph(), stream=stream):
            torch.zeros(1, device=self._device)

    def _try(self, work: Callable[[], object]) -> None:
        """Once more, with nothing allowed that waits for the device."""
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            work()
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise Unrecordable(first_line(error)) from None
        finally:
            torch.cuda.set_sync_debug_mode(before)


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all recordings: cuBLAS keeps a workspace for each stream that it has seen, to the end of the process."""
    return torch.cuda.Stream(device)


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def _reason(error: BaseException) -> BaseException:
    """What to raise where a recording broke off: errors that are no matter of recording stay what they are."""
    is_other = isinstance(error, torch.cuda.OutOfMemoryError) or not isinstance(error, RuntimeError)
    return error if is_other else Unrecordable(first_line(error))


def first_line(error: BaseException) -> str:
    """Of an error's words; without any, what kind of error it is."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
