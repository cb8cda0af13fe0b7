"""Run several commands in one process, each with an environment of its own.

Reads a JSON list of `[arguments, environment]` from stdin and writes a list of `[exit code, stderr,
exception]` to stdout. Starting a process for each command would take seconds.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from typer.testing import CliRunner

from app.cli.main import app
from app.settings import get_settings


def invoke(arguments: list[str], environment: dict[str, str]) -> list[Any]:
    get_settings.cache_clear()
    for name in [name for name in os.environ if name.startswith(("INTRASLICE_", "AWS_"))]:
        del os.environ[name]
    done = CliRunner().invoke(app, arguments, env=environment)
    unexpected = None if isinstance(done.exception, SystemExit | None) else repr(done.exception)
    return [done.exit_code, done.stderr, unexpected]


if __name__ == "__main__":
    print(json.dumps([invoke(*case) for case in json.load(sys.stdin)]))
