"""What a stranger's model is, told from its headers alone: nothing of its size is allocated.

Needs neither torch nor transformers, so the service asks here before it accepts a job; the engine
asks again before it opens the model.
"""

from __future__ import annotations

from intraslice_core.inspection.facts import ModelFacts, inspect_model, require_within

__all__ = ["ModelFacts", "inspect_model", "require_within"]
