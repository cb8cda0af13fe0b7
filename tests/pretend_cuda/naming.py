"""Names of devices in the arguments of torch's functions, and the parts of autocast.

Programs say "cuda"; the C++ core knows the pretended device by another name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tests.pretend_cuda.device_tensor import DeviceTensor, changed, held_by, inner_device, is_cuda
from tests.pretend_cuda.log import place

_LOWER_PRECISION = frozenset(
    {torch.nn.functional.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm,
     Tensor.mm, torch.bmm, Tensor.bmm, torch.addmm, torch.baddbmm, torch.einsum,
     torch.nn.functional.scaled_dot_product_attention, torch.nn.functional.conv1d}
)  # fmt: skip
_FLOAT32 = frozenset(
    {torch.nn.functional.softmax, torch.softmax, Tensor.softmax, torch.log_softmax,
     torch.nn.functional.log_softmax, Tensor.log_softmax, torch.nn.functional.cross_entropy,
     torch.nn.functional.kl_div, torch.exp, Tensor.exp, torch.log, Tensor.log, torch.pow,
     Tensor.pow, Tensor.__pow__, torch.rsqrt, Tensor.rsqrt, torch.cumsum, Tensor.cumsum, torch.sum,
     Tensor.sum, torch.nn.functional.layer_norm, torch.norm, Tensor.norm, torch.logsumexp,
     Tensor.logsumexp}
)  # fmt: skip
"""The parts of CUDA's autocast lists that language models use."""


def _autocast(argument: Any, dtype: torch.dtype) -> Any:
    """An argument as autocast hands it over."""
    casts = isinstance(argument, DeviceTensor) and argument.is_floating_point()
    return (
        argument.to(dtype) if casts and argument.dtype not in (torch.float64, dtype) else argument
    )


class Naming(TorchFunctionMode):
    """Turns "cuda" in the arguments of torch's functions into the device of the C++ core."""

    def __init__(self, session: Any) -> None:
        super().__init__()
        self._session = session

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        if any(isinstance(argument, torch.device) and argument.type == "cuda" for argument in args):
            args = tuple(map(self._renamed, args))
        if kwargs.get("device") is not None and is_cuda(kwargs["device"]):
            kwargs = kwargs | {"device": self._named(kwargs["device"])}
        elif isinstance(kwargs.get("device"), int):
            kwargs = kwargs | {"device": inner_device(kwargs["device"])}
        special = _SPECIAL.get(func)
        if special is not None:
            return special(self, func, args, kwargs)
        if torch.is_autocast_enabled("cuda") and (func in _LOWER_PRECISION or func in _FLOAT32):
            lower = torch.get_autocast_dtype("cuda")
            dtype = lower if func in _LOWER_PRECISION else torch.float32
            args = [_autocast(argument, dtype) for argument in args]
            kwargs = {name: _autocast(argument, dtype) for name, argument in kwargs.items()}
        return func(*args, **kwargs)

    def _renamed(self, argument: Any) -> Any:
        return self._named(argument) if is_cuda(argument) else argument

    def _named(self, device: Any) -> torch.device:
        index = torch.device(device).index
        index = self._session.current if index is None else index
        if index >= len(self._session.memories):
            raise RuntimeError("CUDA error: invalid device ordinal")
        return inner_device(index)

    def to(self, func: Any, args: Any, kwargs: Any) -> Any:
        """`Tensor.to`, whose device may be a string."""
        return func(*map(self._renamed, args), **kwargs)

    def cuda(self, func: Any, args: Any, kwargs: Any) -> Any:
        """`Tensor.cuda`."""
        del func
        device = args[1] if len(args) > 1 else kwargs.get("device")
        index = device if isinstance(device, int) else getattr(device, "index", None)
        return args[0].to(inner_device(self._session.current if index is None else index))

    def pinned(self, func: Any, args: Any, kwargs: Any) -> Any:
        """`Tensor.pin_memory`: all host memory is as good."""
        del func, kwargs
        return args[0]

    def is_pinned(self, func: Any, args: Any, kwargs: Any) -> Any:
        """`Tensor.is_pinned`."""
        del func, args, kwargs
        return False

    def set_data(self, func: Any, args: Any, kwargs: Any) -> Any:
        """`tensor.data = other`, which on a GPU may change the device."""
        if not isinstance(args[1], DeviceTensor):
            return func(*args, **kwargs)
        new = args[1].detach().requires_grad_(args[0].requires_grad)
        if isinstance(args[0], torch.nn.Parameter):
            new._is_param = True
        torch.utils.swap_tensors(args[0], new)  # type: ignore[no-untyped-call]
        return None

    def attention(self, func: Any, args: Any, kwargs: Any) -> Any:
        """`scaled_dot_product_attention`: a GPU keeps no matrix of scores."""
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if not any(isinstance(tensor, DeviceTensor) for tensor in tensors):
            return func(*args, **kwargs)
        if torch.is_autocast_enabled("cuda"):
            dtype = torch.get_autocast_dtype("cuda")
            args = [_autocast(argument, dtype) for argument in args]
        devices = {tensor.device for tensor in tensors}
        if len(devices) > 1:
            raise self._session.mixed(func, devices)
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
            return func(*args, **kwargs)
        self._session.log.operations[place()] += 1
        args = [changed(argument, held_by) for argument in args]
        kwargs = {name: changed(argument, held_by) for name, argument in kwargs.items()}
        with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
            result = func(*args, **kwargs)
        return DeviceTensor(result, next(iter(devices)).index)


_SPECIAL: Mapping[Any, Callable[..., Any]] = {
    Tensor.to: Naming.to,
    Tensor.cuda: Naming.cuda,
    Tensor.pin_memory: Naming.pinned,
    Tensor.is_pinned: Naming.is_pinned,
    Tensor.data.__set__: Naming.set_data,  # type: ignore[attr-defined]
    torch.nn.functional.scaled_dot_product_attention: Naming.attention,
}
