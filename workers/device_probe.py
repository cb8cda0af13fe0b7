"""The GPUs that torch sees, printed by a process of its own: the worker never imports torch.

Started as `python -m workers.device_probe`. It prints a JSON list in the order of torch's indices.
"""

from __future__ import annotations

import json
import os
from typing import Any

_FIRST_WITH_BFLOAT16 = 8
"""Compute capability (major) from which NVIDIA GPUs multiply in bfloat16."""


def describe_gpus(cuda: Any, *, amd: bool) -> list[dict[str, Any]]:
    """Return name, memory and compute dtypes of every GPU; empty if torch is built without GPUs.

    Args:
        cuda: the module `torch.cuda`.
        amd: torch is built for AMD GPUs, which it names CUDA as well.
    """
    gpus = []
    for index in range(cuda.device_count()):
        properties = cuda.get_device_properties(index)
        is_fast = amd or properties.major >= _FIRST_WITH_BFLOAT16
        gpus.append(
            {
                "kind": "gpu",
                "name": cuda.get_device_name(index),
                "memory_bytes": properties.total_memory,
                "dtypes": ["float32", *(["bfloat16"] if is_fast else []), "float16"],
            }
        )
    return gpus


def main() -> None:
    # Drivers and libraries may print to stdout: reserve the original for the answer.
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import torch

    with channel:
        json.dump(describe_gpus(torch.cuda, amd=torch.version.hip is not None), channel)


if __name__ == "__main__":
    main()
