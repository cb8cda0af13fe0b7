"""A pretended CUDA device: finds device bugs of torch programs on machines without a GPU.

Inside `with PretendCuda() as gpu:` torch believes that there is a CUDA device. What is on it is a
`DeviceTensor`, which holds a tensor of the CPU and computes with it, so values are real. What a GPU
would refuse is refused: operands on different devices, `numpy()` of what is on the device, integer
matrix products, allocations beyond its memory. What a GPU would be slow at is written down in
`gpu.log`: copies between host and device, calls that wait for the device, operations by line of
the program, and heavy work that was done on the host although there is a device.

How it works. To torch's C++ core the device is the one reserved for extensions ("privateuseone"),
as a CPU-only build knows no other that autograd accepts. A function mode turns "cuda" into that
device wherever it is an argument; `DeviceTensor` turns it back where a program asks for it. A
dispatch mode sees every operation below autograd, checks the operands, and runs it on the CPU.

What it cannot show: speed, asynchrony and races between streams, other rounding than the CPU's,
other defaults of kernels (TF32, cuDNN, flash attention), kernels that a GPU lacks for a dtype, the
memory that kernels take for themselves, fragmentation, and programs that call CUDA from C++.

Import it before the first backward pass of the process: autograd then decides how many devices it
has threads for, once and for all.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, Self
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.pretend_cuda.device_tensor import ACTIVE, BACKEND, Generator, Memory
from tests.pretend_cuda.log import DeviceLog, Direction, place
from tests.pretend_cuda.naming import Naming
from tests.pretend_cuda.operations import dispatch


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Hands every operation below autograd to `_dispatch`."""

    def __init__(self, session: PretendCuda) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._session = session

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        # In inference mode composite operations come here whole.
        if _is_composite(func):
            with self:
                return func.decompose(*args, **(kwargs or {}))
        return dispatch(self._session, func, args, kwargs or {})


@cache
def _is_composite(func: Any) -> bool:
    return bool(func._can_decompose())


class _Stream:
    """A stream or an event; everything has happened already."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        del args, kwargs

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        del error

    def query(self) -> bool:
        """Is it done?"""
        return True

    def is_capturing(self) -> bool:
        """Is a graph being recorded?"""
        return False

    def elapsed_time(self, other: _Stream) -> float:
        """Milliseconds between two events."""
        del other
        return 0.001

    def _nothing(self, *args: Any, **kwargs: Any) -> None:
        del args, kwargs

    record = wait = synchronize = wait_stream = wait_event = record_event = _nothing


# -- the session ----------------------------------------------------------------------------------


class _Hook(torch._C._acc.PrivateUse1Hooks):
    """What torch's core asks an accelerator."""

    def is_available(self) -> bool:
        return bool(ACTIVE)

    def has_primary_context(self, index: int) -> bool:
        del index
        return True

    def is_built(self) -> bool:
        return True


class _Module(SimpleNamespace):
    """`torch.pretendcuda`, which torch looks for."""


def _generator() -> torch.Generator:
    """Return the first device's random numbers, the host's while no device is there."""
    return ACTIVE[-1].generators[0] if ACTIVE else torch.default_generator


def _register() -> None:
    """Tell torch's core of the device; once in a process, and for all of its life."""
    if hasattr(torch, BACKEND):
        return
    module = _Module(
        is_initialized=lambda: True,
        is_available=lambda: bool(ACTIVE),
        current_device=lambda: 0,
        device_count=lambda: 1,
        manual_seed_all=lambda seed: None,
        get_rng_state=lambda device=0: _generator().get_state(),
        set_rng_state=lambda state, device=0: _generator().set_state(state),
        _is_in_bad_fork=lambda: False,
        _lazy_init=lambda: None,
    )
    torch.utils.backend_registration._setup_privateuseone_for_python_backend(
        rename=BACKEND, backend_module=module, hook=_Hook()
    )
    sys.modules[f"torch.{BACKEND}"] = module  # type: ignore[assignment]


_register()


