"""Operations below autograd: which operands a GPU accepts, and what the log records of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tests.pretend_cuda.device_tensor import (
    BACKEND,
    DeviceTensor,
    Generator,
    changed,
    held_by,
    tensors_in,
)
from tests.pretend_cuda.log import place

aten = torch.ops.aten

_LIKE_INDEXING = frozenset(
    {aten.index, aten._unsafe_index, aten.index_put, aten.index_put_, aten._index_put_impl_,
     aten._unsafe_index_put}
)  # fmt: skip
_TAKES_HOST_SCALARS = frozenset(
    {aten.where, aten.masked_fill, aten.masked_fill_, aten.index_fill, aten.index_fill_,
     aten.fill, aten.fill_}
)  # fmt: skip
"""Beside the pointwise ones: a tensor of no dimension may be the CPU's."""
_WAITS = frozenset(
    {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten._unique2,
     aten.unique_dim, aten.unique_consecutive, aten.bincount, aten._linalg_eigh, aten._linalg_svd,
     aten.linalg_eig, aten.linalg_eigvals, aten.linalg_lstsq, aten._linalg_check_errors,
     aten.repeat_interleave, aten._assert_async}
)  # fmt: skip
"""Their result's size, or their success, is asked of the device."""
_PRODUCTS = frozenset({aten.mm, aten.bmm, aten.addmm, aten.baddbmm, aten.addmm_, aten.baddbmm_})
_FACTORISATIONS: Mapping[Any, float] = {
    aten._linalg_eigh: 9.0,
    aten._linalg_svd: 20.0,
    aten.linalg_cholesky_ex: 1.0 / 3.0,
    aten.linalg_inv_ex: 2.0,
    aten.linalg_qr: 2.0,
    aten._linalg_solve_ex: 2.0 / 3.0,
    aten.cholesky_inverse: 2.0 / 3.0,
    aten.linalg_ldl_factor_ex: 1.0 / 3.0,
    aten.linalg_lu_factor_ex: 2.0 / 3.0,
}
"""FLOPs of a square matrix of width n, as multiples of n³; rough."""


def _flops(func: Any, args: Sequence[Any]) -> int:
    """Of matrix products and factorisations; 0 of others."""
    packet = func.overloadpacket
    if packet in _PRODUCTS:
        left, right = [argument for argument in args if isinstance(argument, Tensor)][-2:]
        return int(2 * left.numel() * right.shape[-1])
    if packet in _FACTORISATIONS:
        matrix: Tensor = args[0]
        return int(_FACTORISATIONS[packet] * matrix.numel() * min(matrix.shape[-2:]))
    if packet in (aten.cholesky_solve, aten._cholesky_solve_helper, aten.linalg_solve_triangular):
        right, factor = (args[1], args[0]) if "triangular" in str(func) else (args[0], args[1])
        return int(2 * right.numel() * factor.shape[-1])
    return 0


def _name(func: Any) -> str:
    return str(func.overloadpacket).removeprefix("aten.")


def _meant(device: torch.device | None) -> torch.device | None:
    """The device as programs name it, with an index."""
    if device is None or device.type not in (BACKEND, "privateuseone", "cuda"):
        return device
    return torch.device("cuda", device.index or 0)


