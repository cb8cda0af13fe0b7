"""2SSP (arXiv 2501.17771): neurons by the length of their activations, then whole attentions.

First stage: every MLP keeps equally many neurons, those with the largest mean over sequences of the
l2 norm over tokens. Second stage: attentions are removed one by one, each time the one without
which the next-token loss of the model with cut MLPs is least
(`intraslice_core/allocation/attention_removal.py`). Equation 5 says how many
(`intraslice_core/allocation/two_stage.py`).

Differences from the authors' code (github.com/FabrizioSandri/2SSP): the second stage measures the
loss on beginnings of several calibration sequences, of all kinds of text, instead of one sequence;
the number of attentions is the nearest that the MLPs can complete to the budget; widths are
rounded.
"""

from __future__ import annotations

from intraslice_core.methods.method import CompressionMethod, UnitRemoval

TWO_SSP = CompressionMethod(
    allocator="two_stage",
    allocations=("auto",),
    targets=("research", "adaptive"),
    units=UnitRemoval(score="norm", inputs="dense"),
    takes_compressed_models=False,
)
