"""Calibration sequences with and without BOS, by what BOS may do in the statistics.

    python benchmarks/sequence_starts.py --model DIR --calibration SOURCE --evaluation FILE
        [--also pydoc] [--variants without,plain,excluded,scaled] [--bos TOKEN]
        [--checkpoint NAME=DIR]

All variants are scored in windows that begin with BOS. `--bos` makes the tokenizer of a model put
TOKEN before every text, for models whose tokenizer adds nothing. `--checkpoint` scores a finished
checkpoint too, such as one of an earlier commit. A text may be a short name of `data.py`. The last
line is JSON: {"dense": {TEXT: perplexity}, VARIANT: {TEXT: perplexity, "attention": fraction kept,
"mlp": fraction kept}, NAME: {TEXT: perplexity}, …}.

Variants:
    without     calibration sequences are windows of the text alone
    plain       they begin with BOS, which counts like any other position
    excluded    they begin with BOS, which is no part of second moments
    scaled      they begin with BOS, which is scaled in second moments: the engine
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import torch
from data import text_source
from rich.console import Console
from rich.table import Table
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from intraslice_core import compensation, pipeline, statistics
from intraslice_core.calibration import text_prefix, tokens
from intraslice_core.checkpoints.sources import open_model
from intraslice_core.config import CompressionConfig
from intraslice_core.evaluation.loaded_models import load_model
from intraslice_core.evaluation.perplexity import evaluation_tokens, perplexity
from intraslice_core.pipeline import compress_model
from intraslice_core.progress import ProgressEvent
from intraslice_core.reports.schema import CompressionReport
from intraslice_core.sensitivity import gradients, measurement
from intraslice_core.tokenizer import load_tokenizer

VARIANTS = ("without", "plain", "excluded", "scaled")
Figures = dict[str, float]


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--bos", help="Token to put before every text.")
    parser.add_argument(
        "--calibration", required=True, type=text_source, help="Calibration source."
    )
    parser.add_argument(
        "--evaluation", required=True, type=text_source, help="Held-out text, in-domain."
    )
    parser.add_argument(
        "--also", action="append", default=[], type=text_source, help="Further held-out text."
    )
    parser.add_argument("--variants", default=",".join(VARIANTS), help=f"Of {', '.join(VARIANTS)}.")
    parser.add_argument("--checkpoint", action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--method", default="intraslice_plus")
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--evaluation-tokens", type=int, default=8192)
    parser.add_argument("--context-length", type=int, default=256)
    return parser.parse_args()


def no_prefix(_tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return no prefix, whatever the tokenizer puts before a text."""
    return ()


def excluding_scale(stream: Tensor, prefix_length: int) -> Tensor:
    """Return factors like `statistics.prefix_scale` that are 0 at the prefix."""
    scale = torch.ones(*stream.shape[:2], 1, device=stream.device)
    scale[:, :prefix_length] = 0.0
    return scale


@contextmanager
def engine_as(variant: str) -> Iterator[None]:
    """Change the engine to a variant inside a `with` block."""
    with ExitStack() as stack:
        if variant in ("without", "plain"):
            stack.enter_context(mock.patch.object(pipeline, "text_prefix", no_prefix))
        if variant == "without":
            stack.enter_context(mock.patch.object(tokens, "text_prefix", no_prefix))
        if variant == "excluded":
            for module in (statistics, compensation, gradients, measurement):
                stack.enter_context(mock.patch.object(module, "prefix_scale", excluding_scale))
        yield


def with_bos(directory: Path, token: str, copy: Path) -> Path:
    """Return a copy of the model whose tokenizer puts `token` before every text."""
    copy.mkdir()
    for file in directory.iterdir():
        (copy / file.name).symlink_to(file.resolve())
    tokenizer = load_tokenizer(directory)
    number = tokenizer.convert_tokens_to_ids(token)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, number)]
    )
    for file in copy.glob("token*"):
        file.unlink()
    tokenizer.save_pretrained(copy)
    return copy


def score(model: Path, dense: Path, arguments: argparse.Namespace) -> Figures:
    """Return the perplexity on every text, in windows that begin as the dense model's texts do."""
    tokenizer = load_tokenizer(dense)
    loaded = load_model(model, dtype="auto", device="auto")
    return {
        Path(text).name: perplexity(
            loaded,
            evaluation_tokens(text, tokenizer, arguments.evaluation_tokens),
            context_length=arguments.context_length,
            batch_size=4,
            prefix=text_prefix(tokenizer),
        ).perplexity
        for text in (arguments.evaluation, *arguments.also)
    }


def kept_fractions(report: CompressionReport) -> Figures:
    """Return the fractions of attention dimensions and neurons that the plan keeps."""
    dense, layers = report.geometry.dense_layer(), report.plan.layers
    attention = sum(
        layer.num_attention_heads * (layer.qk_head_dim + layer.v_head_dim) for layer in layers
    )
    whole = dense.num_attention_heads * (dense.qk_head_dim + dense.v_head_dim)
    neurons = sum(layer.intermediate_size for layer in layers)
    return {
        "attention": attention / (whole * len(layers)),
        "mlp": neurons / (dense.intermediate_size * len(layers)),
    }


def measure(
    dense: Path, variant: str, arguments: argparse.Namespace, console: Console
) -> tuple[Figures, Figures]:
    """Return perplexities and kept fractions after compressing with a variant."""
    config = CompressionConfig.model_validate(
        {
            "ratio": arguments.ratio,
            "method": arguments.method,
            "calibration": {
                "source": arguments.calibration,
                "samples": arguments.samples,
                "sequence_length": arguments.sequence_length,
            },
        }
    )
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, console.status(variant) as status:

        def show(event: ProgressEvent) -> None:
            status.update(f"{variant}: {event.message}")

        out = Path(folder) / "out"
        with engine_as(variant):
            report = compress_model(str(dense), out, config, verify=False, on_progress=show)
        perplexities, fractions = score(out, dense, arguments), kept_fractions(report)
    seconds = time.perf_counter() - started
    console.print(f"{variant}: {perplexities}, {fractions}, {seconds:.0f} s")
    return perplexities, fractions


def main() -> None:
    """Measure all variants and print a table and a line of JSON."""
    arguments = parse_arguments()
    console = Console(width=140)
    texts = [Path(text).name for text in (arguments.evaluation, *arguments.also)]
    table = Table("calibration", *texts, "attention", "MLP")
    with tempfile.TemporaryDirectory() as folder:
        dense = open_model(arguments.model, Path(folder) / "model")
        if arguments.bos:
            dense = with_bos(dense, arguments.bos, Path(folder) / "with-bos")
        results: dict[str, Figures] = {"dense": score(dense, dense, arguments)}
        table.add_row("dense", *(f"{results['dense'][text]:.2f}" for text in texts))
        for name, _, checkpoint in (entry.partition("=") for entry in arguments.checkpoint):
            results[name] = score(Path(checkpoint), dense, arguments)
            table.add_row(name, *(f"{results[name][text]:.2f}" for text in texts))
        for variant in filter(None, arguments.variants.split(",")):
            perplexities, fractions = measure(dense, variant, arguments, console)
            results[variant] = perplexities | fractions
            cells = [f"{perplexities[text]:.2f}" for text in texts]
            table.add_row(variant, *cells, *(f"{fraction:.3f}" for fraction in fractions.values()))
    console.print(table)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
