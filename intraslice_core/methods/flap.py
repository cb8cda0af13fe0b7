"""FLAP (arXiv 2312.11983): fluctuation scores, one global threshold, bias compensation.

The score of an activation is the variance of its values times the squared norm of the weights that
read it: the squared error of replacing it by its mean. Standardised in each module, scores decide
about all heads and neurons of the model together, under one threshold
(`intraslice_core/allocation/threshold.py`). The mean contribution of what is removed becomes a bias
of the output projection. The published structure is `AL-AM`, the metric `WIFV`.

Differences from the authors' code (github.com/CASIA-IVA-Lab/FLAP): with grouped-query attention
whole KV groups are units; a head counts as its parameters instead of 512/3 neurons; variances are
over tokens instead of running over sequences; widths are rounded and the module cap holds.
"""

from __future__ import annotations

from intraslice_core.methods.method import CompressionMethod, UnitRemoval

FLAP = CompressionMethod(
    allocator="global_threshold",
    allocations=("auto", "uniform"),
    targets=("research", "adaptive"),
    units=UnitRemoval(score="fluctuation", inputs="dense", bias_compensation=True),
    takes_compressed_models=False,
)
