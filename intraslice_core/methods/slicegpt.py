"""SliceGPT (arXiv 2401.15024): principal components of the residual stream between all modules.

A norm without weights commutes with rotations (equation 2): `RMSNorm(X Q) = RMSNorm(X) Q`. Norm
weights are folded into the projections that read them, and LayerNorm's centring into those that
write (section 3.1, equation 5). The input of each norm, two in a layer, gets a basis `Q` of its
own: the eigenvectors of `C = Σ XᵀX` (equation 7), one site after the other, on what the sites
sliced before produce. Of the rotated stream the leading columns stay, `Q D` (section 3.4):

    embedding `E Q₁ D`     read `Dᵀ Q_lᵀ W`     write `W Q_{l+1} D`     shortcut `Dᵀ Q_lᵀ Q_{l+1} D`

The shortcut replaces the identity of the residual connection (section 3.3). The norm divides by the
root of the sum of squares over the DENSE width, so that nothing changes where nothing is cut. After
the last MLP the stream is back in its own basis, whole, for final norm and head: so does the code
(`do_slice_head` is off), which only rotates them first.

Differences: the width follows from the budget, with shortcuts and embeddings counted, where the
authors cut a fraction of the width. It is one for the whole model but for a rounding step, which
the first sites of the model have in addition so that the budget is met. Tied embeddings stay one
table, multiplied by `Q₁ D` after the look-up, where the authors store two. `C` is not damped, which
does not change its eigenvectors. All positions count, those of a prefix too, as in the code. Norms
of modules' outputs and parallel modules are rejected (`export.targets.WITHOUT_SLICED_RESIDUAL`).
"""

from __future__ import annotations

from intraslice_core.methods.method import CompressionMethod

SLICEGPT = CompressionMethod(
    allocator="residual_width",
    allocations=("auto",),
    targets=("research",),
    slices_residual=True,
    takes_compressed_models=False,
)
