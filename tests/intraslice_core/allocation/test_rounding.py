"""The rounding step follows the model's width, and one that misses the budget is an early error."""

from __future__ import annotations

import re

import pytest

from intraslice_core.allocation.budget import compression_budget, resolve_round_to
from intraslice_core.allocation.rounding import require_rounding
from intraslice_core.allocation.uniform import uniform_plan
from intraslice_core.config import CompressionConfig
from intraslice_core.errors import BudgetOutOfReachError, ConfigurationError
from intraslice_core.export.targets import demands_on
from intraslice_core.plan import ModelGeometry

SIZES = {
    "Llama-3.2-1B": (2048, 32, 8, 64, 8192, 16),
    "SmolLM2-135M": (576, 9, 3, 64, 1536, 30),
    "Gemma-3-270M": (640, 4, 1, 256, 2048, 18),
    "Phi-2": (2560, 32, 32, 80, 10240, 32),
    "Pythia-14M": (128, 4, 4, 32, 512, 6),
    "TinyStories-33M": (768, 16, 16, 48, 3072, 4),
    "tiny": (48, 4, 2, 12, 64, 3),
    "narrow": (32, 8, 8, 4, 64, 2),
}
"""Hidden size, heads, KV heads, head dim, MLP width and layers."""


def geometry(name: str) -> ModelGeometry:
    hidden, heads, groups, head_dim, width, layers = SIZES[name]
    return ModelGeometry(
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=head_dim,
        intermediate_size=width,
        num_hidden_layers=layers,
        vocab_size=256,
        tie_word_embeddings=True,
    )


@pytest.mark.parametrize(
    ("name", "step"),
    [
        *(("Llama-3.2-1B", 8), ("SmolLM2-135M", 8), ("Gemma-3-270M", 8), ("Phi-2", 8)),
        *(("Pythia-14M", 4), ("TinyStories-33M", 4), ("tiny", 1), ("narrow", 1)),
    ],
)
def test_default_step_follows_the_narrowest_dimension(name: str, step: int) -> None:
    assert resolve_round_to(CompressionConfig(), geometry(name)) == step
    assert resolve_round_to(CompressionConfig(round_to=16), geometry(name)) == 16


def rounding_error(config: CompressionConfig, model: ModelGeometry) -> ConfigurationError | None:
    """Return the error about the rounding step, with the budget of a fine one."""
    budget = compression_budget(config.model_copy(update={"round_to": 1}), model, 4)
    try:
        require_rounding(config, model, budget, demands_on(config, None).shapes)
    except ConfigurationError as error:
        return error
    return None


@pytest.mark.parametrize("target", ["research", "adaptive", "stock"])
@pytest.mark.parametrize("name", ["tiny", "narrow"])
def test_error_names_a_step_that_meets_the_budget(name: str, target: str) -> None:
    model, errors = geometry(name), 0
    for ratio in (0.1, 0.2, 0.25, 0.3, 0.4):
        settings = {"ratio": ratio, "target": target, "round_to": 32}
        config = CompressionConfig.model_validate(settings)
        error = rounding_error(config, model)
        if error is None:
            continue
        errors += 1
        assert error.field == "compression.round_to"
        assert error.message.startswith("with round_to 32, rounding leaves ")
        step = int(str(error.hint).removeprefix("give round_to ").split()[0])
        assert 1 <= step < 32
        assert rounding_error(config.model_copy(update={"round_to": step}), model) is None
    assert errors > 0


@pytest.mark.parametrize("target", ["research", "adaptive", "stock"])
def test_error_names_the_next_smaller_ratio_where_no_step_meets_the_budget(target: str) -> None:
    model = geometry("narrow")
    config = CompressionConfig.model_validate(
        {"ratio": 0.81, "target": target, "round_to": 32, "module_cap": 1.0}
    )
    error = rounding_error(config, model)
    assert isinstance(error, BudgetOutOfReachError)
    assert rounding_error(config.model_copy(update={"round_to": 1}), model) is not None
    hint = str(error.hint)
    advice = re.match(r"give ratio ([\d.]+) with round_to (\d+), the next one that fits", hint)
    assert advice is not None
    other = {"ratio": float(advice[1]), "round_to": int(advice[2])}
    assert 0.7 < other["ratio"] < 0.81
    assert rounding_error(config.model_copy(update=other), model) is None


def test_step_that_only_the_allocator_can_meet_is_accepted() -> None:
    """One MLP step of Llama is within the tolerance, so no shapes need to be equal."""
    model = geometry("Llama-3.2-1B")
    config = CompressionConfig(ratio=0.3, round_to=8)
    budget = compression_budget(config, model, 2)
    require_rounding(config, model, budget, demands_on(config, None).shapes)


def test_default_step_meets_common_budgets_of_tiny_models() -> None:
    model = geometry("tiny")
    for percent in range(5, 65, 5):
        config = CompressionConfig(ratio=percent / 100)
        budget = compression_budget(config, model, 4)
        require_rounding(config, model, budget, demands_on(config, None).shapes)
        uniform_plan(model, budget.ratio, resolve_round_to(config, model))


def test_budget_below_the_smallest_shapes_names_the_step_that_reaches_it() -> None:
    model = geometry("tiny")
    with pytest.raises(BudgetOutOfReachError, match=r"round_to of at most \d+\)") as caught:
        compression_budget(CompressionConfig(ratio=0.9, round_to=32, module_cap=1.0), model, 4)
    step = int(str(caught.value).rsplit(maxsplit=1)[1].rstrip(")"))
    compression_budget(CompressionConfig(ratio=0.9, round_to=step, module_cap=1.0), model, 4)
    with pytest.raises(BudgetOutOfReachError):
        compression_budget(
            CompressionConfig(ratio=0.9, round_to=step + 1, module_cap=1.0), model, 4
        )
