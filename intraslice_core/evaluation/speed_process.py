"""Both models' speed in a process that has done nothing else; the program of that process.

A compression keeps few of oneDNN's compiled kernels, for memory's sake (`host_memory`), and that
holds for all of its process's life. A model whose layers differ has more shapes than are kept, so
there it would be timed with its kernels compiled over and over.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    """`speed_process.py PLACE_OF_OURS QUESTION ANSWER`."""
    place, questions, answers = sys.argv[1:]
    sys.path.insert(0, place)
    from intraslice_core.config import EvaluationConfig
    from intraslice_core.evaluation.timing import compare_speeds

    asked = json.loads(Path(questions).read_text())
    speed, loads = compare_speeds(
        Path(asked["dense"]),
        Path(asked["compressed"]),
        EvaluationConfig.model_validate(asked["config"]),
        dtype=asked["dtype"],
        device=asked["device"],
    )
    found = {
        "speed": speed and speed.model_dump(mode="json"),
        "loads": [one.model_dump(mode="json") for one in loads],
    }
    Path(answers).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
