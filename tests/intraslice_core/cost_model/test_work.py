"""The cost model agrees with the engine's own constants and with torch's count of operations."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.large_models import LLAMAS
from intraslice_core import blocked, dampings, hidden_states
from intraslice_core.allocation import attention_removal, layer_removal
from intraslice_core.allocation.estimators import CalibrationSplit
from intraslice_core.allocation.search import CANDIDATES
from intraslice_core.checkpoints import dense_model
from intraslice_core.config import (
    CalibrationConfig,
    CompressionConfig,
)
from intraslice_core.cost_model import (
    StageFlops,
    flops,
    memory,
    read_dense,
    stage_bytes,
    stage_flops,
    work,
)
from intraslice_core.cost_model.work import EstimatorSequences, check_layer_passes, trial_layers
from intraslice_core.evaluation import perplexity, scoring
from intraslice_core.methods import METHODS
from intraslice_core.pipeline import compress_model
from intraslice_core.progress import ProgressEvent, Stage
from intraslice_core.sensitivity import (
    gradients,
    layer_trials,
    measurement,
    pair_effects,
    trial_cuts,
)
from intraslice_core.sensitivity.trial_cuts import trial_cut_tokens
from tests.intraslice_core.tiny_models import tiny_llama


def config(samples: int = 32, length: int = 64, **changes: object) -> CompressionConfig:
    calibration = CalibrationConfig(source="pydoc", samples=samples, sequence_length=length)
    return CompressionConfig(calibration=calibration, round_to=2, **changes)


def test_constants_equal_the_engines() -> None:
    assert work.GROUP_SEQUENCES == gradients.GROUP_SEQUENCES
    assert len(CANDIDATES) + 1 == work.TRIAL_PLANS
    assert 2 * len(layer_trials.TRIAL_CUTS) == work.TRIALS_PER_LAYER
    assert work.TRIAL_CUT_POSITIONS == trial_cuts.TRIAL_CUT_POSITIONS
    assert (work.PAIR_SEQUENCES, work.PAIR_QUERIES, work.PAIR_BLOCKS) == (
        measurement.PAIR_SEQUENCES,
        measurement.PAIR_QUERIES,
        pair_effects.PAIR_BLOCKS,
    )
    assert work.ATTENTION_TOKENS == attention_removal.MAX_TOKENS
    assert work.LAYER_TOKENS == layer_removal.MAX_TOKENS
    assert flops.DAMPING_PROBES == dampings.PROBES
    assert memory.KEPT_INNER_BYTES == hidden_states.KEPT_INNER_BYTES
    assert (memory.IN_PLACE_WIDTH, memory.PANELS) == (blocked.IN_PLACE_WIDTH, blocked.PANELS)
    assert memory.DENSE_LOGITS == dense_model.LOGITS_AT_ONCE
    assert memory.EVALUATION_LOGITS == perplexity.EVALUATION_LOGITS
    assert memory.EVALUATION_TOKENS == scoring.EVALUATION_TOKENS


@pytest.mark.parametrize("length", [16, 512, 2048])
@pytest.mark.parametrize("samples", [1, 2, 9, 16, 40, 128, 1000])
def test_sequences_equal_the_engines_split(samples: int, length: int) -> None:
    split = CalibrationSplit.of(torch.zeros(samples, length, dtype=torch.long))
    parts = EstimatorSequences.of(config(samples, length))
    assert parts == EstimatorSequences(
        gradients=len(split.metric),
        sensitivity=len(split.sensitivity),
        trial_fit=len(split.trial_fit),
        trial_cut_tokens=trial_cut_tokens(split.check).numel(),
        judged_tokens=split.judged.numel(),
    )
    paper = EstimatorSequences.of(config(samples, length, method="intraslice"))
    assert (paper.gradients, paper.sensitivity) == (len(split.gradients), 0)


def test_parts_that_a_method_skips_have_no_sequences() -> None:
    nothing = EstimatorSequences(
        gradients=0, sensitivity=0, trial_fit=0, trial_cut_tokens=0, judged_tokens=0
    )
    assert EstimatorSequences.of(config(method="magnitude")) == nothing
    uniform = EstimatorSequences.of(config(allocation="uniform"))
    assert (uniform.sensitivity, uniform.trial_fit, uniform.judged_tokens) == (28, 0, 0)
    assert uniform.trial_cut_tokens == 0
    for method, activations, attentions in (
        ("flap", 32, 0),
        ("wanda_sp", 0, 0),
        ("2ssp", 32, 256),
        ("modegpt", 32, 0),
        ("transact", 4 * 32, 0),
    ):
        own = EstimatorSequences.of(config(method=method))
        assert own == replace(nothing, activations=activations, attention_tokens=attentions)
    assert EstimatorSequences.of(config(method="shortgpt")) == replace(nothing, activations=32)
    assert EstimatorSequences.of(config(method="fusegpt")) == replace(nothing, layer_tokens=256)
    spp = EstimatorSequences.of(config(method="spp"))
    assert spp == replace(nothing, gradients=28, sensitivity=28)
    masks = EstimatorSequences.of(config(method="spp", mask_training={"max_tokens": 10_000}))
    assert masks == replace(spp, mask_tokens=10_000 // 64 * 64)
    both = EstimatorSequences.of(config(length=1024, allocation="fisher"))
    assert both.gradients == 8 + 8


@pytest.mark.parametrize("layers", [1, 2, 3, 7, 30, 31, 80])
def test_layers_with_trials_equal_the_engines(layers: int) -> None:
    chosen = trial_layers(layers)
    assert chosen == layer_trials.trial_layers(layers)
    assert {chosen[0], chosen[-1]} == {0, layers - 1}
    assert len(chosen) == min(-(-(layers - 1) // 5) + 1, 7)


def test_passes_of_trials_grow_linearly_with_depth() -> None:
    assert trial_layers(7) == (0, 3, 6)
    assert check_layer_passes(7) == 7 + 4 * (7 + 4 + 1)
    passes = [check_layer_passes(layers) for layers in (40, 80, 160)]
    assert passes[2] - passes[1] == pytest.approx(2 * (passes[1] - passes[0]), rel=0.02)


def test_flops_agree_with_torchs_count(tmp_path: Path) -> None:
    """Agree within 35 %: torch counts products in float64 as well, but no factorisation.

    The model counts attention in full, the kernels only what is visible, and equal refits once.
    """
    sizes = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 4}
    dense = tiny_llama(tmp_path / "dense", **sizes)
    settings = config(ratio=0.3, dtype="float32", device="cpu")
    geometry = read_dense(dense).geometry
    assert geometry is not None
    expected = stage_flops(geometry, settings)
    counted = counted_flops(dense, tmp_path / "out", settings)
    counted["measuring the sensitivity of layers"] += counted["computing gradients"]
    estimated = {
        "measuring the sensitivity of layers": (
            expected.gradients + expected.sensitivity,
            expected.sensitivity_factorisations,
        ),
        "comparing allocations": (expected.trial_compression, expected.trial_factorisations),
        "compress": (expected.passes + expected.statistics, expected.factorisations),
    }
    for name, (products, factorisations) in estimated.items():
        assert 0.65 * products < counted[name] < 1.35 * (products + factorisations), name


@pytest.mark.parametrize("method", ["spp", "disp"])
def test_flops_of_methods_that_cut_other_dimensions_agree_with_torchs_count(
    tmp_path: Path, method: str
) -> None:
    sizes = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 4}
    dense = tiny_llama(tmp_path / "dense", **sizes)
    settings = config(ratio=0.3, dtype="float32", device="cpu", method=method)
    geometry = read_dense(dense).geometry
    assert geometry is not None
    expected = stage_flops(geometry, settings)
    counted = counted_flops(dense, tmp_path / "out", settings)
    products = expected.passes + expected.statistics
    assert 0.65 * products <= counted["compress"] <= 1.35 * (products + expected.factorisations)


def test_flops_of_trained_masks_agree_with_torchs_count(tmp_path: Path) -> None:
    dense = tiny_llama(tmp_path / "dense", hidden_size=96, intermediate_size=384)
    changes = {"method": "spp", "mask_training": {"max_tokens": 64 * 4}}
    settings = config(ratio=0.3, dtype="float32", device="cpu", **changes)
    geometry = read_dense(dense).geometry
    assert geometry is not None
    counted = counted_flops(dense, tmp_path / "out", settings)
    measured = sum(count for name, count in counted.items() if name.startswith("training masks"))
    expected = stage_flops(geometry, settings).masks
    assert 0.65 * expected <= measured <= 1.35 * expected


def test_flops_of_modegpt_agree_with_torchs_count(tmp_path: Path) -> None:
    sizes = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 4}
    dense = tiny_llama(tmp_path / "dense", **sizes)
    settings = config(ratio=0.3, dtype="float32", device="cpu", method="modegpt")
    geometry = read_dense(dense).geometry
    assert geometry is not None
    expected = stage_flops(geometry, settings)
    counted = counted_flops(dense, tmp_path / "out", settings)
    measured = counted["measuring the influence of layers"]
    assert 0.65 * expected.allocate <= measured <= 1.35 * expected.allocate
    products = expected.passes + expected.statistics
    assert 0.65 * products <= counted["compress"] <= 1.35 * (products + expected.factorisations)
    refitted = stage_flops(geometry, config(ratio=0.3, method="intraslice"))
    assert expected.passes < refitted.passes
    assert expected.statistics < refitted.statistics


def counted_flops(dense: Path, out: Path, settings: CompressionConfig) -> Counter[str]:
    """Return torch's count of a compression by stage, of the allocation by message."""
    counted: Counter[str] = Counter()
    previous_total, stage = 0, ""

    def count_by_stage(event: ProgressEvent) -> None:
        nonlocal previous_total, stage
        total = counter.get_total_flops()
        counted[stage] += total - previous_total
        stage = event.message if event.stage is Stage.ALLOCATE else event.stage.value
        previous_total = total

    counter = FlopCounterMode(display=False)
    with counter:
        compress_model(str(dense), out, settings, verify=False, on_progress=count_by_stage)
    return counted


