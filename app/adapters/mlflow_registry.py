"""A checkpoint as a model version of an MLflow server."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from app.domain.errors import HandOffError
from app.domain.hand_off import MANIFEST_TAG, CheckpointFacts, HandedOff
from intraslice_core.errors import ConfigurationError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

_EXPERIMENT = "intraslice"
_ARTIFACTS = "checkpoint"
_LONGEST_PARAMETER = 6000
"""Characters, of MLflow's own."""
_CLIENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
"""What MLflow's client reads, where it is not set: it would tell its makers of its use, and keep a
person waiting for seven tries; a worker tries again by itself."""


def register_version(directory: Path, facts: CheckpointFacts, *, uri: str, name: str) -> HandedOff:
    """Send the files to a run of their own and make a version of the model `name` of them.

    What is there already, by the digest of its manifest, is neither sent nor registered again; a
    run that was broken off is gone on with.

    Raises:
        ConfigurationError: if MLflow's client is not installed.
        HandOffError: if the server refuses or does not answer.
    """
    client = _client(uri)
    with _explained(uri):
        known = _version_of(client, name, facts)
        if known is None:
            run = _run_of(client, facts, name)
            client.log_artifacts(run.info.run_id, str(directory), _ARTIFACTS)
            known = _new_version(client, name, run, facts)
            client.set_terminated(run.info.run_id, "FINISHED")
            return _handed_off(uri, known, new=True)
        return _handed_off(uri, known, new=False)


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
            f"the MLflow server at {_shown(uri)} did not take it: {reason}"
        ) from error


def _shown(uri: str) -> str:
    """The address without user and password."""
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl().rstrip("/")


def _version_of(client: MlflowClient, name: str, facts: CheckpointFacts) -> ModelVersion | None:
    found = client.search_model_versions(f"name = '{name}'")
    same = (one for one in found if one.tags.get(MANIFEST_TAG) == facts.manifest_sha256)
    return next(same, None)


def _run_of(client: MlflowClient, facts: CheckpointFacts, name: str) -> Run:
    """The run for this checkpoint, made at the first try."""
    experiment = client.get_experiment_by_name(_EXPERIMENT)
    place = experiment.experiment_id if experiment else client.create_experiment(_EXPERIMENT)
    same = f"tags.`{MANIFEST_TAG}` = '{facts.manifest_sha256}'"
    found: list[Run] = client.search_runs([place], same, max_results=1)
    if found:
        return found[0]
    run = client.create_run(place, tags=dict(facts.tags), run_name=name)
    _describe(client, run.info.run_id, facts)
    return run


def _describe(client: MlflowClient, run_id: str, facts: CheckpointFacts) -> None:
    from mlflow.entities import Metric, Param

    now = int(time.time() * 1000)
    client.log_batch(
        run_id,
        metrics=[Metric(key, value, now, 0) for key, value in facts.metrics.items()],
        params=[Param(key, value[:_LONGEST_PARAMETER]) for key, value in facts.settings.items()],
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
        url=f"{_shown(uri)}/#/models/{version.name}/versions/{version.version}",
        new=new,
    )
