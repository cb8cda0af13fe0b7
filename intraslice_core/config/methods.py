"""Names and descriptions of all compression methods: the one list that everything else reads.

Settings, command line, API, dashboard, cost model and documentation take names and descriptions
from here. The options of a method, such as its selection and its targets, are in
`intraslice_core.methods`; a test compares both. This module imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Final, Literal

from pydantic import AfterValidator

Method = Literal[
    "intraslice_plus",
    "intraslice",
    "magnitude",
    "flap",
    "wanda_sp",
    "2ssp",
    "modegpt",
    "transact",
    "shortgpt",
    "fusegpt",
    "slicegpt",
    "spp",
    "disp",
]
"""Compression method (docs/methods.md)."""

MethodChoice = Literal[Method, "auto"]
"""Value of `compression.method`: a method, or `auto` for the winner of a tournament."""
AUTO: Final = "auto"


def _each_once(methods: tuple[MethodChoice, ...]) -> tuple[MethodChoice, ...]:
    if len(set(methods)) < len(methods):
        raise ValueError("a method occurs twice: name each method once")
    return methods


Methods = Annotated[tuple[MethodChoice, ...], AfterValidator(_each_once)]
"""Different methods, to compare them."""

FORMER_METHOD = "paper"
RENAMED_METHOD_ERROR = (
    "method 'paper' is now called 'intraslice'; the method that was called 'intraslice' is now "
    "'intraslice_plus' and the default"
)


@dataclass(frozen=True, kw_only=True)
class MethodDescription:
    """Title, summary and reference of a method."""

    title: str
    summary: str
    """One line, a noun phrase without a final full stop."""
    reference: str | None = None
    """Publication, as `arXiv NUMBER`; None for methods without one."""


METHOD_DESCRIPTIONS: Mapping[Method, MethodDescription] = MappingProxyType(
    {
        "intraslice_plus": MethodDescription(
            title="IntraSlice+",
            summary="this project's method, sensitivity-weighted selection and refit (default)",
        ),
        "intraslice": MethodDescription(
            title="IntraSlice",
            summary="PCA inside modules with refit and Fisher allocation",
            reference="arXiv 2602.01975",
        ),
        "magnitude": MethodDescription(
            title="Magnitude", summary="the naive baseline, which looks at weights alone"
        ),
        "flap": MethodDescription(
            title="FLAP",
            summary="heads and neurons by fluctuation under one threshold, biases for their means",
            reference="arXiv 2312.11983",
        ),
        "wanda_sp": MethodDescription(
            title="Wanda-sp",
            summary="heads and neurons by weights times activations, equally in every module",
            reference="arXiv 2306.11695",
        ),
        "2ssp": MethodDescription(
            title="2SSP",
            summary="neurons by the length of their activations, then whole attentions by the loss",
            reference="arXiv 2501.17771",
        ),
        "modegpt": MethodDescription(
            title="MoDeGPT",
            summary="one decomposition for each kind of module, ratios by layers' block influence",
            reference="arXiv 2408.09632",
        ),
        "transact": MethodDescription(
            title="TransAct",
            summary="heads and neurons by the length of their activations, rescored in shots",
            reference="arXiv 2407.05690",
        ),
        "shortgpt": MethodDescription(
            title="ShortGPT",
            summary="whole layers, those that change the direction of hidden states least",
            reference="arXiv 2403.03853",
        ),
        "fusegpt": MethodDescription(
            title="FuseGPT",
            summary="whole layers by their effect on the model's output, later layers refitted",
            reference="arXiv 2411.14507",
        ),
        "slicegpt": MethodDescription(
            title="SliceGPT",
            summary="PCA of the residual stream, with a matrix on every residual connection",
            reference="arXiv 2401.15024",
        ),
        "spp": MethodDescription(
            title="SPP",
            summary="one order over all units of the model, of which every size is a prefix",
            reference="arXiv 2501.03289",
        ),
        "disp": MethodDescription(
            title="DISP-LLM",
            summary="reads and writes of the residual stream for each module, and neurons",
            reference="arXiv 2410.11988",
        ),
    }
)
"""All methods, the default first."""

METHOD_CHOICES: Mapping[MethodChoice, MethodDescription] = MappingProxyType(
    {
        **{name: METHOD_DESCRIPTIONS[name] for name in METHOD_DESCRIPTIONS},
        AUTO: MethodDescription(
            title="Auto",
            summary="the method of least divergence in short trials of all that have the target",
        ),
    }
)
"""All values of `compression.method`, the default first."""


def describe_methods() -> str:
    """Return all choices with their summaries and references, as sentences."""
    return " ".join(
        f"{name}: {description.summary}"
        + (f" ({description.reference})." if description.reference else ".")
        for name, description in METHOD_CHOICES.items()
    )
