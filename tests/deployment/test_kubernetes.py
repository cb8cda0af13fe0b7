"""Manifests of examples/kubernetes: valid, confined, and consistent with commands and settings."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import psycopg
import pytest
import typer

from app.adapters.database.migrate import upgrade
from app.api.routes import health
from app.api.routes import metrics as api_metrics
from app.cli.main import app
from app.domain.lifecycle import LEASED, State
from app.settings import Settings
from app.telemetry import metrics
from tests.deployment.compose import REPOSITORY
from tests.deployment.kubernetes import (
    KUBECTL,
    PLACE,
    Manifest,
    folders,
    kustomization,
    labels,
    manifests,
    pod_spec,
    render,
    selects,
    variables,
)

kubernetes_validate = pytest.importorskip("kubernetes_validate")

KUBERNETES = ("1.31", "1.37")
"""Oldest and newest version of the schemas that the manifests must satisfy."""
WORKLOADS = list(manifests("Deployment", "Job"))
DEPLOYMENTS = list(manifests("Deployment"))
FOREIGN_VARIABLES = {
    *("AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    "FORWARDED_ALLOW_IPS",
}
OVERLAYS = ("cpu", "production")
needs_kubectl = pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")
each_workload = pytest.mark.parametrize(
    "workload", WORKLOADS, ids=[workload["metadata"]["name"] for workload in WORKLOADS]
)

_STRING = {"type": "string"}
_POSITIVE = {"type": "integer", "minimum": 1}
_NAME = {"type": "object", "required": ["name"], "properties": {"name": _STRING}}


def _closed(required: tuple[str, ...], **properties: Any) -> Manifest:
    """Return the schema of an object with these properties only."""
    return {
        "type": "object",
        "required": list(required),
        "additionalProperties": False,
        "properties": properties,
    }


def _resource(version: str, spec: Manifest) -> Manifest:
    metadata = _closed(("name",), name=_STRING, namespace=_STRING)
    return _closed(
        ("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": version},
        kind=_STRING,
        metadata=metadata,
        spec=spec,
    )


_POLICY = _closed(
    ("type", "value", "periodSeconds"),
    type={"enum": ["Pods", "Percent"]},
    value=_POSITIVE,
    periodSeconds={"type": "integer", "minimum": 1, "maximum": 1800},
)
_SCALE_DOWN = _closed(
    (),
    stabilizationWindowSeconds={"type": "integer", "minimum": 0, "maximum": 3600},
    policies={"type": "array", "minItems": 1, "items": _POLICY},
)
_TRIGGER = _closed(
    ("type", "metadata"),
    type={"const": "prometheus"},
    metadata=_closed(
        ("serverAddress", "query", "threshold"),
        serverAddress=_STRING,
        query=_STRING,
        threshold=_STRING,
        ignoreNullValues={"enum": ["true", "false"]},
    ),
    authenticationRef=_NAME,
)
_HPA = _closed((), behavior=_closed((), scaleDown=_SCALE_DOWN, scaleUp=_SCALE_DOWN))
_CREDENTIALS = _closed(("name", "key"), name=_STRING, key=_STRING)
_ENDPOINT = _closed(
    ("port",),
    port=_STRING,
    path=_STRING,
    interval={"type": "string", "pattern": "^[0-9]+s$"},
    authorization=_closed(("credentials",), type={"const": "Bearer"}, credentials=_CREDENTIALS),
)
CUSTOM_RESOURCES = {
    "ScaledObject": _resource(
        "keda.sh/v1alpha1",
        _closed(
            ("scaleTargetRef", "triggers"),
            scaleTargetRef=_closed(("name",), name=_STRING, kind=_STRING, apiVersion=_STRING),
            minReplicaCount={"type": "integer", "minimum": 0},
            maxReplicaCount=_POSITIVE,
            pollingInterval=_POSITIVE,
            advanced=_closed((), horizontalPodAutoscalerConfig=_HPA),
            triggers={"type": "array", "minItems": 1, "items": _TRIGGER},
        ),
    ),
    "PodMonitor": _resource(
        "monitoring.coreos.com/v1",
        _closed(
            ("selector", "podMetricsEndpoints"),
            selector={"type": "object"},
            podMetricsEndpoints={"type": "array", "minItems": 1, "items": _ENDPOINT},
        ),
    ),
}
"""Schemas of the fields that the examples use; the package has Kubernetes' own resources only."""


