"""SliceGPT against the dense model at full size whose residual stream is projected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch import Tensor, nn

from intraslice_core.allocation.residual_width import residual_plan, with_widths
from intraslice_core.config import CompressionConfig
from intraslice_core.cost_model import estimate, read_dense
from intraslice_core.errors import (
    BudgetOutOfReachError,
    ConfigurationError,
    NumericalError,
    UnsupportedArchitectureError,
)
from intraslice_core.export.targets import SLICED_RESIDUAL_TYPES, WITHOUT_SLICED_RESIDUAL
from intraslice_core.pipeline import compress_model
from intraslice_core.plan import ModelGeometry, ModelPlan, total_parameters
from intraslice_core.reports.page_contents import ReportPage
from intraslice_core.reports.page_facts import summary
from intraslice_core.reports.page_figures import shapes
from tests.intraslice_core.compressing import compress_unverified
from tests.intraslice_core.finetuning.training_runs import recovery_config
from tests.intraslice_core.methods.masked_models import (
    CALIBRATION,
    calibration,
    loaded,
    logits,
    other_tokens,
)
from tests.intraslice_core.methods.projected_stream import ProjectedStream
from tests.intraslice_core.smollm2 import SMOLLM2
from tests.intraslice_core.tiny_models import (
    FAMILY_VARIANTS,
    FORWARD_VARIANTS,
    save_checkpoint,
    tiny_checkpoint,
    tiny_family_model,
    tiny_llama,
    tiny_model,
)

UNBIASED = ("opt_unbiased", "starcoder2_unbiased")
VARIANTS = {
    name: settings
    for name, settings in (FAMILY_VARIANTS | FORWARD_VARIANTS).items()
    if name not in UNBIASED
}
SUPPORTED = [
    name for name, settings in VARIANTS.items() if settings["model_type"] in SLICED_RESIDUAL_TYPES
]
REJECTED = [name for name in VARIANTS if name not in SUPPORTED]


def config(**changes: object) -> CompressionConfig:
    settings: dict[str, object] = {"method": "slicegpt", "calibration": CALIBRATION}
    budget = {} if changes.keys() & {"target_params", "target_bytes"} else {"ratio": 0.3}
    return CompressionConfig.model_validate(settings | budget | changes)


def widths_of(plan: ModelPlan) -> list[int]:
    """Return the widths of the stream at the inputs of attention and MLP in every layer."""
    residuals = [layer.residual for layer in plan.layers]
    return [
        width
        for residual in residuals
        if residual is not None
        for width in (residual.attention, residual.mlp)
    ]


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def largest_difference(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max())


# -- the function of the result ----------------------------------------------------------------


@pytest.mark.parametrize("variant", SUPPORTED)
def test_result_is_the_dense_model_with_a_projected_residual_stream(
    tmp_path: Path, variant: str
) -> None:
    dense = tiny_checkpoint(tmp_path / "dense", variant)
    report = compress_unverified(dense, tmp_path / "out", config())
    widths = widths_of(report.plan)
    assert len(widths) == 6
    assert max(widths) < 48
    oracle = ProjectedStream.of(dense, tmp_path / "canonical")
    oracle.fit(widths, calibration())
    result = loaded(tmp_path / "out")
    assert report.params_after == parameters(result)
    expected = logits(oracle.model, other_tokens())
    torch.testing.assert_close(logits(result, other_tokens()), expected, rtol=0, atol=1e-3)
    assert largest_difference(expected, logits(loaded(dense), other_tokens())) > 0.1


@pytest.mark.parametrize("variant", SUPPORTED)
def test_rotations_without_slicing_leave_the_function_of_the_model(
    tmp_path: Path, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def whole(geometry: ModelGeometry, *_: Any) -> ModelPlan:
        return with_widths(geometry, (geometry.hidden_size,) * 2 * geometry.num_hidden_layers)

    monkeypatch.setattr("intraslice_core.allocation.equal_layers.residual_plan", whole)
    dense = tiny_checkpoint(tmp_path / "dense", variant)
    report = compress_unverified(dense, tmp_path / "out", config())
    assert set(widths_of(report.plan)) == {48}
    result = loaded(tmp_path / "out")
    assert report.params_after == parameters(result) > report.params_before
    expected = logits(loaded(dense), other_tokens())
    torch.testing.assert_close(logits(result, other_tokens()), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_a_planted_stream_of_low_rank_is_sliced_without_loss(tmp_path: Path, tied: bool) -> None:
    model = tiny_model(tie_word_embeddings=tied)
    save_checkpoint(model, tmp_path / "random")
    geometry = read_dense(tmp_path / "random").geometry
    assert geometry is not None
    rank = min(widths_of(residual_plan(geometry, 0.3, 1, 0.005)))
    basis = torch.linalg.qr(torch.randn(48, rank, generator=torch.Generator().manual_seed(3))).Q
    with torch.no_grad():
        table = model.model.embed_tokens.weight
        table.copy_(table @ basis @ basis.T)
        for layer in model.model.layers:
            for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
                linear.weight.copy_(basis @ basis.T @ linear.weight)
    dense = save_checkpoint(model, tmp_path / "dense")
    report = compress_unverified(dense, tmp_path / "out", config())
    result = logits(loaded(tmp_path / "out"), other_tokens())
    torch.testing.assert_close(result, logits(model, other_tokens()), rtol=0, atol=1e-3)
    energies = [layer.attention.explained_energy for layer in report.layers]
    assert energies == pytest.approx([1.0] * 3, abs=1e-6)


def test_the_leading_components_are_kept(tmp_path: Path) -> None:
    dense = tiny_llama(tmp_path / "dense")
    losses = []
    for name, ratio in (("small", 0.1), ("large", 0.5)):
        report = compress_unverified(dense, tmp_path / name, config(ratio=ratio, round_to=1))
        result = logits(loaded(tmp_path / name), other_tokens())
        losses.append(largest_difference(result, logits(loaded(dense), other_tokens())))
        last = report.layers[-1].mlp.explained_energy
        assert last is None  # the output of the last layer is dense
        for layer in report.layers:
            assert 0.5 < (layer.attention.explained_energy or 0.0) < 1.0
    assert losses[0] < losses[1]


# -- files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["qwen3", "opt"])
def test_files_load_without_our_package_and_decode_with_a_cache(
    tmp_path: Path, variant: str
) -> None:
    dense = tiny_checkpoint(tmp_path / "dense", variant)
    report = compress_model(str(dense), tmp_path / "out", config())
    (checkpoint,) = report.verified
    assert set(checkpoint.loaded_by) == {"checkpoint", "package"}
    model: Any = loaded(tmp_path / "out")
    prompt = other_tokens()[:, :6]
    with_cache = model.generate(prompt, max_new_tokens=8, do_sample=False, use_cache=True)
    without = model.generate(prompt, max_new_tokens=8, do_sample=False, use_cache=False)
    assert with_cache.tolist() == without.tolist()
    model.save_pretrained(tmp_path / "again")
    torch.testing.assert_close(
        logits(loaded(tmp_path / "again"), other_tokens()), logits(model, other_tokens())
    )
    card = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "Residual connections have matrices, whose parameters are counted" in card


def test_tied_embeddings_stay_one_table(tmp_path: Path) -> None:
    for tied in (True, False):
        out = tmp_path / f"tied-{tied}"
        dense = tiny_llama(tmp_path / f"dense-{tied}", tie_word_embeddings=tied)
        report = compress_unverified(dense, out, config())
        model: Any = loaded(out)
        width = widths_of(report.plan)[0]
        assert model.lm_head.weight.shape == (259, 48)
        assert model.model.embed_tokens.weight.shape == (259, 48 if tied else width)
        assert (model.model.embedding_shortcut is not None) == tied
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


def test_bfloat16_checkpoints_are_sliced(tmp_path: Path) -> None:
    model = tiny_model().to(torch.bfloat16)
    dense = save_checkpoint(model, tmp_path / "dense")
    report = compress_unverified(dense, tmp_path / "out", config(dtype="bfloat16"))
    assert report.bytes_after < report.bytes_before
    assert torch.isfinite(logits(loaded(tmp_path / "out"), other_tokens())).all()


def test_a_sliced_stream_is_rejected_as_the_input_of_another_compression(tmp_path: Path) -> None:
    dense = tiny_llama(tmp_path / "dense")
    compress_unverified(dense, tmp_path / "out", config())
    magnitude = {"method": "magnitude", "ratio": 0.1, "calibration": CALIBRATION}
    for again in (config(), CompressionConfig.model_validate(magnitude)):
        with pytest.raises(UnsupportedArchitectureError, match="sliced residual stream"):
            compress_unverified(tmp_path / "out", tmp_path / "twice", again)
    with pytest.raises(UnsupportedArchitectureError, match="sliced residual stream"):
        read_dense(tmp_path / "out")


def test_configurations_that_contradict_themselves_are_rejected(tmp_path: Path) -> None:
    compress_unverified(tiny_llama(tmp_path / "dense"), tmp_path / "out", config())
    stored = json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))
    stored["per_layer_config"]["1"]["attention_input_size"] = 5
    (tmp_path / "out" / "config.json").write_text(json.dumps(stored))
    with pytest.raises(StrictDataclassClassValidationError, match="attention_input_size 5 != "):
        loaded(tmp_path / "out")


# -- budgets -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("budget", ["ratio", "target_params", "target_bytes"])
def test_every_budget_counts_shortcuts_and_embeddings(
    tmp_path: Path, tied: bool, budget: str
) -> None:
    dense = tiny_llama(tmp_path / "dense", intermediate_size=256, tie_word_embeddings=tied)
    before = read_dense(dense)
    assert before.geometry is not None
    size = {"ratio": 0.25, "target_params": 115_000, "target_bytes": 460_000}[budget]
    settings = config(**{budget: size})
    report = compress_unverified(dense, tmp_path / "out", settings)
    assert report.params_after == parameters(loaded(tmp_path / "out"))
    if budget == "ratio":
        assert report.removed_fraction == pytest.approx(0.25, abs=0.004)
    elif budget == "target_params":
        assert 0.995 * size <= report.params_after <= 1.004 * size
    else:
        assert 0.97 * size <= report.bytes_after <= 1.004 * size
    estimated = estimate(before.geometry, before.item_bytes, settings, None, "llama")
    assert estimated.params_after == report.params_after
    assert estimated.compressible_after == report.compressible_after


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5])
def test_one_ratio_is_one_size_with_every_method(tmp_path: Path, ratio: float) -> None:
    dense = tiny_llama(tmp_path / "dense", intermediate_size=256)
    sliced = compress_unverified(dense, tmp_path / "out", config(ratio=ratio))
    other = CompressionConfig(method="magnitude", ratio=ratio, calibration=CALIBRATION)
    pruned = compress_unverified(dense, tmp_path / "other", other)
    difference = abs(sliced.params_after - pruned.params_after)
    assert difference <= 0.01 * pruned.compressible_after
    removed = sliced.params_before - sliced.params_after
    assert sliced.compressible_before - sliced.compressible_after == removed


def test_the_width_is_one_but_for_a_rounding_step() -> None:
    geometry = SMOLLM2
    dense = total_parameters(geometry, geometry.dense_plan())
    for ratio in (0.05, 0.2, 0.3, 0.5):
        plan = residual_plan(geometry, ratio, 8, 0.005)
        widths = widths_of(plan)
        assert all(width % 8 == 0 for width in widths)
        assert widths == sorted(widths, reverse=True)
        assert max(widths) - min(widths) in (0, 8)
        removed = dense - total_parameters(geometry, plan)
        compressible = geometry.dense_plan().parameters(geometry)
        assert removed == pytest.approx(ratio * compressible, rel=0.01)
        assert plan.removed_fraction(geometry) == pytest.approx(removed / compressible)


def test_ratios_out_of_reach_name_the_largest_one(tmp_path: Path) -> None:
    dense = tiny_llama(tmp_path / "dense")
    with pytest.raises(BudgetOutOfReachError, match="residual stream of 16 dimensions") as caught:
        compress_unverified(dense, tmp_path / "out", config(ratio=0.9, round_to=16))
    assert caught.value.field == "compression.ratio"
    assert "give a ratio of at most 0." in str(caught.value.hint)


def test_rounding_that_misses_the_budget_names_a_finer_step(tmp_path: Path) -> None:
    dense = tiny_llama(tmp_path / "dense", intermediate_size=256)
    with pytest.raises(ConfigurationError, match="with round_to 16, rounding leaves") as caught:
        compress_unverified(dense, tmp_path / "out", config(round_to=16))
    assert caught.value.field == "compression.round_to"
    assert "give round_to" in str(caught.value.hint)


def test_the_report_warns_where_shortcuts_cost_more_than_slicing_saves(tmp_path: Path) -> None:
    dense = tiny_llama(tmp_path / "dense")
    report = compress_unverified(dense, tmp_path / "small", config(ratio=0.05, round_to=1))
    (warning,) = [text for text in report.warnings if "slicegpt leaves" in text]
    assert "of 48 dimensions of the residual stream to remove" in warning
    report = compress_unverified(dense, tmp_path / "large", config(ratio=0.5, round_to=1))
    assert not [text for text in report.warnings if "slicegpt leaves" in text]


# -- what is rejected --------------------------------------------------------------------------


@pytest.mark.parametrize("variant", REJECTED)
def test_families_whose_stream_cannot_be_rotated_are_rejected_with_the_reason(
    tmp_path: Path, variant: str
) -> None:
    dense = tiny_checkpoint(tmp_path / "dense", variant)
    model_type = tiny_family_model(variant).config.model_type
    with pytest.raises(
        ConfigurationError, match=f"slicegpt does not support {model_type}"
    ) as caught:
        compress_unverified(dense, tmp_path / "out", config())
    assert caught.value.field == "compression.method"
    assert WITHOUT_SLICED_RESIDUAL[model_type] in caught.value.message
    assert "llama" in str(caught.value.hint)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("variant", UNBIASED)
def test_norm_biases_without_projection_biases_are_rejected(tmp_path: Path, variant: str) -> None:
    dense = tiny_checkpoint(tmp_path / "dense", variant)
    with pytest.raises(ConfigurationError, match="folds the biases of norms") as caught:
        compress_unverified(dense, tmp_path / "out", config())
    assert caught.value.field == "compression.method"


def test_a_loss_of_hidden_states_is_rejected_before_the_work(tmp_path: Path) -> None:
    dense = tiny_llama(tmp_path / "dense")
    recover = {"loss": "hidden", "max_tokens": 4096, "source": "pydoc"}
    with pytest.raises(
        ConfigurationError, match="cannot be combined with the loss hidden"
    ) as error:
        compress_model(str(dense), tmp_path / "out", config(recover=recover))
    assert error.value.field == "compression.recover.loss"


# -- stages around the compression -------------------------------------------------------------


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_fine_tuning_trains_the_shortcuts_too(tmp_path: Path, adapter: str) -> None:
    dense = tiny_llama(tmp_path / "dense")
    recover = recovery_config(source="pydoc", adapter=adapter, max_tokens=20 * 4 * 32)
    settings = config(recover=recover.model_dump(exclude_unset=True), ratio=0.5, round_to=1)
    report = compress_model(str(dense), tmp_path / "trained", settings)
    plain = config(ratio=0.5, round_to=1)
    compress_unverified(dense, tmp_path / "plain", plain)
    assert report.recovery is not None
    assert report.recovery.held_out.after < report.recovery.held_out.before
    models = [loaded(tmp_path / name) for name in ("plain", "trained")]
    before, after = (dict(model.named_parameters()) for model in models)
    shortcuts = [name for name in before if "shortcut" in name]
    assert len(shortcuts) == 7
    assert not [name for name in shortcuts if torch.equal(before[name], after[name])]


def test_overflow_names_the_layer_and_the_module(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.fill_(3e38)
    dense = save_checkpoint(model, tmp_path / "dense")
    with pytest.raises(NumericalError) as caught:
        compress_unverified(dense, tmp_path / "out", config())
    assert (caught.value.layer, caught.value.module) == (1, "mlp")


def test_the_report_shows_the_width_of_the_stream(tmp_path: Path) -> None:
    dense = tiny_llama(tmp_path / "dense")
    report = compress_unverified(dense, tmp_path / "out", config(ratio=0.5, round_to=1))
    first = widths_of(report.plan)[0]
    rows = shapes(report).table
    assert rows.columns[-1] == "residual width"
    assert [row[-1] for row in rows.rows][:2] == ["48", str(first)]
    facts = dict(summary(ReportPage(report=report)))
    assert facts["Residual stream"].startswith("48 → ")
    assert report.runtimes == ("transformers with the checkpoint's code",)