def dispatch(session: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation below autograd: check it, run it on the CPU, put its results in their place."""
    special = _CROSSING.get(func.overloadpacket)
    if special is not None:
        return special(session, func, args, kwargs)
    if kwargs.get("pin_memory"):
        kwargs = kwargs | {"pin_memory": False}
    tensors = list(tensors_in((*args, *kwargs.values())))
    operands = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
    wanted = _meant(kwargs.get("device"))
    device = wanted or _common_device(session, func, args, tensors)
    _check_generator(device, kwargs.get("generator"))
    if device.type != "cuda" and not operands:
        _write_down_host(session, func, args)
        return func(*args, **kwargs)
    _write_down(session, func, args)
    inner_args = changed(args, held_by)
    inner_kwargs = {name: changed(argument, held_by) for name, argument in kwargs.items()}
    if wanted is not None:
        inner_kwargs["device"] = torch.device("cpu")
    _give_generator(session, func, device, inner_kwargs)
    result = func(*inner_args, **inner_kwargs)
    by_held = {id(tensor._held): tensor for tensor in operands}
    if func.is_view and torch.is_inference_mode_enabled() and not operands[0].is_inference():
        # A view is what its base is, whatever the mode.
        with torch.inference_mode(False):
            return _placed(result, device, by_held)
    return _placed(result, device, by_held)


def _common_device(
    session: Any, func: Any, args: Sequence[Any], tensors: Sequence[Tensor]
) -> torch.device:
    """Where the operands are.

    Raises:
        RuntimeError: if they are on several devices and the operation is none of the few that may.
    """
    if func.overloadpacket in _LIKE_INDEXING:
        return _indexed_device(session, func, args)
    devices = {tensor.device for tensor in tensors}
    if len(devices) <= 1:
        return devices.pop() if devices else torch.device("cpu")
    if torch.Tag.pointwise in func.tags or func.overloadpacket in _TAKES_HOST_SCALARS:
        fixed = {
            tensor.device
            for tensor in tensors
            if isinstance(tensor, DeviceTensor) or tensor.dim() > 0
        }
        written = {args[index].device for index in _written(func) if index < len(args)}
        if len(fixed | written) == 1:
            return fixed.pop()
    raise session.mixed(func, devices)


@cache
def _written(func: Any) -> tuple[int, ...]:
    """Numbers of the arguments that an operation changes."""
    return tuple(
        number
        for number, argument in enumerate(func._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


def _indexed_device(session: Any, func: Any, args: Sequence[Any]) -> torch.device:
    """The indexed tensor's; indices may be there or on the CPU."""
    home: torch.device = args[0].device
    for index in args[1]:
        if index is None or index.device == home:
            continue
        if index.device.type != "cpu":
            session.log.mixed[str(func), place()] += 1
            raise RuntimeError(
                "indices should be either on cpu or on the same device as the indexed tensor "
                f"({home})"
            )
        session.copied("host to device", index)
    values = args[2] if len(args) > 2 else None
    if isinstance(values, Tensor) and values.device != home:
        if values.device.type != "cpu" or values.dim() > 0:
            raise session.mixed(func, {home, values.device})
        session.copied("host to device", values)
    return home


def _check_generator(device: torch.device, generator: torch.Generator | None) -> None:
    if generator is None:
        return
    # The core hands over a new object for the same generator.
    home = "cuda" if generator._cdata in Generator.of_the_device else "cpu"
    if home != device.type:
        raise RuntimeError(
            f"Expected a '{device.type}' device type for generator but found '{home}'"
        )


@cache
def _is_random(func: Any) -> bool:
    return any(argument.name == "generator" for argument in func._schema.arguments)


def _give_generator(session: Any, func: Any, device: torch.device, kwargs: dict[str, Any]) -> None:
    """The device has random numbers of its own, where the operation lets us say so."""
    if device.type == "cuda" and _is_random(func) and kwargs.get("generator") is None:
        kwargs["generator"] = session.generators[device.index]


def _write_down_host(session: Any, func: Any, args: Sequence[Any]) -> None:
    """Heavy work on the CPU."""
    flops = _flops(func, args)
    if flops:
        session.log.host_flops[_name(func), place()] += flops


def _write_down(session: Any, func: Any, args: Sequence[Any]) -> None:
    """What an operation on the device costs.

    Raises:
        RuntimeError: if a GPU has no kernel for it.
    """
    packet, log = func.overloadpacket, session.log
    line = place()
    if not func.is_view:
        log.operations[line] += 1
    if packet in _WAITS or (
        packet in _LIKE_INDEXING
        and any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    ):
        log.waits[_name(func), line] += 1
    flops = _flops(func, args)
    if flops:
        dtype = next(argument.dtype for argument in args if isinstance(argument, Tensor))
        if packet in _PRODUCTS and not (dtype.is_floating_point or dtype.is_complex):
            raise RuntimeError(f'"addmm_cuda" not implemented for {str(dtype)!r}')
        log.device_flops[_name(func), str(dtype)] += flops


def _placed(result: Any, device: torch.device, by_held: Mapping[int, DeviceTensor]) -> Any:
    """Results on the device; what was changed in place is the operand itself."""
    if device.type != "cuda":
        return result

    def put(tensor: Tensor) -> Tensor:
        operand = by_held.get(id(tensor))
        if operand is None:
            return DeviceTensor(tensor, device.index)
        if operand.shape != tensor.shape or operand.stride() != tensor.stride():
            raise NotImplementedError("pretend_cuda: an operand was given another shape in place")
        return operand

    return changed(result, put)


def _copied(session: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """`to`: another device, another dtype, or both."""
    source: Tensor = args[0]
    here = source.device
    there = _meant(kwargs.get("device")) or here
    inner = kwargs | {"device": torch.device("cpu") if there.type == "cuda" else there}
    inner["non_blocking"] = False
    inner.pop("pin_memory", None)
    on_device = here.type == "cuda"
    if not on_device and there.type != "cuda":
        return func(*args, **inner)
    held = held_by(source)
    if here != there:
        session.crossed(here, there, source, non_blocking=bool(kwargs.get("non_blocking")))
    else:
        session.log.operations[place()] += 1
    result: Tensor = func(held, **inner)
    return DeviceTensor(result, there.index) if there.type == "cuda" else result


def _copied_into(session: Any, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """`copy_`, the operation that may have its two operands wherever they are."""
    to, source, *more = args
    if not isinstance(to, DeviceTensor) and not isinstance(source, DeviceTensor):
        return func(*args, **kwargs)
    non_blocking = bool(more[0] if more else kwargs.get("non_blocking"))
    if to.device != source.device:
        session.crossed(source.device, to.device, source, non_blocking=non_blocking)
    else:
        session.log.operations[place()] += 1
    func(held_by(to), held_by(source))
    return to


_CROSSING: Mapping[Any, Callable[..., Any]] = {
    aten._to_copy: _copied,
    aten.copy_: _copied_into,
    aten._pin_memory: lambda session, func, args, kwargs: args[0],
    aten.is_pinned: lambda session, func, args, kwargs: False,
}
"""Operations that may have tensors on both sides, or that mean nothing here."""