def validate(manifest: Manifest) -> None:
    schema = CUSTOM_RESOURCES.get(manifest["kind"])
    if schema is not None:
        jsonschema.Draft202012Validator(schema).validate(manifest)
        return
    for version in KUBERNETES:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_every_manifest_satisfies_the_schemas_of_kubernetes() -> None:
    documents = list(manifests())
    assert len(documents) > 15
    for document in documents:
        validate(document)


def test_an_unknown_field_is_noticed() -> None:
    for document in manifests("Deployment", "Ingress", "ScaledObject", "PodMonitor"):
        document["spec"]["noSuchField"] = 1
        with pytest.raises((kubernetes_validate.ValidationError, jsonschema.ValidationError)):
            validate(document)


@pytest.fixture(scope="module")
def overlays(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Manifest]]:
    """Manifests of every overlay, rendered by kubectl."""
    directory = tmp_path_factory.mktemp("rendered")
    return {overlay: render(overlay, directory) for overlay in OVERLAYS}


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubectl_renders_every_overlay_validly(
    overlay: str, overlays: dict[str, list[Manifest]]
) -> None:
    rendered = overlays[overlay]
    for document in rendered:
        validate(document)
    names = {(document["kind"], document["metadata"]["name"]) for document in rendered}
    assert len(names) == len(rendered)
    for document in rendered:
        if document["kind"] != "Namespace":
            assert document["metadata"].get("namespace") == "intraslice", document
    for workload in (doc for doc in rendered if doc["kind"] in ("Deployment", "Job")):
        _check_references(pod_spec(workload), names)


def _check_references(spec: Manifest, names: set[tuple[str, str]]) -> None:
    for container in (*spec["containers"], *spec.get("initContainers", ())):
        for source in container["envFrom"]:
            for kind, key in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
                assert key not in source or (kind, source[key]["name"]) in names
    for volume in spec["volumes"]:
        if "configMap" in volume:
            assert ("ConfigMap", volume["configMap"]["name"]) in names
        if "persistentVolumeClaim" in volume:
            claim = volume["persistentVolumeClaim"]["claimName"]
            assert ("PersistentVolumeClaim", claim) in names


@needs_kubectl
def test_overlays_differ_in_gpus_images_and_replicas(overlays: dict[str, list[Manifest]]) -> None:
    workers = {
        overlay: next(
            document
            for document in documents
            if (document["kind"], document["metadata"]["name"])
            == ("Deployment", "intraslice-worker")
        )
        for overlay, documents in overlays.items()
    }
    assert "nvidia" not in str(workers["cpu"])
    assert workers["cpu"]["spec"]["replicas"] == 1
    assert "replicas" not in workers["production"]["spec"], "KEDA sets it"
    (gpu,) = pod_spec(workers["production"])["containers"]
    assert gpu["resources"]["limits"]["nvidia.com/gpu"] == "1"
    version = importlib.metadata.version("intraslice")
    for overlay, documents in overlays.items():
        images = set(re.findall(r"'image': '([^']+)'", str(documents)))
        registry = "" if overlay == "cpu" else "registry.example.com/"
        tags = {version} if overlay == "cpu" else {version, f"{version}-cuda"}
        assert images == {f"{registry}intraslice:{tag}" for tag in tags}
    settings = [doc for doc in overlays["production"] if "settings" in doc["metadata"]["name"]]
    assert settings[0]["data"]["INTRASLICE_MODEL_ROOTS"] == '["/models"]'


def test_kustomizations_list_every_file() -> None:
    for folder in folders():
        listed = set(kustomization(folder).get("resources", ()))
        files = {file.name for file in (PLACE / folder).glob("*.yaml")} - {"kustomization.yaml"}
        assert {name for name in listed if name.endswith(".yaml")} == files
    names = {image["name"] for image in kustomization("base")["images"]}
    used = {
        container["image"]
        for workload in WORKLOADS
        for container in pod_spec(workload)["containers"]
    }
    assert used == names


