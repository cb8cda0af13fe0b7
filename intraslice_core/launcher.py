"""Processes of a launcher (`torchrun`, `accelerate launch`), by its environment variables.

Importing this module does not import torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

_WORLD_SIZE, _RANK, _LOCAL_RANK = "WORLD_SIZE", "RANK", "LOCAL_RANK"
_ADDRESS, _PORT, _RESTART = "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT"
_HOSTED = "TORCHELASTIC_USE_AGENT_STORE"
_PREFIXES = ("TORCHELASTIC_", "GROUP_", "ROLE_")
_VARIABLES = frozenset({_WORLD_SIZE, _RANK, _LOCAL_RANK, "LOCAL_WORLD_SIZE", _ADDRESS, _PORT})


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Position of this process among those of a launcher."""

    rank: int
    """Number of this process."""
    count: int
    """Number of processes."""
    local_rank: int
    """Number of this process on its machine, which is that of its GPU."""
    address: str
    """Host of the store by which the processes find one another."""
    port: int
    hosted: bool = True
    """True if the launcher runs the store; otherwise process 0 does."""
    attempt: str = "0"
    """Number of the launcher's attempt to run all processes."""

    def environment(self) -> dict[str, str]:
        """Return the variables that describe this position to a process."""
        return {
            _RANK: str(self.rank),
            _WORLD_SIZE: str(self.count),
            _LOCAL_RANK: str(self.local_rank),
            _ADDRESS: self.address,
            _PORT: str(self.port),
            _HOSTED: str(self.hosted),
            _RESTART: self.attempt,
        }


def current_launch() -> Launch | None:
    """Return the position of this process; None if no launcher started it, or no other one."""
    environment = os.environ
    count = int(environment.get(_WORLD_SIZE, "1"))
    if count <= 1:
        return None
    rank = int(environment.get(_RANK, "0"))
    return Launch(
        rank=rank,
        count=count,
        local_rank=int(environment.get(_LOCAL_RANK, str(rank))),
        address=environment.get(_ADDRESS, "127.0.0.1"),
        port=int(environment.get(_PORT, "29500")),
        hosted=environment.get(_HOSTED) == str(True),
        attempt=environment.get(_RESTART, "0"),
    )


def is_main_process() -> bool:
    """Report whether this is the first process of a launcher, or the only one."""
    return int(os.environ.get(_RANK, "0")) == 0


def without_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without a launcher's variables, for programs that run alone."""
    return {
        name: value
        for name, value in environment.items()
        if name not in _VARIABLES and not name.startswith(_PREFIXES)
    }