@pytest.mark.parametrize("method", ["flap", "wanda_sp", "2ssp", "transact"])
def test_flops_of_methods_that_remove_whole_units_agree_with_torchs_count(
    tmp_path: Path, method: str
) -> None:
    sizes = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 4}
    dense = tiny_llama(tmp_path / "dense", **sizes)
    settings = config(ratio=0.5, dtype="float32", device="cpu", method=method)
    geometry = read_dense(dense).geometry
    assert geometry is not None
    expected = stage_flops(geometry, settings)
    counted = counted_flops(dense, tmp_path / "out", settings)
    allocated = counted["measuring activations"] + counted["removing attentions"]
    for products, own in ((expected.allocate, allocated), (expected.passes, counted["compress"])):
        assert 0.65 * products <= own <= 1.35 * products
    assert expected.statistics == expected.factorisations == 0.0


@pytest.mark.parametrize(("method", "ratio"), [("shortgpt", 0.5), ("fusegpt", 0.5)])
def test_flops_of_methods_that_remove_whole_layers_agree_with_torchs_count(
    tmp_path: Path, method: str, ratio: float
) -> None:
    """The refit is counted for as many layers as remain, so layers before a removed one count."""
    sizes = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 4}
    dense = tiny_llama(tmp_path / "dense", **sizes)
    settings = config(ratio=ratio, dtype="float32", device="cpu", method=method)
    geometry = read_dense(dense).geometry
    assert geometry is not None
    expected = stage_flops(geometry, settings)
    counted = counted_flops(dense, tmp_path / "out", settings)
    steps = ("measuring the influence of layers", "measuring activations", "removing layers")
    allocated = sum(counted[step] for step in steps)
    assert 0.65 * expected.allocate <= allocated <= 1.35 * expected.allocate
    assert counted["compress"] <= 1.35 * (expected.passes + expected.statistics)


