"""Choice of the method by a tournament (`method: auto`, docs/methods.md).

Every candidate compresses the model with little calibration text. The winner is the one whose model
diverges least from the dense model on held-out text of several kinds (`allocation.judge`); it then
runs in full. Which methods enter, and how much text they get, is planned before
(`cost_model.tournament`). The trials share text and statistics where their methods can. Finished
trials are saved in the resume state, so that an interrupted tournament ends with the same winner.
"""

from __future__ import annotations

from intraslice_core.tournament.choice import choose_method

__all__ = ["choose_method"]
