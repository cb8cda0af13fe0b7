"""Register a checkpoint with MLflow and promote it if its perplexity is good enough.

    python promote_in_mlflow.py DIR --mlflow URI [--most 1.5] [--alias smaller]

`intraslice register` creates the model version, with the settings and metrics of the report. The
alias is moved to it if its worst perplexity ratio (compressed over dense, by text) is at most
`--most`. From then on `models:/NAME@smaller` is this version:

    mlflow.artifacts.download_artifacts("models:/NAME@smaller")   # a directory for transformers

Exit code 1: the version is registered but not promoted.
"""

import argparse
import json
import subprocess
import sys

from mlflow import MlflowClient


def register(directory: str, uri: str) -> tuple[str, str]:
    """Register the checkpoint; return the model's name and version."""
    command = ["intraslice", "register", directory, "--mlflow", uri, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    name, _, version = json.loads(done.stdout)["reference"].partition(" version ")
    return name, version


def worst_ratio(client: MlflowClient, name: str, version: str) -> float:
    """Return the version's largest perplexity ratio; infinite if none was measured."""
    run = client.get_run(client.get_model_version(name, version).run_id)
    values = run.data.metrics
    texts = {key.split("/")[1] for key in values if key.startswith("perplexity/")}
    ratios = [
        values[f"perplexity/{text}/compressed"] / values[f"perplexity/{text}/dense"]
        for text in texts
    ]
    return max(ratios, default=float("inf"))


def main() -> int:
    """Register the checkpoint and promote it if it is good enough."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory")
    parser.add_argument("--mlflow", required=True, metavar="URI")
    parser.add_argument(
        "--most",
        type=float,
        default=1.5,
        help="largest perplexity ratio, compressed over dense (default: 1.5)",
    )
    parser.add_argument("--alias", default="smaller")
    arguments = parser.parse_args()
    client = MlflowClient(tracking_uri=arguments.mlflow, registry_uri=arguments.mlflow)
    name, version = register(arguments.directory, arguments.mlflow)
    ratio = worst_ratio(client, name, version)
    if ratio > arguments.most:
        print(f"{name} version {version} is not promoted: perplexity ratio {ratio:.3g}")
        return 1
    client.set_registered_model_alias(name, arguments.alias, version)
    print(f"models:/{name}@{arguments.alias} is version {version}, perplexity ratio {ratio:.3g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
