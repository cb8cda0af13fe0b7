"""Model card of a compressed checkpoint: its README.md, rendered from the report by a template.

Nothing in it is a path of the machine that compressed: models and texts are named by the last part
of their reference.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from intraslice_core.checkpoints.model_card import MODEL_CARD
from intraslice_core.reports.card_metadata import card_data
from intraslice_core.reports.loading import snippets
from intraslice_core.reports.quantities import count, percent, size, times
from intraslice_core.reports.references import (
    hub_repository,
    local_references,
    model_name,
    public_reference,
    without_paths,
)
from intraslice_core.reports.schema import CompressionReport
from intraslice_core.reports.verdict import report_verdict
from intraslice_core.text_sources import DOMAIN_NAMES

_BACKTICKS = re.compile(r"`+")
_CODE = re.compile(r"(`[^`\n]*`)")
_MARKUP = re.compile(r"[\\<|`]")
"""Characters that begin markup, or end a cell of a table; backticks without a partner, too."""


def write_model_card(directory: Path, report: CompressionReport) -> Path:
    """Write the model card of a compressed checkpoint and return its path.

    Args:
        directory: the compressed checkpoint.
        report: its report.
    """
    card = directory / MODEL_CARD
    licence_files = sorted(file.name for file in directory.glob("LICENSE*"))
    card.write_text(model_card(report, licence_files), encoding="utf-8")
    return card


def model_card(report: CompressionReport, licence_files: list[str]) -> str:
    """Return the text of the card.

    Args:
        report: report of the compression.
        licence_files: names of the licence files in the checkpoint.
    """
    paths = local_references(report)
    return _template().render(
        report.model_dump(mode="json"),
        metadata=Markup(card_data(report, licence_files).to_yaml()),
        name=model_name(report.model),
        repository=hub_repository(report.model),
        base=public_reference(report.model),
        verdict=report_verdict(report),
        snippets=snippets(report),
        limitations=[*_limitations(report)],
        warnings=[without_paths(warning, paths) for warning in report.warnings],
        fallback_reason=_fallback_reason(report),
        licences=licence_files,
        domain_names=DOMAIN_NAMES,
        source_names=_source_names(report),
        removed_fraction=report.removed_fraction,
        removed_layers=[
            number for number, layer in enumerate(report.plan.layers) if layer.is_removed
        ],
        shortcuts=report.plan.slices_residual,
    )


@functools.cache
def _template() -> Template:
    """Return the card's template; compiling it takes as long as compressing a tiny model."""
    environment = Environment(
        loader=PackageLoader("intraslice_core.reports"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
        finalize=plain,
    )
    environment.filters |= {
        "thousands": lambda number: f"{number:,}",
        "count": count,
        "size": size,
        "times": times,
        "percent": percent,
        "last": public_reference,
        "fenced": fenced,
        "code": code,
    }
    return environment.get_template("model_card.md.j2")


def plain(value: object) -> object:
    """Return a text without markup of its own, on one line; code between backticks stays code.

    Names of models, texts and tensors may be those of others, and a card is shown to third parties.
    Values that are marked as markup, and those that are no texts, stay as they are.
    """
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    parts = _CODE.split(" ".join(value.splitlines()))
    parts[::2] = [_MARKUP.sub(r"\\\g<0>", part) for part in parts[::2]]
    return "".join(parts)


def code(text: str) -> Markup:
    """Return a text as code within a sentence."""
    return Markup("`{}`".format(text.replace("`", "'")))


def fenced(text: str, language: str = "") -> Markup:
    """Return a text as a code block of Markdown, with a fence that the text does not contain."""
    longest = max(map(len, _BACKTICKS.findall(text)), default=0)
    fence = "`" * max(3, longest + 1)
    return Markup(f"{fence}{language}\n{text.rstrip()}\n{fence}")


def _source_names(report: CompressionReport) -> str:
    """Return the names of the calibration sources, those of a mixture with their weights."""
    sources = report.config.resolved_calibration.mixture
    if len(sources) == 1:
        return code(public_reference(sources[0].source))
    return ", ".join(
        f"{code(public_reference(part.source))} (weight {part.weight:.3g})" for part in sources
    )


def _fallback_reason(report: CompressionReport) -> str | None:
    reason = report.allocation and report.allocation.fallback_reason
    return without_paths(reason, local_references(report)) if reason else None


def _limitations(report: CompressionReport) -> Iterator[str]:
    """Yield what the figures of the report do not show, as sentences."""
    evaluation = report.evaluation
    if evaluation is None or not (evaluation.perplexity or evaluation.tasks):
        yield "Its quality was not measured. Evaluate it on text of your own before you use it."
    else:
        lengths = [text.context_length for text in evaluation.perplexity]
        measured = f" at contexts of up to {max(lengths):,} tokens" if lengths else ""
        yield (
            f"Its quality was measured on the texts and tasks above only{measured}. On other text, "
            "in other languages and at longer contexts the loss may be larger."
        )
    yield (
        f"It was calibrated on {report.calibration_tokens:,} tokens of {_source_names(report)}. "
        "What such text does not show, the compression may have removed."
    )
    yield (
        "Its safety was not evaluated: compression can weaken what the original learned to refuse, "
        "and keeps or strengthens its biases. The limits of the original apply."
    )
    if report.plan.slices_residual or report.plan.has_residual_parts:
        yield "Results of this method were run in transformers alone."
