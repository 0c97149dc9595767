"""What PyTorch does while the GPU is simulated: on the processor, under the rules of two memories.

Operations that mix them are refused as CUDA refuses them, memory that nobody has written is NaN, and what makes the
host wait for the GPU is counted.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from tests.simulator.graphs import Graph, tensors
from tests.simulator.memory import CPU, GPU, is_pinned, mark, on_gpu, pin
from tests.simulator.waiting import WAITS, Capture

T = torch.Tensor
# Their indices may lie on the host; they are brought over, which waits.
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
WAITING = {"item", "_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "equal", "is_nonzero"}
WAITING |= {"bincount", "allclose", "unique_consecutive", "nonzero_numpy", "argwhere"}
RANDOM = {"rand", "randn", "randint", "rand_like", "randn_like", "multinomial", "normal_", "uniform_", "exponential_"}
EMPTY = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "empty_permuted"}


class Operations(TorchDispatchMode):
    """Sees every operation that reaches a kernel of PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.makes_gpu = False  # the operation under way was asked to make its result on the GPU

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.partition("::")[2]
        given = tensors((args, kwargs))
        gpu = any(map(on_gpu, given))
        if gpu:
            self._check(name, args, given)
        if (gpu or self.makes_gpu) and name in RANDOM and Capture.spoils_random and not Capture.is_on:
            raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")
        if gpu and (name in WAITING or (name in INDEXING and _has_mask(args[1]))):
            WAITS.note(name)

        def run() -> Any:
            if name == "histc" and not args[0].is_floating_point():  # which a processor does not count
                return func(args[0].float(), *args[1:], **kwargs).to(args[0].dtype)
            return func(*args, **kwargs)

        out = run()
        made = tensors(out)
        if gpu or self.makes_gpu:
            if name == "copy_" and not on_gpu(args[0]):
                return out  # counted where it was checked
            for t in made:
                if not any(t is g for g in given):
                    mark(t)
            if name in EMPTY:
                for t in made:
                    poison(t)
            if Graph.current is not None:
                Graph.current.operation(run, (args, kwargs), out)
        return out

    @staticmethod
    def _check(name: str, args: Any, given: list[T]) -> None:
        host = [t for t in given if not on_gpu(t) and t.dim() > 0 and not t.is_meta]
        if name == "copy_":
            target, source = args[:2]
            if on_gpu(target) != on_gpu(source):
                move(source, len(args) > 2 and bool(args[2]))
        elif host and name in INDEXING and on_gpu(args[0]):
            if any(t is h for h in host for t in args[2:3]):
                raise RuntimeError(_mixed(name))
            WAITS.note(f"{name} by indices of the host")
        elif host:
            raise RuntimeError(_mixed(name))


def _mixed(name: str) -> str:
    return f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({name})"


def _has_mask(indices: Any) -> bool:
    return any(isinstance(i, T) and i.dtype in (torch.bool, torch.uint8) for i in indices)


def move(source: T, is_asynchronous: bool) -> None:
    """The rules of a copy between the memories."""
    if not on_gpu(source) and source.dim() == 0 and not is_asynchronous:
        WAITS.note("copy of a number")
    elif not (is_asynchronous and not on_gpu(source) and is_pinned(source)):
        WAITS.note("copy to the host" if on_gpu(source) else "copy of unpinned memory")
    else:
        WAITS.begin(source)


def poison(t: T) -> None:
    """What memory may hold that nobody has written yet."""
    if t.dtype.is_floating_point and t.itemsize > 1:
        t.fill_(math.nan)
    elif t.numel():
        t.view(torch.uint8).fill_(0xAB) if t.is_contiguous() else t.fill_(1)


class Requests(TorchFunctionMode):
    """Sees what a program asks of PyTorch, and brings words about devices down to memory that is really there."""

    def __init__(self, operations: Operations) -> None:
        super().__init__()
        self._operations = operations

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in MOVES:
            return _moved(*MOVES[func](args, kwargs))
        if func in (T.numpy, T.__array__) and on_gpu(args[0]):
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        if func is T.tolist and on_gpu(args[0]):
            WAITS.note("tolist")
            with _disable_current_modes():
                return func(*args, **kwargs)
        if func is T.pin_memory:
            return pin(args[0].clone())
        if func is T.is_pinned:
            return is_pinned(args[0])
        if func is T.get_device:
            return 0 if on_gpu(args[0]) else -1
        pinned = kwargs.pop("pin_memory", False)
        if kwargs.get("device") is None:
            out = func(*args, **kwargs)
        else:
            out = self._placed(func, args, kwargs)
        return pin(out) if pinned else out

    def _placed(self, func: Any, args: Any, kwargs: Any) -> Any:
        """A function that was told where its result is to lie."""
        wanted = torch.device(kwargs["device"])
        if wanted.type not in ("cuda", "cpu"):
            return func(*args, **kwargs)
        kwargs["device"] = CPU
        gpu, before = wanted.type == "cuda", self._operations.makes_gpu
        if gpu and func in (torch.tensor, torch.as_tensor, torch.asarray) and not on_gpu(args[0]):
            WAITS.note("tensor of the host's numbers")
        self._operations.makes_gpu = gpu
        try:
            out = func(*args, **kwargs)
        finally:
            self._operations.makes_gpu = before
        for t in tensors(out):
            if on_gpu(t) != gpu:
                mark(t, gpu)
        return out


def _moved(x: T, device: torch.device | None, dtype: torch.dtype | None, how: dict[str, Any], new: bool) -> T:
    wanted = device_of_request(device) if device is not None else None
    if wanted is not None and wanted.type == "meta":
        return T.to(x, "meta")
    gpu = on_gpu(x) if wanted is None else wanted.type == "cuda"
    asynchronous = bool(how.pop("non_blocking", False))
    if gpu != on_gpu(x):
        move(x, asynchronous)
        with _disable_current_modes():
            out = mark(T.to(x.clone(), dtype=dtype or x.dtype, copy=True, **how), gpu)
        if gpu and Graph.current is not None:
            Graph.current.operation(lambda: x.to(out.dtype), (x,), out)
        return out
    return T.to(x, dtype=dtype or x.dtype, copy=new, **how)


def device_of_request(device: Any) -> torch.device:
    """``cuda``, ``cuda:0``, an index or a device."""
    return torch.device("cuda", device) if isinstance(device, int) else torch.device(device)


def _to(args: Any, kwargs: Any) -> Any:
    x, *rest = args
    how = {k: v for k, v in kwargs.items() if k in ("non_blocking", "memory_format")}
    device, dtype, new = kwargs.get("device"), kwargs.get("dtype"), bool(kwargs.get("copy", False))
    if "other" in kwargs:
        rest = [kwargs["other"]]
    for i, value in enumerate(rest):
        if isinstance(value, T):
            device, dtype = GPU if on_gpu(value) else CPU, value.dtype
        elif isinstance(value, torch.dtype):
            dtype = value
        elif isinstance(value, (str, torch.device)) or (isinstance(value, int) and not isinstance(value, bool)):
            device = value
        elif isinstance(value, bool):
            how["non_blocking"] = value
            new = new or (len(rest) > i + 1 and rest[i + 1] is True)
            break
    return x, device, dtype, how, new


MOVES = {
    T.to: _to,
    T.cpu: lambda args, kwargs: (args[0], CPU, None, {}, False),
    T.cuda: lambda args, kwargs: (args[0], GPU, None, dict(kwargs), False),
}
