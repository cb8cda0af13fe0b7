"""Sizes between the shots of a removal."""

from __future__ import annotations

from intraslice_core.allocation.shots import plans_between
from intraslice_core.plan import LayerPlan, ModelPlan


def plan(*sizes: tuple[int, int, int]) -> ModelPlan:
    """Return a plan of layers with query heads, KV heads and neurons."""
    return ModelPlan(
        layers=tuple(
            LayerPlan(
                num_attention_heads=heads,
                num_key_value_heads=groups,
                qk_pairs=4,
                v_head_dim=8,
                intermediate_size=width,
            )
            for heads, groups, width in sizes
        )
    )


def test_sizes_shrink_by_the_rest_over_the_remaining_shots() -> None:
    dense = plan((16, 8, 100), (16, 8, 100))
    final = plan((10, 5, 43), (10, 5, 100))
    between = plans_between(dense, final, 4)
    # 57 neurons in four shots: 14, then ⌊43 / 3⌋, then ⌊29 / 2⌋; three groups: none, 1, 1, then 1.
    assert between == (
        plan((16, 8, 86), (16, 8, 100)),
        plan((14, 7, 72), (14, 7, 100)),
        plan((12, 6, 58), (12, 6, 100)),
    )
    assert plans_between(dense, final, 1) == ()


def test_query_heads_of_a_single_group_go_alike() -> None:
    between = plans_between(plan((8, 1, 64)), plan((4, 1, 64)), 2)
    assert between == (plan((6, 1, 64)),)
