"""Options that name a place to write are checked before any work, in every command alike."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli.exit_codes import ExitCode
from app.cli.main import app
from tests.intraslice_core.test_files import unusable_paths

OPTIONS = {
    "compress --out": ("compress", "MODEL", "--out", "PATH"),
    "compress --resume-dir": ("compress", "MODEL", "--out", "OUT", "--resume-dir", "PATH"),
    "compress --offload-dir": ("compress", "MODEL", "--out", "OUT", "--offload-dir", "PATH"),
    "compress --plot": ("compress", "MODEL", "--out", "OUT", "--plot", "PATH"),
    "sweep --out": ("sweep", "MODEL", "--ratios", "0.1", "--out", "PATH"),
    "bench --out": ("bench", "MODEL", "--methods", "flap", "--ratios", "0.1", "--out", "PATH"),
    "sweep --offload-dir": (
        *("sweep", "MODEL", "--ratios", "0.1", "--out", "OUT", "--offload-dir", "PATH"),
    ),
    "recover --out": ("recover", "MODEL", "--teacher", "MODEL", "--out", "PATH"),
    "recover --resume-dir": (
        *("recover", "MODEL", "--teacher", "MODEL", "--out", "OUT", "--resume-dir", "PATH"),
    ),
    "report --out": ("report", "MODEL", "--out", "PATH"),
    "submit --download": ("submit", "package:some-model", "--download", "PATH"),
    "download DIR": ("download", "some-job", "PATH"),
}
"""Command lines by their option; the model is missing and no service runs, so any work fails."""


@pytest.mark.parametrize("option", OPTIONS)
def test_unusable_path_is_the_first_error(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INTRASLICE_URL", "http://127.0.0.1:9")
    paths = unusable_paths(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for path, reason in paths.values():
        places = {"PATH": path, "MODEL": tmp_path / "no-model", "OUT": tmp_path / "out"}
        line = [str(places.get(word, word)) for word in OPTIONS[option]]
        result = CliRunner().invoke(app, line)
        assert result.exit_code == ExitCode.BAD_INPUT, (option, path, result.exception)
        (error,) = result.stderr.splitlines()
        assert error.startswith(f"error: {option.split()[1]}: {str(path)[:100]}")
        assert reason in error
    assert sorted(tmp_path.rglob("*")) == before
