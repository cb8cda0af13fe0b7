"""Deployment files, as far as they can be tested without Docker."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from app.settings import Settings
from tests.deployment.compose import (
    OPTIONAL,
    REPOSITORY,
    MissingVariableError,
    example_environment,
    filled_environment,
    load,
)

SCHEMA = Path(__file__).with_name("compose-spec") / "compose-spec.json"
OURS = ("migrate", "api", "worker", "scheduler")
SECRETS = {
    "INTRASLICE_API_KEY",
    "INTRASLICE_SIGNING_KEY",
    "POSTGRES_PASSWORD",
    "VALKEY_PASSWORD",
    "S3_SECRET_KEY",
}


def test_compose_file_follows_the_specification() -> None:
    schema = json.loads(SCHEMA.read_text())
    document = load(filled_environment())
    # Extension fields are allowed at the top level.
    jsonschema.Draft7Validator(schema).validate(document)
    document["services"]["api"]["no_such_field"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(schema).validate(document)


@pytest.mark.parametrize("secret", sorted(SECRETS))
def test_compose_does_not_start_without_each_secret(secret: str) -> None:
    assert example_environment()[secret] == ""
    with pytest.raises(MissingVariableError, match=secret):
        load(filled_environment() | {secret: ""})


def test_the_file_contains_no_secret() -> None:
    filled = filled_environment()
    empty = {name for name, value in example_environment().items() if not value}
    assert empty == SECRETS | OPTIONAL
    for service in load(filled)["services"].values():
        for name, value in service.get("environment", {}).items():
            if any(word in name for word in ("KEY", "PASSWORD", "SECRET", "AUTH")):
                assert name == "AWS_ACCESS_KEY_ID" or value in filled.values(), name


def test_every_service_has_limits_a_health_check_and_its_dependencies() -> None:
    services = load(filled_environment())["services"]
    assert set(services) == {*OURS, "postgres", "valkey", "s3"}
    for name, service in services.items():
        assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}, name
        assert service["healthcheck"], name
        for dependency in service.get("depends_on", {}):
            assert dependency in services
    for name in ("api", "worker", "scheduler"):
        conditions = {
            key: dependency["condition"] for key, dependency in services[name]["depends_on"].items()
        }
        assert conditions["migrate"] == "service_completed_successfully"
    for name in OURS:
        assert services[name]["read_only"] is True
        assert services[name]["cap_drop"] == ["ALL"]
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published == {"api": ["127.0.0.1:8000:8000"], "s3": ["127.0.0.1:8333:8333"]}


def test_clients_get_files_from_the_api_unless_the_store_is_made_public() -> None:
    names = ("INTRASLICE_DOWNLOADS", "INTRASLICE_STORE_PUBLIC_ENDPOINT")
    example = load(filled_environment())["services"]["api"]["environment"]
    assert [example[name] for name in names] == ["proxy", "http://127.0.0.1:8333"]
    # An older .env file has neither line: the empty values are the settings' defaults.
    older = load(filled_environment() | dict.fromkeys(names, ""))["services"]["api"]["environment"]
    assert [older[name] for name in names] == ["", ""]


def test_the_playground_is_off_until_the_operator_switches_it_on() -> None:
    filled = filled_environment()
    # An older .env file does not name it.
    for given, passed in (("false", "false"), ("", "false"), ("true", "true")):
        services = load(filled | {"INTRASLICE_PLAYGROUND": given})["services"]
        # The API accepts prompts, and workers answer them.
        for name in ("api", "worker"):
            assert services[name]["environment"]["INTRASLICE_PLAYGROUND"] == passed
    assert filled["INTRASLICE_PLAYGROUND"] == "false"


def test_environment_variables_name_existing_settings() -> None:
    existing = {f"INTRASLICE_{name.upper()}" for name in Settings.model_fields}
    for name in OURS:
        environment = load(filled_environment())["services"][name]["environment"]
        ours = {key for key in environment if key.startswith("INTRASLICE_")}
        assert ours <= existing, ours - existing


def test_dockerfile_passes_the_linter_and_drops_root() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [linter, REPOSITORY / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")
    text = (REPOSITORY / "Dockerfile").read_text()
    assert "\nUSER 10001\n" in text.rpartition("\nFROM ")[2]


def test_the_image_contains_every_package() -> None:
    dockerfile = (REPOSITORY / "Dockerfile").read_text()
    allowed = (REPOSITORY / ".dockerignore").read_text().split()
    for package in ("app", "workers", "intraslice_client", "intraslice_core", "migrations"):
        assert f"COPY {package} {package}\n" in dockerfile
        assert f"!{package}" in allowed
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.MULTILINE)
    for file in " ".join(copied).split():
        assert f"!{file}" in allowed


def test_both_stages_use_one_base_image_pinned_by_digest() -> None:
    dockerfile = (REPOSITORY / "Dockerfile").read_text()
    image = r"docker\.io/library/python:3\.11\.\d+-slim-bookworm@sha256:[0-9a-f]{64}"
    assert re.search(f"^ARG BASE_IMAGE={image}$", dockerfile, re.MULTILINE)
    assert re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE) == ["${BASE_IMAGE}"] * 2


def test_every_installation_in_the_image_is_pinned_and_reads_the_given_pip_configuration() -> None:
    lines = (REPOSITORY / "Dockerfile").read_text().replace("\\\n", "").splitlines()
    installing = [line.removeprefix("RUN ") for line in lines if "pip install" in line]
    assert len(installing) == 3
    for step in installing:
        assert step.startswith("--mount=type=secret,id=pip.conf,target=/etc/pip.conf ")
    (dependencies,) = (step for step in installing if "requirements.txt" in step)
    assert "-c constraints.txt -c constraints-cuda.txt -r requirements.txt" in dependencies


def test_env_files_stay_out_of_the_repository() -> None:
    assert ".env" in (REPOSITORY / ".gitignore").read_text().split()


def test_compose_trusts_no_proxy_and_allows_no_hub_model_by_default() -> None:
    for name, default, variable in (
        ("FORWARDED_ALLOW_IPS", "127.0.0.1", "10.1.2.3"),
        ("INTRASLICE_HUB_ALLOW", "[]", '["meta-llama/*"]'),
        ("INTRASLICE_HUB_DATA_ALLOW", "[]", '["wikitext"]'),
    ):
        assert example_environment()[name] == default
        for value in (default, variable):
            services = load(filled_environment() | {name: value})["services"]
            assert services["api"]["environment"][name] == value


def test_tmpfs_options_are_those_that_podman_accepts_too() -> None:
    for name, service in load(filled_environment())["services"].items():
        for entry in service.get("tmpfs", []):
            _, _, options = entry.partition(":")
            names = {option.partition("=")[0] for option in options.split(",") if option}
            assert names <= {"mode", "size", "ro", "rw", "exec", "noexec"}, (name, entry)
