"""DISP-LLM (arXiv 2410.11988): modules read and write parts of the residual stream of their own.

Every module has selections of its own: the normed dimensions that it reads (S₁, S₃ of the paper's
figure 1), the dimensions of the residual stream that it adds to (S₂, S₅), and the neurons of the
MLP (S₄). The stream keeps all dimensions, and a module's projections have rows and columns for its
own selections only, with an index to read and one to write. Heads and their dimensions stay.

By default nothing is trained: reads stay by Optimal Brain Surgeon on `C = E[x̃ x̃ᵀ]` and the
projections that read them, writes by their energy `E[Δx_j²]`, neurons by Optimal Brain Surgeon on
`E[u uᵀ]`, with equal sizes in all layers (`allocation.residual_parts`). `mask_training` trains the
paper's hypernetwork instead (`sensitivity.hypernetwork`): Gumbel-sigmoid masks of temperature 0.4,
cross-entropy plus `16 log(max(r, p) / min(r, p))`, AdamW at 1e-3; its logits select, and one
threshold for all of them allocates. Both refit every projection to the module's own output, which
the paper does not (`residual_parts_compression`).

Differences from the authors' code (github.com/gaosh/DISP-LLM-Dimension-Independent-Structural-
Pruning): a step takes one calibration sequence; the result is of the logits, not of one more draw,
so that the budget is met exactly; biases and norms of outputs are supported, the norm after a
module being of its update with zeros where it does not write. `recover` trains the weights.
"""

from __future__ import annotations

from intraslice_core.methods.method import CompressionMethod

DISP = CompressionMethod(
    allocator="uniform",
    allocations=("auto", "uniform"),
    targets=("research",),
    residual_parts=True,
    trains_masks=True,
    trained_allocator="hypernetwork",
    neuron_choice="obs",
    compensate=True,
    shrink_to_weights=True,
    choice_damping=1e-4,
    damping_own=(1e-4,),
    takes_compressed_models=False,
)
