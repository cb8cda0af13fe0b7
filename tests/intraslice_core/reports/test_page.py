"""The page shows all reported sections, leaves out empty ones, and is self-contained."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from typing import Any

import pytest

from intraslice_core.allocation.shapes import allocation_report
from intraslice_core.config import CalibrationConfig, CompressionConfig, EvaluationConfig
from intraslice_core.reports.fast_shapes import FastShapesReport
from intraslice_core.reports.formatting import with_code
from intraslice_core.reports.page import report_page
from intraslice_core.reports.page_contents import JobFacts, ModelResult, PublishedFile, ReportPage
from intraslice_core.reports.schema import (
    BytesComparison,
    ContinuationComparison,
    EvaluationReport,
    LayerReport,
    LoadReport,
    ModuleReport,
    PartSpeed,
    PerplexityComparison,
    PhaseComparison,
    SecondsComparison,
    SpeedReport,
    TaskComparison,
    TrialReport,
    VerifiedReport,
)
from tests.intraslice_core.reports.samples import PLAN, PRICED, RECOVERY, report

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
VERIFIED = (
    VerifiedReport(
        files="safetensors",
        loaded_by=("checkpoint", "package"),
        max_abs_difference=1e-5,
        tolerance=1e-3,
    ),
    VerifiedReport(
        files="gguf-f16", loaded_by=("llama.cpp",), max_abs_difference=0.013, tolerance=0.05
    ),
)
HOSTILE = "</style><script>alert('x')</script>&\"'"
VOID = {"meta", "link", "br", "img", "input", "hr"}
PHASE = PhaseComparison(
    dense=10.0, compressed=12.5, dense_spread=0.2, compressed_spread=0.4, ratio=1.25
)
TASK = TaskComparison(
    task=HOSTILE,
    metric="acc",
    higher_is_better=True,
    examples=100,
    shots=0,
    dense=0.5,
    compressed=0.375,
    dense_stderr=0.05,
)
DECODE = PhaseComparison(
    dense=40.0, compressed=44.0, dense_spread=10.0, compressed_spread=0.4, ratio=1.1
)
FIRST_TOKEN = SecondsComparison(
    dense=0.5, compressed=0.25, dense_spread=0.01, compressed_spread=0.02, ratio=0.5
)
SPEED = SpeedReport(
    batch_size=1,
    prompt_tokens=16,
    new_tokens=4,
    repeats=3,
    whole=PartSpeed(prefill=PHASE, decode=PHASE),
)


class Outline(HTMLParser):
    """Parser of a page's elements, which checks that they are closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.charts: list[set[str]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag == "svg":
            self.charts.append(set())
        elif self.open and self.open[-1] == "svg":
            self.charts[-1].add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def perplexity(
    text: str = "pydoc", compressed: float = 15.0, **measured: Any
) -> PerplexityComparison:
    return PerplexityComparison(
        text=text, context_length=64, tokens=630, dense=10.0, compressed=compressed, **measured
    )


def module(name: str) -> ModuleReport:
    return ModuleReport(
        module=name, relative_error=0.1, explained_energy=0.9, damping={"own": 0.01}
    )


def result(job_id: str, *, is_this: bool, comparable: bool = True) -> ModelResult:
    return ModelResult(
        job_id=job_id,
        url=f"/v1/jobs/{job_id}/report",
        created_at=NOW,
        labels={"team": HOSTILE},
        method="intraslice_plus",
        allocation="auto",
        params_after=700 if is_this else 800,
        bytes_after=1400,
        removed_fraction=0.3,
        text="pydoc",
        perplexity_ratio=1.5,
        kl=0.0625,
        top1_agreement=0.5,
        prefill_ratio=None,
        decode_ratio=None,
        is_this=is_this,
        is_comparable=comparable,
    )


def load(batch_size: int, context_length: int) -> LoadReport:
    return LoadReport(
        batch_size=batch_size,
        context_length=context_length,
        new_tokens=4,
        repeats=5,
        prefill=PHASE,
        decode=DECODE,
        first_token=FIRST_TOKEN,
        peak_memory=BytesComparison(dense=4 * 2**20, compressed=3 * 2**20),
        cache_per_token=BytesComparison(dense=2048, compressed=1536),
    )


