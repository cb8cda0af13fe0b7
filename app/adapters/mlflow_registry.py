"""Registers a checkpoint as a model version on an MLflow server."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from app.domain.errors import HandOffError
from app.domain.registry_hand_off import MANIFEST_TAG, CheckpointFacts, HandedOff
from intraslice_core.errors import ConfigurationError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

_EXPERIMENT = "intraslice"
_ARTIFACTS = "checkpoint"
_MAX_PARAMETER_LENGTH = 6000
"""MLflow's limit, in characters."""
_CLIENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
"""Defaults for the environment of MLflow's client: no telemetry, and two tries instead of seven,
because a worker retries by itself."""


def register_version(directory: Path, facts: CheckpointFacts, *, uri: str, name: str) -> HandedOff:
    """Upload the files to their own run and register them as a version of the model `name`.

    A checkpoint that is registered already, by the digest of its manifest, is not sent again. An
    interrupted run resumes.

    Raises:
        ConfigurationError: if MLflow's client is not installed.
        HandOffError: if the server rejects the files or does not answer.
    """
    client = _client(uri)
    with _explained(uri):
        version = _version_of(client, name, facts)
        if version is None:
            run = _run_of(client, facts, name)
            client.log_artifacts(run.info.run_id, str(directory), _ARTIFACTS)
            version = _new_version(client, name, run, facts)
            client.set_terminated(run.info.run_id, "FINISHED")
            return _handed_off(uri, version, new=True)
        return _handed_off(uri, version, new=False)


def _client(uri: str) -> MlflowClient:
    for name, value in _CLIENT.items():
        os.environ.setdefault(name, value)
    try:
        from mlflow import MlflowClient
    except ImportError as error:
        raise ConfigurationError(
            "MLflow's client is not installed", hint="pip install 'intraslice[mlflow]'"
        ) from error
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        reason = str(error).strip().splitlines()[0][:500]
        secret = urlsplit(uri).password
        reason = reason.replace(secret, "…") if secret else reason
        raise HandOffError(
            f"the MLflow server at {public_address(uri)} rejected the checkpoint: {reason}"
        ) from error


def public_address(uri: str) -> str:
    """Return the address of a server without user and password."""
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")


def _version_of(client: MlflowClient, name: str, facts: CheckpointFacts) -> ModelVersion | None:
    for version in client.search_model_versions(f"name = '{name}'"):
        if version.tags.get(MANIFEST_TAG) == facts.manifest_sha256:
            return version
    return None


def _run_of(client: MlflowClient, facts: CheckpointFacts, name: str) -> Run:
    """Return the run of this checkpoint; the first try creates it."""
    experiment = client.get_experiment_by_name(_EXPERIMENT)
    experiment_id = (
        experiment.experiment_id if experiment else client.create_experiment(_EXPERIMENT)
    )
    same_manifest = f"tags.`{MANIFEST_TAG}` = '{facts.manifest_sha256}'"
    runs: list[Run] = client.search_runs([experiment_id], same_manifest, max_results=1)
    if runs:
        return runs[0]
    run = client.create_run(experiment_id, tags=dict(facts.tags), run_name=name)
    _describe(client, run.info.run_id, facts)
    return run


def _describe(client: MlflowClient, run_id: str, facts: CheckpointFacts) -> None:
    from mlflow.entities import Metric, Param

    now = int(time.time() * 1000)
    client.log_batch(
        run_id,
        metrics=[Metric(key, value, now, 0) for key, value in facts.metrics.items()],
        params=[Param(key, value[:_MAX_PARAMETER_LENGTH]) for key, value in facts.settings.items()],
    )


def _new_version(client: MlflowClient, name: str, run: Run, facts: CheckpointFacts) -> ModelVersion:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return client.create_model_version(
        name,
        f"{run.info.artifact_uri}/{_ARTIFACTS}",
        run_id=run.info.run_id,
        tags=dict(facts.tags),
        description=f"{facts.tags['intraslice.model']}, compressed by IntraSlice",
    )


def _handed_off(uri: str, version: ModelVersion, *, new: bool) -> HandedOff:
    return HandedOff(
        reference=f"{version.name} version {version.version}",
        url=f"{public_address(uri)}/#/models/{version.name}/versions/{version.version}",
        new=new,
    )
