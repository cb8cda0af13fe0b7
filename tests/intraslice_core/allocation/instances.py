"""Random allocation problems and their solutions by exhaustive search."""

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
    """One size of one module, with parameters counted by the plan."""

    parameters: int
    loss: float
    shape: LayerPlan


def loss_curve(rng: np.random.Generator, dense: int, shape: str) -> Losses:
    """Return random losses by the number kept, (dense + 1,), falling to 0."""
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
    """Return every rectangle (heads per group, groups) with a loss that grows as heads go."""
    all_groups, group_size = geometry.num_key_value_heads, geometry.num_key_value_groups
    scale = float(rng.gamma(1.0, 3.0))
    rectangles = [
        (heads, groups, scale * (1.0 - heads * groups / (group_size * all_groups)) ** 1.5)
        for groups in range(1, all_groups + 1)
        for heads in range(1, group_size + 1)
    ]
    return [*rectangles, (0, 0, 1.5 * scale)] if removable else rectangles


def model_curves(
    geometry: ModelGeometry,
    round_to: int,
    seed: int,
    *,
    heads: bool = True,
    removable: bool = False,
) -> ModelCurves:
    """Return random curves of all `SHAPES`."""
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
                    HeadOption(heads_per_group=size, groups=groups, loss=loss)
                    for size, groups, loss in options
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
    """Draw proportions of real models, scaled down: fine enough for 0.5 % of any budget."""
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
    """Draw geometries so small that every combination of shapes can be tried."""
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
    """Yield all options of a layer's attention; value heads no wider than query/key heads."""
    attention = curves.layers[layer].attention
    for option in attention.heads:
        if option.removed:
            yield _option(curves, (0, 0, 0, 0, 0), option.loss)
            continue
        for pair, value in product(
            range(len(attention.pairs.sizes)), range(len(attention.values.sizes))
        ):
            pairs, dims = int(attention.pairs.sizes[pair]), int(attention.values.sizes[value])
            if 0 < dims <= 2 * pairs:
                loss = option.loss + float(
                    attention.pairs.losses[pair] + attention.values.losses[value]
                )
                yield _option(curves, (option.query_heads, option.groups, pairs, dims, 0), loss)


def mlp_options(curves: ModelCurves, layer: int) -> Iterator[Option]:
    """Yield all options of a layer's MLP."""
    widths = curves.layers[layer].widths
    for size, loss in zip(widths.sizes.tolist(), widths.losses.tolist(), strict=True):
        yield _option(curves, (0, 0, 0, 0, size), loss)


def _option(curves: ModelCurves, sizes: tuple[int, ...], loss: float) -> Option:
    names = [*LayerPlan.model_fields][: len(sizes)]  # heads to MLP width; the rest is dense
    shape = LayerPlan(**dict(zip(names, sizes, strict=True)))
    return Option(parameters=shape.parameters(curves.geometry), loss=loss, shape=shape)


def within_cap(options: Iterator[Option], module_cap: float) -> list[Option]:
    """Return the options within the cap, and the removed module if it is an option."""
    candidates = list(options)
    minimum = (1.0 - module_cap) * max(option.parameters for option in candidates) - 1e-6
    return [
        option for option in candidates if option.parameters >= minimum or option.parameters == 0
    ]


def modules_of(curves: ModelCurves, module_cap: float) -> list[list[Option]]:
    """Return the options of every module."""
    return [
        within_cap(options(curves, layer), module_cap)
        for layer in range(len(curves.layers))
        for options in (attention_options, mlp_options)
    ]


def best_loss(modules: list[list[Option]], budget: int) -> float:
    """Return the least loss within the budget, by trying all combinations."""
    parameters, losses = np.zeros(1, dtype=np.int64), np.zeros(1)
    for options in modules:
        option_sizes = np.array([option.parameters for option in options])
        option_losses = np.array([option.loss for option in options])
        parameters = (parameters[:, None] + option_sizes).ravel()
        losses = (losses[:, None] + option_losses).ravel()
        fits = parameters <= budget
        parameters, losses = parameters[fits], losses[fits]
    return float(losses.min()) if losses.size else float("inf")


def largest_step(options: list[Option]) -> float:
    """Return the largest loss between neighbouring corners of the options' lower convex hull."""
    points = sorted({(option.parameters, option.loss) for option in options})
    hull = [min(point for point in points if point[0] == points[0][0])]
    while True:
        here = hull[-1]
        later = [point for point in points if point[0] > here[0] and point[1] < here[1]]
        if not later:
            break
        slopes = {point: (point[1] - here[1]) / (point[0] - here[0]) for point in later}
        hull.append(min(later, key=lambda point: (slopes[point], point[0])))
    return max((before[1] - after[1] for before, after in pairwise(hull)), default=0.0)