def test_flops_of_a_sliced_residual_stream_agree_with_torchs_count(tmp_path: Path) -> None:
    sizes = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 4}
    dense = tiny_llama(tmp_path / "dense", **sizes)
    settings = config(ratio=0.3, dtype="float32", device="cpu", method="slicegpt")
    geometry = read_dense(dense).geometry
    assert geometry is not None
    expected = stage_flops(geometry, settings)
    counted = counted_flops(dense, tmp_path / "out", settings)
    assert expected.allocate == 0.0
    products = expected.passes + expected.statistics
    assert 0.65 * products <= counted["compress"] <= 1.35 * (products + expected.factorisations)
    nothing = stage_flops(geometry, config(ratio=0.0, method="slicegpt"))
    assert nothing.statistics == nothing.factorisations == 0.0


def test_memory_of_a_sliced_residual_stream_has_its_second_moment() -> None:
    geometry = LLAMAS["Llama-3-8B"]
    sliced = stage_bytes(geometry, config(128, 2048, method="slicegpt"), 2, 2)["compress"]
    assert sliced.host == 128 * 2048 * 4096 * 2
    weights = geometry.dense_layer().parameters(geometry) * 6
    assert sliced.device > weights + 8 * 3 * 4096**2
    refitted = stage_bytes(geometry, config(128, 2048), 2, 2)["compress"]
    assert sliced.device < refitted.device