def whole_page() -> ReportPage:
    trials = tuple(
        TrialReport(layer=index, module=name, cut=0.25, predicted=0.1, measured=0.2)
        for index in (0, 3)
        for name in ("attention", "mlp")
    )
    allocated = allocation_report("auto", "lagrangian", PRICED)
    full = report(allocated.model_copy(update={"trials": trials, "rank_correlation": 0.9}))
    layers = tuple(
        LayerReport(
            layer=index, plan=plan, attention=module("attention"), mlp=module("mlp"), seconds=1.0
        )
        for index, plan in enumerate(PLAN.layers)
    )
    evaluation = EvaluationReport(
        perplexity=(
            perplexity(kl=0.2341, kl_stderr=0.0123, top1_agreement=0.8764, domain="out"),
            perplexity("b", 20.0),
        ),
        tasks=(TASK,),
        speed=SPEED,
        speed_grid=(load(1, 512), load(8, 8192)),
        continuations=(
            ContinuationComparison(prompt=HOSTILE, dense=HOSTILE, compressed="the end"),
        ),
    )
    return ReportPage(
        report=full.model_copy(
            update={
                "layers": layers,
                "evaluation": evaluation,
                "recovery": RECOVERY,
                "verified": VERIFIED,
                "base_licence": "apache-2.0",
            }
        ),
        job=JobFacts(
            id="job_1",
            model=HOSTILE,
            created_at=NOW,
            labels={HOSTILE: HOSTILE},
            evaluation=EvaluationConfig(),
        ),
        files=(PublishedFile(name=HOSTILE, bytes=2048, sha256="ab" * 32),),
        results=(result("job_1", is_this=True), result("job_2", is_this=False)),
        json_url="/v1/jobs/job_1",
        artifacts_url="/v1/jobs/job_1/artifacts",
    )


def test_the_page_begins_with_what_readers_want_and_ends_with_the_appendix() -> None:
    outline = Outline(report_page(whole_page()))
    first = ["use", "samples"]
    measured = ["quality", "tasks", "speed", "loads", "recovery"]
    result = ["summary", "shapes", "jobs", "verified", "files"]
    appendix = ["appendix", "predictions", "layers", "settings", "provenance"]
    assert outline.ids == [*first, *measured, *result, *appendix]


def test_the_verdict_and_the_key_figures_come_first() -> None:
    page = report_page(whole_page())
    top, _, rest = page.partition('id="use"')
    assert "<strong>Strong quality loss.</strong> Perplexity rose 100 % on b, unseen text" in top
    for name in ("Size on disk", "Perplexity, worst unseen text", "Generation, batch 1"):
        assert name in top
    assert "Memory to serve, 4,096 tokens" in top
    assert "from_pretrained" in rest


def test_code_is_for_the_files_of_the_job_or_for_their_directory() -> None:
    page = whole_page()
    assert "intraslice download job_1 ./script" in report_page(page)
    alone = report_page(ReportPage(report=page.report))
    assert "In the directory of the files" in alone
    assert "path = &#34;.&#34;" in alone


def test_samples_stand_side_by_side() -> None:
    page = report_page(whole_page())
    assert '<p class="name">Original</p><p class="output">' in page
    assert '<p class="name">Compressed</p><p class="output">the end</p>' in page


def test_no_directory_of_the_machine_is_on_the_page() -> None:
    private = "/srv/private/place"
    config = CompressionConfig(calibration=CalibrationConfig(source=f"{private}/a.txt"))
    evaluation = EvaluationReport(
        config=EvaluationConfig(perplexity=(f"{private}/b.txt",)),
        perplexity=(perplexity(f"{private}/b.txt", domain="out"),),
    )
    content = report(model=f"{private}/model").model_copy(
        update={
            "config": config,
            "evaluation": evaluation,
            "warnings": (f"{private}/a.txt is short",),
        }
    )
    page = report_page(ReportPage(report=content))
    assert private not in page
    for text in ("<h1>model</h1>", "a.txt", "b.txt"):
        assert text in page


def test_verification_and_sample_outputs_are_shown() -> None:
    page = report_page(whole_page())
    for text in ("checkpoint, package", "0.013", "the end", "apache-2.0"):
        assert text in page


def test_contents_that_are_missing_have_no_section() -> None:
    outline = Outline(report_page(ReportPage(report=report())))
    appendix = ["appendix", "settings", "provenance"]
    assert outline.ids == ["use", "summary", "shapes", *appendix]


def test_a_missing_quality_measurement_is_a_warning() -> None:
    assert "Quality was not measured" in report_page(ReportPage(report=report()))
    assert "Quality was not measured" not in report_page(whole_page())


def test_figures_are_those_of_the_report() -> None:
    page = report_page(whole_page())
    factors = [f"{number}\N{MULTIPLICATION SIGN}" for number in ("1.50", "2.00", "1.25")]
    for text in (*factors, "10.0 ± 0.1", "0.90", "2.00 KiB", "ab" * 32):
        assert text in page


