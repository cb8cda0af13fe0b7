"""One of two processes that compress a model together, each on a device of its own.

`python -m tests.on_cuda.paired DENSE FOLDER METHOD ...`, with the variables of a launch. The
devices are pretended, so that sums and broadcasts pass through host memory, in place of NCCL. That
of the second process is full once, at the end of the first layer that it compresses.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from intraslice_core import rank_connection
from intraslice_core.decoder_layer import LayerWeights
from intraslice_core.hidden_states import LayerPass
from intraslice_core.launcher import Launch, is_main_process
from intraslice_core.pipeline import compress_model
from intraslice_core.ranks import ConnectedRanks
from tests.on_cuda.devices import observed, settings

WAITS = {"intraslice_plus": 1466}
"""Waits of each run of three layers, one of which is repeated."""

_process_group = rank_connection._process_group


class HostedRanks(ConnectedRanks):
    """Ranks whose common operations are those of gloo on copies in host memory."""

    def _reduce(self, tensor: Tensor, to: int | None) -> None:
        host = tensor.cpu()
        super()._reduce(host, to)
        if host is not tensor:
            tensor.copy_(host)

    def _broadcast(self, tensor: Tensor, owner: int) -> None:
        host = tensor.cpu()
        super()._broadcast(host, owner)
        if host is not tensor and owner != self.rank:
            tensor.copy_(host)


def _gloo_group(launch: Launch, prefix: str, _backend: str) -> dist.ProcessGroup:
    """Return a group without NCCL, which needs real GPUs."""
    return _process_group(launch, prefix, "gloo")


def lack_memory_once() -> None:
    """Let the device of this process be full when all hidden states have passed a layer."""
    advance, failures = LayerPass.advance_mlp, list[int]()

    def fail_once(layer_pass: LayerPass, weights: LayerWeights) -> None:
        advance(layer_pass, weights)
        if not failures:
            failures.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB.")

    LayerPass.advance_mlp = fail_once  # type: ignore[method-assign]


def main() -> None:
    """Compress by each method; fail if the process does not work on its device alone."""
    dense, folder, *methods = sys.argv[1:]
    rank_connection.ConnectedRanks = HostedRanks  # type: ignore[misc]
    rank_connection._process_group = _gloo_group
    if not is_main_process():
        lack_memory_once()
    for method in methods:
        with observed() as observation:
            report = compress_model(
                dense, Path(folder) / method, settings(method=method), verify=False
            )
            assert report.device != "cpu", report.device
        observation.require_clean(WAITS[method])


if __name__ == "__main__":
    main()
