"""Seconds and bytes of a compression on several devices of one machine, from shapes alone.

The ranks divide the sequences among them (`ranks`), and factorise in parallel where modules or
candidates are independent: one layer each in the sensitivity measurement, the dampings of a module
in the compression. A rank's work is then that of the largest share. Nothing is assumed to overlap,
so that a stage lasts as long as its products, factorisations, links and copies of weights together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from intraslice_core.config import CompressionConfig, FrozenModel
from intraslice_core.cost_model.flops import Work
from intraslice_core.cost_model.work import (
    GROUP_SEQUENCES,
    PAIR_SEQUENCES,
    TRIAL_PLANS,
    TRIALS_PER_LAYER,
    trial_layers,
)
from intraslice_core.methods import METHODS
from intraslice_core.plan import ModelGeometry

_WIDE = 8
"""Bytes of a number in sums and factorisations."""
_NARROW = 4
"""Bytes of a number in mask gradients."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Sustained rates of one machine with equal devices."""

    name: str
    devices: int
    products: float
    """Operations per second of a device in products of the compute dtype."""
    factorisations: float
    """Operations per second of a device in float64 factorisations and solves."""
    link: float
    """Bytes per second that a device sends to the others, and receives, at the same time."""
    copies: float
    """Bytes per second of weights from host memory to a device, all devices at once."""


H100_SXM = Machine(
    name="8 x H100 SXM",
    devices=8,
    products=400e12,
    factorisations=20e12,
    link=360e9,
    copies=40e9,
)
"""Eight H100 of 80 GB with NVLink: 40 % of the peak of bfloat16 products, 30 % of that of float64
matrix products, 80 % of the links, and most of PCIe 5.0 x16. Not measured here."""


class StageCost(FrozenModel):
    """Cost of one stage on each device."""

    stage: str
    products: float
    """Seconds of products: passes of tokens and second moments."""
    factorisations: float
    """Seconds of float64 factorisations that follow one another."""
    link_bytes: float
    """Bytes that a device sends over its link, and receives, at the same time."""
    links: float
    """Seconds of these bytes."""
    copied_bytes: float
    """Bytes of weights that every device reads from host memory."""
    copies: float
    """Seconds of these bytes."""

    @property
    def seconds(self) -> float:
        """Seconds of the stage."""
        return self.products + self.factorisations + self.links + self.copies


def parallel_costs(
    geometry: ModelGeometry,
    compression: CompressionConfig,
    machine: Machine,
    *,
    devices: int | None = None,
    item_bytes: int = 2,
) -> tuple[StageCost, ...]:
    """Estimate the stages that depend on the calibration sequences, in order.

    The estimate is for methods that measure sensitivity and refit, like `intraslice_plus`.

    Args:
        geometry: dimensions of the dense model.
        compression: settings of the compression.
        machine: rates.
        devices: number of devices in use; None for all of the machine's.
        item_bytes: bytes of a stored weight.

    Raises:
        ValueError: for methods that do not measure sensitivity.
    """
    method = METHODS[compression.method]
    if not (method.measures_sensitivity and method.compensate):
        raise ValueError(f"{compression.method} has no stages of a sensitivity-based method")
    count = machine.devices if devices is None else devices
    work = _ParallelWork(Work(geometry, compression), count, item_bytes)
    return tuple(
        StageCost(
            stage=name,
            products=products / machine.products,
            factorisations=factorisations / machine.factorisations,
            link_bytes=link_bytes,
            links=link_bytes / machine.link,
            copied_bytes=copied,
            copies=copied / machine.copies,
        )
        for name, products, factorisations, link_bytes, copied in (
            ("gradients", *work.gradients()),
            ("sensitivity", *work.sensitivity()),
            ("trial compression", *work.trial_compression()),
            ("compression", *work.compression()),
        )
    )


_Amounts = tuple[float, float, float, float]
"""Products, factorisations, bytes over the link and copied bytes of a stage on one device."""


