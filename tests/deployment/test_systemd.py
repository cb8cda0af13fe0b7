"""Units of examples/systemd: valid, confined, and consistent with the commands and settings."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest
import typer

from app.cli.main import app
from app.settings import Settings
from tests.deployment.compose import REPOSITORY

PLACE = REPOSITORY / "examples" / "systemd"
SERVICES = sorted((PLACE / "system").glob("*.service"))
PROGRAM = "/opt/intraslice/bin/intraslice"
FOREIGN_VARIABLES = {"CUDA_VISIBLE_DEVICES", "HF_HOME"}
MAX_EXPOSURE = "20"
"""Greatest exposure that `systemd-analyze security` may report, in tenths; unconfined is 96."""
STOP_MARGIN_SECONDS = 10
needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)
each_service = pytest.mark.parametrize("file", SERVICES, ids=lambda file: file.stem)


def directives(file: Path) -> dict[str, list[str]]:
    """Return the values of each directive in order; an option may occur several times."""
    values: dict[str, list[str]] = defaultdict(list)
    for line in file.read_text().splitlines():
        if line and line[0] not in "#[":
            name, _, value = line.partition("=")
            values[name].append(value)
    return values


def environment(file: Path) -> dict[str, str]:
    pairs = (value.partition("=") for value in directives(file)["Environment"])
    return {name: value for name, _, value in pairs}


def drain_seconds(file: Path) -> float:
    """Return the time that the process may take to stop by its settings."""
    given = environment(file)
    notice, drain = (
        float(given.get(f"INTRASLICE_{name.upper()}", Settings.model_fields[name].default))
        for name in ("drain_notice_seconds", "drain_seconds")
    )
    # A worker grants the drain time to its engine, then to a hand-off.
    return 2 * drain if "worker" in file.name else notice + drain


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """Directory with the units, whose program exists."""
    program = tmp_path / "bin" / "intraslice"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    units = tmp_path / "units"
    shutil.copytree(PLACE / "system", units)
    for file in units.glob("*.service"):
        file.write_text(file.read_text().replace(PROGRAM, str(program)))
    return units


def analyze(units: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    files = [f"./{file.name}" for file in sorted(units.glob("*.service"))]
    return subprocess.run(
        ["systemd-analyze", *arguments, *files],
        cwd=units,
        env={**os.environ, "SYSTEMD_COLORS": "0", "LC_ALL": "C"},
        capture_output=True,
        text=True,
        timeout=60,
    )


@needs_systemd
def test_systemd_accepts_every_unit_without_a_warning(installed: Path) -> None:
    done = analyze(installed, "verify", "--man=no")
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    file = installed / "intraslice-api.service"
    file.write_text(file.read_text().replace("KillMode=", "KilMode="))
    assert "KilMode" in analyze(installed, "verify", "--man=no").stderr


@needs_systemd
def test_every_service_is_confined(installed: Path) -> None:
    done = analyze(installed, "security", "--offline=true", f"--threshold={MAX_EXPOSURE}")
    assert done.returncode == 0, done.stdout


@each_service
def test_every_service_runs_an_existing_command_as_its_own_user(file: Path) -> None:
    values = directives(file)
    (command,) = values["ExecStart"]
    program, name = command.split()
    assert program == PROGRAM
    assert name in getattr(typer.main.get_command(app), "commands", {})
    assert values["User"] == values["Group"] == ["intraslice"]
    assert values["EnvironmentFile"] == ["/etc/intraslice/intraslice.env"]
    assert values["StateDirectory"] == ["intraslice"]
    assert environment(file)["INTRASLICE_DATA_DIR"] == "/var/lib/intraslice"


@each_service
def test_every_variable_names_a_setting(file: Path) -> None:
    settings = {f"INTRASLICE_{name.upper()}" for name in Settings.model_fields}
    named = set(environment(file)) | set(environment_file())
    assert named - settings - FOREIGN_VARIABLES == set()


@each_service
def test_settings_of_a_unit_are_valid(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled = {name: value or "a-generated-key-for-tests" for name, value in required().items()}
    for name, value in {**environment_file(), **filled, **environment(file)}.items():
        monkeypatch.setenv(name, value.replace("%i", "9"))
    settings = Settings()
    assert settings.api_key is not None
    assert settings.api_key_previous is None
    assert settings.worker_metrics_port in (0, 9189, 9190)


@each_service
def test_a_stopping_service_has_its_drain_time(file: Path) -> None:
    values = directives(file)
    if values["Type"] == ["oneshot"]:
        assert values["RemainAfterExit"] == ["true"]
        return
    assert float(values["TimeoutStopSec"][0]) >= drain_seconds(file) + STOP_MARGIN_SECONDS
    assert values["KillSignal"] == ["SIGTERM"]
    assert values["KillMode"] == ["mixed"], "the engine must not get the signal a second time"
    assert values["Restart"] == ["always"]
    assert set(values["After"][0].split()) >= {"intraslice-migrate.service"}
    # Drain times in the environment file would win over those of the unit.
    assert not [name for name in environment_file() if "DRAIN" in name]


def test_the_target_starts_and_stops_every_service() -> None:
    for file in SERVICES:
        values = directives(file)
        assert values["PartOf"] == ["intraslice.target"]
        assert values["WantedBy"] == ["intraslice.target"]
    readme = (PLACE / "README.md").read_text()
    enabled = set(
        re.findall(r"intraslice-\w+", " ".join(re.findall(r"systemctl enable .*", readme)))
    )
    assert enabled == {file.stem.rstrip("@") for file in SERVICES}


def test_the_readme_installs_every_file_and_keeps_the_keys_private() -> None:
    readme = (PLACE / "README.md").read_text()
    for file in (path for path in PLACE.rglob("*") if path.is_file() and path.name != "README.md"):
        assert f"`{file.relative_to(PLACE)}`" in readme
    assert (
        "install -m 0600 examples/systemd/intraslice.env /etc/intraslice/intraslice.env" in readme
    )
    assert (
        "z     /etc/intraslice/intraslice.env  0600 root root"
        in (PLACE / "tmpfiles.d" / "intraslice.conf").read_text()
    )


def test_the_documented_steps_fill_in_the_keys(tmp_path: Path) -> None:
    """Run the two documented commands on a copy."""
    file = tmp_path / "intraslice.env"
    shutil.copy(PLACE / "intraslice.env", file)
    readme = (PLACE / "README.md").read_text()
    commands = re.findall(r"^    (sed -i .+)$", readme, re.M)
    assert len(commands) == 2
    for command in commands:
        here = command.replace("/etc/intraslice/intraslice.env", str(file))
        subprocess.run(["sh", "-c", here], check=True, timeout=60)
    values = environment_file(file)
    keys = [values["INTRASLICE_API_KEY"], values["INTRASLICE_SIGNING_KEY"]]
    assert all(re.fullmatch("[0-9a-f]{64}", key) for key in keys)
    assert values["INTRASLICE_API_KEY_PREVIOUS"] == ""


@needs_systemd
def test_user_and_directories_are_created_by_the_snippets(tmp_path: Path) -> None:
    if shutil.which("systemd-sysusers") is None or os.geteuid() != 0:
        pytest.skip("needs systemd-sysusers and root")
    for tool in ("sysusers", "tmpfiles"):
        there = tmp_path / "usr" / "lib" / f"{tool}.d"
        there.mkdir(parents=True)
        shutil.copy(PLACE / f"{tool}.d" / "intraslice.conf", there)
    (tmp_path / "etc" / "intraslice").mkdir(parents=True)
    (tmp_path / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (tmp_path / "etc" / "group").write_text("root:x:0:\n")
    file = tmp_path / "etc" / "intraslice" / "intraslice.env"
    file.write_text("INTRASLICE_API_KEY=x\n")
    file.chmod(0o644)
    for command in (["systemd-sysusers"], ["systemd-tmpfiles", "--create"]):
        done = subprocess.run(
            [*command, f"--root={tmp_path}", "intraslice.conf"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
    account = (tmp_path / "etc" / "passwd").read_text().splitlines()[-1].split(":")
    assert (account[0], account[5], account[6]) == (
        "intraslice",
        "/var/lib/intraslice",
        "/usr/sbin/nologin",
    )
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o750


def environment_file(file: Path = PLACE / "intraslice.env") -> dict[str, str]:
    """Return the variables of an environment file."""
    lines = (line for line in file.read_text().splitlines() if line and not line.startswith("#"))
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def required() -> dict[str, str]:
    """Return the variables of the example that have to be filled in."""
    names = ("INTRASLICE_API_KEY", "INTRASLICE_SIGNING_KEY")
    return {name: environment_file()[name] for name in names}
