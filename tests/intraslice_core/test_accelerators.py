"""Classes of GPUs: what is known of them, and what is assumed of others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from intraslice_core.accelerators import GPU_CLASSES, UNKNOWN_GPU, gpu_class, gpu_class_named

METHOD_PAGE = Path(__file__).parents[2] / "docs" / "method.md"


@pytest.mark.parametrize(
    ("capability", "path"),
    [
        ((6, 0), "float64"),
        ((6, 1), "mixed"),
        ((7, 0), "float64"),
        ((7, 5), "mixed"),
        ((8, 0), "float64"),
        ((8, 6), "mixed"),
        ((8, 9), "mixed"),
        ((9, 0), "float64"),
        ((10, 0), "float64"),
        ((10, 3), "mixed"),
        ((12, 0), "mixed"),
    ],
)
def test_only_gpus_for_computing_factorise_in_float64(
    capability: tuple[int, int], path: str
) -> None:
    assert gpu_class(capability).path == path


def test_unknown_gpus_are_checked_as_if_float64_were_slow() -> None:
    assert gpu_class((13, 0)) == UNKNOWN_GPU
    assert UNKNOWN_GPU.path == "mixed"
    assert gpu_class((5, 2)) == replace(UNKNOWN_GPU, has_bfloat16=False)


def test_amd_gpus_are_known_by_their_architecture_not_their_capability() -> None:
    assert gpu_class((9, 4), "gfx942:sramecc+:xnack-").path == "float64"
    assert gpu_class((9, 0), "gfx90a").path == "float64"
    assert gpu_class((9, 0), "gfx900").path == "mixed"
    assert gpu_class((11, 0), "gfx1100").has_bfloat16


@pytest.mark.parametrize(
    ("name", "capability"),
    [
        ("NVIDIA H100 80GB HBM3", (9, 0)),
        ("NVIDIA H200", (9, 0)),
        ("NVIDIA A100-SXM4-80GB", (8, 0)),
        ("NVIDIA L40S", (8, 9)),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", (12, 0)),
    ],
)
def test_a_class_is_found_by_the_name_of_a_gpu(name: str, capability: tuple[int, int]) -> None:
    assert gpu_class_named(name) == gpu_class(capability)


def test_a_gpu_of_another_name_has_no_class() -> None:
    assert gpu_class_named("NVIDIA GeForce RTX 4090") == UNKNOWN_GPU
    assert gpu_class_named("AMD Instinct MI300X") == gpu_class((9, 4), "gfx942")


def test_the_documentation_lists_every_class() -> None:
    page = METHOD_PAGE.read_text(encoding="utf-8")
    for (major, minor), gpu in GPU_CLASSES.items():
        row = f"| {major}.{minor} | {gpu.example} | 1/{round(1 / gpu.float64_share)} | "
        row += f"{'yes' if gpu.has_bfloat16 else 'no'} | {gpu.path} |"
        assert row in page, row
