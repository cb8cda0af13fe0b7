"""Tensors of the pretended device, its memory, and its random numbers.

To torch's C++ core the device is the one reserved for extensions, because autograd of a CPU-only
build accepts no other. A `DeviceTensor` holds a tensor of the CPU, with which it computes.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

BACKEND = "pretendcuda"
_BLOCK = 512
"""Bytes that the CUDA allocator rounds a request up to."""
_REAL_GENERATOR = torch.Generator

ACTIVE: list[Any] = []
"""The session whose devices exist now, if there is one."""


def session() -> Any:
    """Return the active session."""
    if not ACTIVE:
        raise RuntimeError("a tensor of the pretended device is used after the device has gone")
    return ACTIVE[-1]


# -- the device's memory --------------------------------------------------------------------------


def _described(size: int) -> str:
    """A size as in torch's messages."""
    for factor, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size >= factor:
            return f"{size / factor:.2f} {unit}"
    return f"{size} bytes"


class Memory:
    """Allocated bytes of one device."""

    def __init__(self, index: int, capacity: int) -> None:
        self.index = index
        self.capacity = capacity
        self.allocated = self.peak = 0
        self._lock = threading.RLock()
        self._users: Counter[int] = Counter()
        self._sizes: dict[int, int] = {}

    def lease(self, held: Tensor) -> _Lease:
        """Count a tensor's storage until its last user is gone.

        Raises:
            torch.OutOfMemoryError: if it does not fit.
        """
        storage = held.untyped_storage()
        key, size = storage._cdata, -(-storage.nbytes() // _BLOCK) * _BLOCK
        with self._lock:
            if key not in self._sizes:
                if self.allocated + size > self.capacity:
                    raise torch.OutOfMemoryError(
                        f"CUDA out of memory. Tried to allocate {_described(size)}. "
                        f"GPU {self.index} has a total capacity of {_described(self.capacity)} "
                        f"of which {_described(self.capacity - self.allocated)} is free."
                    )
                self._sizes[key] = size
                self.allocated += size
                self.peak = max(self.peak, self.allocated)
            self._users[key] += 1
        return _Lease(self, key)

    def give_back(self, key: int) -> None:
        """One user less."""
        with self._lock:
            self._users[key] -= 1
            if not self._users[key]:
                del self._users[key]
                self.allocated -= self._sizes.pop(key)


class _Lease:
    """Ends with the tensor that has it."""

    __slots__ = ("_key", "_memory")

    def __init__(self, memory: Memory, key: int) -> None:
        self._memory, self._key = memory, key

    def __del__(self) -> None:
        self._memory.give_back(self._key)


# -- the tensor -----------------------------------------------------------------------------------


def inner_device(index: int) -> torch.device:
    """The device as the C++ core knows it."""
    return torch.device(BACKEND, index)


class DeviceTensor(Tensor):
    """A tensor on the pretended device.

    Args:
        held: the same on the CPU.
        index: of the device.
    """

    _held: Tensor
    _index: int
    _lease: _Lease

    @staticmethod
    def __new__(cls, held: Tensor, index: int) -> DeviceTensor:
        lease = session().memories[index].lease(held)
        self: DeviceTensor = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=inner_device(index),
            requires_grad=False,
        )
        self._held, self._index, self._lease = held, index, lease
        return self

    def __init__(self, held: Tensor, index: int) -> None:
        del held, index

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        del types
        return session().dispatch(func, args, kwargs or {})

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cuda", self._index)

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, new: Tensor) -> None:
        if not isinstance(new, DeviceTensor):
            raise NotImplementedError("pretend_cuda: `.data` cannot leave the device")
        torch._C.TensorBase.data.__set__(self, new)  # type: ignore[attr-defined]
        self._held, self._index, self._lease = new._held, new._index, new._lease

    def get_device(self) -> int:
        return self._index

    def data_ptr(self) -> int:
        return self._held.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self._held.untyped_storage()

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.detach().cpu().numpy()
        raise TypeError(
            f"can't convert {self.device} device type tensor to numpy. Use Tensor.cpu() to copy "
            "the tensor to host memory first."
        )

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        earlier: Tensor | None = memo.get(id(self))
        if earlier is not None:
            return earlier
        copy = self.detach().clone().requires_grad_(self.requires_grad)
        if getattr(self, "_is_param", False):
            copy._is_param = True
        memo[id(self)] = copy
        return copy

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise NotImplementedError("pretend_cuda: what is on the device cannot be pickled")

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        del tensor_contents
        return f"{self._held.detach()!r:.1000} on {self.device}"


def held_by(tensor: Tensor) -> Tensor:
    """Values on the CPU, with which everything is computed."""
    return tensor._held if isinstance(tensor, DeviceTensor) else tensor


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """All tensors among an operation's arguments, in their lists, too."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)


def changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same argument or result with other tensors."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)(changed(element, change) for element in value)
    return value


# -- what programs call "cuda" --------------------------------------------------------------------


def is_cuda(value: Any) -> bool:
    if isinstance(value, torch.device):
        return value.type == "cuda"
    return isinstance(value, str) and value.partition(":")[0] == "cuda"


class Generator(torch.Generator):
    """Random numbers of the device, made on the CPU."""

    of_the_device: ClassVar[set[int]] = set()
    """Addresses of all that there are."""
    _cdata: int
    _place: torch.device

    def __new__(cls, device: Any = "cpu") -> Any:
        if not is_cuda(device):
            return _REAL_GENERATOR(device)
        self = super().__new__(cls)
        self._place = torch.device("cuda", torch.device(device).index or 0)
        cls.of_the_device.add(self._cdata)
        return self

    def __init__(self, device: Any = "cpu") -> None:
        del device

    def __del__(self) -> None:
        self.of_the_device.discard(self._cdata)

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self._place
