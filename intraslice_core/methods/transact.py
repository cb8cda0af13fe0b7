"""TransAct (arXiv 2407.05690): heads and neurons by the length of their activations, in shots.

An activation scores `√Σ a²` over all tokens; a head scores the mean of its activations' scores plus
10 / head_dim times the largest. Every layer keeps equally many heads and neurons. Sizes shrink in
equal steps, and after each step all that remains is scored again on the smaller model
(`allocation.shots`).

Differences from the authors' code (github.com/XiaoMi/transact-pruning): with grouped-query
attention, which it does not support, whole KV groups are units and score the mean of their heads.
It trains for a billion tokens between the shots and fifty billion after them; here nothing is
trained in between, four shots replace eight, and `recover` may follow. Heads lose no dimensions, as
with its script's default. Of n units `int(ratio · n)` go, and MLP widths make up for the rest.
"""

from __future__ import annotations

from intraslice_core.methods.method import CompressionMethod, UnitRemoval

TRANSACT = CompressionMethod(
    allocator="uniform",
    allocations=("auto", "uniform"),
    targets=("research", "adaptive", "stock"),
    units=UnitRemoval(score="length", inputs="dense", shots=4),
    takes_compressed_models=False,
)