def test_memory_of_whole_units_has_no_gram_matrices() -> None:
    geometry = LLAMAS["Llama-3-8B"]
    flap = stage_bytes(geometry, config(128, 2048, method="flap"), 2, 2)["compress"]
    assert flap.host == 128 * 2048 * 4096 * 2
    refitted = stage_bytes(geometry, config(128, 2048), 2, 2)["compress"]
    assert flap.device < refitted.device - 8 * geometry.intermediate_size**2
    attentions = stage_bytes(geometry, config(128, 2048, method="2ssp"), 2, 2)["attentions"]
    assert attentions.host == 33 * 2048 * 4096 * 2
    layers = stage_bytes(geometry, config(128, 2048, method="fusegpt"), 2, 2)["layers"]
    assert layers.host == 33 * 1024 * 4096 * 2


def test_uniform_shapes_need_no_trial_cuts() -> None:
    settings = config(128, 2048, allocation="uniform")
    geometry = LLAMAS["Llama-3-8B"]
    uniform, full = stage_flops(geometry, settings), stage_flops(geometry, config(128, 2048))
    passes = 2048 * 2 * geometry.dense_plan().parameters(geometry) / 32
    assert full.sensitivity - uniform.sensitivity > check_layer_passes(32) * passes
    assert full.sensitivity_factorisations > uniform.sensitivity_factorisations
    memory_of = [
        stage_bytes(geometry, own, 2, 2)["sensitivity"].host
        for own in (config(128, 2048), settings)
    ]
    states = (1 + 4 * len(trial_layers(32))) * 2048 * geometry.hidden_size * 2
    assert memory_of[0] - memory_of[1] >= states


def test_work_grows_with_the_shapes() -> None:
    small = stage_flops(LLAMAS["Llama-3-8B"], config(128, 2048))
    twice = stage_flops(LLAMAS["Llama-3-8B"], config(256, 2048))
    assert twice.passes == pytest.approx(2 * small.passes)
    assert twice.factorisations == small.factorisations
    # A forward pass over n tokens takes 2·n·parameters and a little for the attention's scores.
    assert small.forward == pytest.approx(2 * 128 * 2048 * 7.5e9, rel=0.05)


def test_two_equal_groups_of_sources_double_the_factorisations_that_compare_dampings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Unequal groups leave the smaller one out; a single source has no groups."""
    geometry, settings = LLAMAS["Llama-3-8B"], config(128, 2048)

    def at(share: float) -> StageFlops:
        calibration = settings.calibration.model_copy(update={"self_share": share})
        return stage_flops(geometry, settings.model_copy(update={"calibration": calibration}))

    held_out_choice = replace(METHODS[settings.method], validation="held_out")
    monkeypatch.setitem(METHODS, settings.method, held_out_choice)
    held_out = at(0.5)
    by_source = replace(METHODS[settings.method], validation="left_out_source")
    monkeypatch.setitem(METHODS, settings.method, by_source)
    for share in (0.0, 0.25):
        assert at(share).factorisations == held_out.factorisations
    left_out = at(0.5)
    assert left_out.model_dump(exclude={"factorisations"}) == held_out.model_dump(
        exclude={"factorisations"}
    )
    widths = 0.7 * geometry.intermediate_size, 0.7 * geometry.num_attention_heads * 128
    solves = sum(width**3 / 3 + 8 * width**2 * flops.DAMPING_PROBES for width in widths)
    more = 32 * flops.TRIED_DAMPINGS * solves
    assert left_out.factorisations - held_out.factorisations == pytest.approx(more)


def test_bytes_of_stages_follow_from_the_shapes() -> None:
    stages = stage_bytes(LLAMAS["Llama-3-8B"], config(128, 2048), 2, 2)
    assert set(stages) == {"gradients", "sensitivity", "trial_compression", "compress"}
    assert stages["compress"].host == 2 * 128 * 2048 * 4096 * 2
    assert stages["gradients"].host == 2048 * 4096 * 2 * 34
    trials = 1 + 4 * len(trial_layers(32))
    assert stages["sensitivity"].host == (16 + trials) * 2048 * 4096 * 2
    assert stages["trial_compression"].host == 2048 * 4096 * 2
    # One layer, not the model: its Gram matrices are larger than it, the sum is below 24 GiB.
    assert 8 * 14336**2 < stages["compress"].device < 24 * 2**30
    assert stage_bytes(LLAMAS["Llama-3-8B"], config(method="magnitude"), 2, 2)["compress"].host == 0
