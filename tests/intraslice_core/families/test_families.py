"""The Llama adapter against transformers' own model."""

from __future__ import annotations

import pytest
from transformers import GPT2Config, LlamaConfig

from intraslice_core.config import SUPPORTED_MODEL_TYPES
from intraslice_core.errors import UnsupportedArchitectureError
from intraslice_core.families import FAMILIES, family_for
from intraslice_core.plan import total_parameters
from tests.intraslice_core.tiny_models import VARIANTS, tiny_config, tiny_model


@pytest.mark.parametrize("variant", VARIANTS)
def test_expected_tensors_are_those_of_the_model(variant: str) -> None:
    model = tiny_model(**VARIANTS[variant])
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert family_for(model.config).expected_shapes(model.config) == shapes


def test_geometry_counts_the_parameters_of_the_model() -> None:
    model = tiny_model()
    geometry = family_for(model.config).geometry(model.config)
    assert total_parameters(geometry, geometry.dense_plan()) == model.num_parameters()


def test_other_architectures_are_refused_with_a_list() -> None:
    with pytest.raises(UnsupportedArchitectureError, match="supported: llama"):
        family_for(GPT2Config())


@pytest.mark.parametrize(
    "setting", [{"sliding_window": 64}, {"attention_chunk_size": 32}, {"quantization_config": {}}]
)
def test_variants_with_other_mathematics_are_refused(setting: dict) -> None:
    with pytest.raises(UnsupportedArchitectureError, match=next(iter(setting))):
        family_for(tiny_config(**setting))


def test_partial_rotation_is_refused() -> None:
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}
    with pytest.raises(UnsupportedArchitectureError, match="partial_rotary_factor"):
        family_for(LlamaConfig(rope_parameters=rope))


def test_the_service_names_the_families_there_are() -> None:
    assert tuple(FAMILIES) == SUPPORTED_MODEL_TYPES
