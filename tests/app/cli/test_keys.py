"""`intraslice keys`: the first key is created with the database alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from click.testing import Result
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from app.cli.main import app
from app.domain.api_key import is_secret
from app.domain.principal import OPERATOR
from app.main import create_app
from app.services.audit import list_audit
from app.services.resources import Resources
from app.settings import Settings, get_settings

pytestmark = [pytest.mark.postgres, pytest.mark.broker]
Run = Callable[..., Result]


@pytest.fixture
def run(settings: Settings) -> Iterator[Run]:
    """The command with the environment of a deployment."""
    environment = {
        "INTRASLICE_DATABASE_URL": settings.database_url,
        "INTRASLICE_DATA_DIR": str(settings.data_dir),
        "COLUMNS": "200",
    }

    def command(*arguments: str) -> Result:
        get_settings.cache_clear()
        return CliRunner().invoke(app, ["keys", *arguments], env=environment)

    yield command
    get_settings.cache_clear()


def test_the_first_key_is_created_listed_used_and_revoked(run: Run, settings: Settings) -> None:
    created = run(
        "create",
        "ci [bold]pipeline[/bold]",
        "--scope",
        "read",
        "--project",
        "search",
        "--days",
        "30",
    )
    assert created.exit_code == 0, created.stderr
    secret = created.stdout.strip()
    assert is_secret(secret)
    key_id = created.stderr.partition(":")[0]
    listed = run("list", "--project", "search")
    for shown in (key_id, "ci [bold]pipeline[/bold]", "read", secret[:12], "until", "never"):
        assert shown in listed.stdout
    assert secret not in listed.stdout
    values = settings.model_dump() | {"auth": "on", "key_cache_seconds": 0}
    with TestClient(create_app(Settings(**values))) as client:
        headers = {"authorization": f"Bearer {secret}"}
        assert client.get("/v1/jobs", headers=headers).status_code == 200
        assert run("revoke", key_id).exit_code == 0
        assert client.get("/v1/jobs", headers=headers).status_code == 401
    assert "revoked" in run("list", "--project", "search").stdout


def test_changes_by_the_command_are_in_the_audit_log(run: Run, resources: Resources) -> None:
    secret = (created := run("create", "ci", "--project", "search")).stdout.strip()
    key_id = created.stderr.partition(":")[0]
    assert run("revoke", key_id).exit_code == 0
    run("list", "--project", "search")
    page = list_audit(resources, OPERATOR, project_id="search", limit=10, before=None)
    assert [(line.method, line.route, line.object_id, line.status) for line in page.data] == [
        ("CLI", "intraslice keys revoke", key_id, 200),
        ("CLI", "intraslice keys create", key_id, 201),
    ]
    assert secret not in repr(page)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("revoke", "key_" + "0" * 26), "There is no such key"),
        (("create", "x", "--project", "Not A Project"), "--project"),
        (("create", "x", "--scope", "everything"), "--scope"),
    ],
)
def test_failures_are_explained(run: Run, arguments: tuple[str, ...], complaint: str) -> None:
    done = run(*arguments)
    assert done.exit_code not in (0, None)
    assert complaint in done.stderr
    assert isinstance(done.exception, SystemExit)
    assert done.stdout == ""


def test_output_for_scripts_is_json(run: Run) -> None:
    made = json.loads(run("create", "ci", "--json").stdout)
    assert is_secret(made["secret"])
    (listed,) = json.loads(run("list", "--json").stdout)
    assert (listed["id"], "secret" in listed) == (made["id"], False)
