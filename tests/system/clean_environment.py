"""A virtual environment with the installed libraries and without this project.

A newcomer has transformers and torch, but none of our packages. Installing torch again would take
minutes and gigabytes, so the environment reads the libraries that are installed here, named in a
path file. Python runs no path files of a directory that is added in this way, and an editable
install consists of nothing else; the proof in `run_pasted` fails if ours can be imported all the
same.
"""

from __future__ import annotations

import subprocess
import sysconfig
import venv
from pathlib import Path

OURS = ("app", "intraslice_client", "intraslice_core", "migrations", "workers")
_SEPARATOR = "-- next --"
_PROOF = f"""
import importlib.util, sys
print([name for name in {OURS} if name in sys.modules or importlib.util.find_spec(name)])
"""


def run_pasted(place: Path, *codes: str) -> list[str]:
    """Paste code into one Python session that knows none of our packages, and return its outputs.

    Args:
        place: working directory, which also receives the environment.
        codes: code as it was copied; nothing in it is changed.
    """
    script = place / "pasted.py"
    between = f'\nprint("{_SEPARATOR}")\n'
    script.write_text(between.join((*codes, _PROOF)), encoding="utf-8")
    done = subprocess.run(
        [_python(place / "clean-environment"), script],
        cwd=place,
        # None of this process's variables: PYTHONPATH would let our packages in.
        env={"HF_HOME": str(place / "hub"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    *outputs, ours = done.stdout.split(f"{_SEPARATOR}\n")
    assert ours == "[]\n", f"our packages can be imported: {ours}"
    return outputs


def _python(place: Path) -> Path:
    """Create the environment and return its interpreter."""
    venv.create(place, with_pip=False, symlinks=True)
    (packages,) = place.glob("lib/python*/site-packages")
    libraries = dict.fromkeys(map(sysconfig.get_path, ("purelib", "platlib")))
    (packages / "libraries.pth").write_text("\n".join(libraries), encoding="utf-8")
    return place / "bin" / "python"
