"""vLLM plugin: IntraSlice checkpoints run in vLLM without `trust_remote_code`.

vLLM imports this module, an entry point of the package, in each of its processes.
"""

from __future__ import annotations

BACKEND = "vllm.model_executor.models.transformers:TransformersForCausalLM"
"""vLLM's backend for transformers models that call their attention through the registry."""


def register() -> None:
    """Register the model classes with transformers, and vLLM's backend for the IntraSlice decoder.

    vLLM has its own `DeciLMForCausalLM` and needs only the configuration class for it.
    """
    from vllm import ModelRegistry  # type: ignore[import-not-found]

    from intraslice_core.modeling import IntraSliceForCausalLM
    from intraslice_core.modeling import register as register_with_transformers

    register_with_transformers()
    name = IntraSliceForCausalLM.__name__
    if name not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(name, BACKEND)