class PretendCuda:
    """Lets torch believe that there are CUDA devices, for the time of a `with`.

    Args:
        devices: how many; autograd works on the first alone.
        memory: of each, in bytes.
        name: of the model.
        capability: of the model; bfloat16 needs (8, 0).
        children: whether Python programs that are started meanwhile have the devices, too.
    """

    def __init__(
        self,
        *,
        devices: int = 1,
        memory: int = 80 * 2**30,
        name: str = "Pretended GPU",
        capability: tuple[int, int] = (9, 0),
        children: bool = False,
    ) -> None:
        self.log = DeviceLog()
        self.memories = [Memory(index, memory) for index in range(devices)]
        self.current = 0
        self._name, self._capability, self._children = name, capability, children
        self._stack = ExitStack()
        self.generators: list[torch.Generator] = []

    def __enter__(self) -> Self:
        if ACTIVE:
            raise RuntimeError("there is a pretended device already")
        self.generators = [Generator(f"cuda:{index}") for index in range(len(self.memories))]
        stack = self._stack
        for module, functions in self._replacements():
            for name, value in functions.items():
                stack.enter_context(mock.patch.object(module, name, value, create=True))
        stack.enter_context(
            _set_back(torch._C._only_lift_cpu_tensors, torch._C._set_only_lift_cpu_tensors, True)
        )
        stack.enter_context(
            _set_back(
                torch.__future__.get_swap_module_params_on_conversion,
                torch.__future__.set_swap_module_params_on_conversion,
                True,
            )
        )
        # Backward passes run in the caller's thread, so that their operations have a place.
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        ACTIVE.append(self)
        stack.callback(ACTIVE.remove, self)
        stack.enter_context(_Operations(self))
        stack.enter_context(Naming(self))
        if self._children:
            stack.enter_context(_children_too(len(self.memories)))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def dispatch(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run an operation below autograd."""
        return dispatch(self, func, args, kwargs)

    # -- what happened

    def mixed(self, func: Any, devices: set[torch.device]) -> RuntimeError:
        """Write down a refused operation; the error to raise."""
        self.log.mixed[getattr(func, "__name__", str(func)), place()] += 1
        first, second, *_ = sorted(map(str, devices), reverse=True)
        return RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{first} and {second}! (pretend_cuda: {func} at {place()})"
        )

    def copied(self, way: Direction, tensor: Tensor) -> None:
        """Write down a copy between devices."""
        key = way, place()
        self.log.copies[key] += 1
        self.log.copied_bytes[key] += tensor.numel() * tensor.element_size()

    def crossed(
        self, here: torch.device, there: torch.device, tensor: Tensor, *, non_blocking: bool
    ) -> None:
        """Write down a copy that was asked for; one to the host is waited for."""
        way: Direction = "device to device"
        if here.type != "cuda":
            way = "host to device"
        elif there.type != "cuda":
            way = "device to host"
            if not non_blocking:
                self.log.waits["copy to host", place()] += 1
        self.copied(way, tensor)

    def waited(self, what: str) -> None:
        """Write down that the host waits for the device."""
        self.log.waits[what, place()] += 1

    # -- torch.cuda and torch.accelerator

    def _memory(self, device: Any = None) -> Memory:
        index = device if isinstance(device, int) else None
        if isinstance(device, (str, torch.device)):
            index = torch.device(device).index
        return self.memories[self.current if index is None else index]

    def _properties(self, device: Any = None) -> SimpleNamespace:
        return SimpleNamespace(
            name=self._name,
            major=self._capability[0],
            minor=self._capability[1],
            total_memory=self._memory(device).capacity,
            multi_processor_count=108,
            uuid=f"00000000-0000-0000-0000-{self._memory(device).index:012d}",
        )

    def _reset_peak(self, device: Any = None) -> None:
        memory = self._memory(device)
        memory.peak = memory.allocated

    def _set_device(self, device: Any) -> None:
        self.current = self._memory(device).index

    def _exchange(self, index: int) -> int:
        before, self.current = self.current, self.current if index < 0 else index
        return before

    def _replacements(self) -> Iterator[tuple[Any, dict[str, Any]]]:
        def nothing(*args: Any, **kwargs: Any) -> None:
            del args, kwargs

        def free_and_total(device: Any = None) -> tuple[int, int]:
            memory = self._memory(device)
            return memory.capacity - memory.allocated, memory.capacity

        def allocated(device: Any = None) -> int:
            return self._memory(device).allocated

        def peak(device: Any = None) -> int:
            return self._memory(device).peak

        def seed_all(seed: int) -> None:
            for generator in self.generators:
                generator.manual_seed(seed)

        def stats(device: Any = None) -> dict[str, int]:
            memory = self._memory(device)
            return {
                "allocated_bytes.all.current": memory.allocated,
                "allocated_bytes.all.peak": memory.peak,
                "reserved_bytes.all.current": memory.allocated,
                "reserved_bytes.all.peak": memory.peak,
            }

        memory = {
            "memory_allocated": allocated,
            "max_memory_allocated": peak,
            "memory_reserved": allocated,
            "max_memory_reserved": peak,
            "memory_stats": stats,
            "reset_peak_memory_stats": self._reset_peak,
            "empty_cache": nothing,
            "synchronize": lambda device=None: self.waited("synchronize"),
            "is_available": lambda: True,
            "device_count": lambda: len(self.memories),
        }
        yield torch, {"Generator": Generator}
        yield (
            torch.cuda,
            memory
            | {
                "_lazy_init": nothing,
                "is_initialized": lambda: True,
                "current_device": lambda: self.current,
                "set_device": self._set_device,
                "_exchange_device": self._exchange,
                "_maybe_exchange_device": self._exchange,
                "get_device_properties": self._properties,
                "get_device_name": lambda device=None: self._name,
                "get_device_capability": lambda device=None: self._capability,
                "mem_get_info": free_and_total,
                "is_bf16_supported": lambda including_emulation=True: self._capability >= (8, 0),
                "manual_seed": seed_all,
                "manual_seed_all": seed_all,
                "get_rng_state": lambda device="cuda": self.generators[0].get_state(),
                "set_rng_state": lambda state, device="cuda": self.generators[0].set_state(state),
                "Stream": _Stream,
                "Event": _Stream,
                "stream": _Stream,
                "current_stream": lambda device=None: _Stream(),
                "default_stream": lambda device=None: _Stream(),
                "ipc_collect": nothing,
            },
        )
        yield (
            torch.accelerator,
            memory
            | {
                "current_accelerator": lambda check_available=False: torch.device("cuda"),
                "current_device_index": lambda: self.current,
                "set_device_index": self._set_device,
                "get_memory_info": free_and_total,
                "current_stream": lambda device=None: _Stream(),
            },
        )


@contextmanager
def _set_back(get: Callable[[], Any], put: Callable[[Any], Any], value: Any) -> Iterator[None]:
    before = get()
    put(value)
    try:
        yield
    finally:
        put(before)


# -- children -------------------------------------------------------------------------------------

_REPOSITORY = Path(__file__).parents[2]
_CHILD = (
    "import sys, runpy; sys.path.insert(0, {root!r}); "
    "from tests.pretend_cuda.session import PretendCuda; "
    "sys.path.pop(0); sys.argv = sys.argv[1:]; "
    "PretendCuda(devices={devices}).__enter__(); "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)


@contextmanager
def _children_too(devices: int) -> Iterator[None]:
    """Let `python -I PROGRAM …` start with the devices."""
    real = subprocess.Popen.__init__
    program = _CHILD.format(root=str(_REPOSITORY), devices=devices)

    def start(self: Any, args: Any, *more: Any, **options: Any) -> None:
        if isinstance(args, list) and args[:2] == [sys.executable, "-I"]:
            args = [*args[:2], "-c", program, *args[2:]]
        real(self, args, *more, **options)

    with mock.patch.object(subprocess.Popen, "__init__", start):
        yield
