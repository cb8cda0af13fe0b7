"""Random allocation problems, and their answers by trying everything."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
from hypothesis import strategies as st

from intraslice_core.allocation.curves import (
    AttentionCurves,
    Curve,
    HeadOption,
    LayerCurves,
    Losses,
    ModelCurves,
    all_heads,
    pair_curve,
)
from intraslice_core.plan import LayerPlan, ModelGeometry

SHAPES = ("convex", "concave", "noisy", "steps", "free")


@dataclass(frozen=True)
class Option:
    """One size of one module, counted by the plan's own arithmetic."""

    parameters: int
    loss: float
    shape: LayerPlan


def loss_curve(rng: np.random.Generator, dense: int, shape: str) -> Losses:
    """Loss by the number kept, (dense + 1,), falling to 0."""
    scores = rng.gamma(0.5, 1.0, dense) * np.exp(rng.normal())
    if shape == "convex":
        scores = np.sort(scores)[::-1]
    elif shape == "concave":
        scores = np.sort(scores)
    elif shape == "steps":
        scores = scores * (rng.random(dense) < 0.2)
    elif shape == "free":
        scores = np.zeros(dense)
    return np.append(np.cumsum(scores[::-1])[::-1], 0.0)


def head_options(
    rng: np.random.Generator, geometry: ModelGeometry, *, removable: bool
) -> list[tuple[int, int, float]]:
    """Every rectangular choice of heads with a loss that grows as heads go."""
    groups, each = geometry.num_key_value_heads, geometry.num_key_value_groups
    scale = float(rng.gamma(1.0, 3.0))
    found = [
        (heads, kept, scale * (1.0 - heads * kept / (each * groups)) ** 1.5)
        for kept in range(1, groups + 1)
        for heads in range(1, each + 1)
    ]
    return [*found, (0, 0, 1.5 * scale)] if removable else found


def model_curves(
    geometry: ModelGeometry,
    round_to: int,
    seed: int,
    *,
    heads: bool = True,
    removable: bool = False,
) -> ModelCurves:
    """Curves of all kinds of shapes."""
    rng = np.random.default_rng(seed)

    def drawn(dense: int) -> Losses:
        return loss_curve(rng, dense, str(rng.choice(SHAPES)))

    def layer() -> LayerCurves:
        options = head_options(rng, geometry, removable=removable)
        return LayerCurves(
            attention=AttentionCurves(
                pairs=pair_curve(drawn(geometry.rotary_pairs), round_to),
                values=Curve.from_losses(drawn(geometry.head_dim), round_to),
                heads=tuple(
                    HeadOption(heads_per_group=one, groups=kept, loss=loss)
                    for one, kept, loss in options
                )
                if heads
                else all_heads(geometry),
            ),
            widths=Curve.from_losses(
                drawn(geometry.intermediate_size), round_to, removable=removable
            ),
        )

    layers = tuple(layer() for _ in range(geometry.num_hidden_layers))
    return ModelCurves(geometry=geometry, layers=layers)


@st.composite
def realistic_geometries(draw: st.DrawFn) -> ModelGeometry:
    """Proportions of models in use, scaled down: fine enough for 0.5 % of any budget."""
    groups = draw(st.sampled_from([1, 2, 3, 4]))
    heads = groups * draw(st.sampled_from([1, 2, 3, 4]))
    head_dim = draw(st.sampled_from([32, 64, 80, 128]))
    hidden = heads * head_dim
    return ModelGeometry(
        num_hidden_layers=draw(st.integers(12, 32)),
        hidden_size=hidden,
        intermediate_size=8 * round(draw(st.floats(2.0, 5.0)) * hidden / 8) + 512,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=head_dim,
        vocab_size=1000,
        tie_word_embeddings=True,
    )


@st.composite
def small_geometries(draw: st.DrawFn) -> ModelGeometry:
    """So small that every combination of shapes can be tried."""
    groups = draw(st.sampled_from([1, 2]))
    return ModelGeometry(
        num_hidden_layers=draw(st.integers(1, 2)),
        hidden_size=draw(st.sampled_from([1, 4])),
        intermediate_size=draw(st.integers(6, 17)),
        num_attention_heads=groups * draw(st.sampled_from([1, 2])),
        num_key_value_heads=groups,
        head_dim=draw(st.sampled_from([4, 8])),
        vocab_size=10,
        tie_word_embeddings=True,
    )


def attention_options(curves: ModelCurves, layer: int) -> Iterator[Option]:
    """Everything a layer's attention may be; value heads no wider than query/key heads."""
    candidate = curves.layers[layer].attention
    for option in candidate.heads:
        if option.removed:
            yield _option(curves, (0, 0, 0, 0, 0), option.loss)
            continue
        for pair, value in product(
            range(len(candidate.pairs.sizes)), range(len(candidate.values.sizes))
        ):
            pairs, dims = int(candidate.pairs.sizes[pair]), int(candidate.values.sizes[value])
            if 0 < dims <= 2 * pairs:
                loss = option.loss + float(
                    candidate.pairs.losses[pair] + candidate.values.losses[value]
                )
                yield _option(curves, (option.query_heads, option.groups, pairs, dims, 0), loss)


def mlp_options(curves: ModelCurves, layer: int) -> Iterator[Option]:
    """Every width."""
    widths = curves.layers[layer].widths
    for size, loss in zip(widths.sizes.tolist(), widths.losses.tolist(), strict=True):
        yield _option(curves, (0, 0, 0, 0, size), loss)


def _option(curves: ModelCurves, sizes: tuple[int, ...], loss: float) -> Option:
    shape = LayerPlan(**dict(zip(LayerPlan.model_fields, sizes, strict=True)))
    return Option(parameters=shape.parameters(curves.geometry), loss=loss, shape=shape)


def within_cap(options: Iterator[Option], module_cap: float) -> list[Option]:
    """Without those that lose more than the cap, but with the removed module if it is offered."""
    found = list(options)
    least = (1.0 - module_cap) * max(one.parameters for one in found) - 1e-6
    return [one for one in found if one.parameters >= least or one.parameters == 0]


def modules_of(curves: ModelCurves, module_cap: float) -> list[list[Option]]:
    """The options of every module."""
    return [
        within_cap(options(curves, layer), module_cap)
        for layer in range(len(curves.layers))
        for options in (attention_options, mlp_options)
    ]


def best_loss(modules: list[list[Option]], budget: int) -> float:
    """The least loss within the budget, by trying all combinations."""
    parameters, losses = np.zeros(1, dtype=np.int64), np.zeros(1)
    for options in modules:
        sizes = np.array([one.parameters for one in options])
        prices = np.array([one.loss for one in options])
        parameters = (parameters[:, None] + sizes).ravel()
        losses = (losses[:, None] + prices).ravel()
        fits = parameters <= budget
        parameters, losses = parameters[fits], losses[fits]
    return float(losses.min()) if losses.size else float("inf")


def largest_step(options: list[Option]) -> float:
    """The largest loss between neighbouring corners of the options' lower convex hull."""
    corners = sorted({(one.parameters, one.loss) for one in options})
    hull = [min(one for one in corners if one[0] == corners[0][0])]
    while True:
        here = hull[-1]
        later = [one for one in corners if one[0] > here[0] and one[1] < here[1]]
        if not later:
            break
        slopes = {one: (one[1] - here[1]) / (one[0] - here[0]) for one in later}
        hull.append(min(later, key=lambda one: (slopes[one], one[0])))
    return max((before[1] - after[1] for before, after in pairwise(hull)), default=0.0)
