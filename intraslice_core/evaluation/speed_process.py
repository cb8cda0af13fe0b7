"""Program of a clean process that times both models.

A compression limits oneDNN's cache of compiled kernels to save memory (`device`), and the limit
holds for the life of its process. A model whose layers differ has more shapes than that cache
holds, so its kernels would be recompiled again and again while it is timed there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    """Run `speed_process.py PACKAGES_DIRECTORY REQUEST REPLY`."""
    packages_directory, request_file, reply_file = sys.argv[1:]
    sys.path.insert(0, packages_directory)
    from intraslice_core.config import EvaluationConfig
    from intraslice_core.evaluation.clean_process import STEP
    from intraslice_core.substeps import substeps_to

    def print_step(message: str) -> None:
        sys.stdout.write(f"{STEP}{message}\n")
        sys.stdout.flush()

    print_step("importing torch and transformers")
    from intraslice_core.evaluation.timing import compare_speeds

    request = json.loads(Path(request_file).read_text())
    with substeps_to(print_step):
        speed, loads = compare_speeds(
            Path(request["dense"]),
            Path(request["compressed"]),
            EvaluationConfig.model_validate(request["config"]),
            dtype=request["dtype"],
            device=request["device"],
        )
    reply = {
        "speed": speed and speed.model_dump(mode="json"),
        "loads": [load.model_dump(mode="json") for load in loads],
    }
    Path(reply_file).write_text(json.dumps(reply))


if __name__ == "__main__":
    main()