@each_workload
def test_every_workload_runs_an_existing_command_without_privileges(workload: Manifest) -> None:
    spec = pod_spec(workload)
    (container,) = spec["containers"]
    program, command = container["command"]
    assert program == "intraslice"
    assert command in getattr(typer.main.get_command(app), "commands", {})
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False, "INTRASLICE_API_PORT=tcp://… is no setting"
    user = f"\nUSER {spec['securityContext']['runAsUser']}\n"
    assert user in (REPOSITORY / "Dockerfile").read_text()
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    writable = {volume["name"] for volume in spec["volumes"] if "emptyDir" in volume}
    for confined in (container, *spec.get("initContainers", ())):
        assert confined["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert confined["resources"]["requests"].keys() >= {"cpu", "memory"}
        assert "memory" in confined["resources"]["limits"]
        mounts = {mount["mountPath"]: mount["name"] for mount in confined["volumeMounts"]}
        assert {mounts["/var/lib/intraslice"], mounts["/tmp"]} == writable


@each_workload
def test_selectors_match_the_pods(workload: Manifest) -> None:
    given = labels(workload)
    spec = workload["spec"]
    if workload["kind"] == "Deployment":
        assert selects(spec["selector"], given)
    for constraint in pod_spec(workload).get("topologySpreadConstraints", ()):
        assert selects(constraint["labelSelector"], given)


def test_everything_that_selects_pods_selects_some() -> None:
    pods = [labels(workload) for workload in WORKLOADS]
    for document in manifests("PodDisruptionBudget", "PodMonitor", "NetworkPolicy", "Service"):
        spec = document["spec"]
        selector = spec.get("podSelector") or spec["selector"]
        if document["kind"] == "Service":
            selector = {"matchLabels": selector}
        matching = [given for given in pods if selects(selector, given)]
        assert matching, document["metadata"]["name"]
        if document["kind"] == "PodDisruptionBudget":
            assert len(matching) == 1
    default = next(doc for doc in manifests("NetworkPolicy") if "default" in str(doc["metadata"]))
    assert all(selects(default["spec"]["podSelector"], given) for given in pods)


def test_ports_and_probes_exist() -> None:
    routes = {route.path for module in (health, api_metrics) for route in module.router.routes}
    ports: set[str] = set()
    for deployment in DEPLOYMENTS:
        (container,) = pod_spec(deployment)["containers"]
        (port,) = container["ports"]
        ports.add(port["name"])
        setting = "PORT" if port["name"] == "http" else "WORKER_METRICS_PORT"
        assert str(port["containerPort"]) == variables("settings.env")[f"INTRASLICE_{setting}"]
        for name in ("startupProbe", "livenessProbe", "readinessProbe"):
            if name in container:
                assert container[name]["httpGet"]["port"] == port["name"]
                assert container[name]["httpGet"]["path"] in routes
    named = re.findall(r"\bport: (?:\{name: )?([a-z]+)|targetPort: ([a-z]+)", _all_text())
    assert {first or second for first, second in named} == ports == {"http", "metrics"}


def _all_text() -> str:
    return "\n".join(file.read_text() for file in sorted(PLACE.rglob("*.yaml")))


def test_environment_files_name_settings_and_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets, settings = variables("secrets.env.example"), variables("settings.env")
    setting_names = {f"INTRASLICE_{name.upper()}" for name in Settings.model_fields}
    assert (set(secrets) | set(settings)) - setting_names - FOREIGN_VARIABLES == set()
    assert set(secrets.values()) == {""}, "the example holds no secret"
    assert "secrets.env" in (REPOSITORY / ".gitignore").read_text().split()
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    for name in ("INTRASLICE_API_KEY", "INTRASLICE_SIGNING_KEY"):
        monkeypatch.setenv(name, f"a-generated-value-of-{name}")
        monkeypatch.setenv(f"{name}_PREVIOUS", "")
    assert Settings().api_key_previous is None
    assert settings["INTRASLICE_PLAYGROUND"] == "false"
    base = kustomization("base")
    generated = {
        generator["name"]: generator.get("envs", generator.get("files"))
        for generator in (*base["configMapGenerator"], *base["secretGenerator"])
    }
    assert generated["intraslice-settings"] == ["settings.env"]
    assert generated["intraslice-secrets"] == ["secrets.env"]
    for workload in WORKLOADS:
        _check_generated(pod_spec(workload), set(generated))


def _check_generated(spec: Manifest, generated: set[str]) -> None:
    for container in (*spec["containers"], *spec.get("initContainers", ())):
        names = {next(iter(source.values()))["name"] for source in container["envFrom"]}
        assert names == {"intraslice-settings", "intraslice-secrets"}
    for volume in spec["volumes"]:
        assert "configMap" not in volume or volume["configMap"]["name"] in generated


def test_pods_have_their_drain_time() -> None:
    settings = variables("settings.env")
    notice = float(settings["INTRASLICE_DRAIN_NOTICE_SECONDS"])
    drain = float(settings["INTRASLICE_DRAIN_SECONDS"])
    # A worker grants the drain time to its engine, then to a hand-off.
    needed = {"api": notice + drain, "worker": 2 * drain, "scheduler": 0.0}
    for deployment in DEPLOYMENTS:
        component = labels(deployment)["app.kubernetes.io/component"]
        grace = pod_spec(deployment)["terminationGracePeriodSeconds"]
        assert grace >= needed[component] + 15


def test_the_ingress_passes_parts_of_uploads_and_streams() -> None:
    (ingress,) = manifests("Ingress")
    given = {
        name.partition("/")[2]: value for name, value in ingress["metadata"]["annotations"].items()
    }
    megabytes = int(given["proxy-body-size"].removesuffix("m"))
    assert megabytes * 2**20 >= Settings.model_fields["upload_part_bytes"].default
    assert given["proxy-buffering"] == given["proxy-request-buffering"] == "off"
    (path,) = ingress["spec"]["rules"][0]["http"]["paths"]
    (service,) = manifests("Service")
    assert path["backend"]["service"]["name"] == service["metadata"]["name"]
    assert path["backend"]["service"]["port"]["name"] == service["spec"]["ports"][0]["name"]


def test_workers_are_scaled_by_the_jobs_that_need_one() -> None:
    (scaled,) = manifests("ScaledObject")
    target = scaled["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) in {
        (document["kind"], document["metadata"]["name"]) for document in DEPLOYMENTS
    }
    (trigger,) = scaled["spec"]["triggers"]
    query = re.search(r'(\w+)\{namespace="(\w+)",state=~"([\w|]+)"\}', trigger["metadata"]["query"])
    assert query
    assert query[1] == metrics.JOBS
    assert query[2] == kustomization("base")["namespace"]
    assert set(query[3].split("|")) == {State.QUEUED, *LEASED}
    assert (
        int(trigger["metadata"]["threshold"]) == Settings.model_fields["worker_concurrency"].default
    )
    assert trigger["metadata"]["ignoreNullValues"] == "false"


def test_the_documented_commands_name_existing_files_and_objects() -> None:
    pages = (PLACE / "README.md", REPOSITORY / "docs" / "deploy-kubernetes.md")
    text = "\n".join(page.read_text("utf-8") for page in pages)
    applied = re.findall(r"kubectl apply -k (\S+)", text)
    assert len(applied) >= 2
    for folder in applied:
        assert (REPOSITORY / folder / "kustomization.yaml").is_file()
    for source in re.findall(r"    cp (\S+) ", text):
        assert (REPOSITORY / source).is_file()
    names = {(doc["kind"].lower(), doc["metadata"]["name"]) for doc in manifests()}
    objects = re.findall(r"\b(deployment|job|service)/(intraslice-\w+)", text)
    objects += re.findall(r"delete (job) (intraslice-\w+)", text)
    assert len(objects) >= 5
    assert set(objects) <= names
    (monitor,) = (doc for doc in manifests("PodMonitor") if doc["metadata"]["name"].endswith("api"))
    secret = monitor["spec"]["podMetricsEndpoints"][0]["authorization"]["credentials"]
    assert f"secret generic {secret['name']} --from-literal={secret['key']}=" in text


@pytest.fixture
def empty_database(postgres_server: Any) -> Iterator[str]:
    """URL of a new database without a schema."""
    name = f"empty_{uuid.uuid4().hex}"
    with psycopg.connect(postgres_server.url.replace("+psycopg", ""), autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
        base, separator, query = postgres_server.url.partition("?")
        yield f"{base.rpartition('/')[0]}/{name}{separator}{query}"
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.postgres
@pytest.mark.broker
def test_the_init_container_waits_for_the_schema(
    empty_database: str, broker_url: str, tmp_path: Path
) -> None:
    (wait,) = (
        generator["files"]
        for generator in kustomization("base")["configMapGenerator"]
        if generator["name"] == "intraslice-wait"
    )
    program, script = pod_spec(DEPLOYMENTS[1])["initContainers"][0]["command"]
    assert (program, wait) == ("python", [Path(script).name])
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "INTRASLICE_DATABASE_URL": empty_database,
        "INTRASLICE_BROKER_URL": broker_url,
        "INTRASLICE_DATA_DIR": str(tmp_path),
    }
    waiting = subprocess.Popen(
        [sys.executable, PLACE / "base" / wait[0]],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert waiting.stderr is not None
        assert any(line.startswith("database: ") for line in waiting.stderr)
        assert waiting.poll() is None
        upgrade(Settings(database_url=empty_database))
        assert waiting.wait(60) == 0, waiting.stderr.read()
        waiting.stderr.close()
    finally:
        waiting.kill()
        waiting.wait()
