"""`intraslice bench` on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from app.cli import bench
from tests.intraslice_core.tiny_models import tiny_llama

SMALL = ["--samples", "4", "--sequence-length", "64", "--round-to", "2", "--dtype", "float32"]
SMALL += ["--device", "cpu", "--no-verify", "--no-benchmark", "--evaluate-tokens", "128"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny")


def run(*arguments: str | Path):
    app = typer.Typer(rich_markup_mode=None)
    bench.register(app)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_table_has_a_row_per_method_and_ratio_and_a_second_run_resumes(model, tmp_path):
    options = [model, "--methods", "magnitude,wanda_sp", "--ratios", "0.2,0.4", *SMALL]
    options += ["--calibration", "pydoc"]
    options += ["--evaluate", "pydoc", "--evaluate", "pycode", "--out", tmp_path / "out"]
    first = run(*options)
    assert first.exit_code == 0, first.output
    sizes, _, qualities = first.stdout.partition("quality by text")
    for column in ("parameters", "perplexity, pydoc", "perplexity, pycode", "peak memory"):
        assert column in sizes
    rows = [line.split()[1::2] for line in sizes.splitlines() if "│" in line]
    by_ratio = [[name, ratio] for ratio in ("0.2", "0.4") for name in ("magnitude", "wanda_sp")]
    assert rows[0][0] == "dense"
    assert [row[:2] for row in rows[1:]] == by_ratio
    assert "out-of-domain" in qualities
    assert "at every ratio, parameter counts differ by at most 0.5%" in first.stdout
    page = (tmp_path / "out" / "bench.html").read_text()
    assert page.count('class="chart"') == 2  # two texts
    for method in ("magnitude", "wanda_sp"):
        assert page.count(f"<title>{method}, ratio 0.") == 4
    second = run(*options, "--json")
    assert second.exit_code == 0, second.output
    assert "[compress]" not in second.stderr
    summary = json.loads(second.stdout)
    assert summary == json.loads((tmp_path / "out" / "bench.json").read_text())
    assert [check["equal"] for check in summary["sizes"]] == [True, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods", ","], "--methods: no method is named"),
        (["--methods", "flap,paper"], "--methods: method 'paper' is now called 'intraslice'"),
        (["--methods", "flap,prune"], "--methods: 'prune' is not a method (name some of"),
        (["--methods", "flap", "--methods", "flap"], "contains a method twice"),
        (
            ["--methods", "flap,2ssp", "--ratios", "0.01:0.33:0.01"],
            "--methods: 2 methods at 33 ratios are 66 compressions (at most 64 are allowed",
        ),
        (["--methods", "flap", "--samples", "0"], "--samples: Input should be greater than"),
        (["--methods", "magnitude", "--target", "stock"], "methods: magnitude at ratio 0.2: "),
    ],
)
def test_bad_input_is_one_line_and_code_2(model, tmp_path, options, message):
    result = run(model, "--out", tmp_path / "out", "--ratios", "0.2", *SMALL, *options)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()[-1:]
    assert line.startswith("error: ")
    assert message in line
    assert not list(tmp_path.glob("out/*-ratio-*"))


def test_the_help_names_the_methods_and_has_no_single_method():
    text = " ".join(run("--help").stdout.split())
    assert "--methods METHOD,…" in text
    assert "intraslice_plus, intraslice, magnitude, flap" in text
    assert "--method " not in text
