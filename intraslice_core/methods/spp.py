"""SPP (arXiv 2501.03289): one order over all units of the model, by a solution path.

A unit is a rotary pair of queries and keys, a value dimension with the output projection's inputs,
or a neuron, and has a mask `alpha` on its activations. The path solves the paper's differential
inclusion (`sensitivity.mask_training`): `alpha` by AdamW on the augmented loss,
`loss + Σ c (alpha - gamma)²`, `z += step κ (alpha - gamma)`, `gamma = max(z - λ, 0)`; the earlier
`gamma` leaves zero, the longer its unit stays. One run orders all units, so that one prefix of the
removals gives the model of every size, each a part of the larger ones (`allocation.solution_path`).

By default nothing is trained: the order is that of Optimal Brain Surgeon, in which a unit costs the
loss that remains after the others compensate, per parameter. Predicted losses are those of
IntraSlice+ (`sensitivity.measurement`), without new bases of values or of queries and keys.
`mask_training` trains the paper's path instead. Both refit the output projections to the modules'
own outputs.

Differences from the authors' code (github.com/yizhuoDi/Solution-Path-Pruning), whose search is for
DeiT: a query-key mask acts after RoPE on pairs of dimensions, apart from the mask of values, where
the code has one for both; every layer keeps equally many units in each KV group, with scores
averaged over groups. κ is 1, the rate 1e-3, ε 1e-4, without weight decay. The code adds the
augmented term after its backward pass, with c 4.8e-4 for attention and 2e-5 for neurons, so that
its masks only drift with the loss; here c follows from the gradients of the first step. λ is 0.1 in
its signature and 3 in its body; here it is half of what `z` can reach in the training's steps.
Units whose gamma never leaves zero follow in the order of z. The code stops at a ratio and
fine-tunes; here the output projections are refitted and `recover` trains.
"""

from __future__ import annotations

from intraslice_core.methods.method import CONSTRAINED_ALLOCATIONS, CompressionMethod

SPP = CompressionMethod(
    allocator="solution_path",
    allocations=CONSTRAINED_ALLOCATIONS,
    targets=("research", "adaptive"),
    value_basis="coordinates",
    neuron_choice="obs",
    measures_sensitivity=True,
    trains_masks=True,
    compensate=True,
    shrink_to_weights=True,
    damping_own=(1e-4,),
    takes_compressed_models=False,
)
"""Least squares to the module's own output are the compensation of Optimal Brain Surgeon."""
