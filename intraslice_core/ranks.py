"""Ranks: processes that compress one model together, each with a share of the sequences.

Every rank runs the same program on its own share of the calibration sequences: rank r of N has the
sequences r, r + N, r + 2N and so on. Sums over tokens are added up over all ranks; what follows
from them is computed by one rank and sent to the others. So all ranks decide alike, and the order
of their collective operations follows from the settings alone, never from the data of one rank.
The first rank, `MAIN`, alone reads text and caches, decides, writes and reports.

Ranks wait without a time limit, because one of them may factorise or write for long, but never for
a rank that has failed: they look at the run's failure meanwhile (`rank_watch`).

Work that may exceed the memory of a device is an attempt, which all ranks abandon if one of them
has to, and repeat alike. Within it they agree before each collective operation, after the tensors
of that operation are allocated: a rank that lacks memory says so in place of its next operation.
"""

from __future__ import annotations

import io
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from intraslice_core.errors import IntraSliceError
from intraslice_core.rank_watch import RankWatch

MAIN = 0
"""Rank that reads, decides, writes and reports."""
BUCKET_BYTES = 32 * 2**20
"""Tensors are added up together up to this size; larger ones alone, in place."""
_SHORTEST_PAUSE, _LONGEST_PAUSE = 2e-5, 2e-3
"""Seconds between two looks at a collective operation that is under way."""

_Result = TypeVar("_Result")


class AttemptAbandonedError(Exception):
    """Another rank has abandoned the attempt, which all of them repeat."""


class Ranks:
    """The ranks of a run as one of them sees them; by default it is alone and nothing is sent."""

    rank: int = MAIN
    count: int = 1

    @property
    def is_alone(self) -> bool:
        """Report whether there is no other rank."""
        return self.count == 1

    @property
    def is_main(self) -> bool:
        """Report whether this rank reads, decides, writes and reports."""
        return self.rank == MAIN

    def share(self, sequences: int) -> slice:
        """Return this rank's share of a number of sequences; it may be empty."""
        return slice(self.rank, sequences, self.count)

    def share_size(self, sequences: int) -> int:
        """Return how many of the first sequences are this rank's."""
        return len(range(self.rank, sequences, self.count))

    def owner(self, number: int) -> int:
        """Return the rank that computes the part of a number, one after the other.

        Parts with the same work, like the layers of a model, are thereby balanced.
        """
        return number % self.count

    def device_name(self, requested: str) -> str:
        """Return the name of this rank's device."""
        return requested

    def sum_(self, tensors: Sequence[Tensor], *, to: int | None = None) -> None:
        """Add up tensors over all ranks, in place.

        Args:
            tensors: of equal shapes and dtypes on all ranks.
            to: rank that gets the sums; elsewhere the tensors are undefined then. None for all.
        """

    def totals(self, numbers: Sequence[float]) -> list[float]:
        """Return the sums of numbers over all ranks, in float64."""
        return [float(number) for number in numbers]

    def computed(self, owner: int, compute: Callable[[], _Result]) -> _Result:  # noqa: ARG002
        """Return what one rank computes, on all of them.

        Args:
            owner: rank that computes.
            compute: called on that rank only; tensors of its result are on the device on all ranks.

        Raises:
            IntraSliceError: raised by `compute`, on all ranks.
        """
        return compute()

    def receive(self, owner: int) -> Any:
        """Return what another rank computes; see `computed`."""
        raise RuntimeError(f"rank {owner} does not exist")

    def gathered(self, compute: Callable[[], _Result]) -> list[_Result]:
        """Return what every rank computes, by rank.

        Raises:
            IntraSliceError: that of the first rank with one, on all ranks.
        """
        return [compute()]

    def evaluated(self, tasks: Sequence[Callable[[], _Result]]) -> list[_Result]:
        """Return the results of tasks that the ranks divide among them.

        Raises:
            IntraSliceError: that of one of the tasks, on all ranks.
        """
        return [task() for task in tasks]

    def attempted(self, attempt: Callable[[], _Result]) -> _Result:
        """Return the result of an attempt that succeeds on all ranks or on none.

        Raises:
            AttemptAbandonedError: if another rank has abandoned it.
        """
        return attempt()

    def abandon(self) -> bool:
        """Let all ranks abandon the attempt that has failed on this one.

        Returns:
            False if they cannot: the error then ends the run.
        """
        return True

    def raise_if_failed(self) -> None:
        """Raise the error of another rank, if one has failed.

        Raises:
            IntraSliceError: the error of that rank.
        """


