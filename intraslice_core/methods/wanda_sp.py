"""Wanda-sp: Wanda's score (arXiv 2306.11695) of whole heads and neurons, as in FLAP's code.

An activation scores its root mean square times the mean absolute weight that reads it; a head
scores the sum over its inputs. Every module loses the same ratio, layer after layer: scores are of
the hidden states that the layers cut before produce. Nothing is refitted. This is the baseline of
FLAP's code (`prune_wanda_sp`), not its standardised global form (metric `WIFN`).

Differences: with grouped-query attention whole KV groups are units. Of n units, `int(ratio · n)` go
as in the code; MLP widths make up for the rest, so that the budget is met.
"""

from __future__ import annotations

from intraslice_core.methods.method import CompressionMethod, UnitRemoval

WANDA_SP = CompressionMethod(
    allocator="uniform",
    allocations=("auto", "uniform"),
    targets=("research", "adaptive", "stock"),
    units=UnitRemoval(score="wanda", inputs="compressed"),
    takes_compressed_models=False,
)
