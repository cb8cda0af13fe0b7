"""The `intraslice` command as a module, for launchers: `torchrun -m intraslice_core compress …`."""

from __future__ import annotations

import runpy

if __name__ == "__main__":
    # By name, because the engine does not depend on the command line, which is part of the app.
    runpy.run_module("app.cli.main", run_name="__main__")
