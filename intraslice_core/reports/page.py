"""One compression as one page that needs nothing else: no script, no request, any browser."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources

from markupsafe import Markup

from intraslice_core.reports import page_facts, page_figures, page_measures
from intraslice_core.reports.formatting import Table, rendered
from intraslice_core.reports.page_contents import ReportPage
from intraslice_core.reports.page_facts import Facts
from intraslice_core.reports.page_figures import Figure


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading and what is below it; one with nothing is left out."""

    id: str
    title: str
    note: str = ""
    facts: Facts | None = None
    table: Table | None = None
    figures: tuple[Figure, ...] = ()
    folded: bool = False
    """Opened by whoever wants to know."""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.facts or self.table or self.figures)


def report_page(page: ReportPage) -> str:
    """The page as an HTML document.

    Args:
        page: what it is made from; every text in it is shown as text, whatever it holds.
    """
    return str(
        rendered(
            "page.html.j2",
            page=page,
            style=_stylesheet(),
            tiles=page_facts.tiles(page.report),
            cautions=page_facts.cautions(page),
            sections=[one for one in _sections(page) if not one.is_empty],
        )
    )


@cache
def _stylesheet() -> Markup:
    """Ours, and so no text to be escaped."""
    file = resources.files("intraslice_core.reports") / "templates" / "page.css"
    return Markup(file.read_text("utf-8"))


def _sections(page: ReportPage) -> list[Section]:
    report = page.report
    measured = report.evaluation and report.evaluation.speed
    by_size = page_figures.quality_by_size(page.results)
    others = len(page.results) > 1 and by_size is None
    return [
        Section(id="summary", title="Summary", facts=page_facts.summary(page)),
        Section(
            id="quality",
            title="Quality",
            note="Perplexity; compressed / dense is 1 where nothing was lost.",
            table=page_facts.quality(report),
        ),
        Section(
            id="tasks",
            title="Tasks",
            note="Scores of lm-evaluation-harness, of both models on the same examples; ± the "
            "standard error.",
            table=page_measures.tasks(report),
        ),
        Section(
            id="continuations",
            title="Side by side",
            note="Greedy continuations of the same prompts.",
            table=page_measures.continuations(report),
        ),
        Section(
            id="speed",
            title="Speed",
            note=page_facts.speed_setting(measured) if measured else "",
            table=page_facts.speed(report),
        ),
        Section(
            id="loads",
            title="Speed and memory by load",
            note=page_measures.loads_setting(report),
            table=page_measures.loads(report),
            figures=page_measures.speed_ups(report),
        ),
        Section(
            id="recovery",
            title="Recovery",
            note=page_facts.recovery_setting(report.recovery) if report.recovery else "",
            table=page_facts.recovery(report),
            figures=tuple(page_figures.recovery(report)),
        ),
        Section(id="shapes", title="Shapes", figures=(page_figures.shapes(report),)),
        Section(
            id="predictions",
            title="What the estimator knew",
            figures=tuple(page_figures.predictions(report)),
        ),
        Section(id="spectra", title="Spectra", figures=page_measures.spectra(report)),
        Section(id="layers", title="Layer by layer", figures=tuple(page_figures.refits(report))),
        Section(
            id="jobs",
            title="Other jobs of this model",
            figures=(by_size,) if by_size else (),
            table=page_figures.results_table(page.results) if others else None,
        ),
        Section(
            id="verified",
            title="Loaded and compared",
            note="In clean processes, before publication: the largest difference of a "
            "log-probability from the model in memory, in nats; greedy tokens were equal but for "
            "near ties.",
            table=page_measures.verified(report),
        ),
        Section(id="files", title="Files", table=page_facts.files(page)),
        Section(id="settings", title="Settings", table=page_facts.settings(page), folded=True),
        Section(id="provenance", title="Provenance", facts=page_facts.provenance(page)),
    ]
