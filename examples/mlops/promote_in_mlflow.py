"""Register a checkpoint with MLflow, and let it be the one that is served if it is good enough.

    python promote_in_mlflow.py DIR --mlflow URI [--most 1.5] [--alias smaller]

`intraslice register` makes the model version, with the settings and figures of the report. Here
the worst of its perplexity ratios (compressed over dense, by text) decides whether the alias is
moved to it; whoever serves `models:/NAME@smaller` gets it from then on:

    mlflow.artifacts.download_artifacts("models:/NAME@smaller")   # a directory for transformers

Exit code 1: it is registered, and not good enough.
"""

import argparse
import json
import subprocess
import sys

from mlflow import MlflowClient


def register(directory: str, uri: str) -> tuple[str, str]:
    """Name and version."""
    command = ["intraslice", "register", directory, "--mlflow", uri, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    name, _, version = json.loads(done.stdout)["reference"].partition(" version ")
    return name, version


def worst_ratio(client: MlflowClient, name: str, version: str) -> float:
    """The largest of its perplexity ratios; infinite if none was measured."""
    run = client.get_run(client.get_model_version(name, version).run_id)
    found = run.data.metrics
    texts = {key.split("/")[1] for key in found if key.startswith("perplexity/")}
    ratios = [
        found[f"perplexity/{text}/compressed"] / found[f"perplexity/{text}/dense"] for text in texts
    ]
    return max(ratios, default=float("inf"))


def main() -> int:
    """Register, look, promote."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory")
    parser.add_argument("--mlflow", required=True, metavar="URI")
    parser.add_argument("--most", type=float, default=1.5, help="perplexity, compressed over dense")
    parser.add_argument("--alias", default="smaller")
    arguments = parser.parse_args()
    client = MlflowClient(tracking_uri=arguments.mlflow, registry_uri=arguments.mlflow)
    name, version = register(arguments.directory, arguments.mlflow)
    ratio = worst_ratio(client, name, version)
    if ratio > arguments.most:
        print(f"{name} version {version} stays as it is, {ratio:.3g} times as perplexed")
        return 1
    client.set_registered_model_alias(name, arguments.alias, version)
    print(f"models:/{name}@{arguments.alias} is version {version}, {ratio:.3g} times as perplexed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
