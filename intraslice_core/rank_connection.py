"""Connection of the ranks that a launcher started."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from types import FrameType

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from intraslice_core.config import CompressionConfig
from intraslice_core.errors import ConfigurationError, RankFailedError
from intraslice_core.launcher import Launch, current_launch
from intraslice_core.rank_watch import RankWatch, run_prefix
from intraslice_core.ranks import ALONE, ConnectedRanks, Ranks

_CONNECTING = timedelta(minutes=10)
"""Time until all ranks must have started."""
_PATIENCE = timedelta(days=1)
"""Time limit of a collective operation; the watch over the ranks ends the wait for a lost one."""
_runs = count()
"""Numbers of this process's runs, by which their keys in the store differ."""
_stores: list[Store] = []
"""Stores that this process runs for the others, until it ends."""


@contextmanager
def connected_ranks(device: torch.device) -> Iterator[Ranks]:
    """Connect this process with the others of its launcher; without a launcher it stays alone.

    An error within the block ends the other ranks, too.

    Args:
        device: requested device; every rank on a GPU has its own one.

    Raises:
        ConfigurationError: if the device names one GPU, or is of another kind than CPU and CUDA.
        RankFailedError: if the other ranks cannot be reached.
    """
    launch = current_launch()
    if launch is None:
        yield ALONE
        return
    device = _own_device(device, launch)
    prefix = run_prefix(launch.attempt, next(_runs))
    with _watching(launch, prefix) as watch:
        ranks = _connect(launch, prefix, watch, device)
        with _ending_on_request(ranks):
            yield ranks
        _leave(ranks)


def _own_device(device: torch.device, launch: Launch) -> torch.device:
    """Return this rank's device."""
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise ConfigurationError(
            f"{launch.count} processes cannot share the work on device {device.type}",
            field="device",
            hint="use cuda or cpu, or a single process",
        )
    if device.index is not None:
        raise ConfigurationError(
            f"device {device} is one GPU for {launch.count} processes",
            field="device",
            hint="use cuda: every process takes its own GPU",
        )
    if launch.local_rank >= torch.cuda.device_count():
        raise ConfigurationError(
            f"process {launch.local_rank + 1} of this machine has no GPU: there are "
            f"{torch.cuda.device_count()}",
            field="device",
            hint="start as many processes as there are GPUs",
        )
    return torch.device("cuda", launch.local_rank)


@contextmanager
def _watching(launch: Launch, prefix: str) -> Iterator[RankWatch]:
    """Watch over the ranks; an error within the block ends the others, too."""
    with _others_reached():
        watch = RankWatch(PrefixStore(prefix, _store(launch)), launch.rank, launch.count)
    try:
        yield watch
    except BaseException as error:
        watch.post(error)
        raise
    finally:
        watch.close()


@contextmanager
def _others_reached() -> Iterator[None]:
    """Raise errors of connections as those of ranks, but for a lack of memory."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise RankFailedError(f"the other processes cannot be reached: {error}") from error


def _connect(launch: Launch, prefix: str, watch: RankWatch, device: torch.device) -> ConnectedRanks:
    """Connect all ranks, each to a process group."""
    backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
    with _others_reached():
        watch.wait_for_all(_CONNECTING.total_seconds())
        if device.type == "cuda":
            torch.cuda.set_device(device)
        group = _process_group(launch, f"{prefix}/group", backend)
        ranks = ConnectedRanks(group, watch, device)
        # The first operations open the connections, while all ranks are known to be there.
        ranks.totals([0.0])
        ranks.sum_([torch.zeros(1, device=device)])
    return ranks


def _process_group(launch: Launch, prefix: str, backend: str) -> dist.ProcessGroup:
    """Return the group of all ranks, beside one that exists already."""
    if dist.is_initialized():
        group: dist.ProcessGroup = dist.new_group(backend=backend, timeout=_PATIENCE)
        return group
    dist.init_process_group(
        backend,
        store=PrefixStore(prefix, _store(launch)),
        rank=launch.rank,
        world_size=launch.count,
        timeout=_PATIENCE,
    )
    world = dist.group.WORLD
    assert world is not None  # it was initialised just now
    return world


def _store(launch: Launch) -> Store:
    """Return a connection to the store of the launcher; rank 0 runs the store if it has none."""
    runs = launch.rank == 0 and not launch.hosted
    store = TCPStore(
        launch.address,
        launch.port,
        is_master=runs,
        timeout=_CONNECTING,
        wait_for_workers=False,
        multi_tenant=not launch.hosted,
    )
    if runs:
        _stores.append(store)
    return store


def _leave(ranks: ConnectedRanks) -> None:
    """Wait for the end of all ranks and disconnect."""
    ranks.totals([0.0])
    ranks.watch.close()
    ranks.disconnect()


@contextmanager
def _ending_on_request(ranks: ConnectedRanks) -> Iterator[None]:
    """End this rank with an error when the launcher stops it, because another one has ended."""
    is_main_thread = threading.current_thread() is threading.main_thread()
    if not is_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def request(number: int, frame: FrameType | None) -> None:
        del number, frame
        ranks.watch.note(RankFailedError("the launcher ends this run: another process has ended"))

    signal.signal(signal.SIGTERM, request)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def require_sequences(ranks: Ranks, config: CompressionConfig) -> None:
    """Raise if there are fewer calibration sequences than ranks.

    Raises:
        ConfigurationError: naming the field.
    """
    samples = config.calibration.samples
    if samples < ranks.count:
        raise ConfigurationError(
            f"{samples} calibration sequences cannot be divided among {ranks.count} processes",
            field="calibration.samples",
            hint=f"request at least {ranks.count}, or start fewer processes",
        )


def require_launched_devices(config: CompressionConfig) -> None:
    """Raise if a launcher has started another number of processes than there are to be devices.

    Raises:
        ConfigurationError: naming the field.
    """
    launch = current_launch()
    if launch is not None and config.devices not in (1, launch.count):
        raise ConfigurationError(
            f"{config.devices} devices were requested, but the launcher has started "
            f"{launch.count} processes",
            field="devices",
            hint="leave devices out: every process of a launcher has a device",
        )


def require_single_process(activity: str, devices: int = 1) -> None:
    """Raise if several processes are requested or launched for something that one process does.

    Args:
        activity: named in the error.
        devices: requested number of devices.

    Raises:
        ConfigurationError: naming the activity.
    """
    if devices > 1:
        raise ConfigurationError(
            f"{activity} runs on one device, not on {devices}",
            field="devices",
            hint="leave it out, or compress at one ratio by one method",
        )
    launch = current_launch()
    if launch is not None:
        raise ConfigurationError(
            f"{activity} runs in one process, but a launcher has started {launch.count}",
            hint="run it without torchrun or accelerate launch",
        )


def of_largest_share(ranks: Ranks, config: CompressionConfig) -> CompressionConfig:
    """Return the settings with the number of sequences of the rank with most of them."""
    calibration = config.calibration
    samples = -(-calibration.samples // ranks.count)
    share = calibration.model_copy(update={"samples": samples})
    return config.model_copy(update={"calibration": share})
