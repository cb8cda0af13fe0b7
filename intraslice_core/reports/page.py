"""HTML report of one compression, self-contained: no scripts and no external resources.

First what a reader wants to know: the verdict, the key figures, code that loads the model and what
both models write. Then all measurements, and in an appendix how the shapes were found.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources

from markupsafe import Markup

from intraslice_core.reports import page_facts, page_figures, page_measures
from intraslice_core.reports.formatting import Table, rendered
from intraslice_core.reports.key_figures import key_figures
from intraslice_core.reports.loading import snippets
from intraslice_core.reports.page_contents import ModelResult, ReportPage
from intraslice_core.reports.page_facts import Facts
from intraslice_core.reports.page_figures import Figure
from intraslice_core.reports.schema import CompressionReport
from intraslice_core.reports.verdict import report_verdict


@dataclass(frozen=True, kw_only=True)
class Section:
    """Section of the page; sections without content are left out."""

    id: str
    title: str
    note: str = ""
    facts: Facts | None = None
    table: Table | None = None
    figures: tuple[Figure, ...] = ()
    collapsed: bool = False
    """Hide the table until the reader opens it."""

    @property
    def is_empty(self) -> bool:
        """True if the section has no content."""
        return not (self.facts or self.table or self.figures)


def report_page(page: ReportPage) -> str:
    """Render the page as an HTML document.

    Args:
        page: contents of the page; all texts in it are escaped.
    """
    report = page.report
    return str(
        rendered(
            "page.html.j2",
            page=page,
            style=stylesheet(),
            subtitle=page_facts.subtitle(report),
            verdict=report_verdict(report),
            figures=key_figures(report),
            cautions=page_facts.cautions(page),
            snippets=snippets(report, page.place),
            samples=report.evaluation.continuations if report.evaluation else (),
            sections=_with_content(_sections(page)),
            appendix=_with_content(_appendix(page)),
        )
    )


@cache
def stylesheet() -> Markup:
    """Return the stylesheet, marked as safe because it is our own file."""
    file = resources.files("intraslice_core.reports") / "templates" / "page.css"
    return Markup(file.read_text("utf-8"))


def _with_content(sections: tuple[Section, ...]) -> list[Section]:
    return [section for section in sections if not section.is_empty]


def _sections(page: ReportPage) -> tuple[Section, ...]:
    """Return the sections of the results, in their order on the page."""
    return (
        *_quality_sections(page.report),
        *_speed_sections(page.report),
        _recovery_section(page.report),
        Section(id="summary", title="Summary", facts=page_facts.summary(page)),
        Section(id="shapes", title="Layer shapes", figures=(page_figures.shapes(page.report),)),
        _jobs_section(page.results),
        _verification_section(page.report),
        Section(id="files", title="Files", table=page_facts.files(page)),
    )


def _appendix(page: ReportPage) -> tuple[Section, ...]:
    """Return the sections about the method and its estimates, in their order on the page."""
    report = page.report
    return (
        Section(
            id="tournament",
            title="Choice of the method",
            note=page_measures.tournament_note(report),
            table=page_measures.tournament(report),
        ),
        Section(
            id="predictions",
            title="Predicted and measured loss",
            figures=tuple(page_figures.predictions(report)),
        ),
        Section(id="spectra", title="Spectra", figures=page_measures.spectra(report)),
        Section(
            id="layers", title="Compensation by layer", figures=tuple(page_figures.refits(report))
        ),
        Section(id="settings", title="Settings", table=page_facts.settings(page), collapsed=True),
        Section(id="provenance", title="Provenance", facts=page_facts.provenance(page)),
    )


_QUALITY_NOTE = (
    "Perplexity on held-out text; a ratio compressed / dense of 1 means no loss. KL is the mean "
    "divergence KL(dense ‖ compressed) ± standard error, top-1 agreement the share of positions at "
    "which both models predict the same most likely token. In-domain texts are of a corpus that "
    "the model was calibrated or fine-tuned on; the other texts are unseen."
)
_TASKS_NOTE = (
    "Scores of lm-evaluation-harness ± standard error, of both models on the same examples."
)


def _quality_sections(report: CompressionReport) -> tuple[Section, ...]:
    return (
        Section(
            id="quality", title="Quality", note=_QUALITY_NOTE, table=page_facts.quality(report)
        ),
        Section(id="tasks", title="Tasks", note=_TASKS_NOTE, table=page_measures.tasks(report)),
    )


def _speed_sections(report: CompressionReport) -> tuple[Section, ...]:
    speed = report.evaluation and report.evaluation.speed
    return (
        Section(
            id="speed",
            title="Speed",
            note=page_facts.speed_setting(speed) if speed else "",
            table=page_facts.speed(report),
        ),
        Section(
            id="loads",
            title="Speed and memory by load",
            note=page_measures.loads_setting(report),
            table=page_measures.loads(report),
            figures=page_measures.speed_ups(report),
        ),
    )


def _recovery_section(report: CompressionReport) -> Section:
    return Section(
        id="recovery",
        title="Recovery fine-tuning",
        note=page_facts.recovery_setting(report.recovery) if report.recovery else "",
        table=page_facts.recovery(report),
        figures=tuple(page_figures.recovery(report)),
    )


def _jobs_section(results: tuple[ModelResult, ...]) -> Section:
    """Compare jobs in a figure, or list them where none is comparable with this job."""
    figure = page_figures.quality_by_size(results)
    is_listed = figure is None and len(results) > 1
    return Section(
        id="jobs",
        title="Other jobs of this model",
        figures=(figure,) if figure else (),
        table=page_figures.results_table(results) if is_listed else None,
    )


def _verification_section(report: CompressionReport) -> Section:
    return Section(
        id="verified",
        title="Verification",
        note="The files were loaded in clean processes before publication. The table shows the "
        "largest difference of a log-probability from the model in memory, in nats. Greedy tokens "
        "were equal except at near ties.",
        table=page_measures.verified(report),
    )
