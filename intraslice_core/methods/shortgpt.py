"""ShortGPT (arXiv 2403.03853): whole decoder layers by block influence, without refit.

Block influence (equation 1) of layer i is `BI_i = 1 - E_t[cos(X_i,t, X_{i+1},t)]`: the mean over
tokens of one minus the cosine of its input and output. It is measured once, on the dense model, and
the layers of lowest influence are removed (section 3.2). The others stay as they are.

Differences from the paper: the positions of a prefix (`<bos>`) are not counted. A budget between
two numbers of layers is met by narrowing the MLP of the next layer in the order, by the neurons of
lowest `√E[u²] · mean|W|` (Wanda's score); target `stock` takes whole layers only
(`intraslice_core/allocation/depth.py`).
"""

from __future__ import annotations

from intraslice_core.methods.method import CompressionMethod, LayerRemoval, UnitRemoval

SHORTGPT = CompressionMethod(
    allocator="whole_layers",
    allocations=("auto",),
    targets=("research", "adaptive", "stock"),
    layers=LayerRemoval(influence="layer"),
    units=UnitRemoval(score="wanda", inputs="dense"),
    takes_compressed_models=False,
)