@dataclass(frozen=True)
class _ParallelWork:
    """Amounts of work of the busiest device."""

    work: Work
    count: int
    item_bytes: int

    # -- parts ---------------------------------------------------------------------------------

    def _share(self, sequences: int) -> float:
        """Return the largest share of a number of sequences."""
        return math.ceil(sequences / self.count) / max(sequences, 1)

    def _summed(self, numbers: float, *, everywhere: bool, item: int = _WIDE) -> float:
        """Return the bytes over a link of adding up numbers over all devices, by a ring.

        Args:
            numbers: in the tensors of one device.
            everywhere: all devices get the sums; otherwise one of them does.
            item: bytes of a number.
        """
        part = (self.count - 1) / self.count
        return numbers * item * part * (2 if everywhere else 1)

    def _sent(self, size: float) -> float:
        """Return the bytes over a link of sending a number of bytes from one device to all."""
        return size if self.count > 1 else 0.0

    @property
    def _layer_bytes(self) -> float:
        return self.work.geometry.dense_layer().parameters(self.work.geometry) * self.item_bytes

    @property
    def _weights(self) -> float:
        """Bytes of all layers."""
        return self.work.layers * self._layer_bytes

    @property
    def _grams(self) -> float:
        """Numbers in the Gram matrices of a dense layer."""
        return self.work.inner**2 + self.work.geometry.intermediate_size**2

    @property
    def _pair_bytes(self) -> float:
        """Bytes of the queries, keys and values that the effects of rotary pairs need."""
        geometry = self.work.geometry
        heads = geometry.num_attention_heads + 2 * geometry.num_key_value_heads
        sequences = min(PAIR_SEQUENCES, self.work.parts.sensitivity)
        return sequences * self.work.length * heads * geometry.head_dim * self.item_bytes

    # -- stages --------------------------------------------------------------------------------

    def gradients(self) -> _Amounts:
        """Return the amounts of the gradients: both passes, and their second moments."""
        geometry, sequences = self.work.geometry, self.work.parts.gradients
        groups = math.ceil(sequences / GROUP_SEQUENCES)
        masks = 2 * geometry.num_attention_heads * geometry.head_dim**2 + geometry.intermediate_size
        moments = self._summed(2 * geometry.hidden_size**2, everywhere=False)
        moments += self._summed(masks, everywhere=False, item=_NARROW)
        return (
            self.work.gradients() * self._share(sequences),
            0.0,
            groups * self.work.layers * moments,
            2 * groups * self._weights,
        )

    def sensitivity(self) -> _Amounts:
        """Return the amounts of the pass over the dense model, and of the trial cuts."""
        work, parts = self.work, self.work.parts
        layer = work.attention() + work.mlp()
        passes = work.sequence(1.0) - work.head() + work.layers * work.grams()
        products = math.ceil(parts.sensitivity / self.count) * passes
        products += parts.trial_cut_tokens / work.length * self._trial_passes() * layer
        factorised = work.sensitivity_factorisations() * self._share(work.layers)
        sent = self._summed(self._grams, everywhere=False) + self._sent(self._pair_bytes)
        return products, factorised, work.layers * sent, 2 * self._weights

    def _trial_passes(self) -> float:
        """Return the layers that a token of trial cuts passes on the device with most of them."""
        layers, passes = self.work.layers, [0] * self.count
        for layer in trial_layers(layers):
            passes[layer % self.count] += TRIALS_PER_LAYER * (layers - layer)
        return layers + max(passes)

    def trial_compression(self) -> _Amounts:
        """Return the amounts of compressing and judging all plans."""
        work, parts = self.work, self.work.parts
        if not parts.trial_fit:
            return 0.0, 0.0, 0.0, 0.0
        layer, judged = work.attention() + work.mlp(), parts.judged_tokens / work.length
        checks = work.sequence(1.0) + TRIAL_PLANS * (work.kept * work.layers * layer + work.head())
        fit = work.layers * (layer + work.grams())
        products = math.ceil(parts.trial_fit / self.count) * fit
        products += judged * checks * self._share(work.check_sequences)
        plans = math.ceil(TRIAL_PLANS / self.count)
        factorised = work.layers * work.own_refits(*[work.kept] * plans)
        sent = self._summed(self._grams, everywhere=True)
        sent += self._sent(TRIAL_PLANS * work.kept * self._layer_bytes)
        return products, factorised, work.layers * sent, self._weights

    def compression(self) -> _Amounts:
        """Return the amounts of the compression: passes, moments, and one module after another."""
        work = self.work
        divided = work.passes(work.samples) + work.statistics(work.samples)
        products = divided * self._share(work.samples)
        sizes = [work.kept * work.inner, work.kept * work.geometry.intermediate_size]
        chain = work.layers * sum(self._refit(size) for size in sizes)
        sent = work.layers * (self._moments(*sizes) + self._fitted(sizes))
        return products, chain, sent, self._weights

    def _refit(self, size: float) -> float:
        """Return the operations of a module's refit that follow one another.

        The dampings of both parts are compared by all devices, the second part with the factor of
        the first; then one device fits. All of them multiply moments with the prior.
        """
        method = METHODS[self.work.compression.method]
        own, correction = len(method.damping_own), len(method.damping_correction)
        factors = 1 + (correction > 0)
        if own > 1:
            factors += self._compared(own) + self._compared(correction) + (correction > 0)
        products = 3 + (correction > 0) + (own > 1)
        return factors * size**3 / 3 + 2.0 * products * size**2 * self.work.geometry.hidden_size

    def _compared(self, candidates: int) -> int:
        """Return the factorisations of the device with most candidates and folds.

        A single device skips those beyond the least error, about half of them.
        """
        tasks = candidates * self.work.folds
        return math.ceil(tasks / self.count) if self.count > 1 else math.ceil(tasks / 2)

    def _moments(self, inner: float, neurons: float) -> float:
        """Return the bytes over a link of a layer's moments, of both parts of the sequences."""
        hidden, width = self.work.geometry.hidden_size, self.work.geometry.intermediate_size
        attention = inner**2 + 2 * inner * hidden
        mlp = neurons * width + neurons * hidden
        return 2 * self._summed(attention + mlp, everywhere=True)

    def _fitted(self, sizes: Sequence[float]) -> float:
        """Return the bytes over a link of a layer's fitted projections."""
        return self._sent(_WIDE * sum(sizes) * self.work.geometry.hidden_size)
