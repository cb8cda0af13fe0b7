"""The commands of docs/backups.md, run as written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

from app.embedded.postgres_binaries import bin_directory, server_owner

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^\n((?:(?: {8}| {4}(?=\S)).*\n)+)", re.M)
SETTINGS = ""
"""Name of the part before the first heading, which sets the variables."""
# The embedded server's superuser is no user of the system.
_PREAMBLE = """
set -euo pipefail
su() { PGUSER=intraslice bash -c "$4"; }
"""


def command_blocks() -> dict[str, list[str]]:
    """Return the indented blocks of each part of the page, by the heading of the part."""
    page = (ROOT / "docs" / "backups.md").read_text("utf-8")
    parts = re.split(r"^## (.*)\n", page, flags=re.M)
    names, texts = [SETTINGS, *parts[1::2]], parts[::2]
    return {
        name: [textwrap.dedent(block) for block in _BLOCK.findall(text)]
        for name, text in zip(names, texts, strict=True)
    }


@dataclass(frozen=True, kw_only=True)
class Runbook:
    """The operator's shell.

    Args:
        directory: current directory.
        environment: of the deployment.
        overrides: variables of the runbook that name servers and places of this machine.
    """

    directory: Path
    environment: dict[str, str]
    overrides: dict[str, str]

    def run(self, heading: str, block: int | None = None, *, fails: bool = False) -> str:
        """Run one block of a part, or all, and return what it printed.

        Args:
            heading: of the part.
            block: index of the block; None for all blocks.
            fails: True if the last command must exit with 1.
        """
        blocks = command_blocks()
        chosen = blocks[heading] if block is None else [blocks[heading][block]]
        return self.shell("\n".join(chosen), fails=fails)

    def shell(self, commands: str, *, fails: bool = False) -> str:
        """Run commands in the operator's shell and return what they printed."""
        (settings,) = command_blocks()[SETTINGS]
        overrides = "".join(f"export {name}='{value}'\n" for name, value in self.overrides.items())
        done = subprocess.run(
            ["bash", "-c", _PREAMBLE + settings + overrides + commands],
            cwd=self.directory,
            env=self._environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert done.returncode == (1 if fails else 0), (commands, done.stdout)
        return done.stdout

    def _environment(self) -> dict[str, str]:
        programs = [Path(sys.executable).parent, bin_directory(server_owner())]
        # Certificates and proxies of this machine are not those of a deployment.
        foreign = re.compile("INTRASLICE|AWS_CA_BUNDLE|_PROXY", re.IGNORECASE)
        inherited = {name: value for name, value in os.environ.items() if not foreign.search(name)}
        return inherited | {
            **self.environment,
            "PATH": ":".join([*map(str, programs), os.environ["PATH"]]),
            "PYTHONPATH": str(ROOT),
            "RCLONE_CONFIG": "/dev/null",
        }
