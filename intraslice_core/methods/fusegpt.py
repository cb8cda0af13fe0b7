"""FuseGPT (arXiv 2411.14507) without training: whole layers by macro influence, and a refit.

Macro influence of layer i is `1 - E_t[cos(X_L,t, X_L,t without i)]`: the mean over tokens of one
minus the cosine of the model's last hidden states with and without the layer. The layer of lowest
influence is removed, and the influence of the others is measured again
(`intraslice_core/allocation/layer_removal.py`).

The paper then grafts the removed layer's weights on its neighbours, `W_j + (A B) ∘ W_removed`, and
trains A, B and LoRA adapters towards the hidden states of the model before the removal. Here the
output projections of all layers after the first removed one are refitted to the dense hidden
states, one least squares each (docs/method.md, section 5). `recover` trains.

Further differences from the authors' code (github.com/Muuuush/FuseGPT): all layers are removed
before the refit, so influences are those of the model without refit; all later layers are refitted,
not a group of seven on both sides; a budget between two numbers of layers is met by narrowing the
MLP of the next layer in the order (`intraslice_core/allocation/depth.py`). Where norms follow the
modules' outputs, no module can make up for another, and nothing is refitted.
"""

from __future__ import annotations

from intraslice_core.methods.method import CompressionMethod, LayerRemoval

FUSEGPT = CompressionMethod(
    allocator="whole_layers",
    allocations=("auto",),
    targets=("research", "adaptive", "stock"),
    layers=LayerRemoval(influence="model"),
    neuron_choice="obs",
    compensate=True,
    dense_target=True,
    shrink_to_weights=True,
    choice_damping=1e-4,
    damping_per_dimension=True,
    damping_own=(1e-6, 1e-3, 1e-2, 0.1, 0.3, 1.0),
    damping_correction=(0.1, 0.3, 1.0, 3.0, 10.0),
    validation="left_out_source",
    takes_compressed_models=False,
)