ALONE = Ranks()
"""The only rank of a run in one process."""


@dataclass(frozen=True)
class _Outcome:
    """Result or error of a computation on one rank."""

    value: Any = None
    error: IntraSliceError | None = None

    @classmethod
    def of(cls, compute: Callable[[], object]) -> _Outcome:
        try:
            return cls(value=compute())
        except IntraSliceError as error:
            return cls(error=error)

    def result(self) -> Any:
        """Return the value or raise the error."""
        if self.error is not None:
            raise self.error
        return self.value


class ConnectedRanks(Ranks):
    """Ranks of several processes.

    Args:
        group: their process group, with gloo for tensors in host memory.
        watch: over the failures of all ranks.
        device: of this rank.
    """

    def __init__(self, group: dist.ProcessGroup, watch: RankWatch, device: torch.device) -> None:
        self.rank, self.count = group.rank(), group.size()
        self.watch = watch
        self._group, self._device = group, device
        self._attempts = 0
        """Attempts that contain what this rank does now."""
        self._may_agree = True
        """False after an error within a collective operation, which others may have begun."""

    def device_name(self, requested: str) -> str:
        """Return the name of this rank's device."""
        del requested
        return str(self._device)

    def sum_(self, tensors: Sequence[Tensor], *, to: int | None = None) -> None:
        """Add up tensors over all ranks, in place; see `Ranks.sum_`."""
        for bucket in _buckets(tensors):
            if len(bucket) == 1 and bucket[0].is_contiguous():
                self._agree()
                self._reduce(bucket[0], to)
                continue
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            self._agree()
            self._reduce(flat, to)
            parts = torch.split(flat, [tensor.numel() for tensor in bucket])
            for tensor, part in zip(bucket, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def totals(self, numbers: Sequence[float]) -> list[float]:
        """Return the sums of numbers over all ranks, in float64."""
        sums = torch.tensor([float(number) for number in numbers], dtype=torch.float64)
        self._agree()
        self._reduce(sums, None)
        return cast("list[float]", sums.tolist())

    def computed(self, owner: int, compute: Callable[[], _Result]) -> _Result:
        """Return what one rank computes, on all of them; see `Ranks.computed`."""
        if owner != self.rank:
            return cast("_Result", self.receive(owner))
        outcome = _Outcome.of(compute)
        self._send(outcome)
        return cast("_Result", outcome.result())

    def receive(self, owner: int) -> Any:
        """Return what another rank computes."""
        return self._receive(owner).result()

    def gathered(self, compute: Callable[[], _Result]) -> list[_Result]:
        """Return what every rank computes, by rank; see `Ranks.gathered`."""
        outcome = _Outcome.of(compute)
        outcomes = []
        for rank in range(self.count):
            if rank == self.rank:
                self._send(outcome)
            outcomes.append(outcome if rank == self.rank else self._receive(rank))
        return [outcome.result() for outcome in outcomes]

    def evaluated(self, tasks: Sequence[Callable[[], _Result]]) -> list[_Result]:
        """Return the results of tasks that the ranks divide among them; see `Ranks.evaluated`."""

        def computed() -> dict[int, _Result]:
            numbers = range(self.rank, len(tasks), self.count)
            return {number: tasks[number]() for number in numbers}

        results: dict[int, _Result] = {}
        for part in self.gathered(computed):
            results.update(part)
        return [results[number] for number in range(len(tasks))]

    def attempted(self, attempt: Callable[[], _Result]) -> _Result:
        """Return the result of an attempt that succeeds on all ranks or on none."""
        self._attempts += 1
        try:
            result = attempt()
            self._agree()
        finally:
            self._attempts -= 1
        return result

    def abandon(self) -> bool:
        """Let all ranks abandon the attempt that has failed on this one; see `Ranks.abandon`."""
        if self._may_agree:
            self._is_abandoned(on_this_rank=True)
        return self._may_agree

    def raise_if_failed(self) -> None:
        """Raise the error of another rank, if one has failed."""
        self.watch.raise_if_failed()

    def disconnect(self) -> None:
        """Close the connections, once all ranks have finished."""
        dist.destroy_process_group(self._group)

    # -- agreement -------------------------------------------------------------------------

    def _agree(self) -> None:
        """Wait until all ranks begin the next collective operation, or the end of the attempt.

        Raises:
            AttemptAbandonedError: if another rank has abandoned the attempt.
        """
        if self._attempts and self._is_abandoned(on_this_rank=False):
            raise AttemptAbandonedError

    def _is_abandoned(self, *, on_this_rank: bool) -> bool:
        """Report whether a rank has abandoned the attempt."""
        abandoned = torch.tensor([int(on_this_rank)])
        self._reduce(abandoned, None)
        return bool(abandoned)

    # -- collective operations -------------------------------------------------------------

    def _reduce(self, tensor: Tensor, to: int | None) -> None:
        if to is None:
            self._finish(partial(dist.all_reduce, tensor))
        else:
            self._finish(partial(dist.reduce, tensor, group_dst=to))

    def _send(self, outcome: _Outcome) -> None:
        """Send an outcome of this rank to all others."""
        stream = io.BytesIO()
        pickler = _TensorPickler(stream)
        pickler.dump(outcome)
        payload = torch.frombuffer(bytearray(stream.getvalue()), dtype=torch.uint8)
        contents = [_as_bytes(tensor) for tensor in pickler.tensors]
        self._agree()
        self._broadcast(torch.tensor([payload.numel()]), self.rank)
        self._broadcast(payload, self.rank)
        self._send_tensors(contents, self.rank)

    def _receive(self, owner: int) -> _Outcome:
        """Return an outcome that another rank sends."""
        self._agree()
        size = torch.zeros(1, dtype=torch.int64)
        self._broadcast(size, owner)
        payload = torch.empty(int(size), dtype=torch.uint8)
        self._broadcast(payload, owner)
        unpickler = _TensorUnpickler(io.BytesIO(payload.numpy().tobytes()), self._device)
        outcome: _Outcome = unpickler.load()
        self._send_tensors([_as_bytes(tensor) for tensor in unpickler.tensors], owner)
        return outcome

    def _send_tensors(self, contents: Sequence[Tensor], owner: int) -> None:
        """Send tensors of bytes from their owner, once the others have memory for them."""
        if contents:
            self._agree()
        for content in contents:
            self._broadcast(content, owner)

    def _broadcast(self, tensor: Tensor, owner: int) -> None:
        if tensor.numel():
            self._finish(partial(dist.broadcast, tensor, group_src=owner))

    def _finish(self, start: Callable[..., Any]) -> None:
        """Run a collective operation, unless a rank fails.

        Raises:
            IntraSliceError: the error of the rank that failed, or a `RankFailedError`.
        """
        self.watch.raise_if_failed()
        try:
            work = start(group=self._group, async_op=True)
            pause = _SHORTEST_PAUSE
            while not work.is_completed():
                self.watch.raise_if_failed()
                time.sleep(pause)
                pause = min(2.0 * pause, _LONGEST_PAUSE)
            work.wait()
        except torch.OutOfMemoryError:
            self._may_agree = False
            raise
        except RuntimeError as error:
            raise self.watch.explanation(error) from error


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield tensors in order, neighbours of one dtype and device together up to `BUCKET_BYTES`."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        size = sum(other.nbytes for other in bucket) + tensor.nbytes
        same = all((t.dtype, t.device) == (tensor.dtype, tensor.device) for t in bucket)
        if bucket and (not same or size > BUCKET_BYTES):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


# -- tensors within objects ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """Description of a tensor that follows an object."""

    number: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    on_host: bool


class _TensorPickler(pickle.Pickler):
    """Pickler that leaves the tensors of an object out, to send them by themselves."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream)
        self.tensors: list[Tensor] = []
        self._places: dict[int, _Place] = {}

    def persistent_id(self, obj: Any) -> _Place | None:
        if not isinstance(obj, Tensor):
            return None
        if id(obj) not in self._places:
            on_host = obj.device.type == "cpu"
            self._places[id(obj)] = _Place(len(self.tensors), tuple(obj.shape), obj.dtype, on_host)
            self.tensors.append(obj)
        return self._places[id(obj)]


class _TensorUnpickler(pickle.Unpickler):
    """Unpickler that puts empty tensors in an object, to be filled afterwards."""

    def __init__(self, stream: io.BytesIO, device: torch.device) -> None:
        super().__init__(stream)
        self.tensors: list[Tensor] = []
        self._device = device

    def persistent_load(self, place: _Place) -> Tensor:
        if place.number == len(self.tensors):
            device = torch.device("cpu") if place.on_host else self._device
            self.tensors.append(torch.empty(place.shape, dtype=place.dtype, device=device))
        return self.tensors[place.number]


def _as_bytes(tensor: Tensor) -> Tensor:
    """Return the bytes of a tensor, (bytes,), uint8: its own memory if it is contiguous."""
    return tensor.detach().contiguous().view(-1).view(torch.uint8)
