"""Entry point of vLLM's plugins: our checkpoints run there without remote code.

Imported by vLLM in each of its processes, and by nobody else.
"""

from __future__ import annotations

BACKEND = "vllm.model_executor.models.transformers:TransformersForCausalLM"
"""Runs whatever model of transformers calls its attention by the registry, as ours do."""


def register() -> None:
    """Tell transformers our classes, and vLLM what runs those it does not know.

    `DeciLMForCausalLM` vLLM has itself; only its configuration is ours.
    """
    from vllm import ModelRegistry  # type: ignore[import-not-found]

    from intraslice_core.modeling import IntraSliceForCausalLM
    from intraslice_core.modeling import register as register_with_transformers

    register_with_transformers()
    name = IntraSliceForCausalLM.__name__
    if name not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(name, BACKEND)
