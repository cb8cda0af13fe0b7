"""MoDeGPT (arXiv 2408.09632): one decomposition for each kind of module.

MLP (type I, Nyström): neurons of largest ridge leverage `diag(H (H + λI)⁻¹)`, `H = E[u uᵀ]`, and
the down projection `H_SS⁻¹ H_S: W_d`. Queries and keys (type II, CR): of each KV group the rotary
pairs of largest `Σ_h E[q²] E[k²]` over their two dimensions after RoPE, with no refit. Values and
outputs (type III): two singular value decompositions (`selection.value_basis.two_svds`). Each layer
loses `L φ softmax(-s / 0.15)` of its parameters, with the block influence
`s = 1 - E cos(x_in, x_out)`, and at most 0.8 (`allocation.layer_ratios`).

Differences: the authors published no code. λ is 0.01 of the mean of H's diagonal; reproductions
add 0.01 to H of any scale, so that it damps much or nothing. Layers and modules are measured on
what those compressed before produce, reproductions measure the dense model. The type III
decompositions need `E[v vᵀ]` of each KV group instead of `E[x xᵀ]`, which gives the same weights;
with grouped queries the second is of the outputs of all query heads of a group together, where
reproductions leave it out. Biases are refitted with their down projection, and where a norm follows
the MLP, H is of activations divided by its rms. Positions of the prefix count neither in types II
and III nor in s.
"""

from __future__ import annotations

from intraslice_core.methods.method import CONSTRAINED_ALLOCATIONS, CompressionMethod

MODEGPT = CompressionMethod(
    allocator="block_influence",
    allocations=CONSTRAINED_ALLOCATIONS,
    targets=("research", "adaptive"),
    pair_score="energy_product",
    value_basis="two_svds",
    neuron_choice="leverage",
    compensate=True,
    choice_damping=0.01,
    damping_own=(1e-6,),
    takes_compressed_models=False,
)
