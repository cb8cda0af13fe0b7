"""Reader of examples/kubernetes: the manifests as files, and as kubectl renders an overlay."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.deployment.compose import REPOSITORY

PLACE = REPOSITORY / "examples" / "kubernetes"
KUBECTL = shutil.which("kubectl")
Manifest = dict[str, Any]


@cache
def kustomization(folder: str) -> Manifest:
    """Return the kustomization of a folder."""
    loaded: Manifest = yaml.safe_load((PLACE / folder / "kustomization.yaml").read_text())
    return loaded


def folders() -> list[str]:
    """Return every folder that has a kustomization."""
    files = sorted(PLACE.rglob("kustomization.yaml"))
    return [str(file.parent.relative_to(PLACE)) for file in files]


def manifests(*kinds: str) -> Iterator[Manifest]:
    """Yield the manifests of these kinds, or all, from the files that kustomizations list."""
    for folder in folders():
        for name in kustomization(folder).get("resources", ()):
            if not name.endswith(".yaml"):
                continue
            for document in yaml.safe_load_all((PLACE / folder / name).read_text()):
                if not kinds or document["kind"] in kinds:
                    yield document


def render(overlay: str, directory: Path) -> list[Manifest]:
    """Return the manifests of an overlay, whose secrets are filled in."""
    copy = directory / "kubernetes"
    if not copy.exists():
        shutil.copytree(PLACE, copy)
        example = (copy / "base" / "secrets.env.example").read_text()
        (copy / "base" / "secrets.env").write_text(
            example.replace("=\n", "=filled-in-for-a-test\n")
        )
    done = subprocess.run(
        [str(KUBECTL), "kustomize", str(copy / "overlays" / overlay)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
    return list(yaml.safe_load_all(done.stdout))


def pod_spec(workload: Manifest) -> Manifest:
    """Return the pod specification of a Deployment or Job."""
    spec: Manifest = workload["spec"]["template"]["spec"]
    return spec


def labels(workload: Manifest) -> dict[str, str]:
    """Return the labels of a workload's pods."""
    pod_labels: dict[str, str] = workload["spec"]["template"]["metadata"]["labels"]
    return pod_labels


def selects(selector: Manifest, given: dict[str, str]) -> bool:
    """Return whether a label selector matches labels."""
    exact = selector.get("matchLabels", {}).items() <= given.items()
    return exact and all(
        expression["operator"] == "In" and given.get(expression["key"]) in expression["values"]
        for expression in selector.get("matchExpressions", ())
    )


def variables(file: str) -> dict[str, str]:
    """Return the variables of an environment file of the base."""
    lines = (PLACE / "base" / file).read_text().splitlines()
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name: value for name, _, value in pairs}