def test_texts_have_a_domain_and_a_divergence() -> None:
    page = report_page(whole_page())
    row = ">Python docs</th><td>out-of-domain</td>.*<td>0.234 ± 0.0123</td><td>87.6 %</td>"
    assert re.search(row, page)
    assert "0.0625</td><td>50.0 %</td>" in page  # the other jobs


def test_domains_in_reports_without_them_follow_from_the_sources() -> None:
    # The default calibration contains pydoc but not the text b.
    evaluation = EvaluationReport(perplexity=(perplexity(), perplexity("b", 20.0)))
    page = report_page(ReportPage(report=report().model_copy(update={"evaluation": evaluation})))
    for text, domain in (("Python docs", "in-domain"), ("b", "out-of-domain")):
        assert f'<th scope="row">{text}</th><td>{domain}</td>' in page


def test_recovery_fine_tuning_is_shown_with_its_loss() -> None:
    page = report_page(whole_page())
    method = "Fine-tuned by distillation from the dense model"
    for text in (method, "stopped at the token limit", "50.0 %", "0.75"):
        assert text in page


def test_tasks_and_loads_are_shown_with_their_spread() -> None:
    page = report_page(whole_page())
    for text in ("0.5 ± 0.05", "0.75×", "8 × 8,192 tokens", "40.0 ± 5.0", "1.50 KiB"):  # noqa: RUF001
        assert text in page
    assert HOSTILE not in page


def test_a_scored_task_counts_as_a_quality_measurement() -> None:
    scored = report().model_copy(update={"evaluation": EvaluationReport(tasks=(TASK,))})
    assert "Quality was not measured" not in report_page(ReportPage(report=scored))


def test_the_cost_of_a_target_is_shown_where_it_was_measured() -> None:
    allocation = allocation_report("auto", "lagrangian", PRICED, calibration_loss=3.25)
    assert "Cost of target" not in report_page(ReportPage(report=report(allocation)))
    measured = allocation.model_copy(update={"unconstrained_calibration_loss": 3.125})
    page = report_page(ReportPage(report=report(measured)))
    assert "Cost of target research" in page
    assert "+0.125 nats per token" in page


def test_fast_shapes_and_runtimes_are_shown() -> None:
    allocation = allocation_report("auto", "lagrangian", PRICED)
    for multiple, text in (
        (32, "multiples of 32, predicted loss +0.0040 nats"),
        (None, "not used"),
    ):
        preference = FastShapesReport(multiple=multiple, extra_loss=0.004 if multiple else None)
        content = report(allocation.model_copy(update={"fast_shapes": preference}))
        page = report_page(ReportPage(report=content.model_copy(update={"runtimes": ("vLLM",)})))
        assert text in page
        assert "Runs in" in page
    assert "Fast shapes" not in report_page(ReportPage(report=report(allocation)))


def test_user_texts_are_escaped() -> None:
    page = report_page(whole_page())
    assert "<script" not in page
    assert page.count("</style>") == 1
    assert "&lt;script&gt;" in page


def test_the_page_is_self_contained() -> None:
    page = report_page(whole_page())
    outline = Outline(page)
    assert not re.search(r"url\(|@import", page)
    for tag, name, value in outline.attributes:
        assert name not in ("src", "srcset", "data", "style", "xlink:href")
        assert not name.startswith("on")
        if name == "href":
            assert tag == "a"
            assert value.startswith(("#", "/v1/jobs/"))


def test_every_chart_has_a_description_and_its_data() -> None:
    page = report_page(whole_page())
    charts = Outline(page).charts
    assert len(charts) == 10
    assert all({"title", "desc"} <= elements for elements in charts)
    assert page.count("<summary>Data</summary>") == len(charts)


def test_without_other_jobs_there_is_no_comparison() -> None:
    page = whole_page()
    alone = ReportPage(report=page.report, job=page.job, results=page.results[:1])
    assert "jobs" not in Outline(report_page(alone)).ids


def test_jobs_scored_on_other_texts_are_listed_but_not_plotted() -> None:
    page = whole_page()
    other = result("job_3", is_this=False, comparable=False)
    shown = report_page(ReportPage(report=page.report, results=(page.results[0], other)))
    assert "job_3" in shown
    assert "Quality and size" not in shown


@pytest.mark.parametrize("name", ["a" * 300, "hub:org/Model"])
def test_model_names_are_shown_without_directories(name: str) -> None:
    shown = report_page(ReportPage(report=report(model=name)))
    assert f"<h1>{name.rsplit('/', 1)[-1]}</h1>" in shown


def test_code_in_notes_is_marked_and_escaped() -> None:
    assert with_code("use `a < b` or c & d") == "use <code>a &lt; b</code> or c &amp; d"
