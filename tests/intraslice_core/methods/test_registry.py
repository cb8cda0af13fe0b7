"""Methods are known from one table, and everything that lists them agrees with it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import pytest

from app.cli.options import METHODS as CHOICES
from app.domain.model_catalogue import METHODS as OFFERED
from intraslice_core.config import (
    AUTO,
    METHOD_CHOICES,
    METHOD_DESCRIPTIONS,
    CompressionConfig,
    Method,
    MethodChoice,
    Target,
)
from intraslice_core.errors import ConfigurationError
from intraslice_core.export.targets import DEMANDS, require_target
from intraslice_core.methods import METHODS

REPOSITORY = Path(__file__).parents[3]
NAMES = list(METHOD_DESCRIPTIONS)
WITH_AUTO = [*NAMES, AUTO]


def test_every_method_is_described_and_has_options() -> None:
    assert list(get_args(Method)) == NAMES == list(METHODS)
    assert list(get_args(MethodChoice)) == list(METHOD_CHOICES) == WITH_AUTO
    assert CompressionConfig().method == NAMES[0]
    for description in METHOD_DESCRIPTIONS.values():
        assert description.title
        assert description.summary
        assert not description.summary.endswith(".")
        assert "\n" not in description.summary


def test_command_line_api_and_dashboard_list_the_table() -> None:
    assert list(CHOICES) == WITH_AUTO
    schema = CompressionConfig.model_json_schema()["properties"]["method"]
    assert schema["enum"] == WITH_AUTO
    for name, description in METHOD_CHOICES.items():
        assert f"{name}: {description.summary}" in schema["description"]
    assert [method.name for method in OFFERED] == WITH_AUTO
    # The dashboard reads the offer and has no list of its own, only the preset's method.
    form = (REPOSITORY / "app" / "dashboard" / "form" / "request.js").read_text("utf-8")
    assert re.findall(rf'"({"|".join(NAMES)})"', form) == [NAMES[0]]


def test_openapi_lists_the_table() -> None:
    schemas = json.loads((REPOSITORY / "openapi.json").read_text("utf-8"))["components"]["schemas"]
    assert schemas["CompressionConfig"]["properties"]["method"]["enum"] == WITH_AUTO


def test_the_page_of_methods_has_a_section_and_a_row_for_each() -> None:
    page = (REPOSITORY / "docs" / "methods.md").read_text("utf-8")
    assert re.findall(r"^## (\w+)$", page, re.M) == NAMES
    rows = re.findall(r"^\| `(\w+)`.*\| (.+) \| (.+) \|$", page, re.M)
    assert [name for name, _, _ in rows] == NAMES
    for name, allocation, targets in rows:
        method = METHODS[name]
        assert re.findall(r"`(\w+)`", targets) == list(method.targets)
        assert allocation == f"`{method.allocator}`"
    for description in METHOD_DESCRIPTIONS.values():
        assert description.reference is None or description.reference in page


@pytest.mark.parametrize("name", NAMES)
def test_the_section_of_a_method_has_a_drawing_and_says_when_to_use_it(name: Method) -> None:
    page = (REPOSITORY / "docs" / "methods.md").read_text("utf-8")
    section = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
    assert re.search(r"\n\n {4}\S.*\n(?: {4}.*\n)*\n", section + "\n"), "no drawing"
    assert re.search(r"\buse it\b", " ".join(section.split()), re.I), "not when to use it"


@pytest.mark.parametrize("target", DEMANDS)
@pytest.mark.parametrize("name", NAMES)
def test_a_method_without_the_target_is_rejected_with_those_that_have_it(
    name: Method, target: Target
) -> None:
    config = CompressionConfig(method=name, target=target)
    if target in METHODS[name].targets:
        assert require_target(config, "llama").methods
        return
    with pytest.raises(
        ConfigurationError, match=f"{target} does not support method {name}"
    ) as caught:
        require_target(config, "llama")
    assert caught.value.field == "compression.method"
    assert "intraslice_plus" in str(caught.value.hint)
    assert "target research" in str(caught.value.hint)


@pytest.mark.parametrize("name", NAMES)
def test_an_allocation_that_the_method_cannot_use_is_rejected(name: Method) -> None:
    for allocation in ("auto", "uniform", "lagrangian", "fisher", "fisher_pca"):
        config = CompressionConfig(method=name, allocation=allocation)
        if allocation in METHODS[name].allocations:
            require_target(config, "llama")
            continue
        with pytest.raises(
            ConfigurationError, match=f"not support allocation {allocation}"
        ) as caught:
            require_target(config, "llama")
        assert caught.value.field == "compression.allocation"
        assert METHODS[name].allocations[0] in str(caught.value.hint)
